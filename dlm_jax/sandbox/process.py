"""One locked child process of the sandbox, and the messages to and from it."""

import contextlib
import dataclasses
import functools
import json
import marshal
import math
import os
import pathlib
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from dlm_jax.errors import InputError
from dlm_jax.sandbox import layers as sandbox_layers
from dlm_jax.sandbox import processors

LAYERS = ("namespaces", "landlock", "seccomp")
# Wall time of one start: a tenth of a second, or many where the machine is busy.
_START_SECONDS = 30.0
_MAX_DEPTH = 100
_CHUNK = 1 << 16
_CHILD_FILES = ("plain.py", "child.py")
# Threads of a program, with its processes.
_MOST_TASKS = 64
# Reads the code and its arguments from standard input, without a file in between.
_STUB = (
    "import marshal\n"
    "with open(0, 'rb', closefd=False) as file:\n"
    "    size = int.from_bytes(file.read(8), 'little')\n"
    "    codes, plan, job = marshal.loads(file.read(size))\n"
    "space = {'__name__': 'sandbox'}\n"
    "for code in codes:\n"
    "    exec(code, space)\n"
    "space['main'](plan, job)\n"
)
_CONTAINERS = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "bytes": bytes,
    "complex": lambda items: complex(*items),
    "dict": lambda items: dict(zip(items[::2], items[1::2], strict=True)),
}


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one child may use.

    Attributes:
      cpu_seconds: processor time, which hardly depends on what else runs; the
        system counts whole seconds.
      wall_seconds: in which answers are waited for; catches what sleeps. Neither how
        long a start takes, nor waiting for a processor, is the program's doing, so
        they do not count (Linux).
      memory_bytes: address space.
      output_bytes: of all results together, as they are sent.
    """

    cpu_seconds: int = 3
    wall_seconds: float = 20.0
    memory_bytes: int = 512 << 20
    output_bytes: int = 256 << 10

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise InputError(f"{field.name} ({value}) must be positive")


class SandboxError(OSError):
    """The sandbox could not be made as promised; no program was run in it.

    An OSError, as the machine refuses or is too busy: it is no defect and no answer.
    """


class StopError(Exception):
    """A child gives no more results: an outcome's status and reason."""

    def __init__(self, status: str, reason: str):
        super().__init__(status, reason)
        self.status = status
        self.reason = reason


class StartError(SandboxError):
    """A child ended, or was not done, before it was locked; the status says which."""

    def __init__(self, stop: StopError):
        super().__init__(f"a sandbox did not start: {stop.reason}")
        self.status = stop.status


