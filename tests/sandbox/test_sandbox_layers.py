"""Programs that try to escape, with each layer alone and with all of them."""

import contextlib
import ctypes
import os
import pathlib
import socket
import struct
import subprocess
import sys

import pytest
from sandbox_programs import IS_LINUX, PATIENT, checked, judged

from dlm_jax.sandbox import process, sandbox

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
        "open a pair of datagram sockets": lambda: socket.socketpair(
            type=socket.SOCK_DGRAM
        ),
        "open a pair of TCP sockets": lambda: socket.socketpair(socket.AF_INET),
        "give a socket a name": lambda: socket.socketpair()[0].bind(
            f"\\0{parent}.{os.getpid()}"
        ),
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
        "open a pair of datagram sockets",
        "open a pair of TCP sockets",
        "give a socket a name",
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
    if {"namespaces", "seccomp"} <= {*layers}:
        promised -= {"start a thread"}  # a bounded number
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
