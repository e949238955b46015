"""Result files and directories that appear whole or not at all."""

import collections
import contextlib
import contextvars
import errno
import glob
import json
import os
import pathlib
import shutil
import socket
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from dlm_jax.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

STDOUT = "-"
# Lists and objects inside of each other. What is deeper can be read, but then fails
# where it is printed or compared, by Python's limit on recursion.
_DEPTH = 100


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
    check_writable(path, num_bytes)


def partial_of(output: str | os.PathLike) -> pathlib.Path:
    """The directory in which an output grows until it is whole."""
    output = pathlib.Path(output)
    return output.with_name(f"{output.name}.partial")


def check_writable(
    path: str | os.PathLike, num_bytes: int = 0, name: str = "output"
) -> None:
    """Checks that a file or directory could be created, or replaced.

    Args:
      path: of it; its parents may be missing too.
      num_bytes: that are going to be written to it.
      name: what errors call the path.

    Raises:
      InputError: if it lies where nothing can be written, or no room is.
    """
    path = pathlib.Path(path)
    parent = next(p for p in path.absolute().parents if os.path.lexists(p))
    if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
        raise InputError(
            f"{name} ({path}) cannot be written: {parent} is not a writable directory"
        )
    disk = shutil.disk_usage(parent)
    if disk.total and disk.free < num_bytes:  # Some file systems report nothing.
        raise InputError(
            f"{name} ({path}) takes {num_bytes} bytes, {disk.free} are free"
        )


def parse_json(text: str | bytes, *, is_unique: bool = False) -> Any:
    """Reads JSON that somebody else wrote.

    Args:
      text: of one value, or its bytes in UTF-8, UTF-16 or UTF-32.
      is_unique: refuse a key that an object has twice; otherwise its last value counts.

    Raises:
      ValueError: if it is no JSON, or is nested more than 100 levels deep. Nothing else
        is raised.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        counts = collections.Counter(key for key, _ in pairs)
        repeated = sorted(key for key, count in counts.items() if count > 1)
        if repeated:
            raise ValueError(f"repeated: {', '.join(repeated)}")
        return dict(pairs)

    deep = f"nested more than {_DEPTH} levels deep"
    try:
        value = json.loads(text, object_pairs_hook=unique if is_unique else None)
    except RecursionError:
        raise ValueError(deep) from None
    level = [value]
    for _ in range(_DEPTH + 1):
        inner = []
        for item in level:
            if isinstance(item, dict):
                inner += [x for x in item.values() if isinstance(x, (dict, list))]
            elif isinstance(item, list):
                inner += [x for x in item if isinstance(x, (dict, list))]
        if not (level := inner):
            return value
    raise ValueError(deep)


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
def locked(
    path: str | os.PathLike, *, is_directory: bool = False, name: str = "output"
) -> Iterator[None]:
    """Keeps other processes from writing a file, or into a directory, in a block.

    The kernel holds the lock and releases it when the process ends, however it ends.
    What earlier writers left behind when they were killed is removed. The same thread
    may take the lock again. Where the file system has no locks, there is none.

    Args:
      path: of the file that will be written, or of the directory, which is created.
      is_directory: the lock is of all files in a directory.
      name: what errors call the path.

    Raises:
      InputError: if another process holds the lock, or nothing can be written there.
    """
    path = pathlib.Path(path).absolute()
    if path in _held.get():
        yield
        return
    lock = path / ".lock" if is_directory else path.with_name(f".{path.name}.lock")
    made = [x for x in (lock.parent, *lock.parent.parents) if not os.path.lexists(x)]
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor, is_locked = _take(lock)
    except BlockingIOError:
        raise InputError(
            f"{name} ({path}) is being written by another process{_writer(lock)}"
        ) from None
    except OSError as error:
        _remove_empty(made)
        raise InputError(
            f"{name} ({path}) cannot be written: {error.strerror}"
        ) from error
    token = _held.set(_held.get() | {path})
    try:
        if is_locked:
            _remove_partial(lock.parent, "*" if is_directory else path.name)
        yield
    finally:
        _held.reset(token)
        # Before it is released: another process then makes a new one.
        lock.unlink(missing_ok=True)
        os.close(descriptor)
        _remove_empty(made)


# Paths that are locked by this thread.
_held: contextvars.ContextVar[frozenset[pathlib.Path]] = contextvars.ContextVar(
    "held", default=frozenset()
)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)


def _take(lock: pathlib.Path) -> tuple[int, bool]:
    """Opens and locks a file.

    Returns:
      Its descriptor, and whether the file system has locks.

    Raises:
      BlockingIOError: if another process has it.
      OSError: if it cannot be written.
    """
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            is_locked = _flock(descriptor)
            # Its last holder may have removed it since it was opened.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                    os.ftruncate(descriptor, 0)
                    os.write(
                        descriptor, f"{socket.gethostname()} {os.getpid()}".encode()
                    )
                    return descriptor, is_locked
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _flock(descriptor: int) -> bool:
    """Locks an open file; False where there are no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True


