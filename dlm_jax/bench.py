"""Races: the compiled loop against another, timed in pairs on the same prompts.

A machine's speed drifts by more than what is to be seen, so two ways are run in turn,
A B A B, and a ratio is the median of the ratios of neighbours.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from dlm_jax.errors import InputError
from dlm_jax.generate import row_keys
from dlm_jax.parallel import DataParallel
from dlm_jax.types import Options, Prompts, Sampler

# Fills a batch: tokens [b, l], and the forwards each row took part in, [b].
Fill = Callable[[Sampler, Prompts], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Result:
    """One sampler at one batch size; n rows in all, p pairs.

    Attributes:
      sampler: its spec.
      batch_size: rows that were filled together.
      compile_seconds: before the first run, not part of any time below.
      seconds: of ours, for all rows, at each pair.
      reference_seconds: of the other; None if there was none.
      num_steps: NFE of each row.
      num_forwards: of the whole race's batches: a batch runs until its last row ends.
      num_equal: rows with the tokens and the NFE of the reference; None without one.
    """

    sampler: str
    batch_size: int
    compile_seconds: float
    seconds: Float[np.ndarray, "p"]
    reference_seconds: Float[np.ndarray, "p"] | None
    num_steps: Int[np.ndarray, "n"]
    num_forwards: int
    num_equal: int | None


def split(prompts: Prompts, batch_size: int) -> list[Prompts]:
    """Cuts prompts into full batches.

    Raises:
      InputError: if the batch size does not divide the number of rows.
    """
    num_rows = len(prompts.tokens)
    if batch_size < 1 or num_rows % batch_size:
        raise InputError(
            f"batch_size ({batch_size}) must be a divisor of the rows ({num_rows})"
        )
    starts = range(0, num_rows, batch_size)
    return [jax.tree.map(lambda x, i=i: x[i : i + batch_size], prompts) for i in starts]


def race(
    parallel: DataParallel,
    samplers: Mapping[str, Sampler],
    batches: Sequence[Prompts],
    options: Options,
    *,
    num_pairs: int,
    seed: int = 0,
    reference: Fill | None = None,
    on_run: Callable[[], object] = lambda: None,
) -> list[Result]:
    """Times every sampler on the same batches, ours and the reference in turn.

    A round runs all samplers, so that ratios between samplers are of neighbours too.
    Each way has one untimed run first.

    Args:
      parallel: our loop.
      samplers: by spec.
      batches: of one shape.
      options: gen_length must hold the blanks of every row.
      num_pairs: rounds.
      seed: of the random keys.
      reference: another way to fill a batch.
      on_run: called after every run of all batches.

    Raises:
      InputError: naming the argument that does not fit.
    """
    if num_pairs < 1:
        raise InputError(f"num_pairs ({num_pairs}) must be at least 1")
    batch_size = len(batches[0].tokens)
    keys = row_keys(seed, np.arange(batch_size))

    def ours(sampler: Sampler, prompts: Prompts) -> tuple[np.ndarray, np.ndarray]:
        generation = parallel(sampler, prompts, keys, options)
        return np.asarray(generation.tokens), np.asarray(generation.num_steps)

    ways = [ours] if reference is None else [ours, reference]
    compile_seconds, outputs = {}, {}
    for spec, sampler in samplers.items():
        compile_seconds[spec] = parallel.compile(sampler, batches[0], keys, options)
        outputs[spec] = [[way(sampler, batch) for batch in batches] for way in ways]
    seconds = {spec: np.zeros((len(ways), num_pairs)) for spec in samplers}
    for pair in range(num_pairs):
        for spec, sampler in samplers.items():
            for i, way in enumerate(ways):
                start = time.perf_counter()
                for batch in batches:
                    way(sampler, batch)
                seconds[spec][i, pair] = time.perf_counter() - start
                on_run()
    return [
        Result(
            sampler=spec,
            batch_size=batch_size,
            compile_seconds=compile_seconds[spec],
            seconds=seconds[spec][0],
            reference_seconds=None if reference is None else seconds[spec][1],
            num_steps=np.concatenate([steps for _, steps in outputs[spec][0]]),
            num_forwards=sum(int(steps.max()) for _, steps in outputs[spec][0]),
            num_equal=None if reference is None else _num_equal(*outputs[spec]),
        )
        for spec in samplers
    ]


def _num_equal(ours: Sequence[tuple], theirs: Sequence[tuple]) -> int:
    """Rows with the same tokens and the same NFE."""
    return sum(
        int(((tokens == others).all(axis=1) & (steps == other_steps)).sum())
        for (tokens, steps), (others, other_steps) in zip(ours, theirs, strict=True)
    )


def records(results: Sequence[Result], **common: Any) -> Iterator[dict[str, Any]]:
    """What to report of a race; gains are over its first sampler.

    Args:
      results: of one race.
      common: fields that end each record.
    """
    baseline = results[0]
    for result in results:
        num_rows = len(result.num_steps)
        record = {
            "batch_size": result.batch_size,
            "sampler": result.sampler,
            "num_rows": num_rows,
            "nfe": float(result.num_steps.mean()),
            "forwards_per_batch": result.num_forwards * result.batch_size / num_rows,
            "compile_seconds": result.compile_seconds,
            "seconds": result.seconds.tolist(),
            "rows_per_second": num_rows / float(np.median(result.seconds)),
        }
        if result.reference_seconds is not None:
            ratios = result.reference_seconds / result.seconds
            record |= {
                "reference_seconds": result.reference_seconds.tolist(),
                "reference_rows_per_second": num_rows
                / float(np.median(result.reference_seconds)),
                "ratios": ratios.tolist(),
                "ratio": float(np.median(ratios)),
                "num_equal": result.num_equal,
            }
        gain = float(np.median(baseline.seconds / result.seconds))
        nfe_gain = float(baseline.num_steps.mean() / result.num_steps.mean())
        forwards_gain = baseline.num_forwards / result.num_forwards
        record |= {
            "gain": gain,
            "nfe_gain": nfe_gain,
            "forwards_gain": forwards_gain,
            "gain_per_nfe_gain": gain / nfe_gain,
            "gain_per_forwards_gain": gain / forwards_gain,
        }
        yield record | common


# Heading, key of a record, format.
_SPEED = (
    ("batch", "batch_size", "d"),
    ("sampler", "sampler", "s"),
    ("ours, rows/s", "rows_per_second", ".2f"),
    ("PyTorch, rows/s", "reference_rows_per_second", ".2f"),
    ("ratio", "ratio", ".2f"),
    ("rows", "num_rows", "d"),
    ("equal rows", "num_equal", "d"),
    ("compile, s", "compile_seconds", ".1f"),
)
_GAINS = (
    ("batch", "batch_size", "d"),
    ("sampler", "sampler", "s"),
    ("NFE", "nfe", ".1f"),
    ("forwards per batch", "forwards_per_batch", ".1f"),
    ("gain", "gain", ".2f"),
    ("NFE gain", "nfe_gain", ".2f"),
    ("gain / NFE gain", "gain_per_nfe_gain", ".2f"),
    ("gain / forwards gain", "gain_per_forwards_gain", ".2f"),
)


def tables(records: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: speed of both loops, and gains over each race's first sampler."""
    return "\n\n".join(_table(records, columns) for columns in (_SPEED, _GAINS))


def _table(
    records: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, str, str]]
) -> str:
    """A Markdown table of what the records hold."""
    columns = [column for column in columns if column[1] in records[0]]
    rows = [[title for title, _, _ in columns]]
    rows.append(["---" if kind == "s" else "---:" for _, _, kind in columns])
    for record in records:
        rows.append([format(record[key], kind) for _, key, kind in columns])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
