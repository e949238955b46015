"""Programs that try to escape, to forge a verdict or to use up the machine."""

import collections
import concurrent.futures
import contextlib
import ctypes
import json
import math
import os
import pathlib
import platform
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm_jax.errors import InputError
from dlm_jax.sandbox import child, process, sandbox
from dlm_jax.sandbox import layers as sandbox_layers
from dlm_jax.sandbox.sandbox import Limits

# A child starts slowly where the machine is busy.
PATIENT = Limits(wall_seconds=60.0)
IS_LINUX = sys.platform == "linux"

ATTEMPTS = """
import ctypes, fcntl, os, signal, socket, struct, subprocess, threading

libc = ctypes.CDLL(None, use_errno=True)
limit = ctypes.create_string_buffer(16)
buffer = ctypes.create_string_buffer(1024)
is_arm = os.uname().machine == "aarch64"

def attempt(parent, secret, package, port, victim, shared):
    key, memory, semaphores, messages, queue = shared
    reader, writer = os.pipe()

    def read(path):
        with open(path, "rb") as file:
            file.read(1)

    def write(path):
        with open(path, "wb"):
            pass

    def fork():
        if os.fork() == 0:
            os._exit(0)

    def native(name, *arguments):
        if getattr(libc, name)(*arguments) < 0:
            raise OSError(ctypes.get_errno(), name)

    def call(number, arm_number, *arguments):
        native("syscall", arm_number if is_arm else number, *arguments)

    def attach():
        if libc.shmat(memory, 0, 0o10000) == -1:
            raise OSError(ctypes.get_errno(), "shmat")

    def opened(act):
        descriptor = os.open(secret, os.O_RDONLY)
        try:
            return act(descriptor)
        finally:
            os.close(descriptor)

    def kill_by_pipe():
        fcntl.fcntl(reader, fcntl.F_SETOWN, victim)
        fcntl.fcntl(reader, 10, signal.SIGKILL)
        state = fcntl.fcntl(reader, fcntl.F_GETFL)
        fcntl.fcntl(reader, fcntl.F_SETFL, state | os.O_ASYNC)
        os.write(writer, b"x")

    attempts = {
        "read a file": lambda: read(secret),
        "list a directory": lambda: os.listdir(os.path.dirname(secret)),
        "read the parent's environment": lambda: read(f"/proc/{parent}/environ"),
        "read its own memory map": lambda: read("/proc/self/maps"),
        "read a package": lambda: read(package),
        "write beside a file": lambda: write(secret + ".new"),
        "write over a file": lambda: write(secret),
        "write here": lambda: write("here"),
        "write in /tmp": lambda: write("/tmp/dlm_jax_sandbox_was_here"),
        "make a directory": lambda: os.mkdir("directory"),
        "reach a port": lambda: socket.create_connection(("127.0.0.1", port), 5),
        "open a socket": socket.socket,
        "open a pair of sockets": socket.socketpair,
        "signal the parent": lambda: os.kill(parent, 0),
        "trace the parent": lambda: native("ptrace", 16, parent, 0, 0),
        "fork": fork,
        "start a thread": lambda: threading.Thread(target=fork).start(),
        "start a program": lambda: subprocess.run(["/bin/true"], check=True),
        "become another program": lambda: os.execv("/nowhere", ["x"]),
        "leave the session": os.setsid,
        "change a mode": lambda: os.chmod(secret, 0o600),
        "change an open file's mode": lambda: opened(lambda x: os.fchmod(x, 0o600)),
        "change a mode, flags given": lambda: call(
            452, 452, -100, secret.encode(), 0o600, 0
        ),
        "change an owner": lambda: os.chown(secret, os.getuid(), os.getgid()),
        "change a link's owner": lambda: os.lchown(secret, os.getuid(), os.getgid()),
        "change an open file's owner": lambda: opened(
            lambda x: os.fchown(x, os.getuid(), os.getgid())
        ),
        "change times": lambda: os.utime(secret, (1, 1)),
        "change an open file's times": lambda: opened(lambda x: os.utime(x, (1, 1))),
        "set an attribute": lambda: os.setxattr(secret, "user.x", b"1"),
        "set an open file's attribute": lambda: opened(
            lambda x: os.setxattr(x, "user.x", b"1")
        ),
        "remove an attribute": lambda: os.removexattr(secret, "user.y"),
        # That there is no need to dump it, beside what all files of ext4 have.
        "set a file's flags": lambda: opened(
            lambda x: fcntl.ioctl(x, 0x40086602, struct.pack("l", 0x80040))
        ),
        "truncate a file": lambda: os.truncate(secret, 0),
        "truncate a file for reading": lambda: os.close(
            os.open(secret, os.O_RDONLY | os.O_TRUNC)
        ),
        "truncate a file in a new way": lambda: call(
            437, 437, -100, secret.encode(), struct.pack("3Q", os.O_TRUNC, 0, 0), 24
        ),
        "bind a process to a core": lambda: os.sched_setaffinity(
            victim, {min(os.sched_getaffinity(0))}
        ),
        "make a process idle": lambda: os.sched_setscheduler(
            victim, os.SCHED_IDLE, os.sched_param(0)
        ),
        "set a process's priority": lambda: os.sched_setparam(
            victim, os.sched_param(0)
        ),
        "set a process's schedule": lambda: call(
            314, 274, victim, struct.pack("IIQiIQQQ", 48, 5, 0, 0, 0, 0, 0, 0), 0
        ),
        "make a process's reading idle": lambda: call(251, 30, 1, victim, 3 << 13),
        "move a process's pages": lambda: call(
            279, 239, victim, 0, None, None, None, 0
        ),
        "take a process's pages to a node": lambda: call(
            256, 238, victim, 2, struct.pack("Q", 1), struct.pack("Q", 1)
        ),
        "find shared memory": lambda: native("shmget", key, 0, 0),
        "attach shared memory": attach,
        "ask about shared memory": lambda: native("shmctl", memory, 2, buffer),
        "find semaphores": lambda: native("semget", key, 0, 0),
        "raise a semaphore": lambda: native(
            "semop", semaphores, struct.pack("Hhh", 0, 1, 0), 1
        ),
        "raise a semaphore in time": lambda: native(
            "semtimedop", semaphores, struct.pack("Hhh", 0, 1, 0), 1, None
        ),
        "set a semaphore": lambda: native("semctl", semaphores, 0, 16, 3),
        "find messages": lambda: native("msgget", key, 0),
        "send a message": lambda: native(
            "msgsnd", messages, struct.pack("l8s", 1, b"x" * 8), 8, 0o4000
        ),
        "take a message": lambda: native("msgrcv", messages, buffer, 8, 0, 0o4000),
        "ask about messages": lambda: native("msgctl", messages, 2, buffer),
        "open a named queue": lambda: native("mq_open", queue, os.O_RDWR),
        "remove a named queue": lambda: native("mq_unlink", queue),
        "name who gets signals": lambda: fcntl.fcntl(reader, fcntl.F_SETOWN, victim),
        "name whose thread gets signals": lambda: fcntl.fcntl(
            reader, 15, struct.pack("ii", 1, victim)
        ),
        "name the signal": lambda: fcntl.fcntl(reader, 10, signal.SIGUSR1),
        "kill a process by a pipe": kill_by_pipe,
        # In a user namespace of its own a program has no owner to give.
        "mount": lambda: native("mount", b"none", b"/", b"tmpfs", 0, None),
        "unshare": lambda: native("unshare", 0x10000000),
        "hide memory in a file": lambda: os.memfd_create("x"),
        "become root": lambda: os.setresuid(0, 0, 0),
        "raise a limit": lambda: native("prlimit", parent, 0, None, limit),
    }
    done = []
    for name, act in attempts.items():
        try:
            act()
        except FileNotFoundError as error:
            # To be told that there is no program is to have been allowed to start it.
            if name == "become another program":
                done.append(name)
        # AttributeError: a function that this system does not have.
        except (OSError, AttributeError, RuntimeError, subprocess.SubprocessError):
            pass
        else:
            done.append(name)
    return done
"""
FILES = {
    "read a file",
    "list a directory",
    "read the parent's environment",
    "read its own memory map",
    "read a package",
    "write beside a file",
    "write over a file",
    "write here",
    "write in /tmp",
    "make a directory",
}
# Another process of the user, who has no capabilities even if root tests.
VICTIM = """
import ctypes, time
if hasattr(libc := ctypes.CDLL(None), "capset"):
    libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
print(flush=True)
time.sleep(100)
"""
STATES = {
    "change a mode",
    "change an open file's mode",
    "change a mode, flags given",
    "change an owner",
    "change a link's owner",
    "change an open file's owner",
    "change times",
    "change an open file's times",
    "set an attribute",
    "set an open file's attribute",
    "remove an attribute",
    "set a file's flags",
    "truncate a file",
    "truncate a file for reading",
    "truncate a file in a new way",
}
# Those that open a file first, which Landlock does not allow.
OPENED = {
    "change an open file's mode",
    "change an open file's owner",
    "change an open file's times",
    "set an open file's attribute",
    "set a file's flags",
    "truncate a file for reading",
    "truncate a file in a new way",
}
PROCESSES = {
    "bind a process to a core",
    "make a process idle",
    "set a process's priority",
    "set a process's schedule",
    "make a process's reading idle",
    "move a process's pages",
    "take a process's pages to a node",
    "kill a process by a pipe",
}
MESSAGES = {
    "find shared memory",
    "attach shared memory",
    "ask about shared memory",
    "find semaphores",
    "raise a semaphore",
    "raise a semaphore in time",
    "set a semaphore",
    "find messages",
    "send a message",
    "take a message",
    "ask about messages",
    "open a named queue",
    "remove a named queue",
}
SIGNALS = {
    "name who gets signals",
    "name whose thread gets signals",
    "name the signal",
}
# Not in every kernel, and attributes not in every file system.
OPTIONAL = {
    "change a mode, flags given",
    "set an attribute",
    "set an open file's attribute",
    "remove an attribute",
    "set a file's flags",
    "make a process's reading idle",
    "move a process's pages",
    "take a process's pages to a node",
    "open a named queue",
    "remove a named queue",
}
PROMISED = {
    "namespaces": {
        *FILES,
        *STATES,
        *PROCESSES,
        *MESSAGES,
        "reach a port",
        "signal the parent",
        "trace the parent",
    },
    "landlock": FILES | OPENED | {"trace the parent", "mount"},
    "seccomp": {
        *STATES,
        *PROCESSES,
        *MESSAGES,
        *SIGNALS,
        "reach a port",
        "open a socket",
        "open a pair of sockets",
        "signal the parent",
        "trace the parent",
        "fork",
        "start a thread",
        "start a program",
        "become another program",
        "leave the session",
        "mount",
        "unshare",
        "hide memory in a file",
        "raise a limit",
    },
}


