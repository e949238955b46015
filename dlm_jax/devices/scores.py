"""Any number of masked rows through a model, and what it gives their hidden tokens."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from dlm_jax.core.denoiser import Denoiser
from dlm_jax.core.options import Options
from dlm_jax.core.score import Noised, score
from dlm_jax.devices.runner import Parallel
from dlm_jax.text.prompts import Encoded, bucket

_score = jax.jit(score, static_argnums=0)


class Scorer(NamedTuple):
    """A model, on one device or several.

    Attributes:
      denoiser: the model.
      vocab_size: tokens that it has.
      num_groups: what divides the canvases of a call.
      score: (canvases, options) -> log-probabilities [..., r] of the canvases in order.
    """

    denoiser: Denoiser
    vocab_size: int
    num_groups: int
    score: Callable[[Noised, Options], Array]

    @classmethod
    def of(cls, parallel: Parallel) -> "Scorer":
        """On all devices of a runner."""
        return cls(
            denoiser=parallel.denoiser,
            vocab_size=parallel.vocab_size,
            num_groups=parallel.num_groups,
            score=functools.partial(parallel.apply, score),
        )

    @classmethod
    def on_one_device(cls, denoiser: Denoiser, params: PyTree) -> "Scorer":
        """Where the parameters lie."""
        return cls(
            denoiser=denoiser,
            vocab_size=jax.eval_shape(denoiser.head, params).shape[0],
            num_groups=1,
            score=functools.partial(_score, denoiser, params),
        )


def sums(
    scorer: Scorer,
    rows: Sequence[Encoded],
    masks: Sequence[Bool[np.ndarray, "u n"]],
    batch_size: int,
    options: Options,
) -> list[Float[np.ndarray, "u"]]:
    """Summed log-probabilities of the masked tokens, for every mask of every row.

    Args:
      scorer: the model.
      rows: their blanks hold the answers.
      masks: of each row u different masks of its answer's n tokens.
      batch_size: canvases per forward, over all devices.
      options: of canonical types; see `core.score`.

    Returns:
      In float64, one array per row.
    """
    found = [np.zeros(len(own)) for own in masks]
    # Rows of similar length next to each other, so that few columns are padding.
    max_length = scorer.denoiser.max_length
    order = sorted(
        range(len(rows)),
        key=lambda i: (bucket(rows[i].tokens.size, max_length), masks[i].shape[1]),
    )
    jobs = [(i, u) for i in order for u in range(len(masks[i]))]
    # Few canvases need no full batch; powers of two are few shapes.
    size = min(batch_size, 1 << max(len(jobs) - 1, 0).bit_length())
    size = -(-size // scorer.num_groups) * scorer.num_groups

    def started() -> Iterator[tuple[list[tuple[int, int]], Array]]:
        for start in range(0, len(jobs), size):
            chosen = jobs[start : start + size]
            batch = _noised(scorer.denoiser, rows, masks, chosen, size)
            yield chosen, scorer.score(batch, options)

    # The next batch is on its way before the device is waited for.
    waiting = None
    for following in itertools.chain(started(), [None]):
        if waiting is not None:
            chosen, values = waiting
            log_prob = np.asarray(values, np.float64)
            log_prob = log_prob.reshape(-1, log_prob.shape[-1])
            for (i, u), own in zip(chosen, log_prob, strict=False):
                # In the same order at any padding, so that the sum is the same.
                found[i][u] = own[: masks[i][u].sum()].sum()
        waiting = following
    return found


def _noised(
    denoiser: Denoiser,
    rows: Sequence[Encoded],
    masks: Sequence[Bool[np.ndarray, "u n"]],
    jobs: Sequence[tuple[int, int]],
    size: int,
) -> Noised:
    """The canvases of some (row, mask), in the shapes of few programs."""
    max_length = denoiser.max_length
    length = bucket(max(rows[i].tokens.size for i, _ in jobs), max_length)
    width = bucket(max(masks[i].shape[1] for i, _ in jobs), max_length)
    batch = Noised(
        tokens=np.zeros((size, length), np.int32),
        is_valid=np.zeros((size, length), bool),
        is_prompt=np.zeros((size, length), bool),
        region=np.full((size, width), length, np.int32),
        truth=np.zeros((size, width), np.int32),
    )
    for place in range(size):
        # The last batch is filled up with its last canvas.
        i, u = jobs[min(place, len(jobs) - 1)]
        row = rows[i]
        n = row.tokens.size
        columns = np.flatnonzero(row.is_blank)[masks[i][u]]
        batch.tokens[place, :n] = row.tokens
        batch.tokens[place, columns] = denoiser.mask_id
        batch.is_valid[place, :n] = True
        batch.is_prompt[place, :n] = ~row.is_blank
        batch.region[place, : columns.size] = columns
        batch.truth[place, : columns.size] = row.tokens[columns]
    return batch
