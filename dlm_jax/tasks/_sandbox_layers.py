"""What a sandbox's child locks itself up with: calls to deny, files to read."""

import os
import pathlib
import platform
import struct
import sys
from collections.abc import Iterable, Iterator

_EPERM = 1
_KILL, _ERROR, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ARCHITECTURE_AT, _NUMBER_AT, _ARGUMENT_AT = 4, 0, 16

# Numbers on x86_64 and on aarch64; None where there is no such call. They are what
# makes processes or reaches others, sockets, memory that no limit counts, mounts, and
# parts of the kernel that a program has no use for.
_DENIED: dict[str, tuple[int | None, int | None]] = {
    "add_key": (248, 217),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clone": (56, 220),
    "clone3": (435, 435),
    "connect": (42, 203),
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, None),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "io_uring_setup": (425, 425),
    "kcmp": (312, 272),
    "keyctl": (250, 219),
    "kill": (62, 129),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "mq_open": (240, 180),
    "msgget": (68, 186),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pivot_root": (155, 41),
    "process_madvise": (440, 440),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "request_key": (249, 218),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "semget": (64, 190),
    "setns": (308, 268),
    "setpgid": (109, 154),
    "setpriority": (141, 140),
    "setsid": (112, 157),
    "shmget": (29, 194),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "tgkill": (234, 131),
    "tkill": (200, 130),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "vfork": (58, None),
}
_PRLIMIT = (302, 261)
_PIVOT_ROOT = _DENIED["pivot_root"]
# AUDIT_ARCH of the little-endian 64-bit systems, in the order of the numbers.
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}


def _architecture() -> tuple[int, int] | None:
    if sys.platform != "linux" or sys.maxsize < 2**32 or sys.byteorder != "little":
        return None
    return _ARCHITECTURES.get(platform.machine())


def seccomp_filter() -> bytes:
    """The filter's program in classic BPF; empty if this machine has no known one."""
    architecture = _architecture()
    if architecture is None:
        return b""
    column, audit = architecture
    body = [
        (_IF_EQUAL, "deny", None, number)
        for numbers in _DENIED.values()
        if (number := numbers[column]) is not None
    ]
    if column == 0:  # the 32-bit pointers' second set of numbers
        body.insert(0, (_IF_AT_LEAST, "deny", None, 0x40000000))
    body += [
        (_IF_EQUAL, None, "allow", _PRLIMIT[column]),
        # Limits of this process may be asked for, those of others not be set.
        (_LOAD, None, None, _ARGUMENT_AT),
        (_IF_EQUAL, "allow", "deny", 0),
    ]
    head = [
        (_LOAD, None, None, _ARCHITECTURE_AT),
        (_IF_EQUAL, 1, None, audit),
        (_RETURN, None, None, _KILL),
        (_LOAD, None, None, _NUMBER_AT),
    ]
    program = [
        *head,
        *body,
        (_RETURN, None, None, _ALLOW),
        (_RETURN, None, None, _ERROR | _EPERM),
    ]
    places = {"allow": len(program) - 2, "deny": len(program) - 1, None: 0}

    def distance(target: str | int | None, index: int) -> int:
        if isinstance(target, int):
            return target
        return places[target] - index - 1 if target else 0

    return b"".join(
        struct.pack("<HBBI", code, distance(yes, index), distance(no, index), value)
        for index, (code, yes, no, value) in enumerate(program)
    )


def pivot_root_number() -> int | None:
    """Number of the system call, for which C libraries need not have a function."""
    architecture = _architecture()
    return architecture and _PIVOT_ROOT[architecture[0]]


def hidden_within(paths: Iterable[str]) -> list[str]:
    """Directories of installed packages, which are no part of Python's own library.

    A package may hold the very answers that a program is asked for.
    """
    found = set()
    for path in map(pathlib.Path, paths):
        for pattern in ("", "python*/"):
            for name in ("site-packages", "dist-packages"):
                found.update(path.glob(f"{pattern}{name}"))
    return sorted(str(path) for path in found if path.is_dir())


def root_links() -> dict[str, str]:
    """Links such as /lib -> usr/lib, through which shared libraries are found."""
    return {
        entry.path: os.readlink(entry.path)
        for entry in os.scandir("/")
        if entry.is_symlink() and entry.name.startswith("lib")
    }


def landlock_rules(
    readable: Iterable[str], hidden: Iterable[str]
) -> list[tuple[str, bool, bool]]:
    """What may be read, given that a rule holds for everything below its path.

    Args:
      readable: files and directories.
      hidden: directories below them that may be listed, but whose files may not be
        read.

    Returns:
      Path, whether it may be listed, and whether files may be read.
    """
    hidden = list(hidden)

    def expand(path: str) -> Iterator[tuple[str, bool, bool]]:
        if path in hidden:
            return
        is_directory = os.path.isdir(path)
        is_mixed = any(item.startswith(path + "/") for item in hidden)
        yield path, is_directory, not is_mixed
        if is_mixed:
            for entry in os.scandir(path):
                # A link's target is a path of its own.
                if not entry.is_symlink():
                    yield from expand(entry.path)

    return [rule for path in readable for rule in expand(path)]
