"""Building blocks shared by the denoisers: RMSNorm, rotary embedding, attention."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def rms_norm(
    x: Float[Array, "*n d"], weight: Float[Array, "d"], eps: float
) -> Float[Array, "*n d"]:
    """Scales x to unit root mean square over its last axis, then by `weight`.

    The statistics are taken in float32 (or wider) and cast back before the weight is
    applied, which is the order of LLaDA's released code: in bfloat16 it matters.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(mean_square + eps)).astype(x.dtype) * weight


def sum_over(axis: str | None, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """The sum of x over a mapped axis; x itself where there is none."""
    return x if axis is None else jax.lax.psum(x, axis)


def embed(
    table: Float[Array, "v d"], tokens: Int[Array, "b l"], model_axis: str | None
) -> Float[Array, "b l d"]:
    """Looks tokens up; with a `model_axis`, table holds this device's part of v."""
    if model_axis is None:
        return table[tokens]
    places = tokens - jax.lax.axis_index(model_axis) * table.shape[0]
    is_here = (places >= 0) & (places < table.shape[0])
    found = jnp.where(is_here[..., None], table[places], 0)
    return sum_over(model_axis, found)


def rotary_angles(
    positions: Int[Array, "b l"], head_dim: int, theta: float, dtype: jnp.dtype
) -> tuple[Float[Array, "b l 1 k"], Float[Array, "b l 1 k"]]:
    """Sine and cosine of the rotary angles, k = head_dim / 2, in float32 or wider."""
    dtype = jnp.promote_types(dtype, jnp.float32)
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=dtype) / head_dim)
    angle = positions[:, :, None, None].astype(dtype) * frequency
    return jnp.sin(angle), jnp.cos(angle)


def rotate(
    x: Float[Array, "b l h d"],
    sin: Float[Array, "b l 1 k"],
    cos: Float[Array, "b l 1 k"],
) -> Float[Array, "b l h d"]:
    """Rotates the first half of each head with its second half (RoPE)."""
    first, second = jnp.split(x.astype(sin.dtype), 2, axis=-1)
    rotated = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def attention(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k g d"],
    value: Float[Array, "b k g d"],
    visibility: Bool[Array, "b #q k"],
) -> Float[Array, "b q h d"]:
    """Softmax attention without a causal mask; h query heads share g key heads.

    Written as a batched matrix product over [b, g, h/g * q, d], without repeated keys.
    On two CPU cores a whole forward with an einsum over [b, q, h, d] takes 1.1 to 1.5
    times as long, with `jax.nn.dot_product_attention` 1.02 to 1.25 times (float32, jax
    0.10.2, medians of pairs, four shapes from 1 x 90 to 8 x 256 tokens).

    Args:
      query: rotated; head i reads key head i // (h / g).
      key: rotated.
      value: of each key.
      visibility: True where a query may see a key. A query that sees none gets the mean
        of all values instead of NaN, so that rows which are all padding stay finite.

    Returns:
      The attended values, in query's dtype.
    """
    b, q, h, d = query.shape
    g = key.shape[2]
    query = query.transpose(0, 2, 1, 3).reshape(b, g, (h // g) * q, d)
    key, value = key.transpose(0, 2, 3, 1), value.transpose(0, 2, 1, 3)
    out = _attend(query, key, value, visibility)
    return out.reshape(b, h, q, d).transpose(0, 2, 1, 3)


@jax.custom_vjp
def _attend(
    query: Float[Array, "b g q d"],
    key: Float[Array, "b g d k"],
    value: Float[Array, "b g k d"],
    visibility: Bool[Array, "b #p k"],
) -> Float[Array, "b g q d"]:
    """Attention of q = h/g * p queries per key head; see `_attend_backward`."""
    return _attend_forward(query, key, value, visibility)[0]


def _attend_forward(
    query: Float[Array, "b g q d"],
    key: Float[Array, "b g d k"],
    value: Float[Array, "b g k d"],
    visibility: Bool[Array, "b #p k"],
) -> tuple[Float[Array, "b g q d"], tuple[Array, ...]]:
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.matmul(query, key, preferred_element_type=wide)
    scores = scores * query.shape[-1] ** -0.5
    scores = _where_visible(visibility, scores, float(jnp.finfo(wide).min))
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    out = jnp.matmul(weights, value)
    return out, (query, key, value, visibility, weights, out)


def _where_visible(
    visibility: Bool[Array, "b #p k"], scores: Float[Array, "b g q k"], hidden: float
) -> Float[Array, "b g q k"]:
    """The scores, and `hidden` where a query does not see a key."""
    b, g, q, k = scores.shape
    num_seeing = visibility.shape[1]
    scores = scores.reshape(b, g, -1, num_seeing if num_seeing > 1 else q, k)
    scores = jnp.where(visibility[:, None, None], scores, hidden)
    return scores.reshape(b, g, q, k)


def _attend_backward(
    saved: tuple[Array, ...], d_out: Float[Array, "b g q d"]
) -> tuple[Float[Array, "..."] | None, ...]:
    """The gradients from the weights and the output alone.

    A softmax's gradient needs sum(weights * d_weights) over keys, which is sum(out *
    d_out) over d (arXiv:2205.14135, appendix B). Autodiff would keep and read again the
    scores and several more arrays of their size: a third of a training step on a CPU.
    """
    query, key, value, visibility, weights, out = saved
    wide = jnp.promote_types(query.dtype, jnp.float32)
    d_value = jnp.matmul(weights.swapaxes(-1, -2), d_out)
    d_weights = jnp.matmul(d_out, value.swapaxes(-1, -2), preferred_element_type=wide)
    mean = jnp.sum(out.astype(wide) * d_out, axis=-1, keepdims=True)
    d_scores = weights * (d_weights - mean) * query.shape[-1] ** -0.5
    d_scores = _where_visible(visibility, d_scores, 0.0).astype(query.dtype)
    d_query = jnp.matmul(d_scores, key.swapaxes(-1, -2))
    d_key = jnp.matmul(query.swapaxes(-1, -2), d_scores)
    return d_query, d_key, d_value, None


_attend.defvjp(_attend_forward, _attend_backward)