def first(source: str, *arguments, limits=PATIENT, **options):
    """Of a program that defines f: all calls, and the only result if there is one."""
    made = sandbox.calls(source, "f", [arguments], limits, **options)
    return made, made.results[0] if made.results else None


def judged(body: str, limits=PATIENT, **options):
    """Verdict on a program that should return 4 for f(2)."""
    return sandbox.run_tests(body, "f", [((2,), 4)], limits, **options)


def checked(body: str, checks: str, limits=PATIENT, **options):
    return sandbox.run_checks(
        body, f"def check(candidate):\n    {checks}\n", "f", limits, **options
    )


@contextlib.contextmanager
def shared_objects():
    """What processes of a user share: a key, three ids of System V, a queue's name."""
    libc = ctypes.CDLL(None)
    # No other process has this one's number.
    key, queue = 0x5A000000 + os.getpid(), f"/dlm_jax_{os.getpid()}".encode()
    mode = 0o3600  # made, and not there before
    memory = libc.shmget(key, 4096, mode)
    semaphores = libc.semget(key, 1, mode)
    messages = libc.msgget(key, mode)
    if hasattr(libc, "mq_open"):
        libc.mq_open(queue, os.O_CREAT | os.O_RDWR, 0o600, None)
    try:
        assert min(memory, semaphores, messages) >= 0
        assert libc.msgsnd(messages, struct.pack("l8s", 1, b"x" * 8), 8, 0) == 0
        yield key, memory, semaphores, messages, queue
    finally:
        libc.shmctl(memory, 0, None)
        libc.semctl(semaphores, 0, 0)
        libc.msgctl(messages, 0, None)
        if hasattr(libc, "mq_unlink"):
            libc.mq_unlink(queue)


