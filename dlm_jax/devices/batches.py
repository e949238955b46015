"""Runs any number of prompts through a sampler and yields them as they finish."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from dlm_jax.core.canvas import Generation, Prompts
from dlm_jax.core.keys import check_seed, row_keys
from dlm_jax.core.options import Options
from dlm_jax.core.sampler import Sampler, canonical
from dlm_jax.devices.parallel import Parallel
from dlm_jax.errors import InputError, OutOfMemory
from dlm_jax.text.codec import Codec
from dlm_jax.text.output import Output, read_output
from dlm_jax.text.prompts import Encoded, groups


class Done(NamedTuple):
    """Rows that are yielded together.

    Attributes:
      indices: int [m]; which prompts.
      filled: their rows, padded, on the host.
      seconds: float [m]; each row's share, by forwards, of the wall time since the
        previous rows were yielded, compiling excluded.
      compile_seconds: of the call, divided by the rows that it fills.
    """

    indices: Int[np.ndarray, "m"]
    filled: Generation
    seconds: Float[np.ndarray, "m"]
    compile_seconds: float

    def outputs(self, codec: Codec, rows: Sequence[Encoded]) -> dict[int, Output]:
        """The rows as text, by prompt.

        Args:
          codec: of the model.
          rows: all prompts of the run.
        """
        return {
            int(index): read_output(
                codec=codec,
                encoded=rows[index],
                filled=self.filled,
                row=row,
                seconds=float(self.seconds[row]),
                compile_seconds=self.compile_seconds,
            )
            for row, index in enumerate(self.indices)
        }


def check_sizes(batch_size: int, queue_length: int | None = None) -> int:
    """Checks the sizes that `stream` takes.

    Returns:
      The queue's length.

    Raises:
      InputError: naming the size that does not fit.
    """
    if batch_size < 1:
        raise InputError(f"batch_size ({batch_size}) must be at least 1")
    if queue_length is None:
        return 8 * batch_size
    if queue_length < batch_size:
        raise InputError(
            f"queue_length ({queue_length}) must be at least batch_size ({batch_size})"
        )
    return queue_length


@contextlib.contextmanager
def too_large(batch_size: int) -> Iterator[None]:
    """Names the batch size where the memory of the devices, or of the host, is full.

    Args:
      batch_size: of what is compiled and run in the block.

    Raises:
      OutOfMemory: instead of JAX's RESOURCE_EXHAUSTED, or of MemoryError.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        reason = " ".join(str(error).split()) or "no memory is left on this machine"
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in reason:
            raise
        raise OutOfMemory(
            f"batch_size ({batch_size}) must be smaller: this batch and model take "
            f"more memory than there is ({reason:.160})"
        ) from error


def stream(
    parallel: Parallel,
    sampler: Sampler,
    rows: Sequence[Encoded],
    options: Options,
    seed: int,
    batch_size: int,
    queue_length: int | None = None,
    ids: Sequence[int] | None = None,
    is_asked: Sequence[bool] | None = None,
    period: float = 5.0,
) -> Iterator[Done]:
    """Generates for any number of prompts.

    A prompt's random draws depend on the seed and on its id, not on what else is in
    flight. Arguments are checked at once; generation begins with the first `next`.

    Args:
      parallel: the model.
      sampler: the rule; a numeric field may be an array with a value per prompt.
      rows: the prompts.
      options: gen_length must hold the blanks of every row.
      seed: of the random keys.
      batch_size: rows that are in flight at once, over all devices.
      queue_length: rows of one call, of which all but batch_size wait; 8 * batch_size
        by default. The longer, the less time slots are idle at a call's end.
      ids: of the prompts; their places by default.
      is_asked: which prompts to fill; all by default. The others stay in their calls
        without blanks, and take no forward. So calls have the same shapes, and the same
        compiled programs, as a run that fills all.
      period: seconds between two yields, roughly.

    Returns:
      Finished prompts, each once, while others are still in flight. Calls with long
      prompts come first.

    Raises:
      InputError: naming the argument that does not fit.
      OutOfMemory: naming the batch size, when the memory is full.
    """
    queue_length = check_sizes(batch_size, queue_length)
    options = dataclasses.replace(options, num_slots=parallel.num_slots(batch_size))
    sampler = canonical(sampler, (len(rows),))
    key_ids = np.arange(len(rows)) if ids is None else np.asarray(ids)
    check_seed(seed)
    asked = np.ones(len(rows), bool) if is_asked is None else np.asarray(is_asked)
    # Fewer prompts than a call holds need no rows to fill it up.
    size = max(min(queue_length, len(rows)), 1)

    def generate() -> Iterator[Done]:
        for group in groups(rows, size, parallel.denoiser.max_length):
            places = np.maximum(group.ids, 0)
            is_open = (group.ids >= 0) & asked[places]
            if not is_open.any():
                continue
            rules = jax.tree.map(lambda x, i=places: x[i], sampler)
            prompts = _with_blanks(group.prompts, is_open)
            arguments = rules, prompts, row_keys(seed, key_ids[places]), options
            with too_large(batch_size):
                compile_seconds = parallel.compile(*arguments) / int(is_open.sum())
            handed_over = parallel.stream(*arguments, period)
            seconds = 0.0
            while True:
                new, spent = _next(handed_over, batch_size)
                seconds += spent
                if new is None:
                    break
                at, filled = new
                real = np.flatnonzero(is_open[at])
                filled = jax.tree.map(lambda x, real=real: x[real], filled)
                nfe = np.asarray(filled.num_steps, float)
                if real.size:
                    indices = group.ids[at[real]]
                    shares = seconds * nfe / max(nfe.sum(), 1)
                    yield Done(indices, filled, shares, compile_seconds)
                if nfe.sum():
                    seconds = 0.0

    return generate()


# Places in a call, and what the rows there became.
_Part = tuple[Int[np.ndarray, "m"], Generation]


def _next(parts: Iterator[_Part], batch_size: int) -> tuple[_Part | None, float]:
    """The rows that come next, None after the last, and the seconds they took."""
    start = time.perf_counter()
    with too_large(batch_size):
        new = next(parts, None)
    return new, time.perf_counter() - start


def _with_blanks(prompts: Prompts, is_open: Bool[np.ndarray, "b"]) -> Prompts:
    """Rows of which only some have their blanks."""
    if is_open.all():
        return prompts
    is_blank = prompts.is_blank & is_open[:, None]
    return dataclasses.replace(prompts, is_blank=is_blank)
