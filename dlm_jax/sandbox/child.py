"""The program of the sandbox's child process, which `sandbox` sends as code.

It imports nothing of this package and is imported by nothing: it and `plain` are sent
as code, and executed in one space. Everything up to `_lock` is trusted; from the first
line of a program on, what it writes is a claim that the parent judges.
"""

import _frozen_importlib_external as importer
import _thread
import builtins
import ctypes
import marshal
import os
import resource
import signal
import sys
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # both are sent together
    from dlm_jax.sandbox.plain import TooLarge, encode

_NOBODY = 65534
_MAX_MESSAGE = 300
_STACK_BYTES = 2 << 20
# Where users begin that nobody is, if a system has so many.
_FIRST_USER = 0x70000000
_NEW_NS, _NEW_IPC, _NEW_USER = 0x20000, 0x8000000, 0x10000000
_NEW_PID, _NEW_NET = 0x20000000, 0x40000000
_RDONLY, _NOSUID, _NODEV, _REMOUNT = 1, 2, 4, 32
_BIND, _REC, _PRIVATE = 4096, 16384, 1 << 18
# A mount made by somebody else keeps these flags, else the kernel refuses.
_STATVFS_TO_MOUNT = {2: 2, 4: 4, 8: 8, 1024: 1024, 2048: 2048, 4096: 1 << 21}
_DETACH = 2
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_CAPABILITY_VERSION = 0x20080522


def main(plan: dict[str, Any], job: dict[str, Any]) -> None:
    """Locks this process up, then does a job of calls or of checks.

    Args:
      plan: the layers to apply, what they need, and the limits.
      job: 'program' and 'entry_point', with 'inputs' (each marshalled) or without, to
        be asked call by call; or 'checks', 'prelude' and 'entry_point'.
    """
    requests, replies = os.dup(0), os.dup(1)
    # Descriptor 2 is the null device, opened before nothing can be opened.
    os.dup2(2, 0)
    os.dup2(2, 1)
    os.environ.clear()
    # For libraries, which os.environ does not show: no threads that nobody asked for.
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.putenv(name, "1")
    _thread.stack_size(_STACK_BYTES)
    sys.argv[:] = [""]
    sys.meta_path.append(_Packages(plan["packages"]))
    channel = _Channel(requests, replies, plan["output_bytes"])
    try:
        _lock(plan)
    except (OSError, ValueError) as error:
        channel.send("setup", f"{type(error).__name__}: {error}")
        os._exit(1)
    channel.send("ready")
    (_check if "checks" in job else _serve)(channel, job)
    os._exit(0)


def _serve(channel: "_Channel", job: dict[str, Any]) -> None:
    """Executes the program, then calls its function: on the inputs, or as asked."""
    # Not __main__: what a program does as a script is no part of its function.
    module = type(sys)("program")
    sys.modules["program"] = module
    try:
        exec(compile(job["program"], "<program>", "exec", 0, True), vars(module))
        if job["entry_point"] not in vars(module):
            raise NameError(f"the program does not define {job['entry_point']}")
        function = vars(module)[job["entry_point"]]
    except BaseException as error:
        channel.send("raised", *_describe(error, "<program>"))
        return
    channel.send("defined")
    if "inputs" in job:
        for arguments in job["inputs"]:
            _answer(channel, function, marshal.loads(arguments), {})
    else:
        while True:
            _answer(channel, function, *channel.receive())


def _answer(
    channel: "_Channel", function: Callable, arguments: tuple, keywords: dict
) -> None:
    try:
        text = encode(function(*arguments, **keywords), channel.limit)
    except TooLarge as error:
        channel.send("large", str(error))
    except BaseException as error:
        channel.send("raised", *_describe(error, "<program>"))
    else:
        channel.write(f'["returned",{text}]\n')