@pytest.fixture
def attempts(tmp_path):
    """What succeeds of ATTEMPTS under some layers, and what became of their objects."""
    secret = tmp_path / "secret"
    secret.write_text("4")
    secret.chmod(0o644)
    with contextlib.suppress(OSError):
        os.setxattr(secret, "user.y", b"1")
    library = pathlib.Path(os.__file__).parent
    packages = sorted(library.glob("site-packages/*/*.py"))
    package = packages[0] if packages else library / "site-packages" / "none.py"

    def state():
        """Of the file; whatever is done to it sets its time of change."""
        return secret.stat().st_ctime_ns, secret.read_text()

    def schedule(pid):
        return os.sched_getaffinity(pid), os.sched_getscheduler(pid)

    def run(layers):
        before = state()
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            shared_objects() as shared,
            subprocess.Popen(
                [sys.executable, "-S", "-c", VICTIM], stdout=subprocess.PIPE
            ) as victim,
        ):
            victim.stdout.readline()
            port = server.getsockname()[1]
            paths = (str(secret), str(package))
            arguments = (os.getpid(), *paths, port, victim.pid, shared)
            try:
                scheduled = schedule(victim.pid)
                made = sandbox.calls(
                    ATTEMPTS, "attempt", [arguments], PATIENT, layers=layers
                )
                is_moved = schedule(victim.pid) != scheduled
                with contextlib.suppress(subprocess.TimeoutExpired):
                    victim.wait(0.2)
                is_killed = victim.returncode is not None
            finally:
                victim.kill()
        assert made.status == "finished", made
        assert made.results[0].has_returned, made
        harm = {"file": state() != before, "process": is_killed or is_moved}
        files = {path.name for path in tmp_path.iterdir()}
        return set(made.results[0].value), files, {x for x in harm if harm[x]}

    return run


@pytest.mark.skipif(not IS_LINUX, reason="there are no layers")
@pytest.mark.parametrize(
    "layers",
    [
        None,
        ("landlock", "seccomp"),
        *((name,) for name in sandbox.LAYERS),
    ],
)
def test_no_attempt_succeeds_that_a_layer_promises_to_stop(layers, attempts):
    layers = sandbox.strongest_layers() if layers is None else layers
    if not set(layers) <= set(sandbox.strongest_layers()):
        pytest.skip("not on this system")
    done, files, harmed = attempts(layers)
    promised = set().union(*(PROMISED[name] for name in layers))
    assert not done & promised
    if promised & FILES:
        assert files == {"secret"}
    if promised >= STATES | PROCESSES:
        assert not harmed


@pytest.mark.skipif(not IS_LINUX, reason="reads /proc and maps")
def test_without_layers_the_same_attempts_succeed_so_the_test_above_can_fail(attempts):
    done, files, harmed = attempts(())
    assert done >= {
        "read a file",
        "read its own memory map",
        "write here",
        "reach a port",
        "signal the parent",
        "hide memory in a file",
        *(STATES | PROCESSES | MESSAGES | SIGNALS) - OPTIONAL,
    }
    assert files > {"secret"}
    assert harmed == {"file", "process"}


def test_every_outcome_says_under_which_layers_it_ran():
    name = sandbox.isolation()
    assert name.endswith("rlimits")
    assert name.split("+")[:-1] == list(sandbox.strongest_layers())
    assert judged("def f(x): return 2 * x").isolation == name
    assert judged("def f(x): return 2 * x", layers=()).isolation == "rlimits"
    assert checked("def f(x): return 4", "assert candidate(2) == 4").isolation == name


