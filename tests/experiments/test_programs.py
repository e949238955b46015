"""Programs that JAX's cache keeps: what a cut or damaged entry does to later runs."""

import os
import pathlib
import subprocess
import sys
import warnings

import pytest

from experiments import _programs

ROOT = pathlib.Path(__file__).parents[2]
# A program that a script compiles; says how many programs it found in the cache.
RUN = """
import resource, sys
if len(sys.argv) > 1:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
import jax
from experiments import _programs
_programs.keep()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
hits = []
jax.monitoring.register_event_listener(
    lambda name, **_: hits.append(name) if name.endswith("/cache_hits") else None
)
jax.jit(lambda x: x * 2 + 1)(jax.numpy.ones(3, int)).block_until_ready()
print(len(hits))
if remark := _programs.remark():
    print(remark, file=sys.stderr)
"""


def run(home, *largest_file):
    """Runs a process, in which a file may have so many bytes; its hits and stderr."""
    environment = {k: v for k, v in os.environ.items() if "CACHE" not in k}
    done = subprocess.run(
        [sys.executable, "-c", RUN, *map(str, largest_file)],
        env=environment | {"XDG_CACHE_HOME": str(home)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout), done.stderr


def test_entries_that_cannot_be_read_are_written_again(tmp_path):
    directory = tmp_path / "dlm_jax" / "programs"
    # The disk is full: that is told in one line, and nothing half is left.
    hits, error = run(tmp_path, 200)
    assert hits == 0 and error.count("\n") == 1
    assert error.startswith(f"compiled programs are not kept in {directory}: OSError")
    assert not list(directory.glob("*-cache"))
    hits, error = run(tmp_path)
    assert (hits, error) == (0, "")
    whole = {path: path.read_bytes() for path in directory.glob("*-cache")}
    assert whole
    # What is damaged later is found where it is read, and told to nobody.
    for path, content in whole.items():
        path.write_bytes(content[: len(content) // 2])
    hits, error = run(tmp_path)
    assert (hits, error) == (0, "")
    hits, error = run(tmp_path)
    assert (hits, error) == (len(whole), "")


def test_a_disk_that_is_full_for_everything_is_one_line(tmp_path):
    """For the programs that are kept too, of which nothing is said then."""
    script = (
        "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (2000,) * 2)"
        "; runpy.run_module('experiments.generate', run_name='__main__')"
    )
    output = tmp_path / "out.jsonl"
    flags = ["--num_examples=4", "--sampler=threshold", f"--output={output}"]
    environment = {k: v for k, v in os.environ.items() if "CACHE" not in k}
    done = subprocess.run(
        [sys.executable, "-c", script, *flags],
        env=environment | {"XDG_CACHE_HOME": str(tmp_path / "home")},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, "")
    log = tmp_path / "out.jsonl.partial" / "records.jsonl"
    assert done.stderr == (
        f"error: {log} cannot be written: File too large; rows that it holds are kept, "
        "and the same command continues\n"
    )
    assert log.read_bytes() == b"" and not output.exists()


@pytest.fixture
def entries(tmp_path):
    """Entries of three modules; of one the end is missing, another is empty."""

    def write(name, content, used):
        (tmp_path / f"{name}-cache").write_bytes(content)
        if used is not None:
            (tmp_path / f"{name}-atime").write_bytes(b"time")
            os.utime(tmp_path / f"{name}-atime", (used, used))

    write("jit_f-1", b"old", 1)
    write("jit_f-2", b"new", 2)
    write("jit_g-1", b"x", 3)
    write("jit_g-2", b"cut", None)
    write("jit_h-1", b"", 4)
    return tmp_path


def left(directory):
    names = {path.name.rpartition("-")[0] for path in directory.glob("*-*")}
    assert {path.name for path in directory.glob("*-*")} == {
        f"{name}-{end}" for name in names for end in ("cache", "atime")
    }
    return names


def test_what_was_not_written_to_its_end_is_removed(entries):
    _programs.remove_cut(entries)
    assert left(entries) == {"jit_f-1", "jit_f-2", "jit_g-1"}


def test_a_warning_removes_what_it_is_about(entries, monkeypatch):
    seen = []
    monkeypatch.setattr(warnings, "showwarning", lambda *x, **_: seen.append(str(x[0])))
    shown = warnings.showwarning
    start = "Error reading persistent compilation cache entry for"
    _programs._repair(entries, shown, UserWarning(f"{start} 'jit_f': ZstdError: x"))
    assert left(entries) == {"jit_f-1", "jit_g-1"} and not seen
    _programs._repair(entries, shown, UserWarning("something else"))
    assert left(entries) == {"jit_f-1", "jit_g-1"} and seen == ["something else"]
