"""How probable a model finds an answer: LLaDA's Monte Carlo estimate.

A masked diffusion model gives no answer's probability in one forward. Mask k of an
answer's n tokens, k uniform from 1 to n and the set uniform among those of its size;
n / k times the sum of the log-probabilities of the masked tokens is, on average, a
lower bound of log p(answer | prompt) (arXiv:2502.09992, equation 6 of appendix A), and
equal to it if the model's conditionals belong to one joint distribution.

Attributes:
  MASKS: the ways to draw masks by name.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, TypedDict, Unpack, cast

import numpy as np
from jaxtyping import Float, PyTree

from dlm_jax.core.canvas import ABSENT, Prompts
from dlm_jax.core.denoiser import Denoiser
from dlm_jax.core.keys import check_seed
from dlm_jax.core.masks import (
    MASKS,
    Antithetic,
    Drawn,
    Exhaustive,
    Independent,
    Masks,
    Stratified,
    StratifiedReleased,
    parse,
    rule_of,
    to_spec,
)
from dlm_jax.core.options import Options
from dlm_jax.core.sampler import canonical
from dlm_jax.devices import batches, scores
from dlm_jax.devices.parallel import Parallel
from dlm_jax.devices.scores import Scorer
from dlm_jax.errors import InputError
from dlm_jax.samplers import LowConfidence
from dlm_jax.text.prompts import Encoded

__all__ = [
    "MASKS",
    "Antithetic",
    "Drawn",
    "Exhaustive",
    "Independent",
    "Likelihood",
    "Masks",
    "Settings",
    "Stratified",
    "StratifiedReleased",
    "are_greedy",
    "draw",
    "estimate",
    "estimate_masks",
    "estimate_rows",
    "parse",
    "to_spec",
]

# What `Options` needs and a likelihood does not use.
_OPTIONS = Options(gen_length=1)


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """The log-likelihood of an answer.

    Attributes:
      log_likelihood: the estimate of log p(answer | prompt), in nats; NaN if the model
        gave NaN for a mask.
      standard_error: of the estimate, from the spread between batches of masks; 0 if
        every mask was used, NaN if there was one batch only.
      num_samples: masks that the estimate is the mean of.
      num_batches: independent batches of them. The standard error has one degree of
        freedom less, which matters where there are few.
      num_tokens: of the answer.
      is_greedy: whether greedy decoding, one token per forward, gives the answer; None
        if it was not asked for, or if the model gave NaN on the way.
      has_nan: the model gave NaN, for a mask or in greedy decoding.
    """

    log_likelihood: float
    standard_error: float
    num_samples: int
    num_batches: int
    num_tokens: int
    is_greedy: bool | None = None
    has_nan: bool = False


class Settings(TypedDict, total=False):
    """Keywords of all estimates.

    Attributes:
      num_samples: masks per answer; 128 by default.
      seed: of the masks, an integer from 0 to 2^32 - 1; 0 by default.
      masks: how they are drawn, or a spec of that, such as "antithetic". By default
        `Stratified()`, and `Exhaustive()` where that takes no more than num_samples.
      batch_size: canvases per forward, over all devices; 32 by default. Changes a
        result at most by rounding.
      greedy: also find `Likelihood.is_greedy`, at the cost of as many forwards as the
        answer has tokens.
      guidance: scale of classifier-free guidance; 0, the default, is off.
      logits_dtype: what logits are rounded to, see `Options`.
      precision: of products of float32 models, see `Options`.
      logits_bytes: of logits that are computed in one piece, see `Options`.
    """

    num_samples: int
    seed: int
    masks: Masks | str | None
    batch_size: int
    greedy: bool
    guidance: float
    logits_dtype: Any
    precision: str
    logits_bytes: int


# Those that are no field of `Options`.
_OF_RUN = ("num_samples", "seed", "masks", "batch_size", "greedy")


def _options(settings: Settings) -> Options:
    """The `Options` that settings mean.

    Raises:
      InputError: for a keyword that is no setting.
    """
    known = Settings.__annotations__
    if unknown := settings.keys() - known.keys():
        raise InputError(
            f"{', '.join(sorted(unknown))} must be among the settings "
            + ", ".join(known)
        )
    own = {name: value for name, value in settings.items() if name not in _OF_RUN}
    return Options(gen_length=1, **cast(Any, own))


def estimate(
    denoiser: Denoiser, params: PyTree, prompts: Prompts, **settings: Unpack[Settings]
) -> list[Likelihood]:
    """Log-likelihoods of arrays on one device, with any model.

    Args:
      denoiser: the model.
      params: its parameters.
      prompts: tokens hold the answers where `is_blank` is True, which may be anywhere.
      **settings: see `Settings`; but for greedy.

    Returns:
      One for each row.

    Raises:
      InputError: naming the argument that does not fit.
    """
    options = _options(settings)
    if settings.get("greedy"):
        raise InputError("greedy must be given to `estimate_rows`")
    arrays = map(np.asarray, (prompts.tokens, prompts.is_blank, prompts.is_valid))
    rows = [
        Encoded(tokens[is_valid].astype(np.int32), is_blank[is_valid], is_infill=True)
        for tokens, is_blank, is_valid in zip(*arrays, strict=True)
    ]
    scorer = Scorer.on_one_device(denoiser, params)
    batch_size = settings.get("batch_size", 32)
    return _estimate(scorer, rows, _drawn(rows, settings), batch_size, options)


def estimate_rows(
    parallel: Parallel, rows: Sequence[Encoded], **settings: Unpack[Settings]
) -> list[Likelihood]:
    """Log-likelihoods of encoded rows, on all devices.

    Args:
      parallel: the model.
      rows: their blanks hold the answers, as `Codec.encode_answers` gives them.
      **settings: see `Settings`.

    Returns:
      One for each row.

    Raises:
      InputError: naming the argument that does not fit.
    """
    options = _options(settings)
    batch_size = settings.get("batch_size", 32)
    drawn = _drawn(rows, settings)
    found = estimate_masks(parallel, rows, drawn, batch_size, options)
    if not settings.get("greedy"):
        return found
    flags = are_greedy(parallel, rows, batch_size, options)
    return [
        dataclasses.replace(one, is_greedy=flag, has_nan=one.has_nan or flag is None)
        for one, flag in zip(found, flags, strict=True)
    ]


def estimate_masks(
    parallel: Parallel,
    rows: Sequence[Encoded],
    drawn: Sequence[Drawn],
    batch_size: int = 32,
    options: Options = _OPTIONS,
) -> list[Likelihood]:
    """Log-likelihoods of encoded rows, with masks that are given.

    Args:
      parallel: the model.
      rows: their blanks hold the answers.
      drawn: the masks of each.
      batch_size: canvases per forward, over all devices.
      options: `guidance`, `logits_dtype`, `probability_dtype`, `logits_bytes` and
        `precision` are read.

    Returns:
      One for each row.

    Raises:
      InputError: naming the argument that does not fit.
    """
    return _estimate(Scorer.of(parallel), rows, drawn, batch_size, options)


def are_greedy(
    parallel: Parallel,
    rows: Sequence[Encoded],
    batch_size: int = 32,
    options: Options = _OPTIONS,
) -> list[bool | None]:
    """Whether greedy decoding, the surest token per forward, gives the answers.

    As many forwards as an answer has tokens.

    Args:
      parallel: the model.
      rows: their blanks hold the answers.
      batch_size: rows at once, over all devices.
      options: see `estimate_masks`.

    Returns:
      One for each row; None if the model gave NaN before its last token.

    Raises:
      InputError: naming the argument that does not fit.
    """
    if not rows:
        return []
    # Nothing ends a row: the answer may hold a stop token.
    longest = max(int(row.is_blank.sum()) for row in rows)
    options = dataclasses.replace(
        options, gen_length=longest, block_length=ABSENT, temperature=0.0, stop_ids=()
    )
    found: list[bool | None] = [False] * len(rows)
    for done in batches.stream(
        parallel, LowConfidence(), rows, options, seed=0, batch_size=batch_size
    ):
        for place, index in enumerate(done.indices):
            row = rows[index]
            new = done.filled.tokens[place, : row.tokens.size]
            is_same = bool((new == row.tokens).all())
            found[index] = None if done.filled.has_nan[place] else is_same
    return found


def draw(
    rows: Sequence[Encoded], num_samples: int, seed: int, masks: Masks | str | None
) -> list[Drawn]:
    """Draws the masks of every row.

    They are a function of the seed, the prompt and the number of the answer's tokens.
    Answers of one length to the same prompt thus have the same masks, and differences
    between them less noise.

    Args:
      rows: their blanks hold the answers.
      num_samples: masks per answer.
      seed: an integer from 0 to 2^32 - 1.
      masks: how they are drawn, see `Settings`.

    Returns:
      One for each row.

    Raises:
      InputError: naming the argument that does not fit.
    """
    if num_samples < 1:
        raise InputError(f"num_samples ({num_samples}) must be at least 1")
    check_seed(seed)
    rule = None if masks is None else rule_of(masks)
    drawn = []
    for index, row in enumerate(rows):
        length = int(row.is_blank.sum())
        if not length:
            raise InputError(f"row {index} has no answer: is_blank is False everywhere")
        prompt = row.tokens[~row.is_blank].tolist()
        rng = np.random.default_rng([seed, length, *prompt])
        own = rule
        if own is None:
            is_short = length < 63 and 2**length - 1 <= num_samples
            own = Exhaustive() if is_short else Stratified()
        drawn.append(own.draw(rng, length, num_samples))
    return drawn


def _drawn(rows: Sequence[Encoded], settings: Settings) -> list[Drawn]:
    """The masks that settings mean."""
    num_samples, seed = settings.get("num_samples", 128), settings.get("seed", 0)
    return draw(rows, num_samples, seed, settings.get("masks"))


def _estimate(
    scorer: Scorer,
    rows: Sequence[Encoded],
    drawn: Sequence[Drawn],
    batch_size: int,
    options: Options,
) -> list[Likelihood]:
    """Checks the rows, scores every mask once and takes the means."""
    if batch_size < 1:
        raise InputError(f"batch_size ({batch_size}) must be at least 1")
    guidance = options.guidance or 0.0
    if not 0 <= guidance < math.inf:
        raise InputError(f"guidance ({guidance}) must be at least 0 and finite")
    _check(scorer, rows)
    options = dataclasses.replace(
        options, temperature=None, guidance=options.guidance or None
    )

    # Masks that were drawn twice are scored once: all masks of one token are the same.
    distinct, places = [], []
    for one in drawn:
        flat = one.is_mask.reshape(-1, one.is_mask.shape[-1])
        found, place = np.unique(flat, axis=0, return_inverse=True)
        distinct.append(found)
        places.append(place.reshape(one.is_mask.shape[:2]))
    sums = scores.sums(scorer, rows, distinct, batch_size, canonical(options))

    return [
        _mean(
            one, (distinct[i].shape[1] / distinct[i].sum(axis=1) * sums[i])[places[i]]
        )
        for i, one in enumerate(drawn)
    ]


def _mean(drawn: Drawn, values: Float[np.ndarray, "g m"]) -> Likelihood:
    """The estimate of an answer, from the value of each of its masks."""
    means = values @ drawn.weight
    error = 0.0
    if not drawn.is_exact:
        error = (
            means.std(ddof=1) / math.sqrt(means.size) if means.size > 1 else math.nan
        )
    mean = float(means.mean())
    return Likelihood(
        log_likelihood=mean,
        standard_error=float(error),
        num_samples=values.size,
        num_batches=means.size,
        num_tokens=drawn.is_mask.shape[-1],
        has_nan=math.isnan(mean),
    )


def _check(scorer: Scorer, rows: Sequence[Encoded]) -> None:
    """Raises InputError for a model or a row that has no estimate."""
    denoiser = scorer.denoiser
    if denoiser.is_block_causal:
        raise InputError(
            "log_likelihood must be of a model in which every position sees all: this "
            "one is block-causal, and its blocks were trained after clean ones only"
        )
    for index, row in enumerate(rows):
        tokens = row.tokens
        if tokens.size > denoiser.max_length:
            raise InputError(
                f"row {index} has {tokens.size} tokens, more than the model's context "
                f"({denoiser.max_length})"
            )
        if (tokens == denoiser.mask_id).any():
            raise InputError(f"row {index} holds the mask token ({denoiser.mask_id})")
        for token in (tokens.min(), tokens.max()):
            if not 0 <= token < scorer.vocab_size:
                raise InputError(
                    f"row {index}: token ({token}) must be an id from 0 to "
                    f"{scorer.vocab_size - 1}"
                )
