"""What a seed may be: the same for random keys, weights and examples."""

import reprlib
from typing import Any

import numpy as np

from dlm_jax.errors import InputError

# JAX's keys hold 32 bits of a seed where 64-bit types are off: others would be taken
# modulo 2^32, or end in an OverflowError.
NUM_SEEDS = 2**32


def check_seed(seed: Any, name: str = "seed") -> None:
    """Refuses what is no seed.

    Args:
      seed: must be an integer, 0 <= seed < 2**32.
      name: what the error calls it.

    Raises:
      InputError: naming it.
    """
    is_integer = isinstance(seed, (int, np.integer)) and not isinstance(seed, bool)
    if not is_integer or not 0 <= seed < NUM_SEEDS:
        # Hundreds of digits are no line that anyone reads.
        shown = reprlib.repr(int(seed) if is_integer else seed)
        raise InputError(
            f"{name} ({shown}) must be an integer from 0 to {NUM_SEEDS - 1}"
        )
