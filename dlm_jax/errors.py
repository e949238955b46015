"""Errors that a user can mend."""


class InputError(ValueError):
    """Bad input: one line that names the thing, what it got and what it takes.

    Scripts print it without a traceback and exit with status 1.
    """


class OutOfMemory(InputError):
    """A batch takes more memory than there is; names its size."""
