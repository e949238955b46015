"""What the head and its statistics cost, beside the least that could be done."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from dlm_jax.core.denoiser import full_precision
from dlm_jax.core.keys import row_keys
from dlm_jax.core.predict import predict
from dlm_jax.devices.runner import DataParallel, without_axis
from experiments.timing import steps

# (hidden [b, r, d], head [v, d], keys [b]) -> log-probability of the candidate [b, r]
_LogProb = Callable[[Array, Array, Array], Array]


def plain(
    hidden: Float[Array, "b r d"], head: Float[Array, "v d"], mask_id: int
) -> tuple[Int[Array, "b r"], Float[Array, "b r"]]:
    """The candidates and their log-probabilities, written as one einsum.

    What `predict` gives a rule that asks for no other statistic, with the reductions
    that this takes: the sum of the masses, and the best token but the mask.
    """
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    logits = jnp.einsum("brd,vd->brv", hidden, head, preferred_element_type=wide)
    total = jax.nn.logsumexp(logits, axis=-1)
    is_mask = jnp.arange(head.shape[0]) == mask_id
    candidates = jnp.where(is_mask, -jnp.inf, logits)
    token = jnp.argmax(candidates, axis=-1).astype(jnp.int32)
    best = jnp.take_along_axis(candidates, token[..., None], axis=-1)[..., 0]
    return token, best - total


def timers(
    parallel: DataParallel, num_rows: int, region: int
) -> dict[str, Callable[[], float]]:
    """Functions that give the seconds of `predict`, by what is computed.

    "plain" is `plain`, "predict" the same by `predict`, "drawn" `predict` at
    temperature 1, with new noise in every turn.

    Args:
      parallel: the model, timed on the first device.
      num_rows: rows in flight.
      region: positions of each that need a prediction.
    """
    denoiser, shard = parallel.denoiser, parallel.first_shard()
    mask_id = denoiser.mask_id
    head = jax.eval_shape(lambda x: denoiser.head(without_axis(x)), shard)
    shape = (num_rows, region, head.shape[1])
    hidden = jax.random.normal(jax.random.key(0), shape, head.dtype)
    keys = row_keys(0, np.arange(num_rows))
    positions = jnp.broadcast_to(jnp.arange(region, dtype=jnp.int32), shape[:2])
    # An argument, as in the loop: a constant might be left out of the program.
    temperature = jnp.float32(1)

    def predicted(
        hidden: Array, head: Array, keys: Array, temperature: Array | None = None
    ) -> Array:
        return predict(
            hidden[None],
            head,
            jnp.zeros_like(positions),
            (),
            mask_id=mask_id,
            keys=keys,
            positions=positions,
            temperature=temperature,
        ).log_prob

    def timer(log_prob: _LogProb, *extra: Array) -> Callable[[], float]:
        def run(
            shard: PyTree,
            num: Int[Array, ""],
            hidden: Float[Array, "b r d"],
            keys: Key[Array, "b"],
            *extra: Array,
        ) -> Float[Array, "b r d"]:
            params = without_axis(shard)

            def turn(number: Array, hidden: Array) -> Array:
                own = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
                with full_precision(denoiser, params):
                    found = log_prob(hidden, denoiser.head(params), own, *extra)
                # Adds nothing, but needs the result, and the next turn needs it.
                return hidden + jnp.any(jnp.isnan(found)).astype(hidden.dtype)

            return jax.lax.fori_loop(0, num, turn, hidden)

        fixed = hidden, keys, *extra
        compiled = jax.jit(run).lower(shard, jnp.int32(1), *fixed).compile()
        return steps.repeated(lambda num: compiled(shard, num, *fixed))

    return {
        "plain": timer(lambda hidden, head, _: plain(hidden, head, mask_id)[1]),
        "predict": timer(predicted),
        "drawn": timer(predicted, temperature),
    }
