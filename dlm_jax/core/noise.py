"""Gumbel noise for drawing tokens.

Noise is a function of (row's key for the step, position, tile of the vocabulary), so
that neither the slice size nor padding or batch can change a draw.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt32

# Entries of the vocabulary that share a key.
NOISE_TILE = 1024
_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)


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
    # Of a small vocabulary a tile has few columns; others are not drawn.
    width = min(num_tokens, NOISE_TILE) if is_aligned else NOISE_TILE
    # A key is made once: fused with the draw, it would be made for every entry.
    noise = jax.lax.platform_dependent(
        jax.lax.optimization_barrier(by_position(keys, positions)),
        cpu=functools.partial(tile_by_tile, width=width, dtype=dtype),
        default=functools.partial(all_tiles, width=width, dtype=dtype),
    )
    if is_aligned:
        return noise[..., :num_tokens]
    start = first_token % NOISE_TILE
    return jax.lax.dynamic_slice_in_dim(noise, start, num_tokens, axis=-1)


def all_tiles(
    keys: Key[Array, "b r t"], width: int, dtype: jnp.dtype
) -> Float[Array, "b r v"]:
    """The noise of tiles side by side.

    Args:
      keys: one per tile.
      width: columns of a tile, NOISE_TILE at most.
      dtype: of the noise.
    """
    # Stored once: fused with what reads it, it would be drawn for every reader.
    noise = jax.lax.optimization_barrier(_gumbel(keys, width, dtype))
    return noise.reshape(*keys.shape[:-1], -1)


def tile_by_tile(
    keys: Key[Array, "b r t"], width: int, dtype: jnp.dtype
) -> Float[Array, "b r v"]:
    """The same as `all_tiles`, for a CPU, whose compiler drops the barrier too early.

    A loop keeps the draw apart from the reductions, which run one entry at a time.
    """
    noise = jax.lax.map(
        lambda keys: _gumbel(keys, width, dtype), jnp.moveaxis(keys, -1, 0)
    )
    return jnp.moveaxis(noise, 0, -2).reshape(*keys.shape[:-1], -1)


def _gumbel(
    keys: Key[Array, "*k"], width: int, dtype: jnp.dtype
) -> Float[Array, "*k w"]:
    """The first columns of `jax.random.gumbel(key, (NOISE_TILE,), mode="high")`.

    Args:
      keys: one per tile.
      width: columns, at most NOISE_TILE.
      dtype: of the noise.
    """
    words = jax.random.key_data(keys)[..., None, :]
    column = jnp.arange(width, dtype=jnp.uint32)
    # The same column of two rows: the second one continues the first one's mantissa.
    high = _uniform(words, column, dtype)
    low = _uniform(words, column + np.uint32(NOISE_TILE), dtype)
    precision = jnp.finfo(dtype)
    fine = high + 2.0**-precision.nmant * low + precision.tiny
    return -jnp.log(-jnp.log1p(-jnp.where(high >= 0.5, high, fine)))


def _uniform(
    words: UInt32[Array, "*k 2"], count: UInt32[Array, "w"], dtype: jnp.dtype
) -> Float[Array, "..."]:
    """`jax.random.uniform` at counts of one's own: numbers in [0, 1).

    Args:
      words: of the keys.
      count: of the numbers; broadcast against the keys.
      dtype: float32 or float64.
    """
    first, second = _threefry(words[..., 0], words[..., 1], count)
    bits = first ^ second
    if dtype.itemsize == 8:
        bits = first.astype(jnp.uint64) << 32 | second
    # Random mantissas of numbers in [1, 2).
    one = np.ones((), dtype).view(bits.dtype)
    bits = bits >> (8 * dtype.itemsize - jnp.finfo(dtype).nmant) | one
    return jax.lax.bitcast_convert_type(bits, dtype) - 1


def _threefry(
    key0: UInt32[Array, "..."], key1: UInt32[Array, "..."], count: UInt32[Array, "w"]
) -> tuple[UInt32[Array, "..."], UInt32[Array, "..."]]:
    """Threefry-2x32 with 20 rounds (Salmon et al., SC 2011) of (0, count).

    Written out, because JAX's own is a loop on a CPU: XLA fuses nothing with it, and it
    is nine times slower.
    """
    keys = key0, key1, key0 ^ key1 ^ np.uint32(0x1BD11BDA)
    left, right = key0, key1 + count
    for i in range(20):
        distance = _ROTATIONS[i % 8]
        left = left + right
        right = (right << distance | right >> (32 - distance)) ^ left
        if i % 4 == 3:
            turn = i // 4 + 1
            left = left + keys[turn % 3]
            right = right + keys[(turn + 1) % 3] + np.uint32(turn)
    return left, right
