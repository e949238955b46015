"""Signals that end a script: one line, its clean-up, and the status that shells expect.

Only the standard library is imported here: a script is interrupted while it imports the
rest, too.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

_WORDS = {
    "SIGINT": "interrupted",
    "SIGTERM": "told to end (SIGTERM)",
    "SIGHUP": "the terminal was closed",
}


class Stopped(SystemExit):
    """A signal ended the script; 128 and its number are the status.

    Like KeyboardInterrupt, and unlike an Exception, nothing takes it for a failure of
    what it interrupts, and everything on the way out is cleaned up.
    """


def install() -> dict[int, object]:
    """Sets handlers, except for signals that are ignored (nohup, or in background).

    Returns:
      The handlers that were there.
    """
    before = {}
    # Elsewhere Python refuses; nothing but tests has a script in another thread.
    if threading.current_thread() is not threading.main_thread():
        return before
    for name in _WORDS:
        number = getattr(signal, name, None)  # Windows has no SIGHUP.
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, _stop)
    return before


def _stop(number: int, frame: FrameType | None) -> None:
    """Raises Stopped; the same signal once more ends the process at once."""
    del frame
    signal.signal(number, signal.SIG_DFL)
    with contextlib.suppress(OSError):
        # A progress bar may stand in the line.
        start = "\n" if sys.stderr is not None and sys.stderr.isatty() else ""
        word = _WORDS[signal.Signals(number).name]
        os.write(2, f"{start}error: {word}\n".encode())
    raise Stopped(128 + number)


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Handles signals in a block."""
    before = install()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