def test_a_layer_that_cannot_be_applied_stops_the_program_from_running(monkeypatch):
    if "seccomp" not in sandbox.strongest_layers():
        pytest.skip("not on this system")
    paths = process._paths(False)
    monkeypatch.setattr(process, "_paths", lambda _: paths | {"filter": bytes(8)})
    with pytest.raises(sandbox.SandboxError, match="prctl"):
        judged("def f(x): return 4", layers=("seccomp",))


def run_filter(program: bytes, number: int, architecture: int, *arguments: int):
    """What a classic BPF program of few instructions returns."""
    arguments = (*arguments, 0, 0, 0)[:3]
    data = struct.pack("<IIQ3Q", number, architecture, 0, *arguments)
    code = list(struct.iter_unpack("<HBBI", program))
    index = value = 0
    while True:
        operation, yes, no, operand = code[index]
        index += 1
        if operation == 0x20:
            (value,) = struct.unpack_from("<I", data, operand)
        elif operation == 0x06:
            return operand
        else:
            is_true = {
                0x15: value == operand,
                0x35: value >= operand,
                0x45: value & operand,
            }[operation]
            index += yes if is_true else no


# From Linux' tables, apart from the module's. On both: clone3, openat2, fchmodat2,
# setxattrat, removexattrat, file_setattr.
DENIED = (435, 437, 452, 463, 466, 469)
X86_DENIED = (
    57,  # fork
    41,  # socket
    62,  # kill
    59,  # execve
    90,  # chmod
    91,  # fchmod
    268,  # fchmodat
    92,  # chown
    93,  # fchown
    94,  # lchown
    260,  # fchownat
    132,  # utime
    235,  # utimes
    261,  # futimesat
    280,  # utimensat
    76,  # truncate
    85,  # creat
    *range(188, 191),  # setxattr, lsetxattr, fsetxattr
    *range(197, 200),  # removexattr, lremovexattr, fremovexattr
    142,  # sched_setparam
    144,  # sched_setscheduler
    203,  # sched_setaffinity
    314,  # sched_setattr
    251,  # ioprio_set
    256,  # migrate_pages
    279,  # move_pages
    29,  # shmget
    30,  # shmat
    31,  # shmctl
    64,  # semget
    65,  # semop
    66,  # semctl
    220,  # semtimedop
    *range(68, 72),  # msgget, msgsnd, msgrcv, msgctl
    240,  # mq_open
    241,  # mq_unlink
)
ARM_DENIED = (
    220,  # clone
    198,  # socket
    129,  # kill
    221,  # execve
    52,  # fchmod
    53,  # fchmodat
    54,  # fchownat
    55,  # fchown
    88,  # utimensat
    45,  # truncate
    *range(5, 8),  # setxattr, lsetxattr, fsetxattr
    *range(14, 17),  # removexattr, lremovexattr, fremovexattr
    118,  # sched_setparam
    119,  # sched_setscheduler
    122,  # sched_setaffinity
    274,  # sched_setattr
    30,  # ioprio_set
    238,  # migrate_pages
    239,  # move_pages
    *range(186, 190),  # msgget, msgctl, msgrcv, msgsnd
    *range(190, 194),  # semget, semctl, semtimedop, semop
    *range(194, 197),  # shmget, shmctl, shmat
    180,  # mq_open
    181,  # mq_unlink
)


@pytest.mark.skipif(not IS_LINUX, reason="seccomp is of Linux")
@pytest.mark.parametrize(
    "machine, audit, denied, allowed, calls",
    [
        # Allowed: read, write, exit_group, mmap, fstat, ftruncate, sched_getaffinity.
        # Calls: prlimit64, fcntl, ioctl, openat.
        (
            "x86_64",
            0xC000003E,
            X86_DENIED,
            (0, 1, 231, 9, 5, 77, 204),
            (302, 72, 16, 257),
        ),
        (
            "aarch64",
            0xC00000B7,
            ARM_DENIED,
            (63, 64, 94, 222, 80, 46, 123),
            (261, 25, 29, 56),
        ),
    ],
)
def test_the_filter_denies_calls_by_number_on_both_architectures(
    machine, audit, denied, allowed, calls, monkeypatch
):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    program = sandbox_layers.seccomp_filter()
    allow, error, kill = 0x7FFF0000, 0x00050001, 0x80000000

    def verdicts(number, place, values):
        places = [0] * place
        return {run_filter(program, number, audit, *places, value) for value in values}

    denied = {*denied, *DENIED}
    assert {run_filter(program, number, audit) for number in denied} == {error}
    assert {run_filter(program, number, audit) for number in allowed} == {allow}
    # No jump leads astray: all other calls are denied by the table, or allowed.
    column = ("x86_64", "aarch64").index(machine)
    table = {numbers[column] for numbers in sandbox_layers._DENIED.values()}
    assert table >= denied and not table & {*allowed, *calls}
    for number in {*range(1024)} - {*calls}:
        expected = error if number in table else allow
        assert run_filter(program, number, audit) == expected, number
    prlimit, fcntl, ioctl, openat = calls
    assert verdicts(prlimit, 0, [0]) == {allow}
    assert verdicts(prlimit, 0, [17, 1]) == {error}
    # F_SETOWN, F_SETSIG, F_SETOWN_EX, also where the unused half is not 0; others.
    assert verdicts(fcntl, 1, [8, 10, 15, 8 + (1 << 40)]) == {error}
    assert verdicts(fcntl, 1, [0, 1, 2, 3, 4, 9, 11, 16, 1030]) == {allow}
    # FIOSETOWN, SIOCSPGRP, FS_IOC_SETFLAGS; TCGETS, FIONBIO, FIOCLEX.
    assert verdicts(ioctl, 1, [0x8901, 0x8902, 0x40086602]) == {error}
    assert verdicts(ioctl, 1, [0x5401, 0x5421, 0x5451]) == {allow}
    # O_TRUNC, alone and among others; O_CLOEXEC; O_CREAT and O_EXCL.
    opens = [(openat, 2), (2, 1)] if machine == "x86_64" else [(openat, 2)]
    for number, place in opens:
        assert verdicts(number, place, [0o1000, 0o1101, 0o2001000]) == {error}
        assert verdicts(number, place, [0, 0o2000000, 0o300]) == {allow}
    assert run_filter(program, allowed[0], 0x40000003) == kill
    is_second_set_denied = run_filter(program, 0x40000000, audit) == error
    assert is_second_set_denied == (machine == "x86_64")
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert sandbox_layers.seccomp_filter() == b""


