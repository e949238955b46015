"""What a device reaches at best, measured: matrix products and copies."""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# The largest product that is timed takes at least this long, all repeats together.
_SECONDS = 0.5
# A copy is one call, of which the launch is then a small part.
_COPY_SECONDS = 0.01


class Ceilings(NamedTuple):
    """What a device reaches at best.

    Attributes:
      peak: operations a second of a matrix product.
      bandwidth: bytes a second of a copy, read and written.
    """

    peak: float
    bandwidth: float


def measure(dtype: jax.typing.DTypeLike, precision: str = "highest") -> Ceilings:
    """The ceilings of this device.

    Args:
      dtype: of the weights.
      precision: of their products, if they are float32, as in `Options`.
    """
    is_wide = jnp.dtype(dtype).itemsize >= 4
    # As the model's own products have it.
    with jax.default_matmul_precision(precision if is_wide else "default"):
        peak = matmul_peak(dtype)
    return Ceilings(peak, copy_bandwidth())


def operand(size: int, dtype: jax.typing.DTypeLike) -> Float[Array, "n n"]:
    """A square matrix as those of a model: of constants a GPU is faster.

    It takes less power to multiply them, so that its clock falls less.
    """
    return jax.random.normal(jax.random.key(0), (size, size), dtype)


def matmul_peak(dtype: jax.typing.DTypeLike, repeats: int = 5) -> float:
    """Operations a second of the best matrix product of this device, measured.

    Square ones of growing size, until one takes long enough to be timed.
    """
    best, size = 0.0, 512
    while True:
        x = operand(size, dtype)
        product = jax.jit(jnp.matmul).lower(x, x).compile()
        product(x, x).block_until_ready()
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            product(x, x).block_until_ready()
            seconds.append(time.perf_counter() - start)
        best = max(best, 2 * size**3 / min(seconds))
        if min(seconds) > _SECONDS / repeats or size >= 16384:
            return best
        size *= 2


def copy_bandwidth(repeats: int = 5) -> float:
    """Bytes a second, read and written, of the best copy on this device, measured.

    Of arrays that fit into no cache, of growing size until one takes long enough.
    """
    best, size = 0.0, 2**26
    while True:
        x = jnp.ones(size, jnp.float32)
        copy = jax.jit(lambda x: x + 1).lower(x).compile()
        copy(x).block_until_ready()
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            copy(x).block_until_ready()
            seconds.append(time.perf_counter() - start)
        best = max(best, 2 * x.nbytes / min(seconds))
        if min(seconds) > _COPY_SECONDS or x.nbytes >= 2**30:
            return best
        size *= 2
