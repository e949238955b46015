"""How to generate, apart from the sampler."""

from typing import Any

import flax.struct

from dlm_jax.core.cache import CachePlan
from dlm_jax.core.canvas import ABSENT
from dlm_jax.core.predict import LOGITS_BYTES


@flax.struct.dataclass
class Options:
    """How to generate, apart from the sampler.

    Attributes:
      gen_length: the most blanks that a row may have.
      block_length: blanks per semi-autoregressive block, columns for block-causal
        models; gen_length if ABSENT.
      temperature: of the candidate's draw; 0 takes the most probable token.
      guidance: scale s of classifier-free guidance, logits un + (s + 1) (cond - un),
        `un` with the prompt masked (arXiv:2502.09992); 0 is off.
      stop_ids: tokens that end a row that can stop (`Prompts.can_stop`), once nothing
        before them is undecided; what follows is filled with eos_id.
      suppressed_ids: tokens whose logits are -inf (LLaDA's `logits_eos_inf` for EOS).
      deferred_ids: tokens that are committed last (LLaDA's `confidence_eos_eot_inf`, at
        any temperature): a position whose candidate is one of them is not eligible
        while another is, and has confidence 0 and infinite entropy.
      early_stop: a stop ends its row at once. If not, its block is finished first, and
        what the block holds behind the stop stays (SDAR's released loop).
      cache: the plan of which forwards compute only a part of the row, see
        `dlm_jax.caches`; by default every forward computes the whole row.
      num_refreshed: how many rows one iteration computes whole, at most, beside the
        step of the others; further ones wait. Changes no result, and nothing without a
        cache. The backend's own if ABSENT, see `checks.prepare`.
      num_slots: rows that are in flight at once on a device; the others wait in a
        queue, and take the place of rows that are done. All rows if ABSENT.
      max_steps: static bound on a row's forwards; the sampler's own if ABSENT.
      logits_dtype: dtype that logits are rounded to, and under guidance every step of
        their arithmetic; None keeps float32 or wider. `bfloat16` repeats a model that
        is run in bfloat16 by PyTorch.
      probability_dtype: dtype that probabilities are rounded to before positions are
        compared; None keeps float32 or wider. `bfloat16` repeats the ties of released
        samplers that take the softmax in the model's dtype (LLaDA, Saber), None those
        that take it in float64 (Fast-dLLM).
      precision: of matrix products of models in float32 or wider, as in
        `jax.default_matmul_precision`. With "default", GPUs use TF32 and TPUs
        bfloat16 passes: faster, but recorded float32 runs diverge.
      logits_bytes: of logits that are computed in one piece, as float32 or wider; where
        all of a step's take more, they are computed for slices of the vocabulary.
        Some arrays of this size are alive at once, 4 to 6 on a CPU.
      has_trajectory: return every step.
      has_staleness: compute every forward a second time without the cache, to measure
        what it changes, see `Trajectory.staleness`.
    """

    gen_length: int = flax.struct.field(pytree_node=False)
    block_length: int = flax.struct.field(pytree_node=False, default=ABSENT)
    temperature: float | None = 0.0
    guidance: float | None = 0.0
    stop_ids: tuple[int, ...] = flax.struct.field(pytree_node=False, default=())
    suppressed_ids: tuple[int, ...] = flax.struct.field(pytree_node=False, default=())
    deferred_ids: tuple[int, ...] = flax.struct.field(pytree_node=False, default=())
    early_stop: bool = flax.struct.field(pytree_node=False, default=True)
    cache: CachePlan = CachePlan()
    num_refreshed: int = flax.struct.field(pytree_node=False, default=ABSENT)
    num_slots: int = flax.struct.field(pytree_node=False, default=ABSENT)
    max_steps: int = flax.struct.field(pytree_node=False, default=ABSENT)
    logits_dtype: Any = flax.struct.field(pytree_node=False, default=None)
    probability_dtype: Any = flax.struct.field(pytree_node=False, default=None)
    precision: str = flax.struct.field(pytree_node=False, default="highest")
    logits_bytes: int = flax.struct.field(pytree_node=False, default=LOGITS_BYTES)
    has_trajectory: bool = flax.struct.field(pytree_node=False, default=False)
    has_staleness: bool = flax.struct.field(pytree_node=False, default=False)
