"""Examples for the report on Saber: answers with and without backtracking."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from dlm_jax import samplers
from dlm_jax.tasks.base import Task


def only_one_correct(
    records: Sequence[Mapping[str, Any]], first: str, second: str
) -> tuple[list[tuple[Any, Any]], list[tuple[Any, Any]]]:
    """Pairs of records of the examples that only one of two samplers has correct.

    Args:
      records: of both.
      first: a spec.
      second: a spec.

    Returns:
      Pairs (first's, second's) where only the first is correct, and where only the
      second is.
    """
    by_spec = {
        spec: {
            r["index"]: r
            for r in records
            if r["sampler"] == samplers.canonical_spec(spec)
        }
        for spec in (first, second)
    }
    pairs = [
        (record, by_spec[second][index])
        for index, record in sorted(by_spec[first].items())
    ]
    return (
        [p for p in pairs if p[0]["is_correct"] and not p[1]["is_correct"]],
        [p for p in pairs if p[1]["is_correct"] and not p[0]["is_correct"]],
    )


def titled(
    task: Task,
    prompts: Sequence[str],
    kind: str,
    pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
) -> list[tuple[str, str]]:
    """A title and a text for each pair of records, see `only_one_correct`."""
    return [
        (
            f"`{first['name']}`, correct only {kind} backtracking",
            _case(task, prompts[first["index"]], first, second),
        )
        for first, second in pairs
    ]


def _case(
    task: Task, prompt: str, first: Mapping[str, Any], second: Mapping[str, Any]
) -> str:
    """A prompt beside the answers with and without backtracking."""
    blocks = [["prompt", "", *task.pretty(prompt).split("\n")]]
    for name, record in (("with", first), ("without", second)):
        mark = "correct" if record["is_correct"] else f"wrong: {record['reason']}"
        text = task.pretty(record["text"]).split("\n")
        blocks.append([f"{name}, NFE {record['nfe']}", mark, *text])
    if not task.is_infill:
        # Prompts that go on are long lines; they stand above each other.
        return "\n".join("\n".join([*block, ""]) for block in blocks)
    widths = [max(map(len, block)) for block in blocks]
    return "\n".join(
        "   ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)).rstrip()
        for cells in zip_longest(*blocks, fillvalue="")
    )
