"""Where a result comes from: versions, device, code and checkpoint."""

import hashlib
import importlib.metadata
import os
import pathlib
import platform
import subprocess
from collections.abc import Mapping
from typing import Any

import jax

from dlm_jax import checkpoints
from dlm_jax.sandbox import processors

_PACKAGES = ("dlm_jax", "jax", "jaxlib", "flax", "numpy", "transformers")


def environment() -> dict[str, Any]:
    """Versions, devices and the commit of the code, ready for JSON."""
    devices = jax.local_devices()
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "device": devices[0].device_kind,
        "num_devices": len(devices),
        "num_cores": processors.usable(),
        "commit": _commit(),
    }


def describe(environment: Mapping[str, Any]) -> str:
    """The line of a report on what `environment` gives."""
    names = ("num_devices", "device", "num_cores", "jax", "commit")
    # Manifests may be of other versions, or edited.
    num, device, cores, jax_, commit = (environment.get(x, "unknown") for x in names)
    plural = "" if cores == 1 else "s"
    return f"{num} x {device}, {cores} core{plural}, jax {jax_}, commit {commit}"


def _version(package: str) -> str | None:
    """A package's version; None if it was not installed, but copied or frozen."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit that is checked out, with '+' if files differ; None if unknown."""
    own = pathlib.Path(__file__)

    def git(*arguments: str) -> str:
        # Without the lock, with which it would refresh the index: a commit that a user
        # makes meanwhile would fail, and a process that is killed leave it behind.
        done = subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            cwd=own.parent,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    try:
        # Installed into a folder of another repository, it is of no commit of that.
        git("ls-files", "--error-unmatch", own.name)
        is_changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if is_changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def short_commit(commit: str | None) -> str:
    """The part of a commit that pages show."""
    return commit[:7] + "+" * commit.endswith("+") if commit else "unknown"


def digest(directory: str | os.PathLike) -> str:
    """SHA-256 of a checkpoint: names and bytes of weights, config and tokenizer.

    Other files beside them do not count, see `checkpoints.essential_files`.

    Raises:
      InputError: if the directory does not exist, or its index is damaged.
    """
    root = pathlib.Path(directory)
    total = hashlib.sha256()
    for path in checkpoints.essential_files(root):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return total.hexdigest()
