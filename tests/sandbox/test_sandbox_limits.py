"""Programs that try to use up the machine: memory, time, processes, output."""

import os
import subprocess
import tempfile
import time

import pytest
from sandbox_programs import IS_LINUX, PATIENT, checked, first, judged

from dlm_jax.sandbox import probe, process, sandbox
from dlm_jax.sandbox.sandbox import Limits


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
    probe._probe.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(process, "_START_SECONDS", 1e-3)
            with pytest.raises(sandbox.SandboxError, match="did not start"):
                sandbox.isolation()
    finally:
        probe._probe.cache_clear()
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
