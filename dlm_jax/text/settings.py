"""How to generate, as keywords of the front door."""

from collections.abc import Sequence
from typing import Any, TypedDict

from dlm_jax import caches
from dlm_jax.core.cache import CachePlan
from dlm_jax.core.options import Options
from dlm_jax.errors import InputError


class Settings(TypedDict, total=False):
    """Keywords that `Model.generate`, `infill` and `stream` share.

    Attributes:
      block_length: tokens per semi-autoregressive block; one block by default, of a
        block-causal model the config's block_size.
      temperature: of the candidates' draw; 0, the default, takes the most probable.
      guidance: scale of classifier-free guidance; 0, the default, is off.
      seed: of the random draws, an integer from 0 to 2^32 - 1; 0 by default. A
        prompt's draws depend on the seed and on its place among the prompts.
      batch_size: prompts in flight at once, over all devices; 8 by default. Others
        wait in the compiled loop. Changes a result at most by rounding.
      queue_length: prompts of one call of the compiled loop; 8 * batch_size by default.
      suppress_eos: EOS gets probability 0 (LLaDA's `logits_eos_inf`).
      defer_stops: stop tokens are committed last (LLaDA's `confidence_eos_eot_inf`).
      suppressed_ids: more tokens of probability 0.
      deferred_ids: more tokens that are committed last.
      stop_ids: tokens that end a continuation; the checkpoint's by default.
      early_stop: a stop ends its row at once, the default; if not, its block is
        finished first.
      cache: a cache plan or its spec, such as "dual(refresh_every=8)"; "none", the
        default, computes the whole row in every forward.
      num_refreshed: with a cache, how many rows one iteration computes whole at most,
        see `Options`. Changes a result at most by rounding.
      staleness: measure what the cache changes, see `Trajectory`. Needs `trajectory`.
      max_steps: bound on a row's forwards; the sampler's own by default.
      logits_dtype: what logits are rounded to, see `Options`.
      probability_dtype: what probabilities are rounded to, see `Options`.
      precision: of products of float32 models, see `Options`.
      logits_bytes: of logits that are computed in one piece, see `Options`.
      trajectory: keep every step in `Output.trajectory`, and show it in notebooks.
    """

    block_length: int | None
    temperature: float
    guidance: float
    seed: int
    batch_size: int
    queue_length: int | None
    suppress_eos: bool
    defer_stops: bool
    suppressed_ids: Sequence[int]
    deferred_ids: Sequence[int]
    stop_ids: Sequence[int]
    early_stop: bool
    cache: CachePlan | str
    num_refreshed: int | None
    staleness: bool
    max_steps: int | None
    logits_dtype: Any
    probability_dtype: Any
    precision: str
    logits_bytes: int
    trajectory: bool


# What is no field of `Options`: who runs the rows reads it.
_OF_RUN = ("seed", "batch_size", "queue_length")


def options_of(
    settings: Settings, gen_length: int, eos_id: int, stop_ids: Sequence[int]
) -> Options:
    """The `Options` that settings mean.

    Args:
      settings: see `Settings`.
      gen_length: most blanks of a row.
      eos_id: what `suppress_eos` suppresses.
      stop_ids: of the checkpoint: what `defer_stops` defers, and what ends a row if
        the settings name none.

    Raises:
      InputError: for a keyword that is no setting, or a wrong cache.
    """
    unknown = settings.keys() - Settings.__annotations__.keys()
    if unknown:
        raise InputError(
            f"{', '.join(sorted(unknown))} must be among the settings "
            + ", ".join(Settings.__annotations__)
        )
    own: dict[str, Any] = {
        name: value for name, value in settings.items() if name not in _OF_RUN
    }
    suppressed = tuple(own.pop("suppressed_ids", ()))
    deferred = tuple(own.pop("deferred_ids", ()))
    if own.pop("suppress_eos", False):
        suppressed += (eos_id,)
    if own.pop("defer_stops", False):
        deferred += tuple(stop_ids)
    cache = own.pop("cache", "none")
    return Options(
        gen_length=gen_length,
        cache=caches.parse(cache) if isinstance(cache, str) else cache,
        has_staleness=own.pop("staleness", False),
        suppressed_ids=suppressed,
        deferred_ids=deferred,
        stop_ids=tuple(own.pop("stop_ids", stop_ids)),
        has_trajectory=own.pop("trajectory", False),
        **own,
    )