def test_what_the_interpreter_asks_of_its_own_descriptors_it_still_gets():
    source = """
import fcntl, os, resource, struct, tempfile
def f():
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_inheritable(reader, True)
    os.set_inheritable(reader, False)
    os.write(writer, b"abc")
    (size,) = struct.unpack("i", fcntl.ioctl(reader, 0x541B, bytes(4)))
    copy = fcntl.fcntl(reader, fcntl.F_DUPFD_CLOEXEC, 20)
    with open(os.__file__) as file:
        line = file.readline()
    os.isatty(reader), os.sched_getaffinity(0), resource.getrlimit(0)
    return size, os.get_inheritable(copy), os.get_blocking(copy), line[:2]
"""
    made, result = first(source)
    assert result.has_returned, made
    assert result.value == (3, False, False, 'r"')


def test_nothing_of_the_parent_is_inherited(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_OF_TEST", "1")
    file = (tmp_path / "open").open("w")
    os.set_inheritable(file.fileno(), True)
    place = os.fstat(file.fileno())
    source = """
import os, sys
def f():
    places = []
    for number in range(64):
        try:
            found = os.fstat(number)
        except OSError:
            continue
        places.append((found.st_dev, found.st_ino))
    return dict(os.environ), places, os.listdir("."), sys.argv, sys.path
"""
    made, result = first(source)
    file.close()
    assert result.has_returned, made
    environment, places, here, arguments, path = result.value
    assert (environment, here, arguments) == ({}, [], [""])
    assert (place.st_dev, place.st_ino) not in places
    # Three times the null device, and a pipe each way.
    assert len(places) == 5 and len(set(places)) == 3
    assert not [entry for entry in path if "site-packages" in entry]


def test_the_working_directory_is_gone_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    source = "import os\ndef f(x):\n    os.makedirs('a/b')\n    return 4"
    assert judged(source, layers=()).is_passed
    assert judged("import os\nos._exit(3)").status == "crashed"
    assert list(tmp_path.iterdir()) == []


def test_a_fork_bomb_does_not_go_off():
    if "seccomp" not in sandbox.strongest_layers():
        pytest.skip("not on this system")
    _, result = first("import os\ndef f():\n    while True:\n        os.fork()")
    assert not result.has_returned
    assert result.reason.startswith("PermissionError") and "(line 4)" in result.reason


@pytest.mark.skipif(not IS_LINUX, reason="macOS does not bound memory")
@pytest.mark.parametrize(
    "body",
    [
        "return 'x' * 10**10",
        "x = []\n    while True:\n        x.append(bytearray(10**7))",
        "x = [0]\n    while True:\n        x += x",
    ],
)
def test_memory_is_bounded(body):
    limits = Limits(memory_bytes=64 << 20, wall_seconds=60.0)
    outcome = judged(f"def f(x):\n    {body}", limits)
    assert outcome.status == "memory"
    assert "MemoryError" in outcome.reason


@pytest.mark.parametrize("num_late", [1, 2])
@pytest.mark.parametrize("is_checked", [False, True])
def test_a_late_start_is_tried_again_and_is_never_an_answer(
    num_late, is_checked, monkeypatch
):
    layers = sandbox.strongest_layers()
    commands = []

    class Late(subprocess.Popen):
        def __init__(self, command, **options):
            commands.append(command)
            is_late = len(commands) <= num_late
            super().__init__(["sleep", "600"] if is_late else command, **options)
            seconds = 0.3 if len(commands) < num_late else 60.0
            monkeypatch.setattr(process, "_START_SECONDS", seconds)

    sandbox.calls("f = abs", "f", [(1,)], PATIENT)  # what is asked once per process
    monkeypatch.setattr(process, "_START_SECONDS", 0.3)
    monkeypatch.setattr(subprocess, "Popen", Late)

    def judge():
        source = "def f(x): return 4"
        if is_checked:
            return checked(source, "assert candidate(2) == 4", layers=layers)
        return judged(source, layers=layers)

    if num_late == 2:
        message = "did not start: not done after 0.3 s of wall time"
        with pytest.raises(sandbox.SandboxError, match=message):
            judge()
        assert len(commands) == 2
    else:
        assert judge().is_passed


def test_a_slow_start_takes_no_time_from_the_program(monkeypatch):
    popen = subprocess.Popen

    def slow(*arguments, **options):
        time.sleep(2.6)
        return popen(*arguments, **options)

    layers = sandbox.strongest_layers()
    sandbox.calls("f = abs", "f", [(1,)], PATIENT)
    monkeypatch.setattr(subprocess, "Popen", slow)
    outcome = judged("def f(x): return 4", Limits(wall_seconds=2.5), layers=layers)
    assert outcome.is_passed and outcome.seconds > 2.5


def test_a_busy_machine_costs_no_layer(monkeypatch):
    if not sandbox.strongest_layers():
        pytest.skip("not on this system")
    sandbox.calls("f = abs", "f", [(1,)], PATIENT)
    process._probe.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(process, "_START_SECONDS", 1e-3)
            with pytest.raises(sandbox.SandboxError, match="did not start"):
                sandbox.isolation()
    finally:
        process._probe.cache_clear()
    assert sandbox.isolation() != "rlimits"


def test_waiting_is_bounded():
    waiting = "import time\ndef f(x):\n    time.sleep(100)"
    outcome = judged(waiting, Limits(wall_seconds=1.5))
    assert (outcome.status, outcome.reason) == (
        "timeout",
        "not done after 1.5 s of wall time",
    )
    assert outcome.seconds < 15


def test_processor_time_is_bounded_and_no_handler_puts_that_off():
    limits = Limits(cpu_seconds=1, wall_seconds=60.0)
    source = """
import signal
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
def f(x):
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass
"""
    outcome = judged(source, limits)
    assert (outcome.status, outcome.reason) == (
        "timeout",
        "not done after 1 s of CPU time",
    )


def test_endless_output_fills_nothing():
    source = "def f(x):\n    while True:\n        print('x' * 10**5)"
    assert judged(source, Limits(wall_seconds=2.0)).status == "timeout"
    # Written on the pipe itself.
    source = """
import os
def f(x):
    while True:
        for number in range(3, 64):
            try:
                os.write(number, b"x" * 10**5)
            except OSError:
                pass
"""
    outcome = judged(source)
    assert (outcome.status, outcome.reason) == ("output", "sent more than 262144 bytes")


@pytest.mark.parametrize(
    "value, status",
    [
        ("'x' * 300_000", "output"),
        ("[0] * 300_000", "output"),
        ("['x' * 1000] * 1000", "output"),
        ("10 ** 5000", "output"),
        ("nested(1000)", "output"),
        ("cyclic()", "output"),
        ("(i for i in [4])", "failed"),
        ("f", "failed"),
        ("[4, object()]", "failed"),
        ("Liar()", "failed"),
        ("LyingInt(5)", "failed"),
        ("LyingInt(4)", "passed"),
    ],
)
def test_values_that_are_large_or_not_plain_are_wrong(value, status):
    source = f"""
class Liar:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = None
class LyingInt(int):
    __eq__ = Liar.__eq__
    __repr__ = lambda self: "4"
    __hash__ = None
def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value
def cyclic():
    value = []
    value.append(value)
    return value
def f(x):
    return {value}
"""
    outcome = judged(source)
    assert outcome.status == status, outcome
    assert (outcome.reason == "") == (status == "passed")


def test_deep_recursion_is_an_error_or_a_crash():
    source = "def f(x):\n    return f(x)"
    assert "RecursionError" in judged(source).reason
    deep = "import sys\nsys.setrecursionlimit(10**9)\n" + source
    limits = Limits(memory_bytes=64 << 20, wall_seconds=60.0)
    assert judged(deep, limits).status in ("memory", "crashed", "failed")


@pytest.mark.parametrize("leave", ["sys.exit(0)", "os._exit(0)", "raise SystemExit"])
@pytest.mark.parametrize("is_inside", [False, True])
def test_leaving_early_does_not_pass(leave, is_inside):
    source = f"import os, sys\ndef f(x):\n    {leave}\n"
    source += "" if is_inside else f"{leave}\n"
    for outcome in (judged(source), checked(source, "candidate(2)")):
        assert outcome.status in ("failed", "crashed")
        assert "SystemExit" in outcome.reason or "status 0" in outcome.reason


FORGERY = """
import builtins, os, sys
for name in ("all", "any", "eq", "repr", "map", "print", "AssertionError"):
    setattr(builtins, name, lambda *a, **k: True)
lines = b'["passed"]\\n' * 5
lines += b'["returned",4]\\n' * 5 if {knows} else b""
def f(x):
    for number in range(64):
        try:
            os.write(number, lines)
        except OSError:
            pass
    {end}
"""


@pytest.mark.parametrize("end", ["os._exit(0)", "return 5", "raise AssertionError"])
def test_forged_results_are_no_results(end):
    source = FORGERY.format(knows=False, end=end)
    assert judged(source).status == "crashed"
    assert checked(source, "assert candidate(2) == 4").status == "crashed"
    # Even checks that want nothing of the value.
    assert checked(source, "candidate(2)").status == "crashed"


def test_whoever_writes_the_right_value_on_the_pipe_has_only_answered():
    source = FORGERY.format(knows=True, end="os._exit(0)").replace('["passed"]\\n', "")
    assert judged(source).is_passed
    tests = [((2,), 4), ((3,), 9)]
    assert sandbox.run_tests(source, "f", tests, PATIENT).status == "failed"


def test_the_program_cannot_see_what_is_expected_of_it():
    source = """
import gc, sys
def f(x):
    seen, frame = [], sys._getframe()
    while frame:
        seen += [frame.f_locals, frame.f_globals]
        frame = frame.f_back
    return str(73500 + 0 * x + 77) in repr(seen) + repr(gc.get_objects())
"""
    expected = "73577"
    tests = [((2,), False), ((3,), expected)]
    outcome = sandbox.run_tests(source, "f", tests, PATIENT)
    assert outcome.reason == "f(3) is False, not '73577'"
    # The same with checks; and the search does find what is there.
    assert checked(source, f"{expected}; assert not candidate(2)").is_passed
    assert judged(f"there = [[], {expected}]\n{source}").reason == "f(2) is True, not 4"


def test_a_right_function_passes_and_a_wrong_one_has_its_first_wrong_value_as_reason():
    tests = [((x,), [x, x * x]) for x in range(5)]
    right = "import typing\ndef f(x):\n    print('?')\n    return [x, x ** 2]"
    outcome = sandbox.run_tests(right, "f", tests, PATIENT)
    assert (outcome.status, outcome.reason, outcome.is_passed) == ("passed", "", True)
    wrong = "def f(x): return [x, 2 * x]"
    outcome = sandbox.run_tests(wrong, "f", tests, PATIENT)
    assert (outcome.status, outcome.is_passed) == ("failed", False)
    assert outcome.reason == "f(1) is [1, 2], not [1, 1]"


@pytest.mark.parametrize(
    "source, reason",
    [
        (
            "def f(x):\n    y = 1\n    return y / 0",
            "ZeroDivisionError: division by zero (line 3)",
        ),
        ("def f(x:\n  pass", "SyntaxError: '(' was never closed (line 1)"),
        ("x = 1\nx.y", "AttributeError: 'int' object has no attribute 'y' (line 2)"),
        ("def g(x): pass", "NameError: the program does not define f"),
        ("f = 3", "TypeError: 'int' object is not callable"),
        ("def f(x): return input()", "EOFError: EOF when reading a line (line 1)"),
        ("import numpy", "ModuleNotFoundError: No module named 'numpy' (line 1)"),
        (
            "def f(x):\n    assert x == 3, 'a\\n\\x1b[2Jb'",
            "AssertionError: a ?[2Jb (line 2)",
        ),
        ("\0", "SyntaxError: source code string cannot contain null bytes"),
    ],
)
def test_errors_are_one_line_with_the_line_of_the_program(source, reason):
    outcome = judged(source)
    assert outcome.status == "failed"
    assert outcome.reason.endswith(reason)


def test_what_a_program_does_as_a_script_is_left_out():
    source = "def f(x): return 4\nif __name__ == '__main__':\n    raise ValueError"
    assert judged(source).is_passed


def test_an_error_is_a_result_and_the_next_call_is_made_on_fresh_arguments():
    shared = [3, 1, 2]
    source = "def f(x):\n    x.sort()\n    x.append(x[0] / (x[-1] - 5))\n    return x"
    inputs = [(shared,), ([5],), (shared,)]
    made = sandbox.calls(source, "f", inputs, PATIENT)
    assert made.status == "finished"
    assert [result.value for result in made.results] == [
        [1, 2, 3, -0.5],
        None,
        [1, 2, 3, -0.5],
    ]
    assert made.results[1].reason.startswith("ZeroDivisionError")
    assert shared == [3, 1, 2]


def test_results_until_a_limit_are_kept_and_the_first_wrong_one_counts():
    source = "import os\ndef f(x):\n    return x if x < 2 else os._exit(7)"
    made = sandbox.calls(source, "f", [(0,), (1,), (2,), (3,)], PATIENT)
    assert [result.value for result in made.results] == [0, 1]
    assert (made.status, made.reason) == (
        "crashed",
        "the process ended with status 7 after 2 of 4 calls",
    )
    tests = [((0,), 0), ((1,), 2), ((2,), 2)]
    outcome = sandbox.run_tests(source, "f", tests, PATIENT)
    assert (outcome.status, outcome.reason) == ("failed", "f(1) is 1, not 2")


@pytest.mark.skipif(not IS_LINUX, reason="the signal's number")
def test_a_crash_of_the_interpreter_is_named():
    outcome = judged("import ctypes\ndef f(x): ctypes.string_at(0)")
    assert (outcome.status, outcome.reason) == (
        "crashed",
        f"the process ended by {signal.SIGSEGV.name}",
    )


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.complex_numbers(allow_nan=False)
    | st.text(st.characters())
    | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.integers() | st.text() | st.booleans(), inner)
        | st.sets(st.integers() | st.text() | st.tuples(st.floats(allow_nan=False)))
        | st.frozensets(st.booleans() | st.binary())
    ),
    max_leaves=12,
)


