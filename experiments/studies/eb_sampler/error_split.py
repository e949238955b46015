"""A sampler's divergence from a known distribution, split by its two causes.

A sampler that commits several tokens at once draws them from the product of the model's
marginals. The analysis of EB-Sampler (arXiv:2505.24857) splits the divergence of what
it makes from the data's distribution q, along the order in which it commits: with S the
positions committed in a step and c the canvas before it,

    model error             sum over i in S of KL(q(x_i | c) || p(x_i | c))
    joint dependence error  sum over i in S of H(q(x_i | c)), less H(q(x_S | c))

each summed over steps, in expectation over x from q. The second is what is lost even by
a perfect model, and what the entropy bound is to bound. Where q is known both can be
measured: x is drawn from q, and written in the order that the sampler chooses.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, Key, PyTree
from scipy.special import entr

from dlm_jax.core.canvas import (
    ABSENT,
    Canvas,
    Decision,
    HostArray,
    Prediction,
    Prompts,
    View,
)
from dlm_jax.core.checks import prepare
from dlm_jax.core.denoiser import Denoiser, full_precision
from dlm_jax.core.keys import row_keys
from dlm_jax.core.loop import sample
from dlm_jax.core.options import Options
from dlm_jax.core.sampler import Sampler
from dlm_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Joint:
    """The true distribution of one row given its prompt.

    Attributes:
      outcomes: [n, l]; distinct, equal at all positions that are no blanks.
      probability: [n]; sums to 1.
    """

    outcomes: Int32[np.ndarray, "n l"]
    probability: Float[np.ndarray, "n"]


@dataclasses.dataclass(frozen=True)
class Split:
    """The two errors of n rows, nats, each summed over the row's steps.

    Attributes:
      model_error: [n].
      dependence_error: [n].
      largest_dependence_error: [n]; of any single step.
      num_steps: [n]; NFE.
    """

    model_error: Float[np.ndarray, "n"]
    dependence_error: Float[np.ndarray, "n"]
    largest_dependence_error: Float[np.ndarray, "n"]
    num_steps: Int[np.ndarray, "n"]


class TeacherForced(Sampler):
    """A sampler that chooses the positions; the tokens are given.

    `checks.prepare` takes numbers only: it prepares the inner sampler, and this is
    put around it for `loop.sample`.

    Attributes:
      inner: the sampler; one that neither remasks nor rewrites.
      truth: int32 [l]; the tokens.
    """

    inner: Sampler
    truth: HostArray

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.inner.needs

    def init(self, canvas: Canvas) -> PyTree:
        return self.inner.init(canvas)

    def region(self, canvas: Canvas) -> Int[Array, "r"]:
        return self.inner.region(canvas)

    def step(
        self, key: Key[Array, ""], state: PyTree, canvas: Canvas, prediction: Prediction
    ) -> tuple[PyTree, Decision]:
        state, decision = self.inner.step(key, state, canvas, prediction)
        return state, Decision(decision.commit, tokens=jnp.asarray(self.truth))

    def max_steps(self, num_blanks: int) -> int:
        return self.inner.max_steps(num_blanks)


def split(
    denoiser: Denoiser,
    params: PyTree,
    sampler: Sampler,
    prompts: Prompts,
    joints: Sequence[Joint],
    truth: Int[np.ndarray, "b l"],
    *,
    gen_length: int,
    block_length: int = ABSENT,
    batch_size: int = 32,
) -> Split:
    """Measures both errors of a sampler on rows whose distribution is known.

    The model's distribution is without the mask token, as it is drawn from. Logits of
    gen_length positions and the whole vocabulary are alive at once for each row.

    Args:
      denoiser: the model.
      params: its parameters.
      sampler: the rule; a numeric field may be an array with a value per row. Its order
        must not depend on drawn tokens for the sum of both errors to be the divergence
        of what it draws at temperature 1.
      prompts: the rows.
      joints: of each row.
      truth: one outcome of each row, drawn from its joint. The means over draws are
        the expected errors.
      gen_length: most blanks of a row.
      block_length: blanks per block; gen_length if ABSENT.
      batch_size: rows in flight at once.

    Raises:
      InputError: for a sampler that takes tokens back or changes what the model sees or
        says, a truth that is not among its row's outcomes, or a model that is not
        finite.
    """
    _check(sampler, joints, truth)
    options = Options(gen_length, block_length, num_slots=batch_size)
    rule, prompts, options = prepare(denoiser, sampler, prompts, options)
    forced = TeacherForced(rule, np.asarray(truth, np.int32))
    keys = row_keys(0, np.arange(len(joints)))
    filled = _sample(denoiser, params, forced, prompts, keys, options)
    if not np.asarray(filled.is_complete).all():
        raise InputError("the model must give finite predictions at all blanks")
    # Nothing is taken back, so these are all canvases of the run.
    commit_step = np.asarray(filled.commit_step)
    steps = (np.unique(own[own >= 0]) for own in commit_step)
    jobs = [(i, k) for i, own in enumerate(steps) for k in own]
    is_blank = np.asarray(prompts.is_blank)
    is_valid = np.asarray(prompts.is_valid)
    blanks = _blanks(is_blank, gen_length)
    final = np.where(is_blank, truth, prompts.tokens).astype(np.int32)

    def canvas(i: int, k: int) -> Int32[np.ndarray, "l"]:
        is_hidden = is_blank[i] & (commit_step[i] >= k)
        return np.where(is_hidden, np.int32(denoiser.mask_id), final[i])

    model_error, dependence_error, largest = np.zeros((3, len(joints)))
    is_left = [np.ones(len(joint.probability), bool) for joint in joints]
    shown = ((canvas(i, k), is_valid[i], blanks[i]) for i, k in jobs)
    log_probs = _log_probs(denoiser, params, shown, batch_size)
    for (i, k), own in zip(jobs, log_probs, strict=True):
        is_now = commit_step[i, blanks[i]] == k
        is_now &= np.arange(gen_length) < is_blank[i].sum()
        positions = blanks[i][is_now]
        outcomes = joints[i].outcomes[is_left[i]][:, positions]
        probability = joints[i].probability[is_left[i]]
        errors = step_errors(outcomes, probability / probability.sum(), own[is_now])
        model_error[i] += errors[0]
        dependence_error[i] += errors[1]
        largest[i] = max(largest[i], errors[1])
        is_equal = joints[i].outcomes[:, positions] == truth[i, positions]
        is_left[i] &= is_equal.all(1)
    return Split(model_error, dependence_error, largest, np.asarray(filled.num_steps))


def step_errors(
    outcomes: Int[np.ndarray, "n s"],
    probability: Float[np.ndarray, "n"],
    log_probs: Float[np.ndarray, "s v"],
) -> tuple[float, float]:
    """Model error and joint dependence error of committing s positions at once, nats.

    Args:
      outcomes: the positions' tokens in what is possible given the canvas.
      probability: of each; sums to 1.
      log_probs: of every token in the model's marginals given the canvas.
    """
    marginals = np.zeros(log_probs.shape)
    places = np.arange(len(log_probs))
    np.add.at(marginals, (places, outcomes), probability[:, None])
    is_possible = marginals > 0
    entropy = entr(marginals).sum()
    cross_entropy = -(marginals[is_possible] * log_probs[is_possible]).sum()
    _, which = np.unique(outcomes, axis=0, return_inverse=True)
    joint_entropy = entr(np.bincount(which.ravel(), probability)).sum()
    # Neither is negative but by rounding.
    return (
        max(float(cross_entropy - entropy), 0.0),
        max(float(entropy - joint_entropy), 0.0),
    )


def _check(
    sampler: Sampler, joints: Sequence[Joint], truth: Int[np.ndarray, "b l"]
) -> None:
    """Raises InputError if the split is not valid for the sampler or the truth."""
    name, cls = type(sampler).__name__, type(sampler)
    if sampler.may_remask or sampler.may_rewrite:
        raise InputError(f"sampler ({name}) must neither remask nor rewrite")
    if cls.view is not Sampler.view or cls.adjust is not Sampler.adjust:
        raise InputError(f"sampler ({name}) must show the model the canvas as it is")
    if len(joints) != len(truth):
        raise InputError(f"joints ({len(joints)}) must be one per row: {len(truth)}")
    for i, joint in enumerate(joints):
        if not (joint.outcomes == truth[i]).all(1).any():
            raise InputError(f"truth of row {i} must be one of its joint's outcomes")


def _blanks(
    is_blank: Bool[np.ndarray, "b l"], gen_length: int
) -> Int[np.ndarray, "b g"]:
    """The blanks of each row in order, then position 0."""
    blanks = np.zeros((len(is_blank), gen_length), np.int32)
    for i, own in enumerate(is_blank):
        positions = np.flatnonzero(own)
        blanks[i, : positions.size] = positions
    return blanks


def _log_probs(
    denoiser: Denoiser,
    params: PyTree,
    shown: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]],
    batch_size: int,
) -> Iterator[Float[np.ndarray, "g v"]]:
    """The model's marginals for each canvas, validity and blanks, in equal batches."""
    while batch := list(itertools.islice(shown, batch_size)):
        filled_up = batch + batch[:1] * (batch_size - len(batch))
        arrays = (
            jnp.array(np.stack(column)) for column in zip(*filled_up, strict=True)
        )
        yield from np.asarray(_forward(denoiser, params, *arrays), float)[: len(batch)]


@functools.partial(jax.jit, static_argnums=0)
def _forward(
    denoiser: Denoiser,
    params: PyTree,
    tokens: Int[Array, "b l"],
    is_valid: Bool[Array, "b l"],
    region: Int[Array, "b g"],
) -> Float[Array, "b g v"]:
    """Log-probabilities of all tokens but the mask."""
    columns = jnp.broadcast_to(
        jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape
    )
    view = View(tokens, columns, is_valid[:, None], sees_first=True)
    with full_precision(denoiser, params):
        hidden, _ = denoiser.denoise(params, view, region, ())
        logits = jnp.einsum(
            "bgd,vd->bgv",
            hidden,
            denoiser.head(params),
            preferred_element_type=jnp.promote_types(hidden.dtype, jnp.float32),
        )
    return jax.nn.log_softmax(logits.at[..., denoiser.mask_id].set(-jnp.inf))


_sample = jax.jit(sample, static_argnums=0)
