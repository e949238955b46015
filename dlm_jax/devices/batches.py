"""A run of any number of prompts through a sampler."""

import dataclasses
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import Int32

from dlm_jax.core.keys import row_keys
from dlm_jax.core.options import Options
from dlm_jax.core.sampler import Sampler, canonical
from dlm_jax.devices.runner import Parallel
from dlm_jax.errors import InputError
from dlm_jax.text.prompts import Encoded, groups


@dataclasses.dataclass(frozen=True)
class Answer:
    """One prompt with its blanks filled.

    Attributes:
      tokens: int32 [n]; without padding.
      num_steps: NFE, forwards that the row took part in.
      is_complete: no blank is left.
      seconds: its share, by forwards, of the wall time between the last time that rows
        were handed over and its own, compiling excluded: those of a call add up.
      compile_seconds: its call's, by the call's rows.
    """

    tokens: Int32[np.ndarray, "n"]
    num_steps: int
    is_complete: bool
    seconds: float
    compile_seconds: float


@dataclasses.dataclass(frozen=True)
class Run:
    """All prompts with their blanks filled by one sampler.

    Attributes:
      answers: in the order of the prompts.
      seconds: wall time of all calls, compiling excluded.
      compile_seconds: wall time of compiling.
    """

    answers: list[Answer]
    seconds: float
    compile_seconds: float


def fill(
    parallel: Parallel,
    sampler: Sampler,
    rows: Sequence[Encoded],
    options: Options,
    seed: int,
    batch_size: int,
    queue_length: int | None = None,
    ids: Sequence[int] | None = None,
    on_answers: Callable[[dict[int, Answer]], object] = lambda answers: None,
    period: float = 5.0,
) -> Run:
    """Generates for any number of prompts.

    A prompt's random draws depend on the seed and on its id, not on what else is in
    flight.

    Args:
      parallel: the model.
      sampler: the rule; a numeric field may be an array with a value per prompt.
      rows: the prompts.
      options: gen_length must hold the blanks of every row.
      seed: of the random keys.
      batch_size: rows that are in flight at once, over all devices.
      queue_length: rows of one call, of which all but batch_size wait; 8 * batch_size
        by default. The longer, the less time slots stand idle at a call's end.
      ids: of the prompts; their places by default.
      on_answers: called with new answers by the prompts' places, each once, while
        others are still in flight.
      period: about how many seconds pass between two times that answers are handed
        over.

    Raises:
      InputError: naming the argument that does not fit.
    """
    if batch_size < 1:
        raise InputError(f"batch_size ({batch_size}) must be at least 1")
    if queue_length is None:
        queue_length = 8 * batch_size
    if queue_length < batch_size:
        raise InputError(
            f"queue_length ({queue_length}) must be at least batch_size ({batch_size})"
        )
    options = dataclasses.replace(options, num_slots=parallel.num_slots(batch_size))
    sampler = canonical(sampler, (len(rows),))
    key_ids = np.arange(len(rows)) if ids is None else np.asarray(ids)
    answers: dict[int, Answer] = {}
    total = compile_total = 0.0
    # Fewer prompts than a call holds need no rows to fill it up.
    size = min(queue_length, len(rows))
    for group in groups(rows, size, parallel.denoiser.max_length):
        places = np.maximum(group.ids, 0)
        rules = jax.tree.map(lambda x, i=places: x[i], sampler)
        keys = row_keys(seed, key_ids[places])
        arguments = rules, group.prompts, keys, options
        compile_seconds = parallel.compile(*arguments)
        compile_total += compile_seconds
        num_real = int((group.ids >= 0).sum())
        stream = parallel.stream(*arguments, period)
        seconds = 0.0
        while True:
            start = time.perf_counter()
            handed = next(stream, None)
            elapsed = time.perf_counter() - start
            total += elapsed
            if handed is None:
                break
            seconds += elapsed
            at, filled = handed
            real = [i for i, place in enumerate(at) if group.ids[place] >= 0]
            num_forwards = sum(int(filled.num_steps[i]) for i in real)
            new = {}
            for i in real:
                index = int(group.ids[at[i]])
                share = int(filled.num_steps[i]) / max(num_forwards, 1)
                new[index] = Answer(
                    tokens=np.asarray(filled.tokens[i, : rows[index].tokens.size]),
                    num_steps=int(filled.num_steps[i]),
                    is_complete=bool(filled.is_complete[i]),
                    seconds=seconds * share,
                    compile_seconds=compile_seconds / num_real,
                )
            if num_forwards:
                seconds = 0.0
            if new:
                answers |= new
                on_answers(new)
    return Run([answers[i] for i in range(len(rows))], total, compile_total)
