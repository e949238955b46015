"""Errors that a user can fix."""

import os
import traceback

# What Python's parser raises for text that is not Python, or nested too deep. Python
# 3.11 may then lose count of its recursion, and says so by a SystemError.
NOT_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError, SystemError)
# How JAX's messages begin where a backend does not start.
_NO_BACKEND = ("Unable to initialize backend", "Unknown backend")
# Of a message; a dozen problems with their paths fit.
_LENGTH = 2000


class InputError(ValueError):
    """Bad input: one line that names the thing, what it got and what it takes.

    Scripts print it without a traceback and exit with status 1. What it got may be of
    any length, so the middle of a long message is left out.
    """

    def __init__(self, message: str = ""):
        """Keeps the message, or both ends of it.

        Args:
          message: of any length.
        """
        num_left_out = len(message) - _LENGTH
        if num_left_out > 0:
            half = _LENGTH // 2
            message = f"{message[:half]} [{num_left_out} characters] {message[-half:]}"
        super().__init__(message)


class PromptError(InputError):
    """A prompt does not fit.

    Attributes:
      index: of the prompt, among those that were given.
      is_too_long: for the model's context.
    """

    def __init__(self, index: int, message: str, is_too_long: bool = False):
        """Keeps the message, and what it is about; arguments are the attributes."""
        super().__init__(message)
        self.index = index
        self.is_too_long = is_too_long


class OutOfMemory(InputError):
    """A batch takes more memory than there is; names its size."""


def absent_backend(error: Exception) -> str | None:
    """The line for a backend of JAX that does not start; None for other errors."""
    text = str(error)
    # Where none that is named starts, an assertion of JAX's own may fail.
    frames = traceback.extract_tb(error.__traceback__)
    is_assertion = isinstance(error, AssertionError) and frames
    is_assertion = is_assertion and frames[-1].filename.endswith("xla_bridge.py")
    is_told = isinstance(error, RuntimeError) and text.startswith(_NO_BACKEND)
    if not (is_assertion or is_told):
        return None
    reason = text.splitlines()[0] if text else "it is not there"
    asked = os.environ.get("JAX_PLATFORMS")
    return f"JAX_PLATFORMS ({asked}) cannot be used: {reason}"
