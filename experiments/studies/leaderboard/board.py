"""A table of samplers on the shipped models, kept in a file that grows.

The file has a line per task and sampler. Lines are not measured again, so a new sampler
costs only its own evaluation. All lines of a task have the same setting.
"""

import collections
import csv
import dataclasses
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from dlm_jax import files, samplers
from dlm_jax.errors import InputError
from dlm_jax.evaluation import provenance, stats
from dlm_jax.evaluation.run import Summary
from dlm_jax.evaluation.tables import markdown


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the samplers of a task have in common, or they cannot be compared.

    Attributes:
      checkpoint: digest of the model, see `provenance.digest`.
      num_examples: that every sampler is asked, the first ones.
      split: of the task's examples.
      example_seed: of the examples.
      seed: of the random keys.
      temperature: 0 takes the most probable token.
    """

    checkpoint: str
    num_examples: int
    split: str
    example_seed: int
    seed: int
    temperature: float


@dataclasses.dataclass(frozen=True)
class Entry:
    """A sampler on a task.

    Attributes:
      task: its name.
      sampler: the canonical spec.
      correct: the number of correct examples.
      nfe: mean forwards of an example.
      num_tokens: of all examples, written at blanks before the first stop; 0 of rows
        that are not complete.
      commit: of the code; '+' if files differed, empty if unknown.
      setting: in which it was asked; in the file, a column for each of its fields.
    """

    task: str
    sampler: str
    correct: int
    nfe: float
    num_tokens: int
    commit: str
    setting: Setting


_SETTING = tuple(field.name for field in dataclasses.fields(Setting))
# A table makes an array of them.
_MOST_EXAMPLES = 10**7
_COLUMNS = ("task", "sampler", "correct", "nfe", "num_tokens", "commit", *_SETTING)


def read(path: str | os.PathLike) -> list[Entry]:
    """The entries of a file; none if it does not exist.

    Raises:
      InputError: naming the line that is not an entry, or is there twice; or the
        task that is there in two settings.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        try:
            if tuple(reader.fieldnames or ()) != _COLUMNS:
                raise InputError(f"{path} must have the columns {', '.join(_COLUMNS)}")
            entries = [_entry(path, reader.line_num, row) for row in reader]
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{path} is no CSV file in UTF-8: {error}") from None
    keys = collections.Counter((entry.task, entry.sampler) for entry in entries)
    for (task, spec), count in keys.items():
        if count > 1:
            raise InputError(f"{path} has {spec} on {task} twice")
    first: dict[str, Entry] = {}
    for entry in entries:
        one = first.setdefault(entry.task, entry)
        try:
            _check_setting([one], entry.task, entry.setting)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
    return entries


def _entry(path: pathlib.Path, number: int, row: Mapping[str, str]) -> Entry:
    try:
        if None in row:
            raise ValueError(f"must have {len(_COLUMNS)} fields")
        entry = Entry(
            task=row["task"],
            sampler=row["sampler"],
            correct=int(row["correct"]),
            nfe=float(row["nfe"]),
            num_tokens=int(row["num_tokens"]),
            commit=row["commit"],
            setting=Setting(
                checkpoint=row["checkpoint"],
                num_examples=int(row["num_examples"]),
                split=row["split"],
                example_seed=int(row["example_seed"]),
                seed=int(row["seed"]),
                temperature=float(row["temperature"]),
            ),
        )
        num, correct = entry.setting.num_examples, entry.correct
        if not 0 <= correct <= num <= _MOST_EXAMPLES or num < 1:
            raise ValueError(
                f"correct ({correct}) must be from 0 to num_examples ({num}), which "
                f"must be from 1 to {_MOST_EXAMPLES}"
            )
        for name, value in (
            ("nfe", entry.nfe),
            ("num_tokens", entry.num_tokens),
            ("temperature", entry.setting.temperature),
        ):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} ({value}) must be a number of at least 0")
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}, line {number}: {error}") from None
    return entry


