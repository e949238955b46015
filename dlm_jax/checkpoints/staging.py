"""What several processes need to write a checkpoint together."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from dlm_jax import files
from dlm_jax.errors import InputError


@contextlib.contextmanager
def staged(path: str | os.PathLike, num_bytes: int = 0) -> Iterator[pathlib.Path]:
    """A directory that all processes fill, see `files.staged`.

    They enter and leave it together, and see the same file system.

    Args:
      path: to be created.
      num_bytes: that are going to be written to it by all.

    Raises:
      InputError: in all of them, as `files.check_output`.
    """
    path = pathlib.Path(path)
    with contextlib.ExitStack() as stack:
        name, problem = "", ""
        if jax.process_index() == 0:
            own = files.staged(path, num_bytes, is_directory=True)
            try:
                name = stack.enter_context(own).name
            except InputError as error:
                problem = str(error)
        # Only process 0 knows the random part of the name.
        name, problem = _tell(name), _tell(problem)
        if problem:
            raise InputError(problem)
        yield path.with_name(name)
        meet("written")
    meet("in place")


def meet(name: str) -> None:
    """Waits until all processes are here.

    The first time, they connect to each other, for which JAX gives them half a minute.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _tell(text: str) -> str:
    """What process 0 says, up to 1,000 bytes of it."""
    if jax.process_count() == 1:
        return text
    encoded = text.encode("utf-8", "surrogateescape")[:1000]
    padded = np.frombuffer(encoded.ljust(1000, b"\0"), np.uint8)
    told = np.asarray(multihost_utils.broadcast_one_to_all(padded), np.uint8)
    return told.tobytes().rstrip(b"\0").decode("utf-8", "surrogateescape")
