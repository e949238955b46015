"""The script `evaluate`: its tables, its lengths, and kills."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest
import tqdm
from evaluation_runs import Arbitrary

from dlm_jax import checkpoints, samplers, tasks
from dlm_jax.devices import batches
from dlm_jax.devices.parallel import Parallel
from dlm_jax.evaluation import provenance, tables
from dlm_jax.evaluation import run as evaluation
from dlm_jax.evaluation.records import read_records


class Visible(tqdm.tqdm):
    """A progress bar that is shown though no terminal is there."""

    def __init__(self, **options):
        super().__init__(**(options | {"disable": False}))


def test_script_prints_the_tables_and_goes_on_where_it_was(
    checkpoint, tmp_path, monkeypatch, run_script
):
    monkeypatch.setattr(tasks, "get", lambda name: Arbitrary())
    monkeypatch.setattr(provenance, "_commit", lambda: "abcdef0123")
    workdir = tmp_path / "runs"
    arguments = [
        f"--checkpoint={checkpoint}",
        f"--workdir={workdir}",
        "--split=test",
        "--num_examples=3",
        "--sampler=random",
        "--sampler=threshold",
        "--batch_size=2",
        "--queue_length=3",
    ]
    status, out, error = run_script("evaluate", *arguments)
    # Neither progress, without a terminal, nor anything else.
    assert (status, error) == (0, "")
    accuracy, speed, paired = (table.splitlines() for table in out.split("\n\n"))
    assert (len(accuracy), len(speed), len(paired)) == (4, 1, 3)
    assert speed[0].endswith(", batch 2, dtype float32, cache none.")
    results = evaluation.summaries(read_records(workdir))
    assert sum(result.is_correct.size for result in results) == 6
    for line, result in zip(accuracy[2:], results, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[0] == samplers.short_spec(result.sampler)
        assert cells[1:3] == [str(result.is_correct.sum()), "3"]
        assert cells[5] == f"{result.nfe.mean():.2f}"
    assert paired[2].startswith("| threshold ")

    before = {path.name: path.read_bytes() for path in workdir.iterdir()}
    assert set(before) == {"manifest.json", "records.jsonl"}
    # Another commit that adds nothing is none of the records'.
    monkeypatch.setattr(provenance, "_commit", lambda: "fedcba9876+")
    monkeypatch.setattr(tqdm, "tqdm", Visible)
    status, again, error = run_script("evaluate", *arguments)
    assert status == 0 and again == out
    assert {path.name: path.read_bytes() for path in workdir.iterdir()} == before
    num_right = results[1].is_correct.sum()
    assert "100%" in error and "6/6" in error
    nfe = f"threshold: mean NFE {results[1].nfe.mean():.1f}"
    assert f"{nfe}, seed 0, correct {num_right / 3:.1%}" in error

    status, more, _ = run_script("evaluate", *arguments, "--sampler=margin")
    assert status == 0
    last = f"The records of {workdir} come from 2 commits: abcdef0, fedcba9+."
    assert more.splitlines()[-2:] == ["", last]
    records = read_records(workdir)
    assert [record["run"] for record in records] == [0] * 6 + [1] * 3


@pytest.mark.parametrize("script", ["evaluate", "sweep"])
@pytest.mark.parametrize("flag", ["--block_length=24", "--gen_length=100"])
def test_scripts_refuse_lengths_before_the_weights_are_loaded(
    tmp_path, run_script, script, flag
):
    status, out, error = run_script(
        script,
        "--task=humaneval",
        flag,
        f"--checkpoint={tmp_path / 'none'}",
        f"--workdir={tmp_path / 'runs'}",
    )
    assert (status, out) == (1, "")
    assert error.startswith("error: gen_length (") and error.count("\n") == 1
    assert "must be a multiple of block_length" in error
    assert list(tmp_path.iterdir()) == []


def test_script_records_the_lengths_of_its_flags(checkpoint, tmp_path, run_script):
    (tmp_path / "config.py").write_text(
        "from ml_collections import ConfigDict\n\n\n"
        "def get_config():\n"
        "    return ConfigDict({'sampler': ('threshold',), 'seeds': (0,),\n"
        "        'split': 'test', 'num_examples': 2, 'example_seed': 0,\n"
        "        'temperature': 0.0, 'batch_size': 2, 'queue_length': 2})\n"
    )
    # The config file has no lengths: it may have been written before they were there.
    arguments = [f"--checkpoint={checkpoint}", f"--workdir={tmp_path / 'runs'}"]
    arguments += [f"--config={tmp_path / 'config.py'}", "--task=sudoku"]
    status, _, error = run_script("evaluate", *arguments, "--block_length=32")
    assert (status, error) == (0, "")
    manifest = json.loads((tmp_path / "runs" / "manifest.json").read_text())
    assert manifest["identity"]["block_length"] == 32
    status, _, error = run_script("evaluate", *arguments)
    assert status == 1
    assert error.startswith("error: block_length (None) must be 32, as in the evalua")


def _script(checkpoint, workdir, batch_size=4, queue_length=10):
    return [
        sys.executable,
        "-m",
        "experiments.evaluate",
        f"--checkpoint={checkpoint}",
        f"--workdir={workdir}",
        "--split=test",
        "--num_examples=40",
        "--sampler=entropy_bound(gamma=0.5)",
        "--sampler=random",
        f"--batch_size={batch_size}",
        f"--queue_length={queue_length}",
    ]


@pytest.mark.slow
def test_killed_five_times_at_random_gives_the_same_table(checkpoint, tmp_path):
    root = pathlib.Path(__file__).parents[2]

    def table():
        records = read_records(tmp_path / "killed")
        rows = tables.accuracy(evaluation.summaries(records)).splitlines()
        # All columns but those of time.
        return [row.split("|")[:9] for row in rows]

    whole = subprocess.run(
        _script(checkpoint, tmp_path / "whole"), cwd=root, capture_output=True
    )
    assert whole.returncode == 0, whole.stderr
    rng = random.Random(0)
    # Each time with other sizes, on which results do not depend.
    for sizes in ((3, 10), (4, 7), (2, 10), (5, 12), (1, 8)):
        size = _size(tmp_path / "killed")
        process = subprocess.Popen(
            _script(checkpoint, tmp_path / "killed", *sizes),
            cwd=root,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        # Not before it has added something, else nothing is shown.
        while _size(tmp_path / "killed") == size and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.3)
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    last = subprocess.run(
        _script(checkpoint, tmp_path / "killed"), cwd=root, capture_output=True
    )
    assert last.returncode == 0, last.stderr
    fields = ("sampler", "seed", "index", "text", "nfe", "is_correct")
    runs = [
        # Rows that are done together are others after a stop.
        sorted([r[f] for f in fields] for r in read_records(directory))
        for directory in (tmp_path / "whole", tmp_path / "killed")
    ]
    assert runs[0] == runs[1]
    printed = whole.stdout.decode().partition("\n\n")[0].splitlines()
    assert [row.split("|")[:9] for row in printed] == table()


def _size(directory):
    path = directory / "records.jsonl"
    return path.stat().st_size if path.exists() else 0


def test_a_nan_is_told_once_everything_is_written(checkpoint, tmp_path, run_script):
    model = checkpoints.load(checkpoint)
    weight = model.wte[...]
    model.wte[...] = weight.at[3].set(jnp.nan)
    broken, workdir = tmp_path / "broken", tmp_path / "runs"
    checkpoints.save_hf(model, broken, checkpoints.companions(checkpoint))
    arguments = [
        f"--checkpoint={broken}",
        f"--workdir={workdir}",
        "--split=test",
        "--num_examples=2",
        "--sampler=threshold",
        "--batch_size=2",
        "--queue_length=2",
    ]
    for _ in range(2):  # A resumed run tells it again.
        status, out, error = run_script("evaluate", *arguments)
        assert status == 1
        assert error == (
            "error: the model gave NaN for 2 of 2 rows, first for prompt 0 with "
            f"{samplers.canonical_spec('threshold')} at forward 1; the texts of "
            "these rows are no answers\n"
        )
        cells = [cell.strip() for cell in out.splitlines()[2].strip("|").split("|")]
        # Correct, and tokens per forward and second.
        assert (cells[1], cells[7], cells[8]) == ("0", "0.00", "0")
    for record in read_records(workdir):
        assert record["reason"] == "the model gave NaN at forward 1"
        assert record["has_nan"] and not record["is_correct"]


@pytest.mark.parametrize("script", ["evaluate", "sweep"])
def test_too_little_memory_says_how_to_go_on(
    checkpoint, tmp_path, run_script, monkeypatch, script
):
    stream = Parallel.stream

    def full(self, *arguments):
        for number, done in enumerate(stream(self, *arguments)):
            if number:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
            yield done

    (tmp_path / "config.py").write_text(
        "from ml_collections import ConfigDict\n\n\n"
        "def get_config():\n"
        "    return ConfigDict({'sampler': ('random',), 'seeds': (0,), 'seed': 0,\n"
        "        'curves': {'random': ('random',)},\n"
        "        'split': 'test', 'num_examples': 4, 'example_seed': 0,\n"
        "        'temperature': 0.0, 'batch_size': 2, 'queue_length': 4})\n"
    )
    arguments = [f"--checkpoint={checkpoint}", f"--workdir={tmp_path / 'runs'}"]
    arguments += [f"--config={tmp_path / 'config.py'}", "--task=sudoku"]
    own = batches.stream
    monkeypatch.setattr(batches, "stream", lambda **kw: own(**kw, period=0.0))
    with monkeypatch.context() as patch:
        patch.setattr(Parallel, "stream", full)
        status, out, error = run_script(script, *arguments)
    assert (status, out) == (1, "")
    assert error == (
        "error: batch_size (2) must be smaller: this batch and model take more memory "
        "than there is (RESOURCE_EXHAUSTED: Out of memory); finished rows are kept: "
        "the same command with a smaller --batch_size continues\n"
    )
    kept = read_records(tmp_path / "runs")
    assert 0 < len(kept) < 4
    status, _, error = run_script(script, *arguments, "--batch_size=1")
    assert status == 0, error
    found = read_records(tmp_path / "runs")
    assert found[: len(kept)] == kept and len(found) == 4


def test_tokens_of_rows_that_are_not_complete_do_not_count():
    record = {
        "sampler": "threshold(threshold=0.9)",
        "seed": 0,
        "is_correct": False,
        "nfe": 10,
        "seconds": 1.0,
        "compile_seconds": 0.0,
        "num_tokens": 20,
    }
    rows = [
        record | {"index": 0, "is_complete": True},
        record | {"index": 1, "is_complete": False},
        record | {"index": 2},  # of an earlier version
    ]
    [summary] = evaluation.summaries(rows)
    assert summary.num_tokens.tolist() == [[20, 0, 20]]
    assert summary.tokens_per_forward == pytest.approx(40 / 30)
