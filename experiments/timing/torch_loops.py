"""Eager PyTorch loops on dlm_jax's weights, as references of a race.

PyTorch is imported when it is used: what does not race against it needs none.
"""

import contextlib
import functools
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from dlm_jax.core.canvas import Prompts
from dlm_jax.core.options import Options
from dlm_jax.core.sampler import Sampler
from dlm_jax.errors import InputError
from dlm_jax.models.family import Module
from experiments.timing import races

EAGER, COMPILED = "eager PyTorch", "torch.compile"


class Loops(NamedTuple):
    """PyTorch's loops.

    Attributes:
      fills: by the names EAGER and COMPILED.
      num_threads: that PyTorch takes.
      seconds: that the hand-over of the weights took.
    """

    fills: dict[str, races.FillOf]
    num_threads: int
    seconds: float


def leave_room() -> None:
    """Stops JAX's first use of a GPU from taking three quarters of its memory."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def check(calls: Iterable[tuple[Sampler, Prompts, Options]]) -> None:
    """Checks that there is PyTorch, and that its loop takes what it is to fill.

    Raises:
      InputError: if not.
    """
    try:
        from experiments.timing import eager
    except ModuleNotFoundError as error:
        raise InputError(f"--reference=torch needs PyTorch: {error}") from None
    for rule, prompts, options in calls:
        eager.check(rule, prompts, options.block_length, options.cache)


def make(model: Module, compile_mode: str | None = None) -> Loops:
    """Loops on a copy of a module's weights; see `check` first.

    Args:
      model: the module.
      compile_mode: of torch.compile, for a second loop with the model compiled; it is
        left out, with a line that says why, where torch.compile does not work.

    Raises:
      InputError: if PyTorch's weights do not fit in memory.
    """
    import torch

    from dlm_jax.parity import torch_models
    from experiments.timing import eager

    start = time.perf_counter()
    with _in_memory():
        twin = torch_models.twin(model)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    models: dict[str, Any] = {EAGER: twin}
    if compile_mode:
        problem = eager.problem_of_compiling()
        if problem:
            print(f"torch.compile is left out, for it does not work here: {problem}")
        else:
            # Every shape has code of its own, as every shape of dlm_jax has.
            compiled = torch.compile(twin, mode=compile_mode, dynamic=False)
            models[COMPILED] = cast(torch.nn.Module, compiled)
    fill_of = functools.partial(_fill_of, model.config.mask_token_id)
    fills: dict[str, races.FillOf] = {}
    for name, one in models.items():
        fills[name] = functools.partial(fill_of, one)
    return Loops(fills, torch.get_num_threads(), seconds)


def _fill_of(mask_id: int, model: Any, options: Options) -> races.Fill:
    from experiments.timing import eager

    def fill(
        sampler: Sampler, prompts: Prompts, keys: jax.Array
    ) -> tuple[np.ndarray, np.ndarray]:
        del keys  # The loop takes the most probable tokens.
        with _in_memory():
            return eager.fill(
                model, sampler, prompts, mask_id, options.block_length, options.cache
            )

    return fill


@contextlib.contextmanager
def _in_memory() -> Iterator[None]:
    import torch

    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise InputError(
            f"--reference=torch does not fit in memory beside dlm_jax: {error}"
        ) from None


def free() -> None:
    """Gives back the memory that PyTorch keeps and does not use, for JAX to take."""
    if torch := sys.modules.get("torch"):
        torch.cuda.empty_cache()
