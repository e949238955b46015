"""Rows of published data sets, in the forms in which the Hugging Face hub has them.

A source is a file, a directory, or `hub:NAME`, which asks the hub. Nothing else touches
the network.
"""

import dataclasses
import gzip
import pathlib
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dlm_jax import files
from dlm_jax.errors import InputError

# Begins a source that is downloaded.
HUB = "hub:"
_SUFFIXES = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".parquet")
# What the hub and its library put beside the data.
_NO_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json")


@dataclasses.dataclass(frozen=True)
class Row:
    """One row, and where it is.

    Attributes:
      where: file and line, for errors.
      fields: its values by name.
    """

    where: str
    fields: Mapping[str, Any]

    def text(self, *names: str, default: str | None = None) -> str:
        """The text in the first field that is there.

        Args:
          names: of the fields.
          default: where none is there; then one must be, if None.

        Raises:
          InputError: naming file and line, if it is not there, is empty or no text.
        """
        for name in names:
            value = self.fields.get(name)
            if value is None:
                continue
            if isinstance(value, str) and (value.strip() or default is not None):
                return value
            raise InputError(
                f"{self.where}: {name} ({value!r:.40}) must be a text that is not empty"
            )
        if default is None:
            has = ", ".join(map(str, self.fields))
            raise InputError(
                f"{self.where}: must have the field {' or '.join(names)}; it has "
                f"{has or 'none'}"
            )
        return default

    def texts(self, name: str, default: Sequence[str] | None = None) -> tuple[str, ...]:
        """The texts in a field that is a list.

        Raises:
          InputError: naming file and line, if it is not there or something else.
        """
        value = self.fields.get(name, default)
        if isinstance(value, Sequence) and not isinstance(value, str):
            texts = tuple(value)
            if all(isinstance(text, str) for text in texts):
                return texts
        raise InputError(
            f"{self.where}: {name} ({value!r:.40}) must be a list of texts"
        )

    def number(self, name: str) -> int:
        """The integer in a field.

        Raises:
          InputError: naming file and line, if it is not there or something else.
        """
        value = self.fields.get(name)
        if isinstance(value, str) and value.strip().isdecimal():
            value = int(value)
        if type(value) is not int:
            raise InputError(f"{self.where}: {name} ({value!r:.40}) must be an integer")
        return value


class Rows(NamedTuple):
    """Rows of a source.

    Attributes:
      rows: in the order of files and lines.
      is_of_split: the files' names say that they are of the split; else it is not known
        which these rows are.
    """

    rows: list[Row]
    is_of_split: bool


def read_rows(source: str, split: str, splits: Sequence[str], subset: str = "") -> Rows:
    """Reads the rows of a split.

    A file is of a split if that is a word of its name or, in a directory, of its path,
    as test.jsonl, main/test-00000-of-00001.parquet or test/algebra/1.json.

    Args:
      source: a file (.jsonl, .ndjson, .json, .jsonl.gz, .parquet), a directory with
        such files, or `hub:NAME` or `hub:NAME@REVISION`.
      split: the split to read.
      splits: all splits of the task.
      subset: of a directory that has a folder of this name, only that folder is read:
        the hub has `main` and `socratic` of GSM8K, `full` and `sanitized` of MBPP.

    Raises:
      InputError: naming the source, if there is nothing to read; or file and line of a
        row that is not a JSON object.
    """
    root = _downloaded(source) if source.startswith(HUB) else pathlib.Path(source)
    paths = _files(source, root, subset)
    named = {path: _words(path, root) & set(splits) for path in paths}
    is_of_split = any(named.values())
    if is_of_split:
        paths = [path for path in paths if split in named[path]]
        if not paths:
            known = sorted(set().union(*named.values()))
            raise InputError(
                f"data ({source}) has no file of the split {split}, only of "
                f"{', '.join(known)}"
            )
    rows = [row for path in paths for row in _read(path)]
    if not rows:
        raise InputError(f"data ({source}) has no rows")
    return Rows(rows, is_of_split)


