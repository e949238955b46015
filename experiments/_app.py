"""What all scripts share: errors that a user can mend are one line, not a traceback."""

import os
import pathlib
import sys
from collections.abc import Callable, Sequence

import jax
from absl import app, flags, logging

from dlm_jax.errors import InputError


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Parses flags, runs main and exits: 1 after bad input, with one line on stderr.

    Bad input is an `InputError`, or an `OSError` of the machine (disk full, permission
    denied). Any other exception is a defect and keeps its traceback.
    """

    def guarded(argv: Sequence[str]) -> int:
        _keep_compiled_programs()
        if not flags.FLAGS["verbosity"].present:
            # Orbax reports every step of its work, and warns where nothing is wrong.
            logging.set_verbosity(logging.ERROR)
        try:
            if len(argv) > 1:
                raise InputError(f"unexpected arguments: {' '.join(argv[1:])}")
            main(argv)
        except (InputError, OSError) as error:
            print("error:", *str(error).split(), file=sys.stderr)
            return 1
        return 0

    app.run(guarded)


def _keep_compiled_programs() -> None:
    """Turns on JAX's compilation cache, where JAX_COMPILATION_CACHE_DIR does not."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        caches = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        directory = pathlib.Path(caches) / "dlm_jax"
        jax.config.update("jax_compilation_cache_dir", str(directory))
