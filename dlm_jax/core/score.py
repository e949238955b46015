"""The probability that a model gives to known tokens at masked positions."""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from dlm_jax.core.canvas import HostArray, View
from dlm_jax.core.denoiser import Denoiser, full_precision
from dlm_jax.core.options import Options
from dlm_jax.core.predict import predict


@flax.struct.dataclass
class Noised:
    """Canvases with masks, and the tokens that the masks hide.

    Attributes:
      tokens: int32 [b, l]; mask_id at masks, anything at padding.
      is_valid: bool [b, l]; False at padding, which comes last.
      is_prompt: bool [b, l]; what guidance hides from the model.
      region: int32 [b, r]; the columns to score, l where there are fewer than r.
      truth: int32 [b, r]; the token that belongs at each.
    """

    tokens: HostArray
    is_valid: HostArray
    is_prompt: HostArray
    region: HostArray
    truth: HostArray


def score(
    denoiser: Denoiser, params: PyTree, rows: Noised, options: Options
) -> Float[Array, "b r"]:
    """Log-probabilities of the true tokens, each given the canvas; traceable.

    One forward, and the statistics of sampling: logits exist at the region only, and in
    slices of the vocabulary where they are large.

    Args:
      denoiser: the model.
      params: its parameters.
      rows: what the model is shown, and what it is to predict.
      options: `guidance` (None without), `logits_dtype`, `probability_dtype`,
        `logits_bytes` and `precision` are read.

    Returns:
      Natural logarithms in float32 or wider; without meaning where the region has no
      column.
    """
    tokens, is_valid = jnp.asarray(rows.tokens), jnp.asarray(rows.is_valid)
    region = jnp.asarray(rows.region)
    b, length = tokens.shape

    # What the model is shown; under guidance also without the prompts.
    if options.guidance is not None:
        hidden_prompt = jnp.where(rows.is_prompt, denoiser.mask_id, tokens)
        tokens = jnp.concatenate([tokens, hidden_prompt])
        is_valid = jnp.concatenate([is_valid, is_valid])
    num_views = tokens.shape[0] // b
    positions = jnp.arange(length, dtype=jnp.int32)
    view = View(
        tokens=tokens,
        positions=jnp.broadcast_to(positions, tokens.shape),
        visibility=is_valid[:, None, :],
        sees_first=True,
    )

    sources = jnp.tile(denoiser.sources(region), (num_views, 1))
    with full_precision(denoiser, params, options.precision):
        hidden, _ = denoiser.denoise(params, view, sources, ())
        prediction = predict(
            hidden.reshape(num_views, b, *hidden.shape[1:]),
            denoiser.head(params),
            jnp.asarray(rows.truth),
            ("held_log_prob",),
            mask_id=denoiser.mask_id,
            # Of noise, which nothing is drawn with.
            keys=jax.random.split(jax.random.key(0), b),
            positions=region,
            guidance=options.guidance,
            logits_dtype=options.logits_dtype,
            probability_dtype=options.probability_dtype,
            logits_bytes=options.logits_bytes,
            vocab_axis=denoiser.model_axis,
        )
    return prediction.held_log_prob
