"""Building blocks shared by the denoisers: norms, embeddings, rotary angles, MLP."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dlm_jax.errors import InputError
from dlm_jax.models.family import ModelConfig


def rms_norm(
    x: Float[Array, "*n d"],
    weight: Float[Array, "d"],
    eps: float,
    is_rounded_last: bool = False,
) -> Float[Array, "*n d"]:
    """Scales x to unit root mean square over its last axis, then by `weight`.

    The statistics are taken in float32 (or wider).

    Args:
      x: what is scaled.
      weight: factors, in x's dtype.
      eps: is added to the mean square.
      is_rounded_last: True multiplies by the weight before the cast back to x's dtype,
        as the kernel of SDAR's released code does; False after it, as LLaDA's does. In
        bfloat16 they differ.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    scaled = wide * jax.lax.rsqrt(mean_square + eps)
    if is_rounded_last:
        return (scaled * weight.astype(wide.dtype)).astype(x.dtype)
    return scaled.astype(x.dtype) * weight


def to_heads(
    x: Float[Array, "n d"], weight: Float[Array, "..."], head_dim: int
) -> Float[Array, "n h k"]:
    """Queries, keys or values of all heads, k = head_dim.

    Args:
      x: normed activations.
      weight: [d, h * k], or [h, k, d] as `stack.by_head` lays it out.
      head_dim: size of a head.
    """
    if weight.ndim == 3:
        return jnp.einsum("nd,hkd->nhk", x, weight)
    return (x @ weight).reshape(x.shape[0], -1, head_dim)


def apart(
    x: Float[Array, "n d"], num: int, is_apart: bool
) -> tuple[Float[Array, "n d"], ...]:
    """Repeats x for `num` products with different weights.

    XLA's compiler for GPUs merges such products into one, and joins their weights in
    every step: at LLaDA-8B's shape those of queries and keys, 67 MB of each block
    (docs/aot.md). Behind a barrier it takes each x for another array.

    Args:
      x: what is multiplied.
      num: of products.
      is_apart: whether there is a barrier.
    """
    copies = (x,) * num
    return jax.lax.optimization_barrier(copies) if is_apart else copies


def gated_mlp(
    x: Float[Array, "n d"],
    gate: Float[Array, "d f"],
    up: Float[Array, "d f"],
    down: Float[Array, "f d"],
    model_axis: str | None,
    is_apart: bool = False,
) -> Float[Array, "n d"]:
    """An MLP with SiLU gates; with a `model_axis`, f are this device's units."""
    first, second = apart(x, 2, is_apart)
    added = (jax.nn.silu(first @ gate) * (second @ up)) @ down
    return sum_over(model_axis, added)


def check_parts(config: ModelConfig, num_parts: int, names: Sequence[str]) -> None:
    """Checks that the sizes of a model divide among devices.

    Args:
      config: the shape of the whole model.
      num_parts: devices that share it.
      names: of the config's sizes that are divided.

    Raises:
      InputError: naming the first size that num_parts does not divide.
    """
    if num_parts < 1:
        raise InputError(f"devices that share a model ({num_parts}) must be at least 1")
    for name in names:
        if getattr(config, name) % num_parts:
            raise InputError(
                f"{name} ({getattr(config, name)}) must be a multiple of the devices "
                f"that share a model ({num_parts})"
            )


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
