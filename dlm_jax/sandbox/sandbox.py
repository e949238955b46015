"""Runs Python that a model wrote, in a process of its own that can reach nothing.

What a program claims proves nothing, so nothing is asked of it but the values of its
function. `calls` and `run_tests` compare them here with values that the child never
sees. Checks written as assertions (`run_checks`, for HumanEval) run in a second child,
where the candidate is a stub that asks the first one for plain data. So a program that
leaves early, patches built-in functions, prints a result or returns objects that equal
everything is wrong, unless its values are correct.

Each child is a fresh interpreter with Python's own library and numpy, if that is
installed, an empty environment, an empty working directory and no descriptor but its
pipes; strings have the same hashes in every run. Around it are as many layers as the
system offers. `isolation` names them, and so does every outcome:

- namespaces: an empty root with the library mounted read only; no other process, no
  network.
- landlock: no file but the library can be read, none opened for writing, made, moved
  or removed; installed packages but numpy are left out, as they may hold answers. By
  itself it lets owner, mode, times and attributes of the user's files be changed, and
  before Linux 6.2 lets them be emptied: that is seccomp's.
- seccomp: no new process, no socket but a pair of the process's own, no signal, no
  other process's schedule, memory or messages; no file's owner, mode, times or
  attributes changed, none emptied; none of the other calls of `layers`. Threads only
  with namespaces, where the kernel counts them apart: at most 62. By itself it lets a
  program read, make, change and remove files as its user can.
- rlimits: CPU time, memory, size of files (none grows), descriptors, processes. With
  these alone a program can do with files what its user can, but fill them, so they stop
  accidents, not attacks. macOS has only these, and does not bound memory.

Linux without namespaces, as in most containers, has the other three.
"""

import dataclasses
import marshal
import math
import operator
import time
from collections.abc import Sequence
from typing import Any

from dlm_jax.errors import InputError
from dlm_jax.sandbox.probe import strongest_layers
from dlm_jax.sandbox.process import (
    LAYERS,
    Child,
    Limits,
    SandboxError,
    StopError,
    start_child,
)

__all__ = [
    "LAYERS",
    "Calls",
    "Limits",
    "Outcome",
    "Result",
    "SandboxError",
    "calls",
    "is_equal",
    "isolation",
    "run_checks",
    "run_tests",
    "strongest_layers",
]

_MAX_SHOWN = 80
_MAX_REASON = 300


@dataclasses.dataclass(frozen=True)
class Result:
    """What one call gave.

    Attributes:
      has_returned: with a value of plain data.
      value: that value, else None.
      reason: one line on why there is none: the error, with its line in the program.
    """

    has_returned: bool
    value: Any
    reason: str


