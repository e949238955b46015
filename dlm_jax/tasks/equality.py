"""Whether two answers in LaTeX are the same mathematics.

math-verify (Hugging Face; extra `eval`) parses and compares. It knows sets, intervals,
matrices, units, percentages and equations, has a release of 2026, and its scores are
what lm-evaluation-harness reports beside its own. sympy's own LaTeX parser knows no
sets and no units, and latex2sympy2 has had no release since 2023.

A model writes the LaTeX, so 9^{9^{9^9}} is among it, and comparing may take any time
and memory. It is done by processes that are bounded in both and are ended and replaced
when they exceed them (`equality_child`). Time is the processor's, so that a verdict
does not depend on what else the machine does.
"""

import atexit
import contextlib
import importlib.util
import json
import os
import pathlib
import queue
import re
import signal
import subprocess
import sys
import threading
from typing import NamedTuple

from dlm_jax.errors import InputError

CPU_SECONDS = 5.0
MEMORY_BYTES = 2 << 30
# Catches a process that waits; far more than the processor time takes anywhere.
_WALL_SECONDS = 1800.0
# Longer answers are wrong without a comparison.
_MOST_CHARACTERS = 1000
# A worker is replaced after as many comparisons: sympy's caches grow.
_MOST_COMPARISONS = 500
# Commands that change how a formula looks, and what is left out.
_SETTING = re.compile(r"\\(?:left|right|displaystyle)(?![a-zA-Z])|\\[!,;: ]|[\s$~]")
# A text of words.
_WORDS = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}"
)
_CHILD = pathlib.Path(__file__).with_name("equality_child.py")


class Comparison(NamedTuple):
    """Whether two answers are equal.

    Attributes:
      is_equal: as LaTeX or as mathematics.
      reason: why they could not be compared; empty if they could.
    """

    is_equal: bool
    reason: str


def check_installed() -> None:
    """Checks that answers can be compared.

    Raises:
      InputError: with what to install, if they cannot.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise InputError(
            "task (math) needs the package math-verify: pip install 'dlm_jax[eval]'"
        )


def compare(gold: str, answer: str) -> Comparison:
    """Compares an answer with the correct one; may be called by several threads.

    Args:
      gold: the correct answer, in LaTeX without dollar signs around it.
      answer: that of a model.

    Raises:
      OSError: if no process can be started, so that there is no verdict.
    """
    if plain(gold) == plain(answer):
        return Comparison(True, "")
    if len(answer) > _MOST_CHARACTERS:
        return Comparison(False, f"more than {_MOST_CHARACTERS} characters")
    try:
        worker = _idle.get_nowait()
    except queue.Empty:
        worker = _Worker()
    found = worker.ask(gold, answer)
    if worker.is_usable:
        _idle.put(worker)
    else:
        worker.close()
    return found


def plain(latex: str) -> str:
    """LaTeX without spaces, dollars, fonts, sizes of brackets and a last dot."""
    text = latex.strip().removesuffix(".")
    text = _SETTING.sub("", _WORDS.sub(r"\1", text))
    text = text.replace(r"\varnothing", r"\emptyset")
    return re.sub(r"\\[dt]frac(?![a-zA-Z])", r"\\frac", text)


class _Worker:
    """One process that compares."""

    def __init__(self) -> None:
        environment = {
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-P", _CHILD, str(CPU_SECONDS), str(MEMORY_BYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        self._left = _MOST_COMPARISONS
        _started.add(self)
        if self._receive() != "ready":
            self.close()
            raise OSError("the process that compares answers did not start")

    @property
    def is_usable(self) -> bool:
        """Whether it can be asked again."""
        return self._left > 0

    def ask(self, gold: str, answer: str) -> Comparison:
        request = json.dumps({"gold": gold, "answer": answer}).encode() + b"\n"
        assert self._process.stdin is not None
        reply = None
        with contextlib.suppress(OSError):
            self._process.stdin.write(request)
            self._process.stdin.flush()
            reply = self._receive()
        self._left -= 1
        if isinstance(reply, dict):
            # Out of memory or too deep: it ends after the reply.
            if reply["reason"] in ("MemoryError", "RecursionError"):
                self._left = 0
            return Comparison(reply["is_equal"], reply["reason"])
        self._left = 0
        number = -self._process.wait()
        if number == signal.SIGPROF:
            return Comparison(False, f"more than {CPU_SECONDS:g} s of processor time")
        return Comparison(False, f"the comparison ended with status {-number}")

    def close(self) -> None:
        """Ends the process."""
        _started.discard(self)
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            # What is left in a buffer for a process that is gone cannot be written.
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()

    def _receive(self) -> object:
        """The next reply; None if the process is gone."""
        assert self._process.stdout is not None
        timer = threading.Timer(_WALL_SECONDS, self._process.kill)
        timer.daemon = True
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        return json.loads(line) if line.endswith(b"\n") else None


_idle: "queue.LifoQueue[_Worker]" = queue.LifoQueue()
_started: set[_Worker] = set()


@atexit.register
def _close_all() -> None:
    for worker in list(_started):
        worker.close()
