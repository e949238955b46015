"""Compiled programs that the scripts keep from run to run, in JAX's own cache.

JAX writes a program straight into its place. What a full disk or a kill cuts off is
never written again: its time of use is missing, which makes every later write fail, and
reading it fails at each run. Such entries are removed here. What cannot be kept is no
failure: it is told once, when a script ends well.
"""

import contextlib
import functools
import os
import pathlib
import re
import warnings
from collections.abc import Callable
from typing import Any

import jax

# Of all programs; those that were not used for longest go first.
_BYTES = 2**31
# How JAX names the files of an entry: a program, and when it was last used. Both begin
# with the name of the module.
_PROGRAM, _USED = "-cache", "-atime"
_LOCK = ".lockfile"
# How JAX tells that an entry cannot be read, and that one was not written.
_UNREAD = re.compile(r"Error reading persistent compilation cache entry for '([^']*)'")
_UNWRITTEN = re.compile(r"Error writing persistent compilation cache entry [^:]*: (.*)")
# Why programs could not be kept.
_unkept: list[str] = []


def keep() -> None:
    """Turns on JAX's compilation cache, where JAX_COMPILATION_CACHE_DIR does not."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    directory = pathlib.Path(caches) / "dlm_jax" / "programs"
    # A user without a home, or with one that is read-only, keeps nothing.
    with contextlib.suppress(OSError):
        if not caches.startswith("~"):
            directory.mkdir(parents=True, exist_ok=True)
            jax.config.update("jax_compilation_cache_dir", str(directory))
            # With a bound JAX also locks the directory, so that no process reads what
            # another has not written to its end.
            jax.config.update("jax_compilation_cache_max_size", _BYTES)
            remove_cut(directory)
            shown = warnings.showwarning
            if not isinstance(shown, functools.partial):  # Or it is done already.
                warnings.showwarning = functools.partial(_repair, directory, shown)


def remark() -> str:
    """One line on why programs were not kept; empty if they were."""
    return _unkept[0] if _unkept else ""


def remove_cut(directory: pathlib.Path, module: str | None = None) -> None:
    """Removes entries that were not written to their end.

    Args:
      directory: of the cache.
      module: name of a module; of its entries, the one that was used last goes as well.
    """
    # JAX has the package, where it has a bound.
    with contextlib.suppress(ImportError, OSError):
        import filelock

        with filelock.FileLock(directory / _LOCK, timeout=10):
            for path in directory.glob(f"*{_PROGRAM}"):
                # The time is written last.
                if not _used(path).exists() or not path.stat().st_size:
                    _remove(path)
            if module is not None:
                own = [*directory.glob(f"{module}-*{_PROGRAM}")]
                if own:
                    _remove(max(own, key=lambda path: _used(path).stat().st_mtime_ns))


def _repair(
    directory: pathlib.Path,
    shown: Callable[..., None],
    message: Any,
    *details: Any,
    **more: Any,
) -> None:
    """Shows a warning as before; removes the entry that it is about, if it is one."""
    if unread := _UNREAD.match(str(message)):
        # JAX notes that an entry is used before it finds that it cannot be read. It
        # compiles now, and writes the program anew: there is nothing to tell.
        remove_cut(directory, unread[1])
        return
    if unwritten := _UNWRITTEN.match(str(message)):
        remove_cut(directory)
        _unkept.append(f"compiled programs are not kept in {directory}: {unwritten[1]}")
        return
    shown(message, *details, **more)


def _used(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(path.name.removesuffix(_PROGRAM) + _USED)


def _remove(path: pathlib.Path) -> None:
    path.unlink(missing_ok=True)
    _used(path).unlink(missing_ok=True)
