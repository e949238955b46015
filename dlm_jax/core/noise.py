"""Gumbel noise for drawing tokens.

Noise is a function of (row's key for the step, position, tile of the vocabulary), so
that neither the slice size nor padding or batch can change a draw.
"""

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

    def position_noise(
        key: Key[Array, ""], position: Int[Array, ""], tile: Int[Array, ""]
    ) -> Float[Array, "t"]:
        key = jax.random.fold_in(jax.random.fold_in(key, position), tile)
        return jax.random.gumbel(key, (NOISE_TILE,), dtype, mode="high")

    def tile_noise(tile: Int[Array, ""]) -> Float[Array, "b r t"]:
        noise = jax.vmap(jax.vmap(position_noise, (None, 0, None)), (0, 0, None))
        return noise(keys, positions, tile)

    # One tile after the other: a draw's intermediate values take several times its
    # own memory.
    noise = jnp.moveaxis(jax.lax.map(tile_noise, tiles), 0, -2)
    noise = noise.reshape(*positions.shape, -1)
    if is_aligned:
        return noise[..., :num_tokens]
    start = first_token % NOISE_TILE
    return jax.lax.dynamic_slice_in_dim(noise, start, num_tokens, axis=-1)
