"""The program of the processes that compare LaTeX, which `equality` starts by its path.

It imports nothing of this package and is imported by nothing. A request is a JSON line
with `gold` and `answer`; a reply is one with `is_equal` and `reason`. LaTeX is parsed
to expressions, never executed: once everything is imported, an audit hook refuses to
compile text, to start a process, to open a socket and to write a file. What takes too
much processor time ends the process by a signal.
"""

import json
import logging
import os
import re
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

_REFUSED = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.",
    "socket.",
)
# Comparisons of all kinds, so that whatever sympy imports late is imported.
_KINDS = (
    (r"\frac{1}{2}", "0.5"),
    (r"\{1,2\}", "2,1"),
    (r"(-\infty,2)\cup[3,4]", r"[3,4]\cup(-\infty,2)"),
    ("x^2+2x+1", "(x+1)^2"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\3\end{pmatrix}"),
    ("x=5", "5"),
    ("2x+3y=6", "y=2-2x/3"),
    (r"\sin^2 x+\cos^2 x", "1"),
    (r"\text{even}", "odd"),
    (r"\binom{5}{2}", "10"),
    ("3+2i", r"\sqrt{-4}+3"),
)


def main(cpu_seconds: float, memory_bytes: int) -> None:
    """Answers requests until there are no more.

    Args:
      cpu_seconds: processor time of one comparison.
      memory_bytes: address space of the process.
    """
    # What libraries print is no reply.
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    logging.disable(logging.CRITICAL)
    compare = load()
    for gold, answer in _KINDS:
        compare(gold, answer)
    for name, value in (("RLIMIT_AS", memory_bytes), ("RLIMIT_CORE", 0)):
        _, hard = resource.getrlimit(getattr(resource, name))
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        try:
            resource.setrlimit(getattr(resource, name), (value, hard))
        except (OSError, ValueError):
            if sys.platform == "linux":
                raise
    sys.addaudithook(guard)
    _send(replies, "ready")
    for line in sys.stdin.buffer:
        request = json.loads(line)
        # Its default action ends the process, whatever it is doing.
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        is_broken = False
        try:
            is_equal, reason = compare(request["gold"], request["answer"]), ""
        except BaseException as error:
            is_equal, reason = False, type(error).__name__
            is_broken = isinstance(error, MemoryError | RecursionError)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _send(replies, {"is_equal": bool(is_equal), "reason": reason})
        if is_broken:
            os._exit(0)


def load() -> Callable[[str, str], bool]:
    """Imports what compares; returns a function of two texts in LaTeX: gold, answer."""
    from math_verify import LatexExtractionConfig, parse, verify
    from sympy import Float, Integer, SympifyError
    from sympy.core import numbers

    convert = numbers.sympify  # pyrefly: ignore[missing-attribute]

    def read_number(value: Any, *arguments: Any, **options: Any) -> Any:
        # The parser makes numbers of their text, for which sympy calls eval.
        if not isinstance(value, str):
            return convert(value, *arguments, **options)
        if not re.fullmatch(r"\d*\.?\d*", value) or value in ("", "."):
            raise SympifyError(value)
        return Float(value) if "." in value else Integer(int(value))

    numbers.sympify = read_number  # pyrefly: ignore[missing-attribute]
    # No other kind of extraction: that of plain expressions ends in Python's eval.
    kinds = [LatexExtractionConfig(boxed_match_priority=0)]

    def read(latex: str) -> list[Any]:
        text = latex.replace("\\$", "").replace("$", "").replace("~", " ")
        # None is no limit, which its annotation leaves out.
        limit: Any = None
        return parse(f"${text}$", extraction_config=kinds, parsing_timeout=limit)

    def compare(gold: str, answer: str) -> bool:
        # Its own limits are signals of whole seconds; the timer above replaces them.
        return verify(read(gold), read(answer), timeout_seconds=None)

    return compare


def guard(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: raises for what a comparison never needs."""
    if event == "compile":
        source, filename = arguments
        is_refused = source is not None and str(filename).startswith("<")
    elif event == "open":
        _, mode, flags = arguments
        is_refused = bool(set(mode or "") & set("wax+")) or bool(
            (flags or 0) & (os.O_WRONLY | os.O_RDWR)
        )
    else:
        is_refused = event.startswith(_REFUSED)
    if is_refused:
        raise PermissionError(f"refused: {event}")


def _send(replies: BinaryIO, reply: Any) -> None:
    replies.write(json.dumps(reply).encode() + b"\n")


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
