"""The layers of a sandbox: system calls to deny, files that may be read."""

import importlib.util
import os
import pathlib
import platform
import struct
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

# To be denied is to get EPERM, 1.
_KILL, _DENY, _ALLOW = 0x80000000, 0x00050001, 0x7FFF0000
# To be told that there is no such call, ENOSYS, 38.
_ABSENT = 0x00050026
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ARCHITECTURE_AT, _NUMBER_AT, _ARGUMENTS_AT = 4, 0, 16

# Numbers on x86_64 and on aarch64; None where there is no such call. They are what
# makes processes or reaches others (signals, schedules, pages, System V's and POSIX'
# messages), what changes a file that may only be read (owner, mode, times, attributes,
# length: Landlock restricts none of these but the last, since its version 3), sockets,
# memory that no limit counts, mounts, and parts of the kernel that a program has no use
# for. Where a call makes a descriptor that others need, only it is here (mq_open).
_DENIED: dict[str, tuple[int | None, int | None]] = {
    "accept": (43, 202),
    "accept4": (288, 242),
    "add_key": (248, 217),
    "bind": (49, 200),
    "bpf": (321, 280),
    "chmod": (90, None),
    "chown": (92, None),
    "chroot": (161, 51),
    "clone": (56, 220),
    "clone3": (435, 435),
    "connect": (42, 203),
    "creat": (85, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "file_setattr": (469, 469),
    "fork": (57, None),
    "fremovexattr": (199, 16),
    "fsconfig": (431, 431),
    "fsetxattr": (190, 7),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "futimesat": (261, None),
    "io_uring_setup": (425, 425),
    "ioprio_set": (251, 30),
    "kcmp": (312, 272),
    "keyctl": (250, 219),
    "kill": (62, 129),
    "lchown": (94, None),
    "listen": (50, 201),
    "lremovexattr": (198, 15),
    "lsetxattr": (189, 6),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "migrate_pages": (256, 238),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "msgctl": (71, 187),
    "msgget": (68, 186),
    "msgrcv": (70, 188),
    "msgsnd": (69, 189),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "openat2": (437, 437),
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
    "removexattr": (197, 14),
    "removexattrat": (466, 466),
    "request_key": (249, 218),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "semctl": (66, 191),
    "semget": (64, 190),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "setns": (308, 268),
    "setpgid": (109, 154),
    "setpriority": (141, 140),
    "setsid": (112, 157),
    "setsockopt": (54, 208),
    "setxattr": (188, 5),
    "setxattrat": (463, 463),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "shmget": (29, 194),
    "socket": (41, 198),
    "tgkill": (234, 131),
    "tkill": (200, 130),
    "truncate": (76, 45),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "utime": (132, None),
    "utimensat": (280, 88),
    "utimes": (235, None),
    "vfork": (58, None),
}


class _Rule(NamedTuple):
    """A call that one of its arguments decides about.

    Attributes:
      numbers: as in _DENIED.
      argument: which one, from 0; of the low 32 bits, and the kernel takes no more.
      comparison: with each of the values.
      values: one that compares has the call denied if is_denied, else allowed; if none
        does it is the other way round.
      is_denied: see values.
    """

    numbers: tuple[int | None, int | None]
    argument: int
    comparison: int
    values: tuple[int, ...]
    is_denied: bool


_RULES = (
    # prlimit64: limits of this process may be asked for, those of others not be set.
    _Rule((302, 261), 0, _IF_EQUAL, (0,), False),
    # fcntl: F_SETOWN, F_SETSIG and F_SETOWN_EX have the kernel send signals.
    _Rule((72, 25), 1, _IF_EQUAL, (8, 10, 15), True),
    # ioctl: what Python asks of its own descriptors (TCGETS, TIOCGWINSZ, FIONREAD,
    # FIONBIO, FIONCLEX, FIOCLEX). Others set a file's flags, or whom a descriptor
    # signals (FIOSETOWN, SIOCSPGRP).
    _Rule(
        (16, 29), 1, _IF_EQUAL, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451), False
    ),
    # open and openat: O_TRUNC empties a file that is opened for reading, too. No filter
    # sees what openat2 is asked, so that it is denied.
    _Rule((2, None), 1, _IF_ANY_BIT, (0o1000,), True),
    _Rule((257, 56), 2, _IF_ANY_BIT, (0o1000,), True),
)
# socketpair: asyncio wakes itself through one. A pair of streams (AF_UNIX, SOCK_STREAM,
# with SOCK_NONBLOCK and SOCK_CLOEXEC) reaches nobody: it has no name and is connected.
# One of datagrams could send to any name.
_SOCKETPAIR = (53, 199)
_STREAMS = (0o1, 0o4001, 0o2000001, 0o2004001)
# clone: what the C library gives to make a thread of this process, and nothing else;
# musl adds CLONE_DETACHED. No filter sees what clone3 is asked; where there is no such
# call, the libraries take clone.
_CLONE, _CLONE3 = _DENIED["clone"], _DENIED["clone3"]
_THREADS = (0x3D0F00, 0x7D0F00)
_PIVOT_ROOT = _DENIED["pivot_root"]
# AUDIT_ARCH of the little-endian 64-bit systems, in the order of the numbers.
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}