def write(path: str | os.PathLike, entries: Iterable[Entry]) -> None:
    """Writes entries, by task and spec, so that an addition is one more line."""
    with (
        files.staged(path, may_exist=True) as partial,
        partial.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        for entry in sorted(entries, key=lambda e: (e.task, e.sampler)):
            own, setting = dataclasses.asdict(entry), vars(entry.setting)
            writer.writerow({name: (own | setting)[name] for name in _COLUMNS})


def missing(
    entries: Sequence[Entry],
    task: str,
    specs: Sequence[str],
    setting: Setting,
) -> list[str]:
    """The canonical specs that are not on the board of a task.

    Args:
      entries: of the board.
      task: its name.
      specs: who is to be on it.
      setting: in which they are to be asked.

    Raises:
      InputError: if the task is there in another setting, naming what differs, or
        a spec is not one.
    """
    _check_setting(entries, task, setting)
    wanted = [samplers.canonical_spec(spec) for spec in specs]
    known = {entry.sampler for entry in entries if entry.task == task}
    return [spec for spec in dict.fromkeys(wanted) if spec not in known]


def _check_setting(entries: Sequence[Entry], task: str, setting: Setting) -> None:
    for entry in entries:
        for name in _SETTING if entry.task == task else ():
            value, known = getattr(setting, name), getattr(entry.setting, name)
            if value != known:
                # Digests are long; pages show as much of them.
                raise InputError(
                    f"{name} of {task} ({value!s:.12}) must be {known!s:.12}, as on "
                    "the leaderboard"
                )


def entries_of(
    task: str,
    results: Sequence[Summary],
    commit: str | None,
    setting: Setting,
) -> list[Entry]:
    """What samplers did, as entries."""
    return [
        Entry(
            task=task,
            sampler=result.sampler,
            correct=int(result.is_correct.sum()),
            nfe=round(float(result.nfe.mean()), 4),
            num_tokens=int(result.num_tokens.sum()),
            commit=commit or "",
            setting=setting,
        )
        for result in results
    ]


def table(entries: Sequence[Entry]) -> str:
    """Markdown of one task's entries, best first; fewer forwards win a tie.

    The front is of the samplers that none equals in accuracy with fewer forwards.
    """
    entries = sorted(entries, key=lambda e: (-_accuracy(e), e.nfe, e.sampler))
    front = stats.pareto_front(
        [entry.nfe for entry in entries], [_accuracy(entry) for entry in entries]
    )
    head = [
        "sampler",
        "correct",
        "accuracy",
        "95 % interval",
        "NFE",
        "TPF",
        "Pareto front",
        "commit",
    ]
    rows = [head]
    for i, entry in enumerate(entries):
        num = entry.setting.num_examples
        low, high = stats.accuracy_interval(np.arange(num)[None] < entry.correct)
        rows.append(
            [
                f"`{samplers.short_spec(entry.sampler)}`",
                f"{entry.correct} of {num}",
                f"{_accuracy(entry):.1%}",
                f"{low:.1%} to {high:.1%}",
                f"{entry.nfe:.2f}",
                f"{tokens_per_forward(entry):.2f}",
                "yes" if i in front else "",
                provenance.short_commit(entry.commit),
            ]
        )
    return markdown(rows)


def tokens_per_forward(entry: Entry) -> float:
    """TPF: tokens of all examples over their forwards, see `Summary`."""
    return entry.num_tokens / max(entry.nfe * entry.setting.num_examples, 1)


def _accuracy(entry: Entry) -> float:
    return entry.correct / entry.setting.num_examples


def _sentence(setting: Setting) -> str:
    return (
        f"Checkpoint {setting.checkpoint:.12}, the first {setting.num_examples} "
        f"examples of the split `{setting.split}` (example seed "
        f"{setting.example_seed}), seed {setting.seed}, temperature "
        f"{setting.temperature:g}."
    )


def page(entries: Sequence[Entry], command: str) -> str:
    """The whole board in Markdown.

    Args:
      entries: of all tasks.
      command: that adds a sampler.
    """
    lines = ["# Samplers on the shipped models", "", f"    {command}", ""]
    lines += [
        "adds a sampler. All samplers of a task ran on the same examples in the same "
        "setting. NFE is the mean number of forwards per example, TPF the tokens per "
        "forward: those written at blanks before the first stop. Intervals are "
        "Wilson's. A sampler is on the Pareto front if no other is at least as good in "
        "both accuracy and NFE."
    ]
    for task in sorted({entry.task for entry in entries}):
        own = [entry for entry in entries if entry.task == task]
        lines += ["", f"## {task}", "", _sentence(own[0].setting), "", table(own)]
    return "\n".join(lines) + "\n"
