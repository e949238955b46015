"""Replays recorded runs with the samplers here and finds the first difference."""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Array, Int, Key, PyTree

from dlm_jax import caches
from dlm_jax.core.canvas import Generation, Prompts
from dlm_jax.core.denoiser import Denoiser
from dlm_jax.core.keys import row_keys
from dlm_jax.core.options import Options
from dlm_jax.core.sampler import Sampler
from dlm_jax.errors import InputError
from dlm_jax.parity import margins
from dlm_jax.parity.rules import RULES, Rule, UnavailableError, sampler_for
from dlm_jax.parity.traces import FINAL_ONLY, Trace
from dlm_jax.text.prompts import bucket

# Runs a batch: `runner.DataParallel`, or `generate` given its first two arguments.
Sample = Callable[[Sampler, Prompts, Key[Array, "b"], Options], Generation]


# Random perturbations tried before a divergence is called real.
_NUM_DRAWS = 16


@dataclasses.dataclass(frozen=True)
class Divergence:
    """The first difference between a recorded run and its replay.

    Attributes:
      step: index of the forward whose outcome differs; both saw the same canvas there.
        None where only the outputs could be compared.
      position: lowest column that differs; None where only the number of forwards does.
      reference_token: what the recorded run has there after that step.
      token: what the replay has.
      gap: difference of two confidences at that forward: of the two tokens if both runs
        wrote the position; else of the positions that only one of the runs changed, the
        closest two. None where there is no such pair: the sampler's own bound decided.
      label: 'near-tie', 'real', or 'unlocated' where only outputs were compared.
    """

    step: int | None
    position: int | None
    reference_token: int | None
    token: int | None
    gap: float | None = None
    label: str = "real"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A recorded run against its replay.

    Attributes:
      reference_nfe: forwards of the recorded run.
      nfe: forwards of the replay.
      divergence: None if every canvas is equal.
    """

    reference_nfe: int
    nfe: int
    divergence: Divergence | None

    @property
    def is_match(self) -> bool:
        """Equal canvases and an equal number of forwards."""
        return self.divergence is None and self.reference_nfe == self.nfe


def _options(trace: Trace, denoiser: Denoiser, params: PyTree) -> Options:
    """How the recorded call generated, apart from its rule."""
    recorded = trace.params
    # A run of this package says itself what a released program does by its nature.
    if "spec" in recorded:
        rule = Rule(recorded["spec"])
    else:  # A rule that is not known here is replayed by a sampler that the user names.
        rule = RULES.get(trace.sampler, Rule(trace.sampler))
    if recorded.get("temperature"):
        raise UnavailableError(
            f"temperature {recorded['temperature']}: random draws cannot be repeated"
        )
    if recorded.get("mask_id", denoiser.mask_id) != denoiser.mask_id:
        raise InputError(
            f"trace {trace.name}: mask_id ({recorded['mask_id']}) must be the "
            f"checkpoint's ({denoiser.mask_id})"
        )
    # Rows may have fewer blanks than gen_length, and the last block then be short.
    # Those of block diffusion are longer than asked for, up to their last block's end.
    num_blanks = trace.canvas.shape[1] - trace.prompt.shape[1]
    block_length = recorded.get("block_length", recorded["gen_length"])
    gen_length = -(-num_blanks // block_length) * block_length
    suppressed = tuple(recorded.get("suppressed_ids", ()))
    if recorded.get("logits_eos_inf"):
        suppressed += (denoiser.eos_id,)
    both = recorded.get("confidence_dtype")
    logits_dtype = recorded.get("logits_dtype", both)
    probability_dtype = recorded.get("probability_dtype", both)
    model_dtype = denoiser.head(params).dtype
    if "spec" not in recorded and model_dtype.itemsize < 4:
        # The released samplers take logits, and some the softmax, in the model's dtype.
        logits_dtype = logits_dtype or model_dtype.name
        if not rule.is_wide:
            probability_dtype = probability_dtype or model_dtype.name
    return Options(
        gen_length=gen_length,
        block_length=block_length,
        guidance=recorded.get("cfg_scale") or recorded.get("guidance") or 0.0,
        stop_ids=tuple(recorded.get("stop_ids", ())),
        suppressed_ids=suppressed,
        deferred_ids=tuple(recorded.get("deferred_ids", ())),
        cache=caches.parse(recorded.get("cache", rule.cache)),
        early_stop=recorded.get("early_stop", rule.early_stop),
        logits_dtype=logits_dtype,
        probability_dtype=probability_dtype,
        has_trajectory=trace.canvases != FINAL_ONLY,
    )


def _prompts(trace: Trace, denoiser: Denoiser) -> Prompts:
    """The recorded prompt and its blanks, in a bucket shared with similar lengths."""
    start, length = trace.prompt.shape[1], trace.canvas.shape[1]
    # A row longer than the context stays so, for the loop to refuse.
    column = np.arange(max(length, bucket(length, denoiser.max_length)))[None]
    tokens = np.zeros(column.shape, np.int32)
    tokens[:, :start] = trace.prompt
    return Prompts(
        tokens=tokens,
        is_blank=(column >= start) & (column < length),
        is_valid=column < length,
    )


def replay(
    trace: Trace,
    denoiser: Denoiser,
    params: PyTree,
    sample: Sample,
    tolerance: float = 1e-3,
    sampler: Sampler | None = None,
) -> Comparison:
    """Repeats a recorded run and compares every canvas.

    A divergence is a near-tie, which rounding explains, if its confidence gap is at
    most the tolerance; or if changing every logit of that one forward by +-tolerance
    (in one of 16 random ways) makes the sampler take the recorded step. The second
    covers whatever a rule compares: a confidence with a threshold, entropies with a
    bound, changes since the step before.

    Args:
      trace: the recorded run.
      denoiser: the model of the trace's checkpoint.
      params: its parameters.
      sample: runs a batch on that model.
      tolerance: of logits and probabilities; float32 forwards agree to about 1e-4,
        bfloat16 ones to 0.1.
      sampler: that is to repeat the recorded rule; the one of `sampler_for` by default.

    Raises:
      UnavailableError: if the run cannot be repeated here.
    """
    if sampler is None:
        sampler = sampler_for(trace)
    options = _options(trace, denoiser, params)
    prompts = _prompts(trace, denoiser)
    keys = row_keys(0, np.zeros(1, np.int32))
    generation = sample(sampler, prompts, keys, options)
    comparison = compare(trace, generation)
    divergence = comparison.divergence
    if divergence is None or divergence.step is None or divergence.position is None:
        return comparison
    step, length = divergence.step, trace.canvas.shape[1]

    def is_explained(seed: int) -> bool:
        perturbed = margins.Perturbed(
            sampler, scale=tolerance, seed=seed, only_step=step
        )
        other = sample(perturbed, prompts, keys, options).trajectory
        assert other is not None
        canvas = np.asarray(other.canvas)[0, step + 1, :length]
        return bool((canvas == trace.canvas[step + 1]).all())

    gap = _gap(trace, generation, denoiser, params, options, prompts, divergence)
    is_near = (gap is not None and gap <= tolerance) or any(
        is_explained(seed) for seed in range(_NUM_DRAWS)
    )
    divergence = dataclasses.replace(
        divergence, gap=gap, label="near-tie" if is_near else "real"
    )
    return dataclasses.replace(comparison, divergence=divergence)


def compare(trace: Trace, generation: Generation, row: int = 0) -> Comparison:
    """Compares a trace with one row of a run, canvas by canvas.

    A divergence comes without its gap, labelled real: only `replay` can tell more.

    Args:
      trace: the recorded run.
      generation: the replay, with its trajectory unless the trace is FINAL_ONLY.
      row: index in the batch.
    """
    length = trace.canvas.shape[1]
    nfe = int(np.asarray(generation.num_steps)[row])
    recorded = _filled(trace, generation, row)
    divergence = None
    if trace.canvases == FINAL_ONLY:
        replayed = np.asarray(generation.tokens)[row, :length]
        different = np.flatnonzero(recorded[0] != replayed)
        if different.size:
            i = int(different[0])
            tokens = int(recorded[0, i]), int(replayed[i])
            divergence = Divergence(None, i, *tokens, label="unlocated")
        return Comparison(trace.nfe, nfe, divergence)
    if generation.trajectory is None:
        raise InputError("generation must have its trajectory")
    canvas = np.asarray(generation.trajectory.canvas)[row, : nfe + 1, :length]
    shared = min(len(canvas), len(recorded))
    different = canvas[:shared] != recorded[:shared]
    steps = np.flatnonzero(different.any(axis=1))
    if steps.size:
        k = int(steps[0])
        i = int(np.flatnonzero(different[k])[0])
        # Canvas k shows what forward k - 1 decided.
        tokens = int(recorded[k, i]), int(canvas[k, i])
        divergence = Divergence(max(k - 1, 0), i, *tokens)
    elif nfe != trace.nfe:
        divergence = Divergence(shared - 1, None, None, None)
    return Comparison(trace.nfe, nfe, divergence)


def _filled(trace: Trace, generation: Generation, row: int) -> Int[np.ndarray, "s l"]:
    """The recorded canvases, the output filled up as it is here.

    SDAR's programs leave what follows the block of a stop masked. Here a stop fills it.
    """
    rule = RULES.get(trace.sampler)
    if "spec" in trace.params or rule is None or rule.early_stop:
        return trace.canvas
    recorded = np.array(trace.canvas)
    replayed = np.asarray(generation.tokens)[row, : recorded.shape[1]]
    is_filler = np.asarray(generation.commit_step)[row, : recorded.shape[1]] < 0
    is_left = (recorded[-1] == trace.params["mask_id"]) & is_filler
    recorded[-1] = np.where(is_left, replayed, recorded[-1])
    return recorded


def _gap(
    trace: Trace,
    generation: Generation,
    denoiser: Denoiser,
    params: PyTree,
    options: Options,
    prompts: Prompts,
    divergence: Divergence,
) -> float | None:
    """The confidence gap of a divergence; see `Divergence.gap`."""
    trajectory = generation.trajectory
    step, i = divergence.step, divergence.position
    assert trajectory is not None and step is not None and i is not None
    confidence = np.exp(np.asarray(trajectory.log_prob)[0, step])
    before, after = trace.canvas[step : step + 2]
    length = len(after)
    replayed = np.asarray(trajectory.canvas)[0, step + 1, :length]
    was_committed = replayed[i] != before[i], after[i] != before[i]
    if all(was_committed):
        tokens = np.array(prompts.tokens)
        tokens[0, :length] = before
        is_prompt = np.asarray(prompts.is_valid & ~prompts.is_blank)
        logits = margins.logits_at(
            denoiser,
            params,
            tokens,
            np.where(is_prompt, denoiser.mask_id, tokens),
            np.asarray(prompts.is_valid),
            i,
            float(options.guidance or 0),
            block_length=options.block_length,
        )
        ratio = np.exp(logits[after[i]] - logits[replayed[i]])
        return float(confidence[i] * abs(1 - ratio))
    only_here = (replayed != before) & (after == before)
    only_reference = (after != before) & (replayed == before)
    if not only_here.any() or not only_reference.any():
        return None
    confidence = confidence[:length]
    gap = confidence[only_here].min() - confidence[only_reference].max()
    return float(abs(gap))
