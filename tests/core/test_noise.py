"""Gumbel noise: the same numbers however much of the vocabulary is drawn at once."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import equations

from dlm_jax.core.keys import row_keys
from dlm_jax.core.noise import NOISE_TILE, all_tiles, gumbel_noise, tile_by_tile

FLOAT = np.dtype("float32")
KEYS = row_keys(3, np.arange(2))
POSITIONS = jnp.array([[1, 5, 9], [0, 7, 3]])
# The first tokens' noise at row 0, column 1.
PINNED = [0.8268108, -0.18554705, -0.511844]


def _drawn(row, column, token):
    """A token's noise from its definition."""
    key = jax.random.fold_in(KEYS[row], POSITIONS[row, column])
    tile = jax.random.fold_in(key, token // NOISE_TILE)
    return jax.random.gumbel(tile, (NOISE_TILE,), mode="high")[token % NOISE_TILE]


def _noise(start, num, **options):
    draw = jax.jit(
        lambda keys: gumbel_noise(keys, POSITIONS, start, num, FLOAT, **options)
    )
    return np.asarray(draw(KEYS))


def test_noise_is_a_function_of_key_position_and_tile():
    noise = _noise(0, 2500)
    assert noise.shape == (2, 3, 2500)
    for row, column, token in [(0, 0, 0), (1, 2, 1023), (1, 0, 1024), (0, 1, 2499)]:
        expected = _drawn(row, column, token)
        np.testing.assert_allclose(noise[row, column, token], expected, rtol=1e-6)
    # As every release drew it: a seed gives the texts that it gave.
    np.testing.assert_allclose(noise[0, 1, :3], PINNED, rtol=1e-5)
    np.testing.assert_array_equal(_noise(1024, 1024), noise[..., 1024:2048])
    np.testing.assert_array_equal(_noise(2048, 7), noise[..., 2048:2055])
    # A device's part of a vocabulary may begin anywhere.
    for start, num in ((1500, 1000), (1024, 900), (2047, 2)):
        part = _noise(start, num, is_aligned=False)
        np.testing.assert_array_equal(part, noise[..., start : start + num])


@pytest.mark.parametrize("dtype", [FLOAT, np.dtype("float64")])
def test_tiles_together_are_tiles_one_by_one(dtype):
    with jax.enable_x64(dtype.itemsize == 8):
        keys = jax.vmap(lambda key: jax.random.split(key, (3, 4)))(KEYS)
        together, apart = (
            np.asarray(jax.jit(draw, static_argnums=(1, 2))(keys, NOISE_TILE, dtype))
            for draw in (all_tiles, tile_by_tile)
        )
        # JAX's own, whose bits these are.
        draw = jax.vmap(jax.vmap(jax.vmap(lambda key: _jax_gumbel(key, dtype))))
        expected = np.asarray(jax.jit(draw)(keys)).reshape(2, 3, -1)
    assert together.shape == (2, 3, 4 * NOISE_TILE) and together.dtype == dtype
    np.testing.assert_array_equal(together, apart)
    np.testing.assert_allclose(
        together, expected, rtol=1e-6 if dtype == FLOAT else 1e-14
    )


def _jax_gumbel(key, dtype):
    return jax.random.gumbel(key, (NOISE_TILE,), dtype, mode="high")


@pytest.mark.parametrize("num", [1, 30, 1023])
def test_a_small_vocabulary_draws_what_it_has(num):
    """34 times less for 30 tokens than a tile has, and the same numbers."""
    np.testing.assert_allclose(_noise(0, num), _noise(0, 1024)[..., :num], rtol=1e-6)
    draw = jax.make_jaxpr(lambda keys: gumbel_noise(keys, POSITIONS, 0, num, FLOAT))
    shapes = [x.aval.shape for _, e in equations(draw(KEYS).jaxpr) for x in e.outvars]
    # Beside it, two words of a key for each position.
    assert max(map(math.prod, shapes)) == max(6 * num, 12)


@pytest.mark.parametrize(("platform", "has_loop"), [("cpu", True), ("cuda", False)])
def test_only_a_cpu_draws_in_a_loop(platform, has_loop):
    """A GPU would wait for 124 small programs at LLaDA's vocabulary."""
    draw = jax.jit(lambda keys: gumbel_noise(keys, POSITIONS, 0, 4096, FLOAT))
    text = draw.trace(KEYS).lower(lowering_platforms=(platform,)).as_text()
    # On a CPU keys are made in loops too, but none that write slices.
    assert ("stablehlo.while" in text) == has_loop
    assert ("stablehlo.dynamic_update_slice" in text) == has_loop
