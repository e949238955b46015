"""Recorded runs replayed one after the other, for scripts."""

import itertools
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dlm_jax import checkpoints
from dlm_jax.core.sampler import Sampler
from dlm_jax.devices.runner import DataParallel
from dlm_jax.errors import InputError
from dlm_jax.models import as_denoiser
from dlm_jax.parity import replay, traces


class Replayed(NamedTuple):
    """A recorded run, replayed.

    Attributes:
      trace: the run.
      nfe: forwards of dlm_jax; None if the runs were not compared.
      is_match: the canvases and the number of forwards are equal.
      result: in words.
    """

    trace: traces.Trace
    nfe: int | None
    is_match: bool
    result: str


def replayed(
    recorded: Sequence[traces.Trace],
    root: pathlib.Path,
    dtype: str | None,
    tolerance: float = 1e-3,
    given: Sampler | None = None,
) -> Iterator[Replayed]:
    """Replays runs by their checkpoints, of which one is in memory at a time.

    Args:
      recorded: the runs.
      root: what the paths of their checkpoints are relative to.
      dtype: of the weights; as stored if None.
      tolerance: see `replay.replay`.
      given: the sampler; by default the one that a run's rule asks for.
    """
    ordered = sorted(recorded, key=lambda trace: trace.checkpoint)
    for checkpoint, group in itertools.groupby(ordered, lambda t: t.checkpoint):
        model = None
        for trace in group:
            try:
                sampler = given or replay.sampler_for(trace)
                if model is None:
                    loaded = checkpoints.load(root / checkpoint, dtype)
                    denoiser, params = as_denoiser(loaded)
                    model = denoiser, params, DataParallel(denoiser, params)
                found = replay.replay(trace, *model, tolerance, sampler)
            except InputError as error:
                yield Replayed(trace, None, False, f"not compared: {error}")
            else:
                yield Replayed(trace, found.nfe, found.is_match, _describe(found))


def _describe(comparison: replay.Comparison) -> str:
    """The result of a comparison."""
    divergence = comparison.divergence
    if divergence is None:
        return "match" if comparison.is_match else "same output, other NFE"
    step = "output" if divergence.step is None else f"step {divergence.step}"
    if divergence.position is None:
        return f"{step}: only one run goes on"
    gap = "-" if divergence.gap is None else f"{divergence.gap:.2g}"
    return (
        f"{step}, position {divergence.position}: {divergence.reference_token}, "
        f"dlm_jax {divergence.token}, gap {gap}, {divergence.label}"
    )
