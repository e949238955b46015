"""Errors that a user can fix."""

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


class OutOfMemory(InputError):
    """A batch takes more memory than there is; names its size."""
