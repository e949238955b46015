"""The premises of Saber (arXiv:2510.18165), measured along a generation.

Its acceleration needs candidates that grow more confident as context grows; its
backtracking needs committed tokens whose confidence falls. Both are measured by running
the model again on every canvas of a generation.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from dlm_jax.core.canvas import View
from dlm_jax.core.denoiser import Denoiser, full_precision
from dlm_jax.core.keys import row_keys
from dlm_jax.core.loop import generate
from dlm_jax.core.options import Options
from dlm_jax.core.predict import predict
from dlm_jax.core.sampler import Sampler
from dlm_jax.errors import InputError
from dlm_jax.evaluation import stats
from dlm_jax.text.prompts import Encoded, bucket, pad

# A confidence that changed by less may have changed by rounding only.
_ROUNDING = 1e-4


@dataclasses.dataclass(frozen=True)
class Watched:
    """Confidences along some generations; s forwards at most, g blanks at most.

    Attributes:
      confidence: float [n, s + 1, g]; before every forward and at the end: of an
        undecided blank the probability of its candidate, of a decided one that of the
        token it holds; NaN where the row has no such blank or step.
      is_mask: bool [n, s + 1, g]; the blank is undecided.
      commit_step: int [n, g]; of the commit that was kept; -1 if there was none.
      num_steps: int [n]; forwards.
    """

    confidence: Float[np.ndarray, "n t g"]
    is_mask: Bool[np.ndarray, "n t g"]
    commit_step: Int[np.ndarray, "n g"]
    num_steps: Int[np.ndarray, "n"]


def watch(
    denoiser: Denoiser,
    params: PyTree,
    sampler: Sampler,
    rows: Sequence[Encoded],
    options: Options,
    *,
    seed: int = 0,
    batch_size: int = 32,
) -> Watched:
    """Generates, then runs the model again on every canvas of the generation.

    Args:
      denoiser: the model.
      params: its parameters.
      sampler: the rule; one that shows the model the canvas and nothing else.
      rows: the prompts.
      options: lengths and stops; without guidance.
      seed: of the random keys.
      batch_size: canvases that are shown at once.

    Raises:
      InputError: if the options have guidance, or do not fit the rows.
    """
    if options.guidance:
        raise InputError(
            f"guidance ({options.guidance}) must be 0 to watch confidences"
        )
    n, g = len(rows), options.gen_length
    options = dataclasses.replace(options, has_trajectory=True, num_slots=batch_size)
    prompts = pad(
        rows,
        bucket(max(r.tokens.size for r in rows), denoiser.max_length),
    )
    keys = row_keys(seed, np.arange(n))
    done = jax.device_get(generate(denoiser, params, sampler, prompts, keys, options))
    num_blanks = prompts.is_blank.sum(axis=1)
    # Blanks in order, then any other columns, which are dropped below.
    blanks = np.argsort(~prompts.is_blank, axis=1, kind="stable")[:, :g]
    has_blank = np.arange(blanks.shape[1]) < num_blanks[:, None]

    canvas = done.trajectory.canvas
    confidence = np.full((*canvas.shape[:2], blanks.shape[1]), np.nan)
    steps = np.arange(canvas.shape[1])
    row_ids, step_ids = np.nonzero(steps <= done.num_steps[:, None])
    for start in range(0, len(row_ids), batch_size):
        # The last group is filled up with its own last canvas: one program for all.
        places = np.arange(start, start + batch_size).clip(max=len(row_ids) - 1)
        i, j = row_ids[places], step_ids[places]
        confidence[i, j] = _confidence(
            denoiser, options, params, canvas[i, j], prompts.is_valid[i], blanks[i]
        )
    confidence[~np.broadcast_to(has_blank[:, None], confidence.shape)] = np.nan
    at_blanks = np.take_along_axis(canvas, blanks[:, None], axis=2)
    return Watched(
        confidence=confidence,
        is_mask=(at_blanks == denoiser.mask_id) & has_blank[:, None],
        commit_step=np.where(
            has_blank, np.take_along_axis(done.commit_step, blanks, axis=1), -1
        ),
        num_steps=np.asarray(done.num_steps),
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _confidence(
    denoiser: Denoiser,
    options: Options,
    params: PyTree,
    tokens: Int[Array, "b l"],
    is_valid: Bool[Array, "b l"],
    blanks: Int[Array, "b g"],
) -> Float[Array, "b g"]:
    """One forward: of candidates where masks stand, else of the token there."""
    b, length = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), tokens.shape)
    view = View(tokens, positions, is_valid[:, None], sees_first=True)
    held = jnp.take_along_axis(tokens, blanks, axis=1)
    with full_precision(denoiser, params):
        hidden, _ = denoiser.denoise(params, view, blanks, ())
        prediction = predict(
            hidden[None],
            denoiser.head(params),
            held,
            ("held_log_prob",),
            mask_id=denoiser.mask_id,
            keys=row_keys(0, np.arange(b)),
            positions=blanks,
            suppressed_ids=options.suppressed_ids,
            deferred_ids=options.deferred_ids,
            logits_bytes=options.logits_bytes,
        )
    is_mask = held == denoiser.mask_id
    return jnp.exp(jnp.where(is_mask, prediction.log_prob, prediction.held_log_prob))


def rise(watched: Watched, num_bins: int = 20) -> list[dict[str, Any]]:
    """The confidence of candidates against the fraction of decided blanks.

    Args:
      watched: the generations.
      num_bins: of the fraction of decided blanks.

    Returns:
      By bin: `decided` (its middle), `mean` over the undecided blanks with a 95 %
      interval `mean_low`, `mean_high` (bootstrap over generations), `best` likewise of
      the most confident blank, and `num` generations.
    """
    decided, candidates = _undecided(watched)
    is_seen = watched.is_mask.any(axis=2) & ~np.isnan(candidates).all(axis=2)
    bins = np.minimum((decided * num_bins).astype(int), num_bins - 1)
    points = []
    for b in range(num_bins):
        chosen = is_seen & (bins == b)
        rows = [
            (np.nanmean(c[w], axis=1).mean(), np.nanmax(c[w], axis=1).mean())
            for c, w in zip(candidates, chosen, strict=True)
            if w.any()
        ]
        if not rows:
            continue
        point = {"decided": (b + 0.5) / num_bins, "num": len(rows)}
        for name, values in zip(("mean", "best"), np.transpose(rows), strict=True):
            low, high = stats.bootstrap_interval(values)
            point |= {name: float(values.mean())}
            point |= {f"{name}_low": low, f"{name}_high": high}
        points.append(point)
    return points


def slope(watched: Watched) -> tuple[float, tuple[float, float]]:
    """How the mean confidence of undecided blanks changes while all get decided.

    Args:
      watched: the generations.

    Returns:
      The mean over generations of the least-squares slope of that confidence over the
      fraction of decided blanks, and its 95 % interval (bootstrap over generations);
      those of one forward have none and are left out.
    """
    decided, candidates = _undecided(watched)
    slopes = []
    for x, c in zip(decided, candidates, strict=True):
        is_seen = ~np.isnan(c).all(axis=1)
        if is_seen.sum() > 1:
            y = np.nanmean(c[is_seen], axis=1)
            slopes.append(np.polyfit(x[is_seen], y, 1)[0])
    if not slopes:
        return np.nan, (np.nan, np.nan)
    return float(np.mean(slopes)), stats.bootstrap_interval(np.array(slopes))


def growth(watched: Watched) -> tuple[float, tuple[float, float]]:
    """How the confidence of a blank changes in a step that leaves it undecided.

    Blank by blank, so that it does not matter which ones are left: the mean over those
    that are left falls when the surest are decided first, even where each one grows.

    Args:
      watched: the generations.

    Returns:
      The mean over generations of the mean change in probability of the candidates of
      such blanks, and its 95 % interval (bootstrap over generations); generations
      without such a step are left out.
    """
    _, candidates = _undecided(watched)
    changes = np.diff(candidates, axis=1)
    means = np.array([c[~np.isnan(c)].mean() for c in changes if not np.isnan(c).all()])
    if not len(means):
        return np.nan, (np.nan, np.nan)
    return float(means.mean()), stats.bootstrap_interval(means)


def _undecided(watched: Watched) -> tuple[np.ndarray, np.ndarray]:
    """Fraction of decided blanks [n, t]; confidences [n, t, g], NaN where decided."""
    num_blanks = (~np.isnan(watched.confidence[:, 0])).sum(axis=1)
    decided = 1 - watched.is_mask.sum(axis=2) / num_blanks[:, None]
    return decided, np.where(watched.is_mask, watched.confidence, np.nan)


def drift(watched: Watched, min_tokens: int = 50) -> list[dict[str, Any]]:
    """How the confidence in committed tokens changes with the steps since.

    Args:
      watched: the generations.
      min_tokens: with fewer a number of steps is left out.

    Returns:
      By steps since the commit, from 1: `age`, `mean` of p(token) now minus p(token) at
      its commit, its quantiles `q10`, `q50` and `q90`, the share `fell` of tokens whose
      confidence is lower (by more than rounding) with a 95 % interval `fell_low`,
      `fell_high` (bootstrap over generations), and `num` tokens.
    """
    now, change = _changes(watched)
    age = now - watched.commit_step[:, None]
    points = []
    for a in range(1, change.shape[1]):
        is_here = (age == a) & ~np.isnan(change)
        values = change[is_here]
        if len(values) < min_tokens:
            continue
        num_fell, num = (
            chosen.sum(axis=(1, 2))
            for chosen in (is_here & (change < -_ROUNDING), is_here)
        )
        low, high = stats.ratio_interval(num_fell[num > 0], num[num > 0])
        q10, q50, q90 = np.quantile(values, [0.1, 0.5, 0.9])
        points.append(
            {
                "age": a,
                "mean": float(values.mean()),
                "q10": float(q10),
                "q50": float(q50),
                "q90": float(q90),
                "fell": float(num_fell.sum() / num.sum()),
                "fell_low": low,
                "fell_high": high,
                "num": len(values),
            }
        )
    return points


def falls(
    watched: Watched, chosen: Bool[np.ndarray, "n"], depths: Sequence[float]
) -> dict[str, Any]:
    """How many tokens lost confidence after their commit.

    Args:
      watched: the generations.
      chosen: which of them count.
      depths: how much a token lost at least; 0 means more than rounding.

    Returns:
      `num` tokens; and by depth the share that had lost so much in any later step,
      `ever`, and on the last canvas, `at_end`.
    """
    _, change = _changes(watched)
    change = change[chosen]
    is_token = ~np.isnan(change).all(axis=1)
    lowest = np.nanmin(np.where(np.isnan(change), np.inf, change), axis=1)[is_token]
    # A row's last canvas is the one after its last forward.
    last = watched.num_steps[chosen][:, None, None]
    last = np.take_along_axis(change, last, axis=1)[:, 0][is_token]
    limits = [-max(depth, _ROUNDING) for depth in depths]
    return {
        "num": int(is_token.sum()),
        "ever": [_share(lowest < limit) for limit in limits],
        "at_end": [_share(last < limit) for limit in limits],
    }


def gap(
    watched: Watched, is_correct: Bool[np.ndarray, "n"], depth: float, seed: int = 0
) -> tuple[float, tuple[float, float]] | None:
    """How many more tokens lose confidence in wrong answers than in correct ones.

    Args:
      watched: the generations.
      is_correct: which of them are correct.
      depth: of a loss, at any step after the commit.
      seed: of the bootstrap.

    Returns:
      The mean share of such tokens in wrong generations less that in correct ones, and
      its 95 % interval (bootstrap over generations of each kind); None without both.
    """
    if is_correct.all() or not is_correct.any():
        return None
    _, change = _changes(watched)
    is_token = ~np.isnan(change).all(axis=1)
    has_lost = np.nanmin(np.where(np.isnan(change), np.inf, change), axis=1) < -depth
    share = (has_lost & is_token).sum(axis=1) / np.maximum(is_token.sum(axis=1), 1)
    wrong, correct = share[~is_correct], share[is_correct]
    rng = np.random.default_rng(seed)
    draws = [
        rng.choice(values, (10_000, len(values))).mean(axis=1)
        for values in (wrong, correct)
    ]
    low, high = np.quantile(draws[0] - draws[1], [0.025, 0.975])
    return float(wrong.mean() - correct.mean()), (float(low), float(high))


def _share(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def _changes(watched: Watched) -> tuple[np.ndarray, np.ndarray]:
    """Steps [1, t, 1]; p(token) less that at its commit [n, t, g], NaN before it."""
    now = np.arange(watched.confidence.shape[1])[None, :, None]
    commit = watched.commit_step[:, None]
    at_commit = np.take_along_axis(watched.confidence, np.maximum(commit, 0), axis=1)
    is_later = (commit >= 0) & (now > commit) & ~watched.is_mask
    return now, np.where(is_later, watched.confidence - at_commit, np.nan)
