"""Result files and directories that appear whole or not at all."""

import contextlib
import json
import os
import pathlib
import shutil
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dlm_jax.errors import InputError

STDOUT = "-"


def check_output(path: str | os.PathLike, num_bytes: int = 0) -> None:
    """Checks, before any work is done, that a file or directory can be created.

    Args:
      path: to be created; its parents may be missing too.
      num_bytes: that are going to be written to it.

    Raises:
      InputError: if it exists, or lies where nothing can be written, or no room is.
    """
    path = pathlib.Path(path)
    if os.path.lexists(path):
        raise InputError(f"output ({path}) already exists")
    _check_writable(path, num_bytes)


def _check_writable(path: pathlib.Path, num_bytes: int) -> None:
    parent = next(p for p in path.absolute().parents if os.path.lexists(p))
    if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
        raise InputError(
            f"output ({path}) cannot be written: {parent} is not a writable directory"
        )
    disk = shutil.disk_usage(parent)
    if disk.total and disk.free < num_bytes:  # Some file systems report nothing.
        raise InputError(
            f"output ({path}) takes {num_bytes} bytes, {disk.free} are free"
        )


def nature(path: str | os.PathLike) -> str:
    """What a file is that was downloaded wrongly, as the end of an error message.

    Args:
      path: of the file.

    Returns:
      Such as " (it is a Git LFS pointer: run git lfs pull)"; empty if nothing is known.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(256).lstrip()
    except OSError:
        return ""
    if start.startswith(b"version https://git-lfs.github.com/"):
        return " (it is a Git LFS pointer, not the file: run git lfs pull)"
    if start[:15].lower().startswith((b"<!doctype html", b"<html")):
        return " (it is a web page, not the file: download it again)"
    return "" if start else " (it is empty: download it again)"


@contextlib.contextmanager
def staged(
    path: str | os.PathLike,
    num_bytes: int = 0,
    *,
    is_directory: bool = False,
    may_exist: bool = False,
) -> Iterator[pathlib.Path]:
    """Yields a hidden sibling that becomes `path` if the block ends well.

    If it does not, the sibling is removed; a killed process leaves it behind, under a
    name that is never used again.

    Args:
      path: to be created, and its parents with it.
      num_bytes: that are going to be written to it.
      is_directory: yield an empty directory instead of an empty file.
      may_exist: replace a file; until then readers see the old one, whole.

    Raises:
      InputError: as `check_output`.
    """
    path = pathlib.Path(path)
    if may_exist:
        _check_writable(path, num_bytes)
    else:
        check_output(path, num_bytes)
    partial = path.with_name(f".{path.name}.partial-{uuid.uuid4().hex}")
    try:
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            partial.mkdir() if is_directory else partial.touch(exist_ok=False)
        except OSError as error:
            raise InputError(
                f"output ({path}) cannot be written: {error.strerror}"
            ) from error
        yield partial
        partial.rename(path)
    except BaseException:
        if is_directory:
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)
        raise


def write_jsonl(path: str | os.PathLike, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object per line; the file appears when it is complete.

    Args:
      path: to be created; "-" is stdout.
      records: the objects.

    Raises:
      InputError: as `check_output`.
    """
    if os.fspath(path) == STDOUT:
        sys.stdout.flush()
        for record in records:
            sys.stdout.buffer.write(_line(record))
        sys.stdout.buffer.flush()
        return
    with staged(path) as partial, partial.open("wb") as file:
        for record in records:
            file.write(_line(record))


def _line(record: Mapping[str, Any]) -> bytes:
    # A text that is no Unicode, such as half a pair of surrogates, stays readable.
    text = json.dumps(record, ensure_ascii=False)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(record).encode() + b"\n"
