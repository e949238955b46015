"""Rows of `experiments.generate` are kept as they are done, whatever ends the run."""

import errno
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import pytest

from dlm_jax import files, zoo
from dlm_jax.devices import batches, hosts
from dlm_jax.devices.parallel import Parallel
from dlm_jax.evaluation.records import Log, read_records

ROOT = pathlib.Path(__file__).parents[2]
# What another batch size, or a stop, may change.
TIMES = {"seconds": 0, "batch_size": 0}
SECOND = "--sampler=entropy_bound(gamma=0.5)"


@pytest.fixture(autouse=True)
def prompt(monkeypatch):
    """Rows are handed over as soon as they are done, not every five seconds."""
    stream = batches.stream
    monkeypatch.setattr(
        batches, "stream", lambda *args, **kw: stream(*args, **kw, period=0.0)
    )


@pytest.fixture(scope="module")
def generate(checkpoint):
    """The arguments of the script, with a batch size and a file to write."""

    def arguments(output, batch_size=2, *more):
        return [
            f"--checkpoint={checkpoint}",
            "--num_examples=6",
            "--sampler=random",
            "--temperature=0.5",
            f"--output={output}",
            f"--batch_size={batch_size}",
            *more,
        ]

    return arguments


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def same(path, whole):
    """Whether a file is that of an unbroken run, byte for byte but for times."""
    records = read(path)
    assert path.read_bytes() == b"".join(map(files.json_line, records))
    # The unbroken run may have had more samplers.
    specs = {record["sampler"] for record in records}
    expected = [record for record in read(whole) if record["sampler"] in specs]
    lines = [
        [files.json_line(record | TIMES) for record in some]
        for some in (records, expected)
    ]
    return lines[0] == lines[1]


def stop_after(monkeypatch, num_appends, error):
    """The log fails after it has taken rows some times; returns how many rows."""
    append, taken = Log.append, []

    def stop(self, records):
        if len(taken) >= num_appends:
            raise error
        append(self, records)
        taken.append(len(records))

    monkeypatch.setattr(Log, "append", stop)
    return taken


WHOLE: dict[str, pathlib.Path] = {}


@pytest.fixture
def whole(run_script, generate, tmp_path_factory):
    """An unbroken run's file; made once."""
    if not WHOLE:
        output = tmp_path_factory.mktemp("whole") / "out.jsonl"
        assert run_script("generate", *generate(output, 2, SECOND))[0] == 0
        assert os.listdir(output.parent) == [output.name]
        WHOLE["output"] = output
    return WHOLE["output"]


def test_a_stopped_run_goes_on_to_the_same_file(
    run_script, generate, whole, monkeypatch, tmp_path
):
    output = tmp_path / "out.jsonl"
    partial = tmp_path / "out.jsonl.partial"
    with monkeypatch.context() as patch:
        taken = stop_after(patch, 3, SystemExit(143))
        assert run_script("generate", *generate(output, 2, SECOND))[0] == 143
    assert os.listdir(tmp_path) == [partial.name]
    kept = read_records(partial)
    assert len(kept) == sum(taken) and 3 <= len(kept) < 12
    # Nobody can tell a line that was cut off from one that is whole.
    log = partial / "records.jsonl"
    log.write_bytes(log.read_bytes()[:-20])

    # Another batch size goes on, and fills only what is missing.
    made = stop_after(monkeypatch, 99, None)
    status, out, error = run_script("generate", *generate(output, 3, SECOND))
    assert (status, error) == (0, "")
    assert sum(made) == 12 - (len(kept) - 1)
    assert os.listdir(tmp_path) == [output.name]
    assert same(output, whole)
    assert {record["batch_size"] for record in read(output)} == {2, 3}
    # Times of both are not compared without a word.
    heading, row, _, *remarks = out.splitlines()[-5:]
    assert heading.endswith("batch size") and row.endswith(" 2, 3")
    assert remarks[1].startswith("No TPS for `random`: its runs differ: 1 x cpu, batch")

    # What is there is refused, as ever.
    status, _, error = run_script("generate", *generate(output))
    assert status == 1 and f"output ({output}) already exists" in error


def test_rows_of_something_else_are_refused(
    run_script, generate, monkeypatch, tmp_path
):
    output = tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        stop_after(patch, 1, SystemExit(143))
        assert run_script("generate", *generate(output))[0] == 143
    log = tmp_path / "out.jsonl.partial" / "records.jsonl"
    before = log.read_bytes()
    assert before
    for flag, message in (
        ("--seed=1", "seed (1) must be 0"),
        ("--temperature=1", "temperature (1.0) must be 0.5"),
        ("--num_examples=5", "num_prompts (5) must be 6"),
        ("--sampler=margin", "sampler (['margin"),
        ("--dtype=bfloat16", "dtype (bfloat16) must be float32"),
        ("--split=hard", "prompts_digest ("),
        (f"--checkpoint={zoo.path('sudoku')}", "checkpoint ("),
        ("--cache=dual", "cache ("),
    ):
        status, out, error = run_script("generate", *generate(output), flag)
        assert (status, out, error.count("\n")) == (1, "", 1)
        assert error.startswith(f"error: {message}")
        assert f"as in the unfinished output that {output}.partial holds" in error
        assert "delete the directory to begin again" in error
        assert log.read_bytes() == before and not output.exists()


