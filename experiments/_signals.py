"""Signals that end a script: one line, its clean-up, and the status that shells expect.

Only the standard library is imported here: a script is interrupted while it imports the
rest, too.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

_WORDS = {
    "SIGINT": "interrupted",
    "SIGTERM": "ended by SIGTERM",
    "SIGHUP": "the terminal was closed",
}


class Stopped(SystemExit):
    """A signal ended the script; 128 and its number are the status.

    Like KeyboardInterrupt, and unlike an Exception, nothing takes it for a failure of
    what it interrupts, and everything on the way out is cleaned up.
    """


@contextlib.contextmanager
def limited(seconds: float, error: BaseException) -> Iterator[None]:
    """Raises an error in a block that takes too long.

    When control is back in Python: not while a compiled call runs.
    """

    def end(*_: object) -> None:
        raise error

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def end_at_once() -> None:
    """From now on, signals end the process without clean-up.

    For the time of imports: there is nothing to clean up yet, and not all of what is
    imported lets an exception pass.
    """
    _install(_end)


def _install(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Sets a handler, except for signals that are ignored (nohup, or in background).

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
            before[number] = signal.signal(number, handler)
    return before


def _end(number: int, frame: FrameType | None) -> None:
    """Ends the process."""
    del frame
    _tell(number)
    os._exit(128 + number)


def _stop(number: int, frame: FrameType | None) -> None:
    """Raises Stopped; the same signal once more ends the process at once."""
    del frame
    signal.signal(number, signal.SIG_DFL)
    _tell(number)
    raise Stopped(128 + number)


def _tell(number: int) -> None:
    with contextlib.suppress(OSError, ValueError):
        # A progress bar may be on the line.
        start = "\n" if sys.stderr is not None and sys.stderr.isatty() else ""
        word = _WORDS[signal.Signals(number).name]
        os.write(2, f"{start}error: {word}\n".encode())


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Handles signals in a block: cleans up, and raises Stopped."""
    before = _install(_stop)
    hook = sys.unraisablehook
    sys.unraisablehook = _again
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def _again(unraisable: "sys.UnraisableHookArgs") -> None:
    """Repeats a signal whose exception was raised where Python drops it.

    That is in a callback of the garbage collector, which JAX has, or in a destructor.
    """
    error = unraisable.exc_value
    if not isinstance(error, Stopped):
        sys.__unraisablehook__(unraisable)
        return
    number = int(str(error.code)) - 128

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise Stopped(128 + number)

    signal.signal(number, stop)
    # Not now: this is still inside of what drops it.
    repeat = threading.Timer(0.05, os.kill, (os.getpid(), number))
    repeat.daemon = True
    repeat.start()