@settings(max_examples=40)
@given(PLAIN)
def test_plain_data_comes_back_as_it_was(value):
    text = child.encode(value, 10**6)
    assert text.isascii() and "\n" not in text
    found = process._decode(json.loads(text), 0)
    assert sandbox.is_equal(found, value)
    # repr tells types apart too; the order of a set is that of its making.
    if "{" not in repr(value):
        assert repr(found) == repr(value)


def test_plain_data_comes_back_from_a_process():
    values = [
        (None, True, 1, 1.0, -0.0, math.inf, 1e-300, 2**70, 1 + 2j, "é\ud800\n", b"\0"),
        ({"a": [1, (2, {3})], 1: {}, (1, "b"): frozenset({2.5})},),
        (math.nan,),
        (),
    ]
    made = sandbox.calls("def f(*a): return a", "f", values, PATIENT)
    assert sandbox.is_equal([result.value for result in made.results], values)
    # Of subclasses, what they derive from.
    source = """
import collections
P = collections.namedtuple("P", "x y")
def f(): return collections.Counter("aab"), P(1, 2), collections.OrderedDict(a=1)
"""
    _, result = first(source)
    assert sandbox.is_equal(result.value, ({"a": 2, "b": 1}, (1, 2), {"a": 1}))


@pytest.mark.parametrize(
    "left, right",
    [
        (1, True),
        (1, 1.0),
        ([1], (1,)),
        ([0], [False]),
        ({1: 2}, {True: 2}),
        ({1: 2}, {1: 2.0}),
        ({1: 2}, {1: 2, 3: 4}),
        ({1}, {1.0}),
        ({1}, frozenset({1})),
        ({(1, "a")}, {(True, "a")}),
        ("a", b"a"),
        (None, False),
        ([1, 2], [1]),
        (math.nan, 1.0),
    ],
)
def test_equality_knows_types_at_every_depth(left, right):
    assert sandbox.is_equal(left, left) and sandbox.is_equal(right, right)
    for wrap in (lambda x: x, lambda x: [x], lambda x: {"k": (x,)}):
        assert not sandbox.is_equal(wrap(left), wrap(right))
        assert not sandbox.is_equal(wrap(right), wrap(left))