def test_a_full_disk_is_one_line_and_keeps_rows(
    run_script, generate, whole, monkeypatch, tmp_path
):
    output = tmp_path / "out.jsonl"
    log = tmp_path / "out.jsonl.partial" / "records.jsonl"
    fsync, sizes = os.fsync, []

    def full(descriptor):
        if len(sizes) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)
        sizes.append(os.fstat(descriptor).st_size)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        status, out, error = run_script("generate", *generate(output))
    assert (status, out) == (1, "")
    assert error == (
        f"error: {log} cannot be written: No space left on device; rows that it holds "
        "are kept, and the same command continues\n"
    )
    # Not a byte of what there was no room for.
    assert log.stat().st_size == sizes[-1] > 0
    assert run_script("generate", *generate(output))[0] == 0
    assert same(output, whole)


def test_too_little_memory_keeps_rows_and_says_how_to_go_on(
    run_script, generate, whole, monkeypatch, tmp_path
):
    output = tmp_path / "out.jsonl"
    stream = Parallel.stream

    def full(self, *arguments):
        for number, done in enumerate(stream(self, *arguments)):
            if number == 2:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
            yield done

    with monkeypatch.context() as patch:
        patch.setattr(Parallel, "stream", full)
        status, out, error = run_script("generate", *generate(output, 4))
    assert (status, out) == (1, "")
    assert error == (
        "error: batch_size (4) must be smaller: this batch and model take more memory "
        "than there is (RESOURCE_EXHAUSTED: Out of memory); finished rows are kept: "
        "the same command with a smaller --batch_size continues\n"
    )
    kept = len(read_records(tmp_path / "out.jsonl.partial"))
    made = stop_after(monkeypatch, 99, None)
    assert run_script("generate", *generate(output, 1))[0] == 0
    assert kept >= 2 and sum(made) == 6 - kept
    assert same(output, whole)


def test_without_a_file_nothing_is_said_to_be_kept(run_script, generate, monkeypatch):
    def full(self, *arguments):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(Parallel, "compile", full)
    flags = [flag for flag in generate("x") if not flag.startswith("--output")]
    status, _, error = run_script("generate", *flags)
    assert (status, error.count("\n")) == (1, 1)
    assert error.endswith("(RESOURCE_EXHAUSTED: Out of memory)\n")


def test_a_share_is_run_again_alone(run_script, generate, whole, monkeypatch, tmp_path):
    output = tmp_path / "out.jsonl"

    def share(number, *more):
        alone = ["--num_processes=2", f"--process_id={number}"]
        return run_script("generate", *generate(output, 2, *alone, *more))

    shards = [hosts.Host(i, 2).shard(output) for i in range(2)]
    with monkeypatch.context() as patch:
        stop_after(patch, 1, SystemExit(143))
        assert share(1)[0] == 143
    assert os.listdir(tmp_path) == [f"{shards[1].name}.partial"]
    status, _, error = run_script("merge", f"--output={output}")
    assert status == 1
    assert f"; unfinished: {shards[1].name}.partial" in error
    assert share(0)[0] == 0
    status, _, error = run_script("merge", f"--output={output}")
    assert status == 1
    assert (
        f"{output} lacks shards: {shards[1].name}; run the processes' command again "
        "with --num_processes=2, --process_id=1 and no --coordinator\n"
    ) in error
    # The same command to all processes: whose share is whole has nothing to do.
    before = shards[0].read_bytes()
    status, out, error = share(0)
    assert (status, out, error) == (0, "", f"{shards[0]} is complete already\n")
    for flag, message in (
        ("--seed=1", "already exists, and seed (1) is 0 in it"),
        ("--sampler=margin", "already exists, with other rows"),
    ):
        status, _, error = share(0, flag)
        assert status == 1 and f"output ({shards[0]}) {message}" in error
    assert share(1)[0] == 0 and shards[0].read_bytes() == before
    assert run_script("merge", f"--output={output}")[0] == 0
    assert same(output, whole)


@pytest.mark.slow
def test_killed_five_times_at_random_gives_the_same_file(checkpoint, tmp_path):
    def start(output, batch_size):
        command = [sys.executable, "-m", "experiments.generate"]
        command += [f"--checkpoint={checkpoint}", "--num_examples=40"]
        command += [f"--sampler={spec}" for spec in ("random", "threshold", "saber")]
        command += ["--sampler=margin", "--sampler=low_confidence"]
        command += [f"--output={output}", f"--batch_size={batch_size}"]
        return subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    assert start(tmp_path / "whole.jsonl", 2).wait() == 0
    output = tmp_path / "killed.jsonl"
    log = tmp_path / "killed.jsonl.partial" / "records.jsonl"

    def size():
        return log.stat().st_size if log.exists() else 0

    rng = random.Random(0)
    for batch_size in (2, 1, 3, 2, 1):
        before = size()
        process = start(output, batch_size)
        # Not before it has added something, else nothing is shown.
        while size() == before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.3)
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert size() > before and not output.exists()
    assert start(output, 2).wait() == 0
    assert same(output, tmp_path / "whole.jsonl")
    assert sorted(os.listdir(tmp_path)) == ["killed.jsonl", "whole.jsonl"]
    assert len(read(output)) == 5 * 40
