"""Figures as wide as a paper's column; needs matplotlib (extra `eval`)."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlm_jax.errors import InputError

# Okabe and Ito's colours, which most forms of colour blindness tell apart; markers and
# dashes tell them apart in grey as well. The three lengths have no common factor, so
# that styles come again after 360 lines only (of bands, without markers, after 40).
_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#999933",
)
_MARKERS = "osD^vPX*<"
_DASHES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))
_COLUMN_WIDTH = 3.4  # inches


def _style(i: int) -> dict[str, Any]:
    """Colour and dashes of the i-th line of a figure."""
    return {
        "color": _COLOURS[i % len(_COLOURS)],
        "linestyle": _DASHES[i % len(_DASHES)],
    }


def load_pyplot() -> Any:
    """Matplotlib's pyplot in this project's style, without a display.

    Raises:
      InputError: if it is not installed; scripts call this before they measure.
    """
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise InputError("figures need matplotlib: pip install -e '.[eval]'") from None
    matplotlib.use("agg")
    from matplotlib import pyplot

    pyplot.rcParams.update(
        {
            "font.size": 8,
            "axes.grid": True,
            "grid.alpha": 0.3,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "savefig.dpi": 200,
        }
    )
    return pyplot


def curves(
    path: str | os.PathLike,
    points: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    x: str,
    y: str,
    x_label: str,
    y_label: str,
    title: str,
    is_log: bool = False,
    front: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Draws lines with intervals, the legend below the axes.

    Args:
      path: the image file.
      points: by line: x, y and, where there are any, the ends `y_low` and `y_high` of
        an interval.
      x: name of the abscissa in a point.
      y: name of the ordinate.
      x_label: with its unit.
      y_label: with its unit.
      title: of the axes.
      is_log: the abscissa is logarithmic.
      front: points of the common Pareto front, drawn as steps behind the lines.

    Raises:
      InputError: if matplotlib is not installed.
    """
    pyplot = load_pyplot()
    num_entries = len(points) + bool(front)
    height = 2.3 + 0.17 * -(-num_entries // 2)
    figure, axes = pyplot.subplots(
        figsize=(_COLUMN_WIDTH, height), layout="constrained"
    )
    handles = {
        name: _line(axes, i, line, x, y)
        for i, (name, line) in enumerate(points.items())
    }
    if front:
        line = sorted(front, key=lambda point: point[x])
        xs, ys = ([point[name] for point in line] for name in (x, y))
        # Whatever costs more has at least the accuracy of the last point.
        xs.append(max(point[x] for line in points.values() for point in line))
        (handles["front of all"],) = axes.step(
            xs,
            [*ys, ys[-1]],
            where="post",
            color="#333333",
            linewidth=0.8,
            zorder=1,
        )
    if is_log:
        axes.set_xscale("log")
        # Plain numbers, at 1, 2 and 5 of each power of ten.
        axes.xaxis.set_major_locator(pyplot.matplotlib.ticker.LogLocator(10, (1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.set_title(title, fontsize=8)
    figure.legend(
        handles.values(),
        handles,
        loc="outside lower center",
        ncols=2,
        fontsize=6,
        frameon=False,
        handlelength=3.2,
    )
    figure.savefig(path)
    pyplot.close(figure)


def _line(axes: Any, i: int, line: Sequence[Mapping[str, Any]], x: str, y: str) -> Any:
    """Draws the i-th line of `curves`; returns what the legend shows of it."""
    line = sorted(line, key=lambda point: point[x])
    xs, ys = (np.array([point[name] for point in line]) for name in (x, y))
    style = {
        **_style(i),
        "marker": _MARKERS[i % len(_MARKERS)],
        "markersize": 3,
        "linewidth": 1,
    }
    if f"{y}_low" not in line[0]:
        (handle,) = axes.plot(xs, ys, **style)
        return handle
    ends = [[point[f"{y}_{end}"] for point in line] for end in ("low", "high")]
    errors = np.abs(np.array(ends) - ys)
    # The legend gets the line only: bars would hide its dashes and marker.
    handle, *_ = axes.errorbar(xs, ys, errors, elinewidth=0.5, capsize=1, **style)
    return handle


def bands(
    path: str | os.PathLike,
    panels: Sequence[Mapping[str, Any]],
    lines: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    x: str,
    x_label: str,
    title: str,
) -> None:
    """Draws lines in shaded bands, panels of one abscissa above each other.

    Args:
      path: the image file.
      panels: each with `y`, the ordinate's name in a point, its `label`, and, for a
        band, `low` and `high`, the names of its ends.
      lines: points by name; the same in every panel.
      x: name of the abscissa in a point.
      x_label: with its unit.
      title: of the figure.

    Raises:
      InputError: if matplotlib is not installed.
    """
    pyplot = load_pyplot()
    figure, all_axes = pyplot.subplots(
        len(panels),
        figsize=(_COLUMN_WIDTH, 0.6 + 1.8 * len(panels)),
        layout="constrained",
        sharex=True,
        squeeze=False,
    )
    for panel, axes in zip(panels, all_axes[:, 0], strict=True):
        for i, (name, line) in enumerate(lines.items()):
            # One legend for all panels.
            label = name if axes is all_axes[0, 0] else None
            style = _style(i)
            xs = [point[x] for point in line]
            ys = [point[panel["y"]] for point in line]
            axes.plot(xs, ys, linewidth=1, label=label, **style)
            if "low" in panel:
                low, high = ([p[panel[end]] for p in line] for end in ("low", "high"))
                axes.fill_between(
                    xs, low, high, color=style["color"], alpha=0.2, linewidth=0
                )
        axes.set_ylabel(panel["label"])
    # The figure's title: the axes are narrower, because of their labels.
    figure.suptitle(title, fontsize=8)
    all_axes[-1, 0].set_xlabel(x_label)
    figure.legend(loc="outside lower center", ncols=3, fontsize=6, frameon=False)
    figure.savefig(path)
    pyplot.close(figure)
