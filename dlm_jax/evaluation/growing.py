"""An output file that grows in a directory beside it, until all its rows are there.

`X.jsonl` is written once it is whole. Until then its rows are in `X.jsonl.partial`,
which has the files of an evaluation's directory: a manifest and a log of rows.
"""

import contextlib
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from dlm_jax import files
from dlm_jax.evaluation import provenance
from dlm_jax.evaluation.records import (
    OUTPUT,
    Key,
    Log,
    Manifest,
    check_directory,
    condition,
)
from dlm_jax.text.output import Output

# Fields of the log that the output does not have.
_OF_LOG = ("run", "compile_seconds")


class Growing:
    """The rows of an output that are done, by key.

    Made by `growing`, which holds the output's lock.
    """

    def __init__(self, output: pathlib.Path | None, is_piped: bool = False):
        """Begins with no rows; `resume` reads those that an earlier run left.

        Args:
          output: to be created; None keeps rows in memory only.
          is_piped: write rows to stdout as they are done.
        """
        self._output = output
        self._is_piped = is_piped
        self._directory = files.partial_of(output) if output else None
        self._log = Log(None)
        self._manifest: Manifest | None = None
        self._conditions: list[str] = []

    @property
    def conditions(self) -> list[str]:
        """On what and how each run filled rows: records name theirs by `run`."""
        return self._manifest.conditions if self._manifest else self._conditions

    def check(self, identity: Mapping[str, Any]) -> None:
        """Checks that an earlier run, if any, had the same identity.

        Args:
          identity: the fields that are known so far.

        Raises:
          InputError: naming the first field that differs, or damaged files.
        """
        if self._directory:
            check_directory(self._directory, identity, OUTPUT)

    def resume(self, identity: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
        """Reads the rows of an earlier run.

        Args:
          identity: all that the rows depend on, with `dtype`.
          asked: further fields of this run in the manifest, with `batch_size`.

        Raises:
          InputError: as `check`.
        """
        if self._directory:
            self._manifest = Manifest(self._directory, identity, asked, OUTPUT)
            self._log = Log(self._directory)
        else:
            here, size = provenance.environment(), asked["batch_size"]
            self._conditions = [condition(here, size, identity["dtype"])]

    def find(self, keys: Sequence[Key]) -> list[dict[str, Any]]:
        """The records that are there, in the order of their keys."""
        return self._log.find(keys)

    def fill(
        self,
        keys: Sequence[Key],
        stream: Callable[[Sequence[bool]], Iterator[Mapping[int, Output]]],
        record: Callable[[int, Output], Mapping[str, Any]],
        on_records: Callable[[list[dict[str, Any]]], object],
    ) -> None:
        """Fills rows that are not there yet, and keeps each as soon as it is done.

        Args:
          keys: of the rows.
          stream: fills the rows whose flag is true; yields groups of outputs by place.
          record: makes the fields of a row from its place and its output.
          on_records: called with new records.

        Raises:
          InputError: if they cannot be written.
        """
        is_open = [key not in self._log for key in keys]
        if not any(is_open):
            return
        for done in stream(is_open):
            number = self._manifest.begin() if self._manifest else 0
            new = [
                {
                    **record(place, output),
                    "run": number,
                    "compile_seconds": output.compile_seconds,
                }
                for place, output in done.items()
            ]
            self._log.append(new)
            if self._is_piped:
                files.write_jsonl(files.STDOUT, map(as_written, new))
            on_records(new)

    def finish(self, keys: Sequence[Key]) -> None:
        """Writes the output, and removes the directory beside it.

        Args:
          keys: of all rows, in the output's order.

        Raises:
          InputError: as `files.write_jsonl`.
        """
        if self._output and self._directory:
            files.write_jsonl(self._output, map(as_written, self._log.find(keys)))
            shutil.rmtree(self._directory, ignore_errors=True)


def as_written(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of the log as the output has it."""
    return {name: record[name] for name in record if name not in _OF_LOG}


@contextlib.contextmanager
def growing(output: pathlib.Path | None, is_piped: bool = False) -> Iterator[Growing]:
    """Keeps other processes from writing an output while it grows.

    Args:
      output: to be created; None keeps rows in memory only.
      is_piped: write rows to stdout as they are done, where there is no output.

    Raises:
      InputError: if it exists, cannot be written, or is being written.
    """
    if output is None:
        yield Growing(None, is_piped)
        return
    files.check_output(output)
    with files.locked(output):
        # Another process may just have ended.
        files.check_output(output)
        yield Growing(output)