class Child:
    """One locked interpreter at work; leaving the context kills it."""

    def __init__(self, job: dict[str, Any], limits: Limits, layers: Sequence[str]):
        self._limits = limits
        self._seconds = self._left = _START_SECONDS
        self._received = bytearray()
        self._num_received = 0
        self._status: int | None = None
        # For a processor; not asked for before the start is over.
        self._waited: float | None = None
        self._cpu_seconds = 0.0
        self._directory = tempfile.mkdtemp(prefix="sandbox-")
        try:
            self._process = subprocess.Popen(
                [_python(), "-P", "-s", "-S", "-B", "-X", "utf8", "-c", _STUB],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                cwd=self._directory,
                # An arena of the C library's for each thread would take the memory.
                env={"PYTHONHASHSEED": "0", "MALLOC_ARENA_MAX": "1"},
                start_new_session=True,
            )
        except BaseException:
            self._remove()
            raise
        try:
            assert self._process.stdin and self._process.stdout
            self._requests = self._process.stdin.fileno()
            self._replies = self._process.stdout.fileno()
            os.set_blocking(self._requests, False)
            os.set_blocking(self._replies, False)
            self._start(_plan(limits, layers), job)
        except BaseException:
            self.__exit__()
            raise

    def _start(self, plan: dict[str, Any], job: dict[str, Any]) -> None:
        try:
            self._send(marshal.dumps((_child_code(), plan, job)))
            head, *rest = self.receive()
        except StopError as stop:
            raise StartError(stop) from None
        # The first message is sent before the program is executed.
        if head != "ready":
            raise SandboxError(f"a sandbox did not start: {rest}")
        self._seconds = self._left = self._limits.wall_seconds
        self._waited = processors.seconds_waited(self._process.pid)

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: Any) -> None:
        self._end()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()
        self._remove()

    def _remove(self) -> None:
        # Without a layer, a program can nest directories deeper than Python recurses.
        with contextlib.suppress(RecursionError):
            shutil.rmtree(self._directory, ignore_errors=True)

    def _end(self) -> None:
        """Kills what is left of the child's process group, and collects it."""
        if self._status is not None:
            return
        # A process that is ending keeps the status that it ends with.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        _, self._status, usage = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(self._status)
        self._cpu_seconds = usage.ru_utime + usage.ru_stime

    def send(self, message: Any) -> None:
        """Sends a frame of trusted or decoded data."""
        self._send(marshal.dumps(message))

    def _send(self, data: bytes) -> None:
        data = len(data).to_bytes(8, "little") + data
        view = memoryview(data)
        while view:
            self._wait(self._requests, select.POLLOUT)
            try:
                view = view[os.write(self._requests, view[:_CHUNK]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise self._ended() from None

    def receive(self) -> list[Any]:
        """The next message: its head, and values.

        Raises:
          StopError: if there is none, or it is none.
        """
        searched = 0
        while (end := self._received.find(b"\n", searched)) < 0:
            searched = len(self._received)
            self._wait(self._replies, select.POLLIN)
            chunk = os.read(self._replies, _CHUNK)
            if not chunk:
                raise self._ended()
            self._num_received += len(chunk)
            if self._num_received > self._limits.output_bytes:
                raise StopError(
                    "output", f"sent more than {self._limits.output_bytes} bytes"
                )
            self._received += chunk
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        try:
            head, *rest = json.loads(line.decode("ascii"))
            if not isinstance(head, str):
                raise ValueError(head)
            return [head, *(_decode(item, 0) for item in rest)]
        # Whatever is not as the child writes it was written by the program.
        except (ValueError, TypeError, RecursionError):
            raise StopError("crashed", "sent what is no result") from None

    def _wait(self, descriptor: int, event: int) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        while True:
            # With no time left: what is there already is not late.
            begun = time.monotonic()
            is_ready = poll.poll(max(math.ceil(self._left * 1000), 0))
            self._left -= time.monotonic() - begun
            if is_ready:
                return
            self._left += self._newly_waited()
            if self._left <= 0:
                raise StopError(
                    "timeout", f"not done after {self._seconds:g} s of wall time"
                )

    def _newly_waited(self) -> float:
        """Seconds for which the program had no processor, since the last call."""
        if self._waited is None:
            return 0.0
        before, self._waited = (
            self._waited,
            processors.seconds_waited(self._process.pid),
        )
        return max(self._waited - before, 0.0)

    def _ended(self) -> StopError:
        self._end()
        limit = self._limits.cpu_seconds
        code = self._process.returncode
        if code >= 0:
            return StopError("crashed", f"the process ended with status {code}")
        if code in (-signal.SIGKILL, -signal.SIGXCPU) and (
            self._cpu_seconds > limit - 0.2
        ):
            return StopError("timeout", f"not done after {limit} s of CPU time")
        name = signal.Signals(-code).name
        return StopError("crashed", f"the process ended by {name}")


def start_child(job: dict[str, Any], limits: Limits, layers: Sequence[str]) -> Child:
    """A locked child, started once more if the first ends or dallies before that.

    Raises:
      SandboxError: if none starts.
    """
    try:
        return Child(job, limits, layers)
    except StartError:
        return Child(job, limits, layers)


def _decode(item: Any, depth: int) -> Any:
    """Value of JSON in which containers are arrays that start with their type."""
    if item is None or isinstance(item, bool | int | float | str):
        return item
    if depth > _MAX_DEPTH or not isinstance(item, list) or not item:
        raise ValueError
    name, *items = item
    if not isinstance(name, str) or name not in _CONTAINERS:
        raise ValueError
    return _CONTAINERS[name]([_decode(part, depth + 1) for part in items])


def _python() -> str:
    # Past the link of a virtual environment, whose packages are not for programs.
    return os.path.realpath(sys.executable)


@functools.cache
def _child_code() -> list[Any]:
    paths = [pathlib.Path(__file__).with_name(name) for name in _CHILD_FILES]
    return [
        compile(path.read_text(encoding="utf-8"), path.name, "exec", 0, True)
        for path in paths
    ]


def _plan(limits: Limits, layers: Sequence[str]) -> dict[str, Any]:
    """What the child needs to lock itself up."""
    plan: dict[str, Any] = {
        "layers": list(layers),
        "packages": _packages(),
        "output_bytes": limits.output_bytes,
        "limits": {
            "RLIMIT_CPU": limits.cpu_seconds,
            "RLIMIT_AS": limits.memory_bytes,
            "RLIMIT_FSIZE": 0,
            "RLIMIT_CORE": 0,
            "RLIMIT_NOFILE": 64,
            "RLIMIT_NPROC": 0,
        },
    }
    if layers:
        plan |= _paths("namespaces" in layers)
    if {"namespaces", "seccomp"} <= set(layers):
        plan["threads"] = _MOST_TASKS, sandbox_layers.seccomp_filter(has_threads=True)
    return plan


_packages = functools.cache(sandbox_layers.packages)


@functools.cache
def _paths(has_mounts: bool) -> dict[str, Any]:
    readable = _library()
    hidden = sandbox_layers.hidden_within(readable)
    return {
        "readable": readable,
        "hidden": hidden,
        "links": sandbox_layers.root_links(),
        "pivot_root": sandbox_layers.pivot_root_number(),
        "filter": sandbox_layers.seccomp_filter(),
        # What is covered by a mount need not be left out by rules.
        "rules": [
            *sandbox_layers.landlock_rules(readable, () if has_mounts else hidden),
            *((path, True, True) for path in _packages().values()),
        ],
    }


@functools.cache
def _library() -> list[str]:
    """Directories and files that Python's own library is read from."""
    finder = """
def find():
    import importlib, os, sys
    def mapped():
        with open("/proc/self/maps") as file:
            return {line.split()[-1] for line in file if ".so" in line}
    paths = [path for path in sys.path if os.path.exists(path)]
    before = mapped()
    for path in paths:
        for name in os.listdir(path) if os.path.isdir(path) else ():
            if name.endswith(".so") and not name.startswith(("_tkinter", "_test")):
                try:
                    importlib.import_module(name.split(".")[0])
                except ImportError:
                    pass
    files = [path for path in mapped() - before if os.path.isfile(path)]
    return paths, [os.path.dirname(path) for path in files]
"""
    limits = Limits(cpu_seconds=20, wall_seconds=60.0, memory_bytes=1 << 32)
    paths, libraries = value_of(finder, "find", limits, ())
    candidates = {os.path.realpath(path) for path in (*paths, *libraries)}
    if os.path.isfile("/etc/ld.so.cache"):
        candidates.add("/etc/ld.so.cache")
    return sorted(
        path
        for path in candidates
        if not any(path.startswith(f"{other}/") for other in candidates)
    )


def value_of(
    program: str, entry_point: str, limits: Limits, layers: Sequence[str]
) -> Any:
    """Value of a function without arguments, of a program of this package."""
    job = {
        "program": program,
        "entry_point": entry_point,
        "inputs": [marshal.dumps(())],
    }
    try:
        with start_child(job, limits, layers) as child:
            messages = [child.receive(), child.receive()]
    except StopError as stop:
        raise SandboxError(f"{entry_point} gave nothing: {stop.reason}") from None
    if messages[0] != ["defined"] or messages[1][0] != "returned":
        raise SandboxError(f"{entry_point} gave nothing: {messages}")
    return messages[1][1]
