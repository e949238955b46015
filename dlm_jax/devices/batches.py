"""Prompts in groups of few shapes, and a run of them through a sampler.

A program is compiled for each shape of a group, so lengths are padded to buckets and
the last group is filled up.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Bool, Int, Int32

from dlm_jax.core.canvas import Prompts
from dlm_jax.core.keys import row_keys
from dlm_jax.core.options import Options
from dlm_jax.core.sampler import Sampler, canonical
from dlm_jax.devices.runner import Parallel
from dlm_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A prompt and its blanks, without padding.

    Attributes:
      tokens: int32 [n]; the mask token at blanks.
      is_blank: bool [n]; True where a token is to be generated.
      is_infill: the blanks are part of a given text, so none of them may be cut off;
        otherwise they continue it, and EOS may come early.
    """

    tokens: Int32[np.ndarray, "n"]
    is_blank: Bool[np.ndarray, "n"]
    is_infill: bool


@dataclasses.dataclass(frozen=True)
class Group:
    """Encoded prompts of one shape, ready to be filled in one call.

    Attributes:
      ids: int [n]; which prompt a row is; -1 where it only fills up the group.
      prompts: the rows.
    """

    ids: Int[np.ndarray, "n"]
    prompts: Prompts


def bucket(length: int, max_length: int) -> int:
    """The padded length of a row: few different ones, so that few programs compile.

    Multiples of 16 up to 64, then four steps per doubling (80, 96, 112, 128, 160, ...),
    so that padding is at most a fifth of a longer row; never more than max_length.
    """
    doubling = 1 << max(length - 1, 0).bit_length() >> 1
    step = max(16, doubling // 4)
    return min(-(-length // step) * step, max_length)


def pad(rows: Sequence[Encoded], length: int, batch_size: int | None = None) -> Prompts:
    """Stacks rows, with padding after each and empty rows after the last.

    Args:
      rows: at least one.
      length: of a padded row.
      batch_size: rows of the result; as many as are given by default.
    """
    b = len(rows) if batch_size is None else batch_size
    tokens = np.zeros((b, length), np.int32)
    is_blank = np.zeros((b, length), bool)
    is_valid = np.zeros((b, length), bool)
    for i, row in enumerate(rows):
        tokens[i, : row.tokens.size] = row.tokens
        is_blank[i, : row.tokens.size] = row.is_blank
        is_valid[i, : row.tokens.size] = True
    can_stop = np.array([not row.is_infill for row in rows] + [True] * (b - len(rows)))
    return Prompts(tokens, is_blank, is_valid, can_stop)


def groups(rows: Sequence[Encoded], size: int, max_length: int) -> Iterator[Group]:
    """Cuts prompts into groups of one size and of few lengths.

    Rows of similar length share a group, which is padded to the bucket of its longest.

    Args:
      rows: in any order; a group's ids are places in it.
      size: rows of every group; the last is filled up with empty ones.
      max_length: of a padded row.
    """
    order = np.argsort([row.tokens.size for row in rows], kind="stable")
    for start in range(0, len(rows), size):
        chosen = order[start : start + size]
        ids = np.full(size, -1)
        ids[: chosen.size] = chosen
        members = [rows[i] for i in chosen]
        length = bucket(members[-1].tokens.size, max_length)
        yield Group(ids, pad(members, length, size))


def gen_length(rows: Sequence[Encoded], block_length: int | None) -> int:
    """The gen_length that rows of different numbers of blanks need: whole blocks."""
    most = max(int(row.is_blank.sum()) for row in rows)
    return most if not block_length else -(-most // block_length) * block_length


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
