"""Seeds, and the random keys that rows get from them."""

import functools
import reprlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from dlm_jax.errors import InputError

# JAX's keys hold 32 bits of a seed where 64-bit types are off: others would be taken
# modulo 2^32, or end in an OverflowError.
NUM_SEEDS = 2**32


def check_seed(seed: Any, name: str = "seed") -> None:
    """Checks a seed.

    Args:
      seed: must be an integer, 0 <= seed < 2**32.
      name: what the error calls it.

    Raises:
      InputError: naming it.
    """
    is_integer = isinstance(seed, (int, np.integer)) and not isinstance(seed, bool)
    if not is_integer or not 0 <= seed < NUM_SEEDS:
        # Nobody reads an error line with hundreds of digits.
        shown = reprlib.repr(int(seed) if is_integer else seed)
        raise InputError(
            f"{name} ({shown}) must be an integer from 0 to {NUM_SEEDS - 1}"
        )


def row_keys(seed: int, ids: Int[np.ndarray, "b"]) -> Key[Array, "b"]:
    """One random key per row, a function of the seed and the row's own id.

    A row's draws then depend on which prompt it is, not on its place in a batch.

    Args:
      seed: an integer, 0 <= seed < 2**32.
      ids: integers of the same range.

    Raises:
      InputError: naming what is out of range: modulo 2^32 two would be the same.
    """
    check_seed(seed)
    for bound in (np.min(ids, initial=0), np.max(ids, initial=0)):
        check_seed(bound, "ids")
    root = jax.random.key(seed, impl="threefry2x32")
    return jax.vmap(functools.partial(jax.random.fold_in, root))(jnp.asarray(ids))
