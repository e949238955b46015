"""Which system calls the seccomp filter denies."""

import platform
import struct

import pytest
from sandbox_programs import IS_LINUX, first

from dlm_jax.sandbox import layers as sandbox_layers


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
    43,  # accept
    288,  # accept4
    49,  # bind
    50,  # listen
    54,  # setsockopt
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
    202,  # accept
    242,  # accept4
    200,  # bind
    201,  # listen
    208,  # setsockopt
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
        # Calls: prlimit64, fcntl, ioctl, openat, socketpair.
        (
            "x86_64",
            0xC000003E,
            X86_DENIED,
            (0, 1, 231, 9, 5, 77, 204),
            (302, 72, 16, 257, 53),
        ),
        (
            "aarch64",
            0xC00000B7,
            ARM_DENIED,
            (63, 64, 94, 222, 80, 46, 123),
            (261, 25, 29, 56, 199),
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
    prlimit, fcntl, ioctl, openat, pair = calls
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
    # Streams of AF_UNIX, with flags or not; other families, and datagrams.
    for domain, kind, expected in (
        *((1, kind, allow) for kind in (1, 0o4001, 0o2000001, 0o2004001)),
        *((1, kind, error) for kind in (0, 2, 3, 5, 0o2000002, 0o10001)),
        *((domain, 1, error) for domain in (0, 2, 10, 16)),
    ):
        assert run_filter(program, pair, audit, domain, kind) == expected
    assert run_filter(program, allowed[0], 0x40000003) == kill
    is_second_set_denied = run_filter(program, 0x40000000, audit) == error
    assert is_second_set_denied == (machine == "x86_64")
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert sandbox_layers.seccomp_filter() == b""


@pytest.mark.skipif(not IS_LINUX, reason="seccomp is of Linux")
@pytest.mark.parametrize(
    "machine, audit, clone", [("x86_64", 0xC000003E, 56), ("aarch64", 0xC00000B7, 220)]
)
def test_with_threads_only_what_makes_a_thread_is_allowed(
    machine, audit, clone, monkeypatch
):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    without = sandbox_layers.seccomp_filter()
    program = sandbox_layers.seccomp_filter(has_threads=True)
    allow, error, absent = 0x7FFF0000, 0x00050001, 0x00050026
    for number in {*range(1024)} - {clone, 435}:
        for value in (0, 1, 0o1000, 0x3D0F00):
            arguments = (value, value, value)
            assert run_filter(program, number, audit, *arguments) == run_filter(
                without, number, audit, *arguments
            )
    # For clone3 the C library takes clone, whose flags a filter sees.
    assert run_filter(program, 435, audit, 0x3D0F00) == absent
    for flags in (0x3D0F00, 0x7D0F00):
        assert run_filter(program, clone, audit, flags) == allow
        assert run_filter(without, clone, audit, flags) == error
    # SIGCHLD (fork), vfork, a thread without CLONE_THREAD, and new namespaces.
    spaces = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 1 << 30)
    for flags in (17, 0x1200011, 0x4111, 0x3C0F00, *(0x3D0F00 | x for x in spaces)):
        assert run_filter(program, clone, audit, flags) == error


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
