"""Figures: the file, what the axes say, and that nothing is cut off or hidden."""

import numpy as np
import pytest

from configs import sweep
from dlm_jax.evaluation import figures

pyplot = pytest.importorskip("matplotlib.pyplot")

LINES = {
    "first, with a rather long name": [
        {"nfe": 16, "accuracy": 0.9, "accuracy_low": 0.8, "accuracy_high": 0.95},
        {"nfe": 2, "accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6},
    ],
    "second": [{"nfe": 4, "accuracy": 0.7}, {"nfe": 8, "accuracy": 0.75}],
}
LABELS = {"x_label": "forwards (NFE)", "y_label": "accuracy", "title": "a task"}


@pytest.fixture
def drawn(monkeypatch):
    """Keeps figures open that would be closed once they are written."""
    kept = []
    monkeypatch.setattr(pyplot, "close", kept.append)
    yield kept
    monkeypatch.undo()
    pyplot.close("all")


def test_curves_are_written_and_their_axes_named(tmp_path, drawn):
    path = tmp_path / "curves.png"
    figures.curves(path, LINES, x="nfe", y="accuracy", is_log=True, **LABELS)
    assert path.read_bytes().startswith(b"\x89PNG")
    (figure,) = drawn
    (axes,) = figure.axes
    assert axes.get_xlabel() == LABELS["x_label"]
    assert axes.get_ylabel() == LABELS["y_label"]
    assert axes.get_title() == LABELS["title"] and axes.get_xscale() == "log"
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == set(LINES)
    # Plain numbers, not powers of ten.
    shown = [label.get_text() for label in axes.get_xticklabels()]
    assert {"2", "5", "10"} <= set(shown)
    # The legend lies below the axes and inside the figure.
    renderer = figure.canvas.get_renderer()
    box, below = (part.get_window_extent(renderer) for part in (axes, legend))
    assert below.y1 < box.y0
    assert below.x0 >= 0 and below.x1 <= figure.bbox.x1 and below.y0 >= 0


def test_curves_are_joined_by_the_abscissa_with_their_intervals(tmp_path, drawn):
    figures.curves(tmp_path / "c.png", LINES, x="nfe", y="accuracy", **LABELS)
    (axes,) = drawn[0].axes
    assert axes.get_xscale() == "linear"
    (bars,) = axes.containers
    line, caps, _ = bars
    np.testing.assert_allclose(line.get_xydata(), [[2, 0.5], [16, 0.9]])
    ends = sorted(float(y) for cap in caps for y in cap.get_ydata())
    np.testing.assert_allclose(ends, [0.4, 0.6, 0.8, 0.95])
    assert len({one.get_color() for one in axes.lines}) == 2


def test_every_curve_of_the_sweep_has_its_own_style(tmp_path, drawn):
    names = list(sweep.get_config().curves)
    assert len(names) >= 14
    lines = {
        name: [{"nfe": nfe, "accuracy": i / 20} for nfe in (2, 30)]
        for i, name in enumerate(names)
    }
    front = [{"nfe": 2, "accuracy": 0.7}]
    path = tmp_path / "c.png"
    figures.curves(path, lines, x="nfe", y="accuracy", front=front, **LABELS)
    (figure,) = drawn
    (axes,) = figure.axes
    styles = {
        (line.get_color(), line.get_marker(), line.get_linestyle())
        for line in axes.lines
    }
    assert len(styles) == len(names) + 1
    # In grey, where two colours may look alike, and dashes alone are too few.
    assert len({style[1:] for style in styles}) == len(styles)
    (legend,) = figure.legends
    renderer = figure.canvas.get_renderer()
    box, below = (part.get_window_extent(renderer) for part in (axes, legend))
    assert below.y1 < box.y0 and below.y0 >= 0
    assert below.x0 >= 0 and below.x1 <= figure.bbox.x1
    entries = [text.get_text() for text in legend.get_texts()]
    assert entries == [*names, "front of all"]
    shown = [(line.get_color(), line.get_marker()) for line in legend.get_lines()]
    assert shown == [(line.get_color(), line.get_marker()) for line in axes.lines]


def test_front_is_drawn_as_steps_behind_the_curves(tmp_path, drawn):
    front = [{"nfe": 8, "accuracy": 0.75}, {"nfe": 2, "accuracy": 0.5}]
    figures.curves(
        tmp_path / "c.png", LINES, x="nfe", y="accuracy", front=front, **LABELS
    )
    (axes,) = drawn[0].axes
    (steps,) = (line for line in axes.lines if line.get_drawstyle() == "steps-post")
    # To the dearest point of any curve.
    np.testing.assert_allclose(steps.get_xydata(), [[2, 0.5], [8, 0.75], [16, 0.75]])
    others = [line for line in axes.lines if line is not steps]
    assert steps.get_zorder() < min(line.get_zorder() for line in others)


def test_bands_share_an_abscissa_and_one_legend(tmp_path, drawn):
    panels = [
        {"y": "mean", "label": "tokens", "low": "low", "high": "high"},
        {"y": "share", "label": "share"},
    ]
    points = [
        {"step": i, "mean": i / 2, "low": i / 3, "high": i, "share": 1 / (1 + i)}
        for i in range(4)
    ]
    path = tmp_path / "bands.png"
    figures.bands(
        path,
        panels,
        {"a": points, "b": points[::-1]},
        x="step",
        x_label="step",
        title="two panels",
    )
    assert path.read_bytes().startswith(b"\x89PNG")
    (figure,) = drawn
    first, second = figure.axes
    assert (first.get_ylabel(), second.get_ylabel()) == ("tokens", "share")
    assert second.get_xlabel() == "step"
    assert first.figure.get_suptitle() == "two panels"
    assert len(first.collections) == 2 and not second.collections
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]