def parse_line(
    path: pathlib.Path,
    number: int,
    line: bytes,
    is_wanted: Callable[[Any], bool],
    wanted: str,
) -> Any:
    """Reads a line of a file of JSON lines.

    Args:
      path: of the file, for the error.
      number: of the line, from 1.
      line: without its end.
      is_wanted: whether a value is what the file holds; may raise what wrong types do.
      wanted: what that is, and what to do about another one.

    Raises:
      InputError: if it is no JSON, or not what is wanted.
    """
    try:
        value = parse_json(line)
        if is_wanted(value):
            return value
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    shown = line.decode(errors="replace")
    raise InputError(f"{path}, line {number} ({shown!r:.60}) must be {wanted}")


def is_abandoned(path: str | os.PathLike) -> bool:
    """Whether the process that was last writing a file was killed, see `locked`.

    False where the file system has no locks.
    """
    path = pathlib.Path(path).absolute()
    try:
        # Those that end in order, also by an error, remove it.
        descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR)
    except OSError:
        return False
    try:
        return _flock(descriptor)
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _writer(lock: pathlib.Path) -> str:
    """Who holds a lock, as the end of a message."""
    try:
        host, process = lock.read_text().split()
    except (OSError, ValueError):
        return ""
    return f" (number {process} on {host})"


def _remove_empty(directories: Iterable[pathlib.Path]) -> None:
    for directory in directories:
        with contextlib.suppress(OSError):
            directory.rmdir()


def _remove_partial(parent: pathlib.Path, name: str) -> None:
    """Removes what killed processes left of a file, or of all in a directory."""
    pattern = name if name == "*" else glob.escape(name)
    for path in parent.glob(f".{pattern}.partial-{32 * '[0-9a-f]'}"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def staged(
    path: str | os.PathLike,
    num_bytes: int = 0,
    *,
    is_directory: bool = False,
    may_exist: bool = False,
) -> Iterator[pathlib.Path]:
    """Yields a hidden sibling that becomes `path` if the block ends well.

    If it does not, the sibling is removed; a killed process leaves it behind, and the
    next one that writes the same path removes it.

    Args:
      path: to be created, and its parents with it.
      num_bytes: that are going to be written to it.
      is_directory: yield an empty directory instead of an empty file.
      may_exist: replace a file; until then readers see the old one, whole.

    Raises:
      InputError: as `check_output`, or if another process is writing the path.
    """
    path = pathlib.Path(path)
    check = check_writable if may_exist else check_output
    check(path, num_bytes)
    with locked(path):
        # Another process may just have ended.
        check(path, num_bytes)
        partial = path.with_name(f".{path.name}.partial-{uuid.uuid4().hex}")
        try:
            try:
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
        if sys.stdout is None:
            raise InputError(f"output ({path}) cannot be written: stdout is closed")
        sys.stdout.flush()
        for record in records:
            sys.stdout.buffer.write(json_line(record))
        sys.stdout.buffer.flush()
        return
    with staged(path) as partial, partial.open("wb") as file:
        for record in records:
            file.write(json_line(record))
        file.flush()
        os.fsync(file.fileno())


def json_line(record: Mapping[str, Any]) -> bytes:
    """A record as a line of JSON Lines."""
    # A text that is no Unicode, such as half a pair of surrogates, stays readable.
    text = json.dumps(record, ensure_ascii=False)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(record).encode() + b"\n"
