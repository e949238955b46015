"""Result files that appear whole or not at all."""

import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from dlm_jax.errors import InputError


def check_output(path: str | os.PathLike) -> None:
    """Checks, before any work is done, that a file can be created.

    Raises:
      InputError: if it exists, or lies where nothing can be written.
    """
    path = pathlib.Path(path)
    if os.path.lexists(path):
        raise InputError(f"output ({path}) already exists")
    parent = path.absolute().parent
    if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
        raise InputError(
            f"output ({path}) cannot be written: {parent} is not a writable directory"
        )


def write_jsonl(path: str | os.PathLike, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object per line, under a temporary name until it is complete.

    Raises:
      InputError: as `check_output`.
    """
    check_output(path)
    path = pathlib.Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            for record in records:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
