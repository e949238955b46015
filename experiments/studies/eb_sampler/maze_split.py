"""Both errors of samplers on mazes, whose distribution is known; tables of them."""

import dataclasses
import math
import os
import pathlib
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, PyTree

from dlm_jax import samplers
from dlm_jax.core.denoiser import Denoiser
from dlm_jax.evaluation import stats
from dlm_jax.evaluation.tables import markdown
from dlm_jax.samplers.entropy_bound import EntropyBound
from dlm_jax.tasks import maze
from dlm_jax.tasks.splits import cached
from dlm_jax.text.codec import Codec
from dlm_jax.text.prompts import pad
from experiments.studies.eb_sampler import error_split
from experiments.studies.eb_sampler.error_split import Joint, Split


def joint(prompt: Int[np.ndarray, "l"]) -> Joint:
    """All shortest paths of a maze, equally likely: what `maze.random_mazes` draws.

    Args:
      prompt: tokens of the maze, with masks at its blanks.
    """
    tokens = np.asarray(prompt, np.int32)
    start, goal = (
        int(np.flatnonzero(tokens[maze.CELLS] == maze.VOCABULARY.index(mark))[0])
        for mark in "SG"
    )
    between = maze.CELLS[maze.PAIRS].sum(1) // 2
    open_pairs = maze.PAIRS[tokens[between] == maze.MASK_ID]
    adjacent = np.zeros((1, maze.NUM_CELLS, maze.NUM_CELLS))
    adjacent[0, open_pairs[:, 0], open_pairs[:, 1]] = 1
    adjacent = np.maximum(adjacent, adjacent.transpose(0, 2, 1))
    distances = maze.shortest_paths(adjacent, np.array([goal]))[0][0]
    paths = [[start]]
    for left in range(int(distances[start]) - 1, -1, -1):
        is_next = distances == left
        paths = [
            [*path, int(cell)]
            for path in paths
            for cell in np.flatnonzero(adjacent[0, path[-1]] * is_next)
        ]
    off, on = map(maze.VOCABULARY.index, ".o")
    blank = np.where(tokens == maze.MASK_ID, off, tokens)
    outcomes = np.repeat(blank[None], len(paths), 0)
    for outcome, path in zip(outcomes, paths, strict=True):
        cells = maze.CELLS[path]
        outcome[cells[1:-1]] = on
        outcome[(cells[1:] + cells[:-1]) // 2] = on
    return Joint(outcomes.astype(np.int32), np.full(len(paths), 1 / len(paths)))


def measure(
    denoiser: Denoiser,
    params: PyTree,
    codec: Codec,
    specs: Sequence[str],
    *,
    split: str,
    num_examples: int,
    example_seed: int,
    batch_size: int,
    directory: str | os.PathLike,
    digest: str,
) -> dict[str, Split]:
    """Both errors of samplers on mazes, with the same paths drawn for each.

    Args:
      denoiser: a model of mazes.
      params: its parameters.
      codec: its tokenizer.
      specs: of the samplers.
      split: of the task's examples.
      num_examples: the first ones.
      example_seed: of the mazes, and of the paths drawn.
      batch_size: rows in flight at once.
      directory: keeps what is measured, a file per sampler.
      digest: of the checkpoint; with another, all is measured again.

    Returns:
      By spec.
    """
    task = maze.Maze()
    examples = task.examples(split, num_examples, example_seed)
    rows = task.encode(codec, examples)
    joints = [joint(row.tokens) for row in rows]
    truth = np.stack(
        [
            own.outcomes[
                np.random.default_rng([example_seed, i]).choice(
                    len(own.probability), p=own.probability
                )
            ]
            for i, own in enumerate(joints)
        ]
    )
    prompts = pad(rows, maze.NUM_TOKENS)
    made_by = {
        "num_examples": num_examples,
        "example_seed": example_seed,
        "split": zlib.crc32(split.encode()),
        # Sixty bits of it are enough, and an integer.
        "checkpoint": int(digest[:15], 16),
    }
    results = {}
    for spec in specs:

        def make(spec: str = spec, **_: int) -> dict[str, np.ndarray]:
            measured = error_split.split(
                denoiser,
                params,
                samplers.parse(spec),
                prompts,
                joints,
                truth,
                gen_length=task.gen_length,
                batch_size=batch_size,
            )
            return {
                field.name: getattr(measured, field.name)
                for field in dataclasses.fields(measured)
            }

        name = re.sub(r"[^\w.]+", "_", samplers.canonical_spec(spec)).strip("_")
        path = pathlib.Path(directory) / f"{name}.npz"
        results[spec] = Split(**cached(path, made_by, make))
    return results


def points(
    splits: Mapping[str, Split],
) -> dict[str, list[dict[str, Any]]]:
    """Both errors against forwards, for `figures.curves`: `nfe`, `nats` and its ends.

    Args:
      splits: by spec; a bounded entropy or a fixed number of tokens.
    """
    lines: dict[str, list[dict[str, Any]]] = {}
    for spec, result in splits.items():
        kind = "EB" if _gamma(spec) is not None else "fixed k"
        for name, values in (
            ("joint dependence", result.dependence_error),
            ("model", result.model_error),
        ):
            low, high = stats.bootstrap_interval(values)
            lines.setdefault(f"{kind}: {name} error", []).append(
                {
                    "nfe": float(result.num_steps.mean()),
                    "nats": float(values.mean()),
                    "nats_low": low,
                    "nats_high": high,
                }
            )
    return lines


def _gamma(spec: str) -> float | None:
    sampler = samplers.parse(spec)
    return float(sampler.gamma) if isinstance(sampler, EntropyBound) else None


def _is_finite(spec: str) -> bool:
    gamma = _gamma(spec)
    return gamma is not None and math.isfinite(gamma)


def _mean(values: Float[np.ndarray, "n"]) -> str:
    low, high = stats.bootstrap_interval(values)
    return f"{values.mean():.3f} ({low:.3f} to {high:.3f})"


def table(splits: Mapping[str, Split]) -> str:
    """Markdown: both errors of each sampler, with 95 % intervals over mazes."""
    rows = [
        [
            "sampler",
            "NFE",
            "model error",
            "joint dependence error",
            "sum",
            "mazes with a step above gamma",
        ]
    ]
    for spec, result in splits.items():
        gamma = _gamma(spec)
        is_above = result.largest_dependence_error > (gamma or 0) + 1e-9
        rows.append(
            [
                f"`{spec}`",
                f"{result.num_steps.mean():.2f}",
                _mean(result.model_error),
                _mean(result.dependence_error),
                f"{(result.model_error + result.dependence_error).mean():.3f}",
                "" if gamma is None else f"{is_above.mean():.1%}",
            ]
        )
    return markdown(rows)


def matched_table(splits: Mapping[str, Split]) -> str:
    """Markdown: each bound beside the fixed k `nearest` to it, on the same mazes."""
    rows = [
        [
            "bound",
            "NFE",
            "nearest fixed k",
            "NFE",
            "model error, difference",
            "joint dependence error, difference",
        ]
    ]
    for spec, name in _matches(splits).items():
        own, other = splits[spec], splits[name]
        rows.append(
            [
                f"`{spec}`",
                f"{own.num_steps.mean():.2f}",
                f"`{name}`",
                f"{other.num_steps.mean():.2f}",
                _mean(own.model_error - other.model_error),
                _mean(own.dependence_error - other.dependence_error),
            ]
        )
    return markdown(rows)


def nearest(spec: str, splits: Mapping[str, Split]) -> str | None:
    """The fixed-k sampler whose mean NFE is nearest by ratio; None if 1.5 away.

    One token a step is none of them: it has no joint dependence error by definition.
    """
    here = splits[spec].num_steps.mean()

    def distance(name: str) -> float:
        return abs(math.log(splits[name].num_steps.mean() / here))

    fixed = [
        name
        for name in splits
        if _gamma(name) is None and splits[name].dependence_error.any()
    ]
    best = min(fixed, key=distance, default=None)
    return best if best and distance(best) < math.log(1.5) else None


def _matches(splits: Mapping[str, Split]) -> dict[str, str]:
    """The nearest fixed k of every finite bound that has one."""
    bounds = [spec for spec in splits if _is_finite(spec)]
    found = {spec: nearest(spec, splits) for spec in bounds}
    return {spec: name for spec, name in found.items() if name is not None}


def sentences(splits: Mapping[str, Split]) -> list[str]:
    """What the split shows of finite bounds, by the signs of intervals of differences.

    Each difference is of the same mazes and paths.
    """
    bounds = [spec for spec in splits if _is_finite(spec)]
    between = _by_sign(
        {
            spec: splits[spec].dependence_error - splits[spec].model_error
            for spec in bounds
        }
    )
    made = [
        (between["+"], "joint dependence costs more than the model's errors"),
        (between["-"], "the model's errors cost more than joint dependence"),
        (between["0"], "neither error is measurably the larger"),
    ]
    fixed = _by_sign(
        {
            spec: splits[spec].dependence_error - splits[name].dependence_error
            for spec, name in _matches(splits).items()
        }
    )
    other = "that of the fixed k nearest in forwards"
    made += [
        (fixed["-"], f"the joint dependence error is smaller than {other}"),
        (fixed["+"], f"the joint dependence error is larger than {other}"),
        (
            fixed["0"],
            f"the joint dependence error does not measurably differ from {other}",
        ),
    ]
    return [f"At gamma {', '.join(at)}, {what}." for at, what in made if at]


def _by_sign(differences: Mapping[str, np.ndarray]) -> dict[str, list[str]]:
    """Gammas by whether the interval of a mean difference is above 0, below, around."""
    made: dict[str, list[str]] = {"+": [], "-": [], "0": []}
    for spec, values in differences.items():
        low, high = stats.bootstrap_interval(values)
        sign = "+" if low > 0 else "-" if high < 0 else "0"
        made[sign].append(f"{_gamma(spec):g}")
    return made
