"""The files of a run that can go on: a log with a record per row, and a manifest.

An evaluation's work directory holds them, and that of an output that is not finished.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from dlm_jax import files
from dlm_jax.errors import InputError
from dlm_jax.evaluation import provenance

_MANIFEST, _RECORDS = "manifest.json", "records.jsonl"
# What results do not depend on, but times do: fields of a run, not of the identity.
# Version 0.1 had them in the identity.
SIZES = ("batch_size", "queue_length")

# What is read of a record, and the types that it may have.
_TYPES: dict[str, tuple[type, ...]] = {
    "nfe": (int, float),
    "num_whole": (int, float),
    "num_tokens": (int, float),
    "seconds": (int, float),
    "compile_seconds": (int, float),
    "run": (int,),
    "is_correct": (bool,),
    "is_complete": (bool,),
    "has_nan": (bool,),
    "text": (str,),
    "tokens": (list,),
}
_NEEDED = {"nfe", "seconds", "compile_seconds"}
# An evaluation's record has the first, one of an unfinished output the second.
_NEEDED_OF_KIND = ({"is_correct", "num_tokens"}, {"text", "tokens", "is_complete"})


class Purpose(NamedTuple):
    """What a directory is for, as errors say it.

    Attributes:
      name: what it holds.
      instead: how to begin again, instead of going on.
    """

    name: str
    instead: str


EVALUATION = Purpose("evaluation", "evaluate in another directory")
OUTPUT = Purpose("unfinished output", "delete the directory to begin again")


class Key(NamedTuple):
    """Which row a record is of: the fields that every record begins with.

    Attributes:
      sampler: its canonical spec.
      cache: spec of the cache plan.
      seed: of the random keys.
      index: of the example.
    """

    sampler: str
    cache: str
    seed: int
    index: int


class Manifest:
    """What a directory's records are of, and the runs that made them."""

    def __init__(
        self,
        directory: pathlib.Path,
        identity: Mapping[str, Any],
        asked: Mapping[str, Any],
        purpose: Purpose = EVALUATION,
    ):
        """Compares what is to be evaluated with what the directory holds.

        Args:
          directory: of the records.
          identity: what its records are of.
          asked: what this run asks for.
          purpose: of the directory, for errors.

        Raises:
          InputError: naming what differs, or a manifest that is none or not there.
        """
        self._path = directory / _MANIFEST
        self._content: dict[str, Any] = {"identity": identity, "runs": []}
        self._asked = asked
        self._has_begun = False
        if not self._path.exists():
            # It is written before the first record.
            if (directory / _RECORDS).exists():
                raise InputError(
                    f"{directory} has {_RECORDS}, but no {_MANIFEST}; put it back, "
                    f"or {purpose.instead}"
                )
            return
        self._content = _read_manifest(self._path, purpose)
        known = self._content["identity"]
        for name in set(SIZES) & set(known) - set(identity):
            value = known.pop(name)
            for run in self._content["runs"]:
                run.setdefault(name, value)
        _compare(directory, identity, known, identity | known, purpose)

    @property
    def conditions(self) -> list[str]:
        """On what and how each run was made, see `conditions` below."""
        return _conditions(self._content)

    def begin(self) -> int:
        """This run's place; adds it, once it is about to add its first records."""
        runs = self._content["runs"]
        if not self._has_begun:
            self._has_begun = True
            runs.append({**self._asked, "environment": provenance.environment()})
            with files.staged(self._path, may_exist=True) as partial:
                partial.write_text(json.dumps(self._content, indent=2) + "\n")
        return len(runs) - 1


def _compare(
    directory: str | os.PathLike,
    identity: Mapping[str, Any],
    known: Mapping[str, Any],
    names: Iterable[str],
    purpose: Purpose,
) -> None:
    """Raises InputError naming the first field with another value."""
    for name in names:
        if identity.get(name) != known.get(name):
            raise InputError(
                f"{name} ({identity.get(name)}) must be {known.get(name)}, as in "
                f"the {purpose.name} that {directory} holds; or {purpose.instead}"
            )


def check_directory(
    directory: str | os.PathLike,
    identity: Mapping[str, Any],
    purpose: Purpose = EVALUATION,
) -> None:
    """Checks that a directory may hold a run's records; the caller has locked it.

    Args:
      directory: which need not exist.
      identity: what is known so far of what the records are of, see `Manifest`.
      purpose: of the directory, for errors.

    Raises:
      InputError: naming what differs from what it holds, a manifest that is none or
        not there, or a line that is no record.
    """
    directory = pathlib.Path(directory)
    if (directory / _MANIFEST).exists():
        known = _read_manifest(directory / _MANIFEST, purpose)["identity"]
        _compare(directory, identity, known, identity, purpose)
    else:
        Manifest(directory, identity, {}, purpose)
    Log(directory)


def _read_manifest(path: pathlib.Path, purpose: Purpose = EVALUATION) -> dict[str, Any]:
    """Reads a manifest.

    Raises:
      InputError: if it is none, or not all of one.
    """
    try:
        content = files.parse_json(path.read_bytes())
        identity, runs = content["identity"], content["runs"]
        if not isinstance(identity, dict):
            raise TypeError(f"identity is {identity!r:.60}")
        if not all(isinstance(run["environment"], dict) for run in runs):
            raise TypeError("a run says nothing of its environment")
        commits = [run["environment"].get("commit") for run in runs]
        if not all(isinstance(commit, str | None) for commit in commits):
            raise TypeError("a commit is no text")
    except (ValueError, TypeError) as error:
        reason = str(error)
    except KeyError as error:
        reason = f"no {error.args[0]}"
    else:
        return content
    raise InputError(
        f"{path} must be the manifest of an {purpose.name} ({reason}); put it back, or "
        f"{purpose.instead}"
    )


