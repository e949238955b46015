"""Checks of the arguments, before anything is compiled."""

import dataclasses

import jax
import numpy as np
from jaxtyping import Array, Key

from dlm_jax.core import row
from dlm_jax.core.cache import CachePlan
from dlm_jax.core.canvas import Prediction, Prompts
from dlm_jax.core.denoiser import Denoiser
from dlm_jax.core.options import Options
from dlm_jax.core.sampler import Sampler, canonical
from dlm_jax.errors import InputError


def prepare(
    denoiser: Denoiser, sampler: Sampler, prompts: Prompts, options: Options
) -> tuple[Sampler, Prompts, Options]:
    """Checks the arguments of `sample` on the host and brings them to canonical types.

    Raises:
      InputError: naming the argument that does not fit.
    """
    _check_needs(sampler)
    _check_cache(denoiser, options)
    b, length = np.shape(prompts.tokens)
    block_length = options.block_length
    if block_length is None:
        block_length = options.gen_length
    if b < 1:
        raise InputError(f"prompts (of shape {b, length}) must have at least one row")
    if options.gen_length < 1:
        raise InputError(f"gen_length ({options.gen_length}) must be at least 1")
    if block_length < 1 or options.gen_length % block_length:
        raise InputError(
            f"gen_length ({options.gen_length}) must be a multiple of block_length "
            f"({block_length})"
        )
    if length > denoiser.max_length:
        raise InputError(
            f"row length ({length}) must be at most the model's context "
            f"({denoiser.max_length})"
        )
    for name in ("temperature", "guidance"):
        value = getattr(options, name) or 0.0
        if not 0 <= value < np.inf:
            raise InputError(f"{name} ({value}) must be at least 0 and finite")
    for name in ("max_steps", "num_slots", "num_refreshed", "logits_bytes"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"{name} ({value}) must be at least 1")
    is_blank = np.asarray(prompts.is_blank)
    is_valid = np.asarray(prompts.is_valid)
    if (is_blank & ~is_valid).any():
        raise InputError("prompts.is_blank must be False where is_valid is False")
    if (is_valid[:, 1:] & ~is_valid[:, :-1]).any():
        raise InputError("prompts.is_valid must be a run from column 0: pad at the end")
    most = int(is_blank.sum(axis=1).max(initial=0))
    if most > options.gen_length:
        raise InputError(
            f"gen_length ({options.gen_length}) must be at least the blanks of the "
            f"fullest row ({most})"
        )
    can_stop = np.ones(b, bool) if prompts.can_stop is None else prompts.can_stop
    if np.shape(can_stop) != (b,):
        raise InputError(
            f"prompts.can_stop (of shape {np.shape(can_stop)}) must be one per row: "
            f"({b},)"
        )
    prompts = Prompts(
        tokens=np.asarray(prompts.tokens, np.int32),
        is_blank=is_blank,
        is_valid=is_valid,
        can_stop=np.asarray(can_stop, bool),
    )
    num_slots = min(options.num_slots or b, b)
    refreshed = num_refreshed(num_slots, jax.default_backend())
    max_steps = options.max_steps
    if max_steps is None:
        max_steps = sampler.max_steps(options.gen_length)
        if options.deferred_ids:
            # A schedule may have ended when the deferred positions are left.
            max_steps += options.gen_length
        num_blocks = options.gen_length // block_length
        if denoiser.is_block_causal:
            # Blocks count columns: the blanks may begin and end within one.
            num_blocks = min(options.gen_length, -(-length // block_length))
        max_steps += sampler.extra_steps(num_blocks)
        max_steps += options.cache.extra_forwards(length, block_length)
    options = dataclasses.replace(
        options,
        block_length=block_length,
        # None is part of the compiled program's structure, a value is not.
        temperature=options.temperature or None,
        guidance=options.guidance or None,
        max_steps=max_steps,
        num_refreshed=options.num_refreshed or refreshed,
    )
    sampler = canonical(sampler, (b,))
    sampler.check(options.gen_length, block_length)
    _check_region(denoiser, sampler, prompts, options)
    return sampler, prompts, canonical(options)


# Of so many slots, one is computed whole in an iteration, beside the step of all.
_SLOTS_PER_REFRESH = {"cpu": 4}


def num_refreshed(num_slots: int, backend: str) -> int:
    """A backend's own `Options.num_refreshed`; backend is "cpu", "gpu" or "tpu"."""
    return max(1, num_slots // _SLOTS_PER_REFRESH.get(backend, 8))


def _check_cache(denoiser: Denoiser, options: Options) -> None:
    """Raises InputError for a cache that the model cannot have."""
    plan = options.cache
    if not isinstance(plan, CachePlan):
        raise InputError(f"cache ({plan!r}) must be a CachePlan or a spec")
    name = type(plan).__name__
    if plan.needs_block_causal and not denoiser.is_block_causal:
        raise InputError(
            f"cache ({name}) must be used with a model whose blocks do not see later "
            "ones; in this one every position sees all others"
        )
    if options.has_staleness and not (plan.has_window and options.has_trajectory):
        raise InputError("staleness needs a cache and a trajectory")


def _check_region(
    denoiser: Denoiser, sampler: Sampler, prompts: Prompts, options: Options
) -> None:
    """Raises InputError if a sampler asks for blocks that a cache holds as final."""
    if not options.cache.has_store:
        return
    # As if the row had one more block: with a single one, the region of all blanks is
    # no larger than that of a block. But the blanks may begin within a block of
    # columns, and then lie in two.
    options = dataclasses.replace(
        options, gen_length=options.gen_length + options.block_length
    )

    def region(sampler: Sampler, prompts: Prompts) -> Array:
        canvas = row.first_canvas(denoiser, options, sampler, prompts)
        return sampler.region(canvas)

    size = jax.eval_shape(jax.vmap(region), sampler, prompts).shape[1]
    if size > options.block_length:
        raise InputError(
            f"cache ({type(options.cache).__name__}) must be used with a sampler that "
            f"decides in the active block only: {type(sampler).__name__} may return to "
            "finished ones, which this cache holds as final"
        )


def _check_needs(sampler: Sampler) -> None:
    """Raises InputError if a sampler lists a statistic that there is not."""
    always = ("token", "log_prob", "is_known")
    fields = [f.name for f in dataclasses.fields(Prediction)]
    known = [name for name in fields if name not in always]
    needs = sampler.needs
    if not isinstance(needs, tuple) or not set(needs) <= set(known):
        raise InputError(
            f"{type(sampler).__name__}: needs ({needs!r}) must be a tuple of "
            + ", ".join(map(repr, known))
        )


def check_keys(keys: Key[Array, "..."], num_rows: int) -> None:
    """Raises InputError unless there is one random key per row."""
    if keys.shape != (num_rows,):
        raise InputError(f"keys ({keys.shape}) must be one per row: ({num_rows},)")


def check_tokens(prompts: Prompts, vocab_size: int) -> None:
    """Raises InputError for a known token that the model does not have."""
    is_known = np.asarray(prompts.is_valid) & ~np.asarray(prompts.is_blank)
    known = np.asarray(prompts.tokens)[is_known]
    for token in (known.min(initial=0), known.max(initial=0)):
        if not 0 <= token < vocab_size:
            raise InputError(
                f"prompts.tokens ({token}) must be token ids from 0 to {vocab_size - 1}"
            )
