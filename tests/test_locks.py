"""One process at a time writes to a place, and what a killed one left is removed."""

import contextlib
import errno
import os
import pathlib
import signal
import subprocess
import sys
import threading

import pytest

from dlm_jax import files
from dlm_jax.errors import InputError

ROOT = pathlib.Path(__file__).parents[1]
# Takes the lock and keeps it, or part of an output.
HOLDER = """
import sys, time
from dlm_jax import files
path, kind = sys.argv[1:]
if kind == "staged":
    with files.staged(path, is_directory=True) as partial:
        (partial / "half").write_text("x")
        print("ready", flush=True)
        time.sleep(600)
with files.locked(path, is_directory=kind == "directory"):
    print("ready", flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def held(path, kind):
    """Another process that has the lock, until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), kind],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_second_writer_is_refused_until_the_first_is_dead(tmp_path, kind):
    path = tmp_path / "new" / "out"
    options = {"is_directory": kind == "directory"}
    with held(path, kind) as process:
        with (
            pytest.raises(InputError, match="is being written by another") as caught,
            files.locked(path, **options, name="workdir"),
        ):
            pytest.fail("the block must not run")
        assert str(caught.value).startswith(f"workdir ({path}) ")
        assert f"number {process.pid} on " in str(caught.value)
        assert not files.is_abandoned(path)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        # Asked of files only.
        assert files.is_abandoned(path) == (kind == "file")
        with files.locked(path, **options):
            assert not files.is_abandoned(path)
        assert not files.is_abandoned(path)
    assert not list(tmp_path.rglob("*.lock"))


def test_nothing_is_left_where_nothing_was_written(tmp_path):
    for is_directory in (False, True):
        with files.locked(tmp_path / "a" / "b", is_directory=is_directory):
            assert list(tmp_path.rglob("*.lock"))
        assert not list(tmp_path.iterdir())


def test_what_was_written_stays(tmp_path):
    path = tmp_path / "a" / "b"
    with files.locked(path, is_directory=True):
        (path / "records").write_text("x")
        assert (path / ".lock").exists()
    assert os.listdir(path) == ["records"]


def test_the_same_thread_may_take_it_again_and_no_other(tmp_path):
    path = tmp_path / "out"
    refused = []

    def take():
        try:
            with files.locked(path):
                pass
        except InputError as error:
            refused.append(str(error))

    with files.locked(path):
        with files.locked(path), files.staged(path) as partial:
            partial.write_text("x")
        thread = threading.Thread(target=take)
        thread.start()
        thread.join()
    assert len(refused) == 1 and f"number {os.getpid()} on" in refused[0]
    take()
    assert len(refused) == 1


def test_many_writers_never_write_at_once(tmp_path):
    """Each lock is removed at its end, while others wait for it."""
    path, inside, errors = tmp_path / "out", [], []

    def work():
        for _ in range(50):
            try:
                with files.locked(path):
                    inside.append(1)
                    if len(inside) > 1:
                        errors.append("two")
                    inside.pop()
            except InputError:
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and not list(tmp_path.iterdir())


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    path = tmp_path / "out"
    with held(path, "staged"):
        (partial,) = tmp_path.glob(".out.partial-*")
        # While it lives, it is left alone.
        with pytest.raises(InputError, match="by another"), files.staged(path):
            pass
        assert (partial / "half").exists()
    assert partial.exists()
    others = [tmp_path / ".out.partial-notes", tmp_path / f".other{partial.name[4:]}"]
    for other in others:
        other.write_text("of somebody else")
    with files.staged(path) as mine:
        assert not partial.exists()
        mine.write_text("whole")
    assert path.read_text() == "whole"
    assert all(other.exists() for other in others)


def test_the_lock_of_a_directory_clears_all_of_it(tmp_path):
    old = tmp_path / f".manifest.json.partial-{'0' * 32}"
    old.write_text("{")
    with files.locked(tmp_path, is_directory=True):
        assert not old.exists()


def test_an_output_that_came_meanwhile_is_not_replaced(tmp_path):
    path = tmp_path / "out"
    check = files.check_output

    def come_late(*arguments):
        check(*arguments)
        path.write_text("of the other")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "check_output", come_late)
        with pytest.raises(InputError, match="already exists"), files.staged(path):
            pytest.fail("the block must not run")
    assert path.read_text() == "of the other"


def test_without_locks_work_goes_on_and_nothing_is_removed(tmp_path, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    old = tmp_path / f".out.partial-{'0' * 32}"
    old.write_text("of a living one, perhaps")
    with files.staged(tmp_path / "out") as partial:
        partial.write_text("x")
    assert sorted(os.listdir(tmp_path)) == [old.name, "out"]


@pytest.mark.parametrize("name", ["file/out", "file"])
def test_a_place_that_cannot_be_written_is_refused(tmp_path, name):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match=r"^workdir \(.* cannot be written: "),
        files.locked(tmp_path / name, is_directory=True, name="workdir"),
    ):
        pytest.fail("the block must not run")
    assert os.listdir(tmp_path) == ["file"]
