"""Accuracy against forwards: the points of a sweep, their fronts and areas."""

import csv
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlm_jax import samplers
from dlm_jax.evaluation import stats
from dlm_jax.evaluation.run import Summary
from dlm_jax.evaluation.tables import markdown


def by_name(specs: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The curves of some specs: those of one sampler are the points of one curve.

    Args:
      specs: of samplers, in any order.

    Returns:
      Specs by the sampler's name, in the order given.
    """
    curves: dict[str, tuple[str, ...]] = {}
    for spec in specs:
        name = spec.partition("(")[0].strip()
        curves[name] = (*curves.get(name, ()), spec)
    return curves


def points(
    curves: Mapping[str, Sequence[str]], results: Sequence[Summary]
) -> dict[str, list[dict[str, Any]]]:
    """The points of each curve.

    Args:
      curves: specs by the curve's name.
      results: of all of them.

    Returns:
      By curve: `sampler`, `accuracy` and its 95 % interval `accuracy_low`,
      `accuracy_high`, `nfe` (mean), `tpf` and `tps` (tokens per forward and per second,
      see `Summary`; None where there is no TPS), `num_examples`, and `is_pareto`: no
      point of any curve is at least as good in both accuracy and NFE.
    """
    by_spec = {result.sampler: result for result in results}
    made = {}
    for curve, specs in curves.items():
        made[curve] = []
        for spec in specs:
            result = by_spec[samplers.canonical_spec(spec)]
            low, high = stats.accuracy_interval(result.is_correct)
            made[curve].append(
                {
                    "sampler": samplers.short_spec(spec),
                    "cache": result.cache,
                    "accuracy": float(result.is_correct.mean()),
                    "accuracy_low": low,
                    "accuracy_high": high,
                    "nfe": float(result.nfe.mean()),
                    "tpf": result.tokens_per_forward,
                    "tps": result.tokens_per_second,
                    "num_examples": result.is_correct.shape[1],
                }
            )
    everything = [point for line in made.values() for point in line]
    best = stats.pareto_front(*_columns(everything))
    for i, point in enumerate(everything):
        point["is_pareto"] = i in best
    return made


def front(made: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Mapping[str, Any]]:
    """The points of the common front, by forwards."""
    line = [point for line in made.values() for point in line if point["is_pareto"]]
    return sorted(line, key=lambda point: point["nfe"])


def _columns(line: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    return [point["nfe"] for point in line], [point["accuracy"] for point in line]


def areas(made: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, float]:
    """The area under each curve's front, and under that of all together.

    The area is the mean accuracy for a budget of forwards that is drawn uniformly in
    its logarithm, from 1 to the largest mean NFE of any point.
    """
    everything = [point for line in made.values() for point in line]
    high = max(point["nfe"] for point in everything)
    lines = {**made, "all": everything}
    return {
        name: stats.area_under_front(*_columns(line), 1.0, high)
        for name, line in lines.items()
    }


def write_csv(
    path: str | os.PathLike, made: Mapping[str, Sequence[Mapping[str, Any]]]
) -> None:
    """Writes one line per point; `area` is its curve's, `area_of_all` the front's."""
    area = areas(made)
    rows = [
        {"curve": name, **point, "area": area[name], "area_of_all": area["all"]}
        for name, line in made.items()
        for point in line
    ]
    with pathlib.Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def table(
    made: Mapping[str, Sequence[Mapping[str, Any]]], has_speeds: bool = True
) -> str:
    """Markdown: each curve's area, its best point, and the cheapest point near it.

    Args:
      made: the points.
      has_speeds: with TPF and TPS of the best point.
    """
    area = areas(made)
    rows = [
        [
            "curve",
            "area",
            "best accuracy",
            "its NFE",
            *(["its TPF", "its TPS"] if has_speeds else []),
            "lowest NFE within 1 point of the best",
            "points on the common front",
        ]
    ]
    for name, line in made.items():
        best = max(line, key=lambda point: (point["accuracy"], -point["nfe"]))
        speed = "-" if best["tps"] is None else f"{best['tps']:.0f}"
        near = [p["nfe"] for p in line if p["accuracy"] >= best["accuracy"] - 0.01]
        rows.append(
            [
                name,
                f"{area[name]:.3f}",
                f"{best['accuracy']:.1%}",
                f"{best['nfe']:.1f}",
                *([f"{best['tpf']:.2f}", speed] if has_speeds else []),
                f"{np.min(near):.1f}",
                f"{sum(point['is_pareto'] for point in line)} of {len(line)}",
            ]
        )
    empty = [""] * (len(rows[0]) - 2)
    rows.append(["all", f"{area['all']:.3f}", *empty])
    return markdown(rows)
