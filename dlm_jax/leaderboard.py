"""A table of samplers on the shipped models, kept in a file and added to.

The file has a line per task and sampler. What stands there is not measured again, so a
new sampler costs its own evaluation and no more; a line was made with one checkpoint,
and no line of another may join it.
"""

import csv
import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from dlm_jax import samplers, statistics
from dlm_jax.errors import InputError
from dlm_jax.evaluation import Summary
from dlm_jax.tables import markdown


@dataclasses.dataclass(frozen=True)
class Entry:
    """A sampler on a task.

    Attributes:
      task: its name.
      sampler: the canonical spec.
      right: examples that it has right.
      num: examples that it was asked.
      nfe: mean forwards of an example.
      checkpoint: digest of the model, see `provenance.digest`.
      commit: of the code; '+' if files differed, empty if unknown.
    """

    task: str
    sampler: str
    right: int
    num: int
    nfe: float
    checkpoint: str
    commit: str


_FIELDS = tuple(field.name for field in dataclasses.fields(Entry))


def read(path: str | os.PathLike) -> list[Entry]:
    """The entries of a file; none if it does not exist.

    Raises:
      InputError: naming the line that is not an entry, or stands there twice.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != _FIELDS:
            raise InputError(f"{path} must have the columns {', '.join(_FIELDS)}")
        entries = [_entry(path, reader.line_num, row) for row in reader]
    keys = [(entry.task, entry.sampler) for entry in entries]
    for task, spec in keys:
        if keys.count((task, spec)) > 1:
            raise InputError(f"{path} has {spec} on {task} twice")
    return entries


def _entry(path: pathlib.Path, number: int, row: Mapping[str, str]) -> Entry:
    try:
        return Entry(
            task=row["task"],
            sampler=row["sampler"],
            right=int(row["right"]),
            num=int(row["num"]),
            nfe=float(row["nfe"]),
            checkpoint=row["checkpoint"],
            commit=row["commit"],
        )
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}, line {number}: {error}") from None


def write(path: str | os.PathLike, entries: Iterable[Entry]) -> None:
    """Writes entries, by task and spec, so that an addition is one more line."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _FIELDS, lineterminator="\n")
        writer.writeheader()
        for entry in sorted(entries, key=lambda e: (e.task, e.sampler)):
            writer.writerow(dataclasses.asdict(entry))
    partial.replace(path)


def missing(
    entries: Sequence[Entry],
    task: str,
    specs: Sequence[str],
    num_examples: int,
    checkpoint: str,
) -> list[str]:
    """The canonical specs that are not on the board of a task.

    Args:
      entries: of the board.
      task: its name.
      specs: who is to be on it.
      num_examples: that every sampler is asked.
      checkpoint: digest of the model at hand.

    Raises:
      InputError: if what stands there was made with another checkpoint, or another
        number of examples, or a spec is not one.
    """
    own = [entry for entry in entries if entry.task == task]
    for entry in own:
        if entry.checkpoint != checkpoint:
            raise InputError(
                f"checkpoint of {task} ({checkpoint[:12]}) must be "
                f"{entry.checkpoint[:12]}, with which the leaderboard was made"
            )
        if entry.num != num_examples:
            raise InputError(
                f"num_examples of {task} ({num_examples}) must be {entry.num}, as on "
                "the leaderboard"
            )
    wanted = [samplers.to_spec(samplers.parse(spec)) for spec in specs]
    known = {entry.sampler for entry in own}
    return [spec for spec in dict.fromkeys(wanted) if spec not in known]


def entries_of(
    task: str, results: Sequence[Summary], checkpoint: str, commit: str | None
) -> list[Entry]:
    """What samplers did, as entries."""
    return [
        Entry(
            task=task,
            sampler=result.sampler,
            right=int(result.is_correct.sum()),
            num=result.is_correct.size,
            nfe=round(float(result.nfe.mean()), 4),
            checkpoint=checkpoint,
            commit=commit or "",
        )
        for result in results
    ]


def table(entries: Sequence[Entry]) -> str:
    """Markdown of one task's entries, best first; fewer forwards win a tie.

    The front is of the samplers that none equals in accuracy with fewer forwards.
    """
    entries = sorted(entries, key=lambda e: (-e.right / e.num, e.nfe, e.sampler))
    front = statistics.pareto_front(
        [entry.nfe for entry in entries], [entry.right / entry.num for entry in entries]
    )
    head = ["sampler", "right", "accuracy", "95 % interval", "NFE", "front", "commit"]
    rows = [head]
    for i, entry in enumerate(entries):
        is_correct = np.arange(entry.num)[None] < entry.right
        low, high = statistics.accuracy_interval(is_correct)
        rows.append(
            [
                f"`{samplers.short_spec(samplers.parse(entry.sampler))}`",
                f"{entry.right} of {entry.num}",
                f"{entry.right / entry.num:.1%}",
                f"{low:.1%} to {high:.1%}",
                f"{entry.nfe:.2f}",
                "yes" if i in front else "",
                _short(entry.commit),
            ]
        )
    return markdown(rows)


def _short(commit: str) -> str:
    return commit[:7] + "+" * commit.endswith("+")


def page(entries: Sequence[Entry], command: str, setting: str) -> str:
    """The whole board in Markdown.

    Args:
      entries: of all tasks.
      command: that adds a sampler.
      setting: a sentence on how all of them were asked.
    """
    lines = ["# Samplers on the shipped models", "", f"    {command}", ""]
    lines += [
        f"adds a sampler. {setting} NFE is the mean number of forwards of an example; "
        "intervals are Wilson's; `front` marks samplers that no other equals in both "
        "accuracy and forwards."
    ]
    for task in sorted({entry.task for entry in entries}):
        own = [entry for entry in entries if entry.task == task]
        lines += ["", f"## {task}", "", f"Checkpoint {own[0].checkpoint[:12]}.", ""]
        lines += [table(own)]
    return "\n".join(lines) + "\n"