@dataclasses.dataclass(frozen=True)
class Calls:
    """What a program's function gave on some inputs.

    Attributes:
      status: 'finished', or as in `Outcome` if the program defined no function, or the
        process did not come to the end of the inputs.
      reason: one line on that; empty if finished.
      results: of the calls that were made, in order.
      isolation: the layers around the child, joined by '+'.
      seconds: wall time, with that of the start.
    """

    status: str
    reason: str
    results: list[Result]
    isolation: str
    seconds: float


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A verdict on a program.

    Attributes:
      status: 'passed'; 'failed' by a wrong value or an error; 'timeout', 'memory' or
        'output' by a limit; 'crashed' if the process ended in another way.
      reason: one line: the first thing that was wrong; empty if passed.
      isolation: the layers around the child, joined by '+'.
      seconds: wall time, with that of the start.
    """

    status: str
    reason: str
    isolation: str
    seconds: float

    @property
    def is_passed(self) -> bool:
        """Whether all results were correct."""
        return self.status == "passed"


def isolation() -> str:
    """The strongest layers that this system offers, as 'landlock+seccomp+rlimits'."""
    return _name(strongest_layers())


def calls(
    program: str,
    entry_point: str,
    inputs: Sequence[Sequence],
    limits: Limits | None = None,
    layers: Sequence[str] | None = None,
) -> Calls:
    """Calls a program's function on inputs, one after another in one process.

    The function gets a copy of its arguments. An error is a result, and the next call
    is made.

    Args:
      program: Python source; it is executed as a module, not as a script.
      entry_point: name of the function.
      inputs: the arguments of each call, of None, bool, int, float, complex, str,
        bytes, list, tuple, set, frozenset and dict.
      limits: for all calls together; the defaults if None.
      layers: of LAYERS; the strongest if None.

    Raises:
      InputError: for inputs of other types or unknown layers.
      SandboxError: if the sandbox itself fails, so that there is no verdict.
    """
    limits = limits or Limits()
    job = {
        "program": program,
        "entry_point": entry_point,
        # One by one: a list that two inputs share must not be one list there.
        "inputs": [_dumps(arguments) for arguments in inputs],
    }
    start = time.monotonic()
    results: list[Result] = []
    status, reason = "finished", ""
    layers = _checked(layers)
    try:
        with start_child(job, limits, layers) as child:
            _define(child)
            for _ in inputs:
                results.append(_result(child.receive()))
    except StopError as stop:
        status, reason = stop.status, stop.reason
        if results and status == "crashed":
            reason = f"{reason} after {len(results)} of {len(inputs)} calls"
    seconds = time.monotonic() - start
    return Calls(status, reason, results, _name(layers), seconds)


def run_tests(
    program: str,
    entry_point: str,
    tests: Sequence[tuple[Sequence, Any]],
    limits: Limits | None = None,
    *,
    is_exact: bool = True,
    layers: Sequence[str] | None = None,
) -> Outcome:
    """Whether a program's function gives the expected values.

    Args:
      program: Python source.
      entry_point: name of the function.
      tests: pairs of the arguments and the value that must be returned.
      limits: for all tests together; the defaults if None.
      is_exact: types must be the same at every depth, and NaN equals NaN;
        else values are compared by ==, for which True, 1 and 1.0 are the same.
      layers: of LAYERS; the strongest if None.

    Raises:
      InputError, SandboxError: as `calls`.
    """
    made = calls(program, entry_point, [test[0] for test in tests], limits, layers)
    status, reason = made.status, made.reason
    for (arguments, expected), result in zip(tests, made.results, strict=False):
        asked = f"{entry_point}({', '.join(map(_show, arguments))})"
        if not result.has_returned:
            status, reason = _failure(result.reason)
            reason = f"{asked}: {reason}"
            break
        if not (is_equal if is_exact else operator.eq)(result.value, expected):
            status = "failed"
            reason = f"{asked} is {_show(result.value)}, not {_show(expected)}"
            break
    status = "passed" if status == "finished" else status
    return Outcome(status, _line(reason), made.isolation, made.seconds)


def run_checks(
    program: str,
    checks: str,
    entry_point: str,
    limits: Limits | None = None,
    *,
    prelude: str = "",
    layers: Sequence[str] | None = None,
) -> Outcome:
    """Whether a program's function satisfies checks written in Python.

    The checks run in a process without the program. Arguments and values pass between
    the two as plain data, so the checks see neither what a call does to its arguments,
    nor functions or other objects.

    Args:
      program: Python source, not trusted.
      checks: Python source, trusted, that defines check(candidate), as HumanEval's
        (arXiv:2107.03374).
      entry_point: name of the function; checks may also call it by this name.
      limits: for each of the two processes; the defaults if None.
      prelude: Python source, trusted, executed before the checks: the prompt, if
        they call its helpers or use its imports.
      layers: of LAYERS; the strongest if None.

    Raises:
      InputError: if prelude or checks fail before a candidate is called; unknown
        layers.
      SandboxError: if the sandbox itself fails, so that there is no verdict.
    """
    limits = limits or Limits()
    layers = _checked(layers)
    start = time.monotonic()
    job = {"program": program, "entry_point": entry_point}
    check_job = {"checks": checks, "prelude": prelude, "entry_point": entry_point}
    status, reason = "passed", ""
    try:
        with (
            start_child(job, limits, layers) as candidate,
            start_child(check_job, limits, layers) as checker,
        ):
            _define(candidate)
            _answer_checker(candidate, checker, checks)
    except StopError as stop:
        status, reason = stop.status, stop.reason
    return Outcome(status, _line(reason), _name(layers), time.monotonic() - start)


def is_equal(left: Any, right: Any) -> bool:
    """Equality of plain data, types included; NaN equals itself.

    Args:
      left: of None, bool, int, float, complex, str, bytes, list, tuple, set,
        frozenset and dict. The order of a dict does not count.
      right: likewise.
    """
    if type(left) is not type(right):
        return False
    if isinstance(left, float) and math.isnan(left):
        return math.isnan(right)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(is_equal, left, right))
    if isinstance(left, set | frozenset | dict):
        own = {key: key for key in right}
        if len(left) != len(own):
            return False
        if not all(key in own and is_equal(key, own[key]) for key in left):
            return False
        is_dict = isinstance(left, dict)
        return not is_dict or all(is_equal(left[key], right[key]) for key in left)
    return left == right


def _define(child: Child) -> None:
    """Waits until the program is executed."""
    head, *rest = child.receive()
    if head != "defined":
        raise StopError(*_failure(_result([head, *rest]).reason))


def _answer_checker(candidate: Child, checker: Child, checks: str) -> None:
    """Hands calls and values from one child to the other until the checks are done."""
    while True:
        head, *rest = checker.receive()
        if head == "passed":
            return
        if head == "call":
            candidate.send(tuple(rest))
            answer = candidate.receive()
            result = _result(answer)
            if result.has_returned:
                checker.send(("returned", result.value))
            elif answer[0] == "raised" and answer[1] != "MemoryError":
                # A check may expect an error.
                name, _, message = result.reason.partition(": ")
                checker.send(("raised", name, message))
            else:
                raise StopError(*_failure(result.reason))
            continue
        name, message, line = rest
        if head == "invalid":
            raise InputError(f"checks do not run: {_error(name, message, line)}")
        lines = checks.splitlines()
        text = lines[line - 1].strip() if 0 < line <= len(lines) else ""
        reason = _error(name, message, 0)
        raise StopError(
            "memory" if name == "MemoryError" else "failed", f"{reason} in: {text}"
        )


def _result(message: list[Any]) -> Result:
    match message:
        case ["returned", value]:
            return Result(True, value, "")
        case ["large", str(reason)]:
            return Result(False, None, f"too large a value: {reason}")
        case ["raised", str(name), str(text), int(line)]:
            return Result(False, None, _error(name, text, line))
    raise StopError("crashed", "sent what is no result")


def _failure(reason: str) -> tuple[str, str]:
    """Status and reason of an outcome whose reason is a result's."""
    for start, status in (("MemoryError", "memory"), ("too large a value", "output")):
        if reason.startswith(start):
            return status, reason
    return "failed", reason


def _error(name: str, message: str, line: int) -> str:
    text = f"{name}: {message}" if message else name
    return _line(f"{text} (line {line})" if line else text)


def _line(text: str) -> str:
    """One printable line of bounded length."""
    text = " ".join(text.split())
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= _MAX_REASON else text[: _MAX_REASON - 3] + "..."


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def _dumps(arguments: Sequence) -> bytes:
    try:
        return marshal.dumps(tuple(arguments))
    except ValueError:
        raise InputError(f"inputs ({_show(arguments)}) must be plain data") from None


def _name(layers: Sequence[str]) -> str:
    return "+".join([*layers, "rlimits"])


def _checked(layers: Sequence[str] | None) -> tuple[str, ...]:
    if layers is None:
        return strongest_layers()
    unknown = set(layers) - set(LAYERS)
    if unknown:
        raise InputError(
            f"layers ({', '.join(sorted(unknown))}) must be of {', '.join(LAYERS)}"
        )
    return tuple(name for name in LAYERS if name in layers)