def test_types_count_unless_told():
    source = "def f(x): return 4.0"
    assert judged(source).reason == "f(2) is 4.0, not 4"
    assert judged(source, is_exact=False).is_passed


def test_checks_call_the_candidate_and_helpers_of_the_prelude():
    program = "def half(x): return x\ndef f(x, by=1): return half(x) // 2 * by"
    prelude = "import math\ndef half(x): return x // 2"
    checks = "METADATA = {}\ndef check(candidate):\n"
    for line in (
        "for x in range(9): assert candidate(x) == half(x) == f(x)",
        "assert candidate(4, by=3) == 6 and math.floor(2.5) == 2",
        "try: candidate(None)",
        "except TypeError as error: assert 'None' in str(error)",
        "else: assert False",
    ):
        checks += f"    {line}\n"
    outcome = sandbox.run_checks(program, checks, "f", PATIENT, prelude=prelude)
    assert outcome.is_passed, outcome
    wrong = program.replace("// 2", "// 3")
    outcome = sandbox.run_checks(wrong, checks, "f", PATIENT, prelude=prelude)
    assert (outcome.status, outcome.reason) == (
        "failed",
        "AssertionError in: for x in range(9): assert candidate(x) == half(x) == f(x)",
    )


@pytest.mark.parametrize(
    "body, status, reason",
    [
        ("return 3", "failed", "AssertionError in: assert candidate(2) == 4"),
        ("return x.y", "failed", "AttributeError: 'int' object has no attribute 'y'"),
        ("return {}[1]", "failed", "KeyError: '1 (line 2)' in: assert"),
        ("return iter([4])", "failed", "list_iterator is not plain data"),
        ("return 'x' * 10**6", "output", "too large a value"),
        ("raise MemoryError", "memory", "MemoryError"),
    ],
)
def test_checks_that_fail_say_why(body, status, reason):
    outcome = checked(f"def f(x):\n    {body}", "assert candidate(2) == 4")
    assert outcome.status == status
    assert reason in outcome.reason


