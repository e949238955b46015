"""What races were won by: their records, and tables of these."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dlm_jax.evaluation.tables import markdown
from experiments.timing.races import Result


def records(results: Sequence[Result], **common: Any) -> Iterator[dict[str, Any]]:
    """The records of a race; gains are over its first sampler and cache.

    Args:
      results: of one race.
      common: fields that end each record.
    """
    baseline = results[0]
    for result in results:
        num_rows = len(result.num_steps)
        record = {
            "sampler": result.sampler,
            "cache": result.cache,
            "length": result.length,
            "batch_size": result.batch_size,
            "num_rows": num_rows,
            "nfe": float(result.num_steps.mean()),
            "whole_forwards": float(result.num_whole.mean()),
            "window_forwards": float((result.num_steps - result.num_whole).mean()),
            # Of these, each row took part in its NFE.
            "forwards": result.num_forwards,
            "busy_slots": float(
                result.num_steps.sum() / result.num_forwards / result.batch_size
            ),
            "compile_seconds": result.compile_seconds,
            "seconds": result.seconds.tolist(),
            "rows_per_second": num_rows / float(np.median(result.seconds)),
            "tokens_per_second": result.num_tokens / float(np.median(result.seconds)),
        }
        if result.reference_seconds is not None:
            ratios = result.reference_seconds / result.seconds
            record |= {
                "reference": result.reference,
                "reference_seconds": result.reference_seconds.tolist(),
                "reference_rows_per_second": num_rows
                / float(np.median(result.reference_seconds)),
                "ratios": ratios.tolist(),
                "ratio": float(np.median(ratios)),
                "num_equal": result.num_equal,
            }
        gain = float(np.median(baseline.seconds / result.seconds))
        nfe_gain = float(baseline.num_steps.mean() / result.num_steps.mean())
        record |= {
            "gain": gain,
            "nfe_gain": nfe_gain,
            "gain_per_nfe_gain": gain / nfe_gain,
        }
        yield record | common


# Heading, key of a record, format. All tables of races begin with these columns.
BATCH = (
    ("sampler", "sampler", "s"),
    ("cache", "cache", "s"),
    ("length", "length", "d"),
    ("batch", "batch_size", "d"),
)
_SPEED = (
    *BATCH,
    ("reference", "reference", "s"),
    ("dlm_jax rows/s", "rows_per_second", ".2f"),
    ("reference rows/s", "reference_rows_per_second", ".2f"),
    ("speed-up", "ratio", ".2f"),
    ("speed-up of each pair", "ratios", ".2f"),
    ("dlm_jax tokens/s", "tokens_per_second", ".0f"),
    ("rows", "num_rows", "d"),
    ("identical rows", "num_equal", "d"),
    ("compile, s", "compile_seconds", ".1f"),
)
_GAINS = (
    *BATCH,
    ("mean forwards", "nfe", ".1f"),
    ("of whole rows", "whole_forwards", ".1f"),
    ("of windows", "window_forwards", ".1f"),
    ("busy slots", "busy_slots", ".0%"),
    ("gain in rows/s", "gain", ".2f"),
    ("gain in forwards", "nfe_gain", ".2f"),
    (
        "gain in rows/s divided by gain in forwards",
        "gain_per_nfe_gain",
        ".2f",
    ),
)


def tables(records: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: speed of all loops, and gains over each race's first method."""
    columns = _GAINS
    if not any(record["window_forwards"] for record in records):
        columns = tuple(x for x in columns if not x[1].endswith("_forwards"))
    speed, gains = table(records, _SPEED), table(one_each(records), columns)
    return f"{speed}\n\n{gains}"


def one_each(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The records without those of further references, for what is of dlm_jax alone."""
    first = records[0].get("reference")
    return [record for record in records if record.get("reference") == first]


def table(
    records: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, str, str]]
) -> str:
    """A Markdown table of what the records hold.

    Args:
      records: what to print, a line each.
      columns: heading, key of a record, format; keys that no record has are left out,
        and of a list every value is printed.
    """
    columns = [c for c in columns if any(r.get(c[1]) is not None for r in records)]
    rows = [[title for title, _, _ in columns]]
    rows += [[_cell(r.get(key), kind) for _, key, kind in columns] for r in records]
    return markdown(rows)


def _cell(value: Any, kind: str) -> str:
    if value is None:
        return "-"
    values = value if isinstance(value, list) else [value]
    return " ".join(format(x, kind) for x in values)
