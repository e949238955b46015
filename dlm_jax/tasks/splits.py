"""How tasks draw examples: distinct ones, each in one split, and arrays they keep."""

import hashlib
import itertools
import pathlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from dlm_jax import files

_Drawn = TypeVar("_Drawn", bound=Hashable)


def split_of(key: str | bytes, held_out: Sequence[str], share: int) -> str:
    """Assigns an example to a split by a hash of its content.

    Equal examples are then always in the same split, whenever they are drawn.

    Args:
      key: equal for examples that are the same.
      held_out: names of the splits that are not for training.
      share: one in `share` keys goes to each of them.

    Returns:
      One of held_out, or 'train'.
    """
    key = key.encode() if isinstance(key, str) else key
    digest = hashlib.blake2b(key, digest_size=8).digest()
    place = int.from_bytes(digest, "big") % share
    return held_out[place] if place < len(held_out) else "train"


def first_distinct(draw: Callable[[int], Iterable[_Drawn]], num: int) -> list[_Drawn]:
    """The first distinct examples of batches that are drawn one after the other.

    Batches do not depend on num: asking for more does not change the first ones.

    Args:
      draw: from the number of a batch to its examples.
      num: how many.
    """
    drawn: dict[_Drawn, None] = {}  # which keeps their order
    for lot in itertools.count():
        if len(drawn) >= num:
            break
        drawn |= dict.fromkeys(draw(lot))
    return list(itertools.islice(drawn, num))


def cached(
    path: pathlib.Path,
    made_by: Mapping[str, int],
    make: Callable[..., dict[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """Arrays that take long to make, kept in a file.

    Args:
      path: the file, .npz; its directory is made.
      made_by: what they depend on: with other values they are made again.
      make: called as make(**made_by).
    """
    names = {f"made_by_{name}": value for name, value in made_by.items()}
    if path.exists():
        with np.load(path) as file:
            stored = {name: file[name] for name in file.files}
        if all(stored.get(name) == value for name, value in names.items()):
            return {name: stored[name] for name in stored if name not in names}
    arrays = make(**made_by)
    with files.staged(path, may_exist=True) as partial, partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays, **names)
    return arrays