def _check(channel: "_Channel", job: dict[str, Any]) -> None:
    """Runs the checks; every call of the candidate is made in the other process."""

    def candidate(*arguments, **keywords):
        channel.send("call", arguments, keywords)
        status, *rest = channel.receive()
        if status == "returned":
            return rest[0]
        name, message = rest
        kind = getattr(builtins, name, None)
        # Those left out need more than a message.
        if (
            isinstance(kind, type)
            and issubclass(kind, Exception)
            and not issubclass(kind, (UnicodeError, BaseExceptionGroup))
        ):
            raise kind(message)
        raise RuntimeError(f"{name}: {message}")

    module = type(sys)("checks")
    sys.modules["checks"] = module
    space = vars(module)
    try:
        exec(compile(job["prelude"], "<prelude>", "exec", 0, True), space)
        space[job["entry_point"]] = candidate
        exec(compile(job["checks"], "<checks>", "exec", 0, True), space)
        check = space["check"]
    except BaseException as error:
        channel.send("invalid", *_describe(error, "<checks>"))
        return
    try:
        check(candidate)
    except BaseException as error:
        channel.send("failed", *_describe(error, "<checks>"))
    else:
        channel.send("passed")


class _Packages:
    """Finds the packages that may be imported, and nothing beside them."""

    def __init__(self, places: dict[str, str]):
        self._places = places

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """As of a finder of the import system."""
        del target
        place = self._places.get(name)
        if path is not None or place is None:
            return None
        return importer.spec_from_file_location(
            name, f"{place}/__init__.py", submodule_search_locations=[place]
        )


class _Channel:
    """Marshalled frames in, from a parent that is trusted; JSON lines out."""

    def __init__(self, requests: int, replies: int, limit: int):
        self._requests = requests
        self._replies = replies
        self.limit = limit

    def receive(self) -> Any:
        """The next frame; ends the process if there is none."""
        return marshal.loads(self._read(int.from_bytes(self._read(8), "little")))

    def _read(self, size: int) -> bytes:
        parts = []
        while size:
            part = os.read(self._requests, size)
            if not part:
                os._exit(0)
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def send(self, *message: Any) -> None:
        # The head is bare, the rest are values.
        head, *rest = message
        parts = ",".join([f'"{head}"', *(encode(item, self.limit) for item in rest)])
        self.write(f"[{parts}]\n")

    def write(self, text: str) -> None:
        data = text.encode("ascii")
        while data:
            data = data[os.write(self._replies, data) :]


def _describe(error: BaseException, filename: str) -> tuple[str, str, int]:
    """Type, message and the innermost line in a file; 0 if it was not there."""
    line = 0
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == filename:
            line = trace.tb_lineno
        trace = trace.tb_next
    if isinstance(error, SyntaxError) and error.filename == filename:
        line = error.lineno or 0
    # What is on the frames may be all the memory there is.
    error.__traceback__ = None
    try:
        message = error.msg if isinstance(error, SyntaxError) else str(error)
        message = str(message)[:_MAX_MESSAGE]
    except BaseException:
        message = ""
    return type(error).__name__, message, line


def _lock(plan: dict[str, Any]) -> None:
    """Applies the layers of the plan, the seccomp filter last.

    Raises:
      OSError, ValueError: if one cannot be applied.
    """
    layers = plan["layers"]
    if sys.platform != "linux":
        _set_limits(plan)
        return
    libc = _Libc()
    libc("prctl", 1, signal.SIGKILL, 0, 0, 0)  # die with the parent
    libc("prctl", 38, 1, 0, 0, 0)  # no new privileges
    if "namespaces" in layers:
        is_counted = _enter_namespaces(libc, plan)
        libc("prctl", 1, signal.SIGKILL, 0, 0, 0)
        if is_counted and "threads" in plan:
            plan["limits"]["RLIMIT_NPROC"], plan["filter"] = plan["threads"]
    _set_limits(plan)
    if "landlock" in layers:
        _restrict_files(libc, plan["rules"])
    # Without capabilities root is one user among others.
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    libc("capset", header, (ctypes.c_uint32 * 6)())
    if "seccomp" in layers:
        instructions = ctypes.create_string_buffer(plan["filter"], len(plan["filter"]))
        program = _FilterProgram(
            len(plan["filter"]) // 8, ctypes.cast(instructions, ctypes.c_void_p)
        )
        libc("prctl", 22, 2, ctypes.byref(program), 0, 0)


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


class _Libc:
    """Functions of the C library that raise OSError."""

    def __init__(self):
        self._library = ctypes.CDLL(None, use_errno=True)

    def __call__(self, name: str, *arguments: Any) -> int:
        converted = (
            ctypes.c_long(item) if isinstance(item, int) else item for item in arguments
        )
        result = getattr(self._library, name)(*converted)
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{name}: {os.strerror(number)}")
        return result