def test_checks_that_never_end_are_stopped():
    limits = Limits(wall_seconds=2.0)
    waiting = "import time\ndef f(x): time.sleep(100)"
    assert checked(waiting, "candidate(1)", limits).status == "timeout"
    assert checked("def f(x): 1", "import time; time.sleep(99)", limits).status == (
        "timeout"
    )


@pytest.mark.parametrize("checks", ["def check(candidate:", "1 / 0", "x = 1"])
def test_checks_that_do_not_run_are_bad_input_and_no_wrong_answer(checks):
    with pytest.raises(InputError, match="checks do not run"):
        sandbox.run_checks("def f(x): return 4", checks, "f", PATIENT)


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="plain data"):
        sandbox.calls("def f(x): 1", "f", [(object(),)])
    with pytest.raises(InputError, match="must be of namespaces"):
        sandbox.calls("def f(x): 1", "f", [], layers=("magic",))
    with pytest.raises(InputError, match="wall_seconds"):
        Limits(wall_seconds=0.0)


def test_threads_judge_at_the_same_time_and_hashes_never_change():
    source = "def f(x): return [x, list({'b', 'a', 'd', 'c'})]"
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda x: first(source, x)[1].value, range(8)))
    assert [value[0] for value in made] == list(range(8))
    orders = collections.Counter(tuple(value[1]) for value in made)
    assert len(orders) == 1 and sorted(*orders) == ["a", "b", "c", "d"]