def _architecture() -> tuple[int, int] | None:
    if sys.platform != "linux" or sys.maxsize < 2**32 or sys.byteorder != "little":
        return None
    return _ARCHITECTURES.get(platform.machine())


def seccomp_filter(has_threads: bool = False) -> bytes:
    """The filter's program in classic BPF; empty if this machine has no known one.

    Args:
      has_threads: the process may make threads, whose number something else bounds.
    """
    architecture = _architecture()
    if architecture is None:
        return b""
    column, audit = architecture
    body = [
        (_IF_EQUAL, "deny", None, number)
        for numbers in _DENIED.values()
        if (number := numbers[column]) is not None
        and not (has_threads and numbers in (_CLONE, _CLONE3))
    ]
    if column == 0:  # the 32-bit pointers' second set of numbers
        body.insert(0, (_IF_AT_LEAST, "deny", None, 0x40000000))
    first = _ARGUMENTS_AT
    body += [
        (_IF_EQUAL, None, len(_STREAMS) + 5, _SOCKETPAIR[column]),
        (_LOAD, None, None, first),
        (_IF_EQUAL, 1, None, 1),
        (_RETURN, None, None, _DENY),
        (_LOAD, None, None, first + 8),
        *((_IF_EQUAL, "allow", None, kind) for kind in _STREAMS),
        (_RETURN, None, None, _DENY),
    ]
    rules = _RULES
    if has_threads:
        body += [
            (_IF_EQUAL, None, 1, _CLONE3[column]),
            (_RETURN, None, None, _ABSENT),
        ]
        rules += (_Rule(_CLONE, 0, _IF_EQUAL, _THREADS, False),)
    for rule in rules:
        number = rule.numbers[column]
        if number is None:
            continue
        where, otherwise = ("deny", _ALLOW) if rule.is_denied else ("allow", _DENY)
        body += [
            # Another call jumps over the rest of its rule.
            (_IF_EQUAL, None, len(rule.values) + 2, number),
            (_LOAD, None, None, _ARGUMENTS_AT + 8 * rule.argument),
            *((rule.comparison, where, None, value) for value in rule.values),
            (_RETURN, None, None, otherwise),
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
        (_RETURN, None, None, _DENY),
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


def packages() -> dict[str, str]:
    """Installed packages that programs may import, by name: where their files are.

    They are those that HumanEval's own environment has, and their shared libraries.
    """
    spec = importlib.util.find_spec("numpy")
    if spec is None or not spec.origin or not spec.origin.endswith("/__init__.py"):
        return {}
    path = os.path.realpath(os.path.dirname(spec.origin))
    found = {"numpy": path, "numpy.libs": f"{path}.libs"}
    return {name: path for name, path in found.items() if os.path.isdir(path)}


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