def environments(directory: str | os.PathLike) -> list[dict[str, Any]]:
    """Where a directory's records were made, see `provenance.environment`; each once.

    Raises:
      InputError: if it holds no evaluation, or its manifest is none.
    """
    found = []
    for run in _read_manifest(_existing(directory, _MANIFEST))["runs"]:
        if run["environment"] not in found:
            found.append(run["environment"])
    return found


def conditions(directory: str | os.PathLike) -> list[str]:
    """On what and how each of a directory's runs was made: what its speed depends on.

    Raises:
      InputError: as `environments`.
    """
    return _conditions(_read_manifest(_existing(directory, _MANIFEST)))


def _conditions(content: Mapping[str, Any]) -> list[str]:
    """The conditions of a manifest's runs."""
    identity = content["identity"]
    return [
        condition(
            run["environment"],
            run.get("batch_size", identity.get("batch_size")),
            identity.get("dtype"),
        )
        for run in content["runs"]
    ]


def condition(environment: Mapping[str, Any], batch_size: Any, dtype: Any) -> str:
    """On what and how rows were filled: what their speed depends on, but the cache.

    Args:
      environment: see `provenance.environment`.
      batch_size: rows in flight, over all devices.
      dtype: of the weights.
    """
    devices = f"{environment.get('num_devices')} x {environment.get('device')}"
    return f"{devices}, batch {batch_size}, dtype {dtype}"


def commits(directory: str | os.PathLike) -> list[str | None]:
    """The commits whose code made a directory's records, see `provenance.environment`.

    Raises:
      InputError: as `environments`.
    """
    found = environments(directory)
    return list(dict.fromkeys(environment.get("commit") for environment in found))


class Log:
    """Records, one a line, on the disk as soon as their rows are done."""

    def __init__(self, directory: pathlib.Path | None):
        """Reads what is there, and cuts off a line that was not written to its end.

        Args:
          directory: which need not exist, and which the caller has locked; None keeps
            the records in memory only.

        Raises:
          InputError: naming a line before it that is no record.
        """
        self._path = path = directory / _RECORDS if directory else None
        self._records: dict[Key, dict[str, Any]] = {}
        if path and path.exists():
            found, end = _whole_lines(path)
            self._records = {key(record): record for record in found}
            # A kill left a partial line: its row has no record, and runs again.
            if end < path.stat().st_size:
                with path.open("r+b") as file:
                    file.truncate(end)

    def __contains__(self, key: Key) -> bool:
        return key in self._records

    def find(self, keys: Sequence[Key]) -> list[dict[str, Any]]:
        """The records that are there, in the order of their keys."""
        return [self._records[key] for key in keys if key in self._records]

    def append(self, records: Sequence[dict[str, Any]]) -> None:
        """Adds records, and waits until the disk has them.

        Raises:
          InputError: if it takes none, as when it is full; those before are kept.
        """
        if self._path:
            try:
                _append(self._path, b"".join(map(files.json_line, records)))
            except OSError as error:
                raise InputError(
                    f"{self._path} cannot be written: {error.strerror or error}; rows "
                    "that it holds are kept, and the same command continues"
                ) from error
        self._records |= {key(record): record for record in records}


def _append(path: pathlib.Path, content: bytes) -> None:
    """Appends all of it or, if that fails, nothing."""
    with path.open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        rest = memoryview(content)
        try:
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise


def key(record: Mapping[str, Any]) -> Key:
    """The row that a record is of."""
    # Records of version 0.1 name no cache.
    cache = record.get("cache", "none")
    return Key(record["sampler"], cache, record["seed"], record["index"])


def check_finite(records: Iterable[Mapping[str, Any]]) -> None:
    """Raises InputError if the model gave NaN for a row; names the first.

    To be called once everything is written: the other rows are as good as ever.

    Args:
      records: with `index`, `sampler`, `nfe` and, since version 0.2, `has_nan`.
    """
    records = list(records)
    found = [record for record in records if record.get("has_nan")]
    if found:
        first = min(found, key=lambda record: record["index"])
        raise InputError(
            f"the model gave NaN for {len(found)} of {len(records)} rows, first for "
            f"prompt {first['index']} with {first['sampler']} at forward "
            f"{first['nfe']}; the texts of these rows are no answers"
        )


def _whole_lines(path: pathlib.Path) -> tuple[list[dict[str, Any]], int]:
    """The records in a log, and where the last of them ends."""
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    lines = content[:end].split(b"\n")[:-1]
    return [_record(path, i, line) for i, line in enumerate(lines, start=1)], end


def _record(path: pathlib.Path, number: int, line: bytes) -> dict[str, Any]:
    return files.parse_line(
        path,
        number,
        line,
        _is_record,
        "a record; delete the line, and the same command makes it again",
    )


def _is_record(record: Mapping[str, Any]) -> bool:
    """Whether it has all that is read of one. Somebody may have changed it by hand."""
    return (
        all(map(isinstance, key(record), (str, str, int, int)))
        and any(_NEEDED | own <= record.keys() for own in _NEEDED_OF_KIND)
        and all(
            type(record[name]) in kinds
            for name, kinds in _TYPES.items()
            if name in record
        )
    )


def read_records(directory: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of a directory, in the order in which they were made.

    Raises:
      InputError: if it holds no evaluation, or naming a line that is no record.
    """
    return _whole_lines(_existing(directory, _RECORDS))[0]


def _existing(directory: str | os.PathLike, name: str) -> pathlib.Path:
    path = pathlib.Path(directory) / name
    if not path.exists():
        raise InputError(f"{directory} holds no evaluation: no {name} in it")
    return path
