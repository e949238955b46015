"""lm_eval's own command line, with `dlm_jax` among the models.

    python -m dlm_jax.harness --model dlm_jax --model_args checkpoint=DIR --tasks gsm8k

All arguments are lm_eval's. Errors that a user can fix are one line. Results that could
not be saved are an error: lm_eval would end with status 0.
"""

import argparse
import logging
import pathlib
import sys
import traceback

from lm_eval.__main__ import cli_evaluate

from dlm_jax import files
from dlm_jax.errors import InputError, absent_backend

# What lm_eval raises for arguments that it refuses.
_REFUSALS = (ValueError, KeyError, FileNotFoundError, NotADirectoryError)
# How lm_eval's warnings begin, after which it goes on.
_NOT_SAVED = "Could not save"


class _Unsaved(logging.Handler):
    """Collects what lm_eval could not save."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a warning of that kind."""
        if (message := record.getMessage()).startswith(_NOT_SAVED):
            self.messages.append(message)


def main() -> None:
    """Runs lm_eval's command line.

    Raises:
      SystemExit: with one line, for what a user can fix; 130 after Ctrl-C.
    """
    unsaved = _Unsaved()
    saving = logging.getLogger("lm_eval.loggers.evaluation_tracker")
    # Whatever LMEVAL_LOG_LEVEL is: a warning that is not made is not heard.
    saving.setLevel(logging.INFO)
    saving.addHandler(unsaved)
    try:
        _check_paths(sys.argv[1:])
        cli_evaluate()
    except KeyboardInterrupt:
        print("dlm_jax: stopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if (line := _told(error)) is None:
            raise
        sys.exit(" ".join(line.split()))
    if unsaved.messages:
        sys.exit(f"dlm_jax: results are not saved: {'; '.join(unsaved.messages)}")


def _check_paths(arguments: list[str]) -> None:
    """Raises InputError where results could not be saved in the end."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--output_path", "-o")
    parser.add_argument("--use_cache", "-c")
    known, _ = parser.parse_known_args(arguments)
    if known.output_path:
        # lm_eval makes files beside NAME.json, and folders in any other path.
        path = pathlib.Path(known.output_path)
        if path.suffix != ".json":
            path /= "results.json"
        files.check_writable(path, name="output_path")
    if known.use_cache:
        files.check_writable(f"{known.use_cache}_rank0.db", name="use_cache")


def _told(error: Exception) -> str | None:
    """The line for a failure that is no defect of the code, None for others."""
    if isinstance(error, InputError):
        return f"dlm_jax: {error}"
    if isinstance(error, MemoryError):
        return f"dlm_jax: too little memory on this machine: {error}"
    if line := absent_backend(error):
        return f"dlm_jax: {line}"
    frames = traceback.extract_tb(error.__traceback__)
    place = frames[-1].filename if frames else ""
    is_of_lm_eval = "lm_eval" in pathlib.Path(place).parts
    if isinstance(error, _REFUSALS) and is_of_lm_eval:
        return f"lm_eval: {error}"
    return None


if __name__ == "__main__":
    main()
