"""Prompts in batches of few shapes, and a run of them through a sampler.

A program is compiled for each shape of a batch, so lengths are padded to buckets and
the last batch is filled up.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int, Int32

from dlm_jax.errors import InputError
from dlm_jax.generate import row_keys
from dlm_jax.parallel import DataParallel
from dlm_jax.types import Options, Prompts, Sampler


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
class Batch:
    """Encoded prompts of one shape, ready to be filled.

    Attributes:
      ids: int [b]; which prompt a row is; -1 where it only fills up the batch.
      prompts: the rows.
    """

    ids: Int[np.ndarray, "b"]
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
    return Prompts(tokens=tokens, is_blank=is_blank, is_valid=is_valid)


def batches(
    rows: Sequence[Encoded], batch_size: int, max_length: int
) -> Iterator[Batch]:
    """Cuts prompts into batches of one size and of few lengths.

    Rows of similar length share a batch, which is padded to the bucket of its longest.

    Args:
      rows: in any order; a batch's ids are places in it.
      batch_size: rows of every batch; the last is filled up with empty ones.
      max_length: of a padded row.

    Raises:
      InputError: if the batch size is not positive.
    """
    if batch_size < 1:
        raise InputError(f"batch_size ({batch_size}) must be at least 1")
    order = np.argsort([row.tokens.size for row in rows], kind="stable")
    for start in range(0, len(rows), batch_size):
        chosen = order[start : start + batch_size]
        ids = np.full(batch_size, -1)
        ids[: chosen.size] = chosen
        members = [rows[i] for i in chosen]
        length = bucket(members[-1].tokens.size, max_length)
        yield Batch(ids, pad(members, length, batch_size))


def num_slots(rows: Sequence[Encoded], block_length: int | None) -> int:
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
      seconds: wall time of the row's batch, compiling excluded.
    """

    tokens: Int32[np.ndarray, "n"]
    num_steps: int
    is_complete: bool
    seconds: float


@dataclasses.dataclass(frozen=True)
class Run:
    """All prompts with their blanks filled by one sampler.

    Attributes:
      answers: in the order of the prompts.
      seconds: wall time of all batches, compiling excluded.
      compile_seconds: wall time of compiling.
    """

    answers: list[Answer]
    seconds: float
    compile_seconds: float


def fill(
    parallel: DataParallel,
    sampler: Sampler,
    rows: Sequence[Encoded],
    options: Options,
    seed: int,
    batch_size: int,
    on_batch: Callable[[int], object] = lambda num_rows: None,
) -> Run:
    """Generates for any number of prompts, batch by batch.

    A prompt's random draws depend on the seed and on its place among the prompts, not
    on its batch.

    Args:
      parallel: the model.
      sampler: the rule.
      rows: the prompts.
      options: gen_length must hold the blanks of every row.
      seed: of the random keys.
      batch_size: rows that are generated together.
      on_batch: called with the number of prompts done, after every batch.

    Raises:
      InputError: naming the argument that does not fit.
    """
    answers: dict[int, Answer] = {}
    total = compile_total = 0.0
    # Fewer prompts than a batch holds need no rows to fill it up.
    batch_size = min(batch_size, len(rows))
    for batch in batches(rows, batch_size, parallel.denoiser.max_length):
        keys = row_keys(seed, np.maximum(batch.ids, 0))
        arguments = sampler, batch.prompts, keys, options
        compile_total += parallel.compile(*arguments)
        start = time.perf_counter()
        filled = parallel(*arguments)
        seconds = time.perf_counter() - start
        total += seconds
        (real,) = np.nonzero(batch.ids >= 0)
        tokens = np.asarray(filled.tokens)
        for i in real:
            index = int(batch.ids[i])
            answers[index] = Answer(
                tokens=tokens[i, : rows[index].tokens.size],
                num_steps=int(filled.num_steps[i]),
                is_complete=bool(filled.is_complete[i]),
                seconds=seconds,
            )
        on_batch(real.size)
    return Run([answers[i] for i in range(len(rows))], total, compile_total)
