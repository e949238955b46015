"""Gumbel noise for drawing tokens.

Noise is a function of (row's key for the step, position, tile of the vocabulary), so
that neither the slice size nor padding or batch can change a draw.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

# Entries of the vocabulary that are drawn together.
NOISE_TILE = 1024


def gumbel_noise(
    keys: Key[Array, "b"],
    positions: Int[Array, "b r"],
    first_token: Int[Array, ""] | int,
    num_tokens: int,
    dtype: jnp.dtype,
    is_aligned: bool = True,
) -> Float[Array, "b r v"]:
    """Standard Gumbel noise for a run of the vocabulary.

    Made from high-precision uniforms: with float32's usual ones the upper tail is cut
    off, which lowers the effective temperature (arXiv:2409.02908).

    Args:
      keys: one per row.
      positions: the draw of a token depends on its position and on its id.
      first_token: where the run starts.
      num_tokens: its length.
      dtype: of the noise.
      is_aligned: first_token is a multiple of NOISE_TILE.
    """
    first_tile = first_token // NOISE_TILE
    num_tiles = -(-num_tokens // NOISE_TILE) + (0 if is_aligned else 1)
    tiles = first_tile + jnp.arange(num_tiles)

    def tile_keys(key: Key[Array, ""], position: Int[Array, ""]) -> Key[Array, "t"]:
        own = jax.random.fold_in(key, position)
        return jax.vmap(jax.random.fold_in, (None, 0))(own, tiles)

    by_position = jax.vmap(jax.vmap(tile_keys, (None, 0)))
    # A key is made once: fused with the draw it would be made for every entry.
    tiles_of = jax.lax.optimization_barrier(by_position(keys, positions))
    noise = jax.lax.platform_dependent(
        tiles_of,
        cpu=functools.partial(tile_by_tile, dtype=dtype),
        default=functools.partial(all_tiles, dtype=dtype),
    )
    if is_aligned:
        return noise[..., :num_tokens]
    start = first_token % NOISE_TILE
    return jax.lax.dynamic_slice_in_dim(noise, start, num_tokens, axis=-1)


def all_tiles(keys: Key[Array, "b r t"], dtype: jnp.dtype) -> Float[Array, "b r v"]:
    """The noise of tiles side by side, in a program for machines of many lanes.

    Threefry is plain arithmetic there, which is fused with what reads the noise.

    Args:
      keys: one per tile.
      dtype: of the noise.
    """

    def draw(key: Key[Array, ""]) -> Float[Array, "t"]:
        return jax.random.gumbel(key, (NOISE_TILE,), dtype, mode="high")

    noise = jax.vmap(jax.vmap(jax.vmap(draw)))(keys)
    return noise.reshape(*keys.shape[:-1], -1)


def tile_by_tile(keys: Key[Array, "b r t"], dtype: jnp.dtype) -> Float[Array, "b r v"]:
    """The same as `all_tiles`, for a CPU.

    Threefry is a loop there, whose values take several times the memory of the draw.
    """

    def draw(keys: Key[Array, "b r"]) -> Float[Array, "b r t"]:
        return all_tiles(keys[..., None], dtype)

    noise = jax.lax.map(draw, jnp.moveaxis(keys, -1, 0))
    return jnp.moveaxis(noise, 0, -2).reshape(*keys.shape[:-1], -1)
