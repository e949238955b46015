"""Errors that a user can fix."""

# What Python's parser raises for text that is not Python, or nested too deep. Python
# 3.11 may then lose count of its recursion, and says so by a SystemError.
NOT_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError, SystemError)
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