def _set_limits(plan: dict[str, Any]) -> None:
    for name, value in plan["limits"].items():
        number = getattr(resource, name, None)
        if number is None:
            continue
        _, hard = resource.getrlimit(number)
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        try:
            resource.setrlimit(number, (value, value))
        except (OSError, ValueError):
            # macOS knows some limits that it does not let anybody set.
            if sys.platform == "linux":
                raise


def _enter_namespaces(libc: _Libc, plan: dict[str, Any]) -> bool:
    """Goes on in a child that sees no other process, file or network.

    The file system is the readable paths, read only, and an empty directory.

    Returns:
      Whether a limit on processes counts this user's, as the kernel exempts root.
    """
    flags = _NEW_NS | _NEW_IPC | _NEW_PID | _NEW_NET
    uid, gid = os.geteuid(), os.getegid()
    # A user of its own, if root may choose, so that only its own threads count.
    user = _FIRST_USER + os.getpid()
    try:
        libc("unshare", flags)
    except OSError:
        libc("unshare", flags | _NEW_USER)
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{_NOBODY} {uid} 1"),
            ("gid_map", f"{_NOBODY} {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    _change_root(libc, plan)
    # The first child is the first process of the namespace: all others die with it.
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.kill(os.getpid(), os.WTERMSIG(status))
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(os.WEXITSTATUS(status))
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        try:
            os.setresuid(user, user, user)
        except OSError:  # no such user in this namespace
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
        return True
    return uid != 0


def _change_root(libc: _Libc, plan: dict[str, Any]) -> None:
    def mount(source: str, target: str, kind: str, flags: int, options: str = ""):
        texts = [text.encode() for text in (source, target, kind)]
        libc("mount", *texts, flags, options.encode())

    root = os.getcwd()
    mount("none", "/", "", _REC | _PRIVATE)
    mount("tmpfs", root, "tmpfs", _NOSUID | _NODEV, "size=1m,nr_inodes=1k,mode=755")

    def bind(path: str) -> None:
        target = root + path
        if os.path.isdir(path):
            os.makedirs(target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
        mount(path, target, "", _BIND | _REC)
        present = os.statvfs(target).f_flag
        kept = sum(flag for bit, flag in _STATVFS_TO_MOUNT.items() if present & bit)
        mount("none", target, "", _REMOUNT | _BIND | _RDONLY | kept)

    for path in plan["readable"]:
        bind(path)
    options = "size=1m,nr_inodes=1k,mode=755"
    for path in plan["hidden"]:
        mount("tmpfs", root + path, "tmpfs", _NOSUID | _NODEV, options)
    for path in plan["packages"].values():
        bind(path)
    for path in plan["hidden"]:
        flags = _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV
        mount("none", root + path, "", flags)
    for path, target in plan["links"].items():
        os.symlink(target, root + path)
    os.mkdir(f"{root}/empty")
    mount("none", root, "", _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV)
    os.chdir(root)
    libc("syscall", plan["pivot_root"], b".", b".")
    libc("umount2", b".", _DETACH)
    os.chdir("/empty")


def _restrict_files(libc: _Libc, rules: list[tuple[str, bool, bool]]) -> None:
    """Landlock: reading by the rules only, no TCP, no signals to other processes."""
    version = libc("syscall", 444, None, 0, 1)
    # What a version cannot restrict, it refuses to be asked.
    num_rights = 13 + (version >= 2) + (version >= 3) + (version >= 5)
    handled = [(1 << num_rights) - 1]
    if version >= 4:
        handled.append(3)
    if version >= 6:
        handled.append(3)
    attributes = (ctypes.c_uint64 * len(handled))(*handled)
    ruleset = libc("syscall", 444, attributes, ctypes.sizeof(attributes), 0)
    for path, may_list, may_read in (*rules, (".", True, True)):
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rights = _READ_DIR * may_list | _READ_FILE * may_read
        rule = rights.to_bytes(8, sys.byteorder) + place.to_bytes(4, sys.byteorder)
        libc("syscall", 445, ruleset, 1, rule, 0)
        os.close(place)
    libc("syscall", 446, ruleset, 0)
    os.close(ruleset)