def _files(source: str, root: pathlib.Path, subset: str) -> list[pathlib.Path]:
    """The files of a source, in an order that does not depend on the file system."""
    if not root.exists():
        raise InputError(f"data ({source}) does not exist")
    if root.is_file():
        if not root.name.endswith(_SUFFIXES):
            raise InputError(f"data ({source}) must end in {', '.join(_SUFFIXES)}")
        return [root]
    found = []
    for path in root.rglob("*"):
        parts = path.relative_to(root).parts
        is_data = path.name.endswith(_SUFFIXES) and path.name not in _NO_DATA
        if is_data and path.is_file() and not any(x.startswith(".") for x in parts):
            found.append(path)
    if subset:
        folders = {path: path.relative_to(root).parts[:-1] for path in found}
        found = [path for path in found if subset in folders[path]] or found
    if not found:
        raise InputError(
            f"data ({source}) holds no file that ends in {', '.join(_SUFFIXES)}"
        )
    return sorted(found, key=lambda path: _natural(path.relative_to(root)))


def _natural(path: pathlib.Path) -> list[tuple[int, int, str]]:
    """A key that sorts 2.json before 10.json."""
    parts = re.findall(r"\d+|\D+", path.as_posix())
    return [(1, int(x), "") if x.isdecimal() else (0, 0, x) for x in parts]


def _words(path: pathlib.Path, root: pathlib.Path) -> set[str]:
    """Words of a path in a directory, or of a file's name."""
    name = path.name if path == root else path.relative_to(root).as_posix()
    return set(re.split(r"[^a-z]+", name.lower()))


def _read(path: pathlib.Path) -> Iterator[Row]:
    if path.suffix == ".parquet":
        yield from _read_parquet(path)
        return
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        text = content.decode("utf-8-sig")
    except (OSError, EOFError, UnicodeError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if path.suffix == ".json":
        try:
            whole = files.parse_json(text)
        except ValueError:
            pass  # JSON lines under another name, or no JSON at all
        else:
            yield from _rows_of(path, whole)
            return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                value = files.parse_json(line)
            except ValueError as error:
                raise InputError(f"{where}: must be JSON: {error}") from None
            yield _row(where, value)


def _rows_of(path: pathlib.Path, whole: Any) -> Iterator[Row]:
    """Rows of a JSON text: an array, an object of objects, or one row."""
    named: Iterable[tuple[Any, Any]]
    if isinstance(whole, list):
        named = enumerate(whole, start=1)
    elif isinstance(whole, dict) and all(isinstance(x, dict) for x in whole.values()):
        named = whole.items()
    else:
        yield _row(str(path), whole)
        return
    for name, value in named:
        yield _row(f"{path}, row {name}", value)


def _row(where: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise InputError(f"{where}: must be an object, not {value!r:.40}")
    return Row(where, value)


def _read_parquet(path: pathlib.Path) -> Iterator[Row]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise InputError(
            f"{path} needs the package pyarrow: pip install 'dlm_jax[hub]', or give "
            "the data as JSON lines"
        ) from None
    try:
        values = parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise InputError(f"{path} cannot be read: {error}") from None
    for number, value in enumerate(values, start=1):
        yield Row(f"{path}, row {number}", value)


def _downloaded(source: str) -> pathlib.Path:
    """The directory of a data set of the hub, in the hub's own cache."""
    name, _, revision = source.removeprefix(HUB).partition("@")
    try:
        from huggingface_hub import snapshot_download

        directory = snapshot_download(
            name,
            repo_type="dataset",
            revision=revision or None,
            allow_patterns=[f"*{suffix}" for suffix in _SUFFIXES],
        )
    except Exception as error:  # of the network, the hub, or a wrong name
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"data ({source}) cannot be downloaded: {reason}") from None
    return pathlib.Path(directory)
