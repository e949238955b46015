"""Building blocks shared by the denoisers: RMSNorm, embedding, rotary angles."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


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
