"""Evaluation: what is judged and counted, and that a stop changes nothing."""

import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
import zlib

import jax
import numpy as np
import pytest
import tqdm
from flax import nnx

from dlm_jax import checkpoints, samplers, tasks
from dlm_jax.devices import batches
from dlm_jax.devices.runner import DataParallel
from dlm_jax.errors import InputError
from dlm_jax.evaluation import provenance, tables
from dlm_jax.evaluation import run as evaluation
from dlm_jax.evaluation.records import Log, Manifest, environments, read_records
from dlm_jax.models import as_denoiser
from dlm_jax.models.llada import LLaDA
from dlm_jax.tasks import humaneval, sudoku
from dlm_jax.tasks.base import Example, Verdict
from dlm_jax.text.codec import Codec

TASK = sudoku.Sudoku()
SHAPE = {"d_model": 32, "n_heads": 2, "n_layers": 2, "mlp_hidden_size": 48}
SPECS = ("threshold(threshold=0.5)", "threshold(threshold=0.9)", "random")
PLAN = evaluation.Plan(batch_size=2, queue_length=4)


class Arbitrary(sudoku.Sudoku):
    """An arbitrary half is right: a random model would solve no puzzle."""

    def verdict(self, example: Example, answer: str) -> Verdict:
        number = zlib.crc32(answer.encode())
        return Verdict(number % 2 == 0, str(number))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    graph, params = nnx.split(LLaDA(TASK.model_config(**SHAPE), rngs=nnx.Rngs(0)))
    model = nnx.merge(graph, jax.tree.map(lambda weight: 4 * weight, params))
    files = TASK.tokenizer().save_pretrained(tmp_path_factory.mktemp("tokenizer"))
    directory = tmp_path_factory.mktemp("model") / "hf"
    checkpoints.save_hf(model, directory, files)
    return directory


@pytest.fixture(scope="module")
def model(checkpoint):
    model = checkpoints.load(checkpoint)
    codec = Codec.load(checkpoint, model.config)
    return DataParallel(*as_denoiser(model)), codec


def run(
    model,
    directory,
    specs=SPECS,
    num=6,
    plan=PLAN,
    is_mixed=False,
    seeds=(0,),
    on_records=lambda records: None,
    block_length=None,
):
    parallel, codec = model
    todo = evaluation.lanes(specs, seeds, is_mixed)
    about = {"checkpoint": "x"}
    task = Arbitrary().with_lengths(block_length=block_length)
    records = evaluation.run(
        parallel,
        codec,
        task,
        plan,
        todo,
        num,
        directory,
        about=about,
        on_records=on_records,
    )
    times = ("seconds", "compile_seconds", "run")
    return [{k: v for k, v in r.items() if k not in times} for r in records]


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    return directory, run(model, directory)


def test_records_are_what_the_samplers_did(model, whole):
    parallel, codec = model
    directory, records = whole
    lines = (directory / "records.jsonl").read_text().splitlines()
    assert len(lines) == len(records) == 18
    assert [(r["sampler"], r["index"]) for r in records] == [
        (samplers.canonical_spec(spec), i) for spec in SPECS for i in range(6)
    ]
    examples = TASK.examples("test", 6)
    rows = TASK.encode(codec, examples)
    expected = {}
    for done in batches.stream(
        parallel, samplers.parse(SPECS[0]), rows, TASK.options(codec), 0, 6
    ):
        for place, index in enumerate(done.indices):
            nfe = done.filled.num_steps[place]
            expected[index] = done.filled.tokens[place], nfe
    for record, row, i in zip(records, rows, range(6), strict=False):
        tokens, nfe = expected[i]
        assert record["text"] == codec.decode(row, tokens)
        assert record["nfe"] == nfe
        assert record["num_tokens"] == row.is_blank.sum()
        number = zlib.crc32(record["text"].encode())
        assert record["is_correct"] == (number % 2 == 0)
        assert record["reason"] == str(number)
    assert 0 < sum(record["is_correct"] for record in records) < 18


@pytest.mark.parametrize("seed", range(5))
def test_a_log_cut_anywhere_is_completed_to_the_same(model, whole, tmp_path, seed):
    directory, records = whole
    content = (directory / "records.jsonl").read_bytes()
    cut = random.Random(seed).randrange(len(content))
    (tmp_path / "records.jsonl").write_bytes(content[:cut])
    manifest = (directory / "manifest.json").read_bytes()
    (tmp_path / "manifest.json").write_bytes(manifest)
    assert run(model, tmp_path) == records
    completed = [
        {k: v for k, v in json.loads(line).items() if k not in ("seconds",)}
        for line in (tmp_path / "records.jsonl").read_text().splitlines()
    ]
    assert len(completed) == len(records)
    assert len(read_records(tmp_path)) == len(records)


def test_what_is_there_is_not_done_again_and_more_may_be_added(model, tmp_path):
    first = run(model, tmp_path, SPECS[:1], num=4)
    size = (tmp_path / "records.jsonl").stat().st_size
    assert run(model, tmp_path, SPECS[:1], num=4) == first
    assert (tmp_path / "records.jsonl").stat().st_size == size
    more = run(model, tmp_path, SPECS[:2], num=6)
    assert more[:4] == first and len(more) == 12
    assert len(read_records(tmp_path)) == 12


def test_a_mixed_lane_gives_each_sampler_what_it_gives_alone(model, whole, tmp_path):
    _, records = whole
    assert len(evaluation.lanes(SPECS, (0,), is_mixed=True)) == 2
    mixed = run(model, tmp_path, is_mixed=True)
    drop = ("place",)

    def sort(records):
        cleaned = [{k: v for k, v in r.items() if k not in drop} for r in records]
        return sorted(cleaned, key=lambda r: (r["sampler"], r["index"]))

    assert sort(mixed) == sort(records)


def test_seeds_change_only_what_is_random(model, tmp_path):
    records = run(model, tmp_path, ("random", SPECS[0]), num=3, seeds=(0, 1))
    texts = {(r["sampler"][:6], r["seed"], r["index"]): r["text"] for r in records}
    assert all(texts["thresh", 0, i] == texts["thresh", 1, i] for i in range(3))
    assert any(texts["random", 0, i] != texts["random", 1, i] for i in range(3))
    summary, other = evaluation.summaries(read_records(tmp_path))
    assert summary.sampler == "random(schedule=fixed(k=1))"
    assert summary.is_correct.shape == other.nfe.shape == (2, 3)
    blanks = [r["num_tokens"] for r in records[:3]]
    np.testing.assert_array_equal(summary.nfe, [blanks, blanks])


def test_table_counts(tmp_path):
    summary = evaluation.Summary(
        sampler="entropy_bound(gamma=0.1, error_proxy='entropy')",
        is_correct=np.array([[True, True, False, True]]),
        nfe=np.array([[2.0, 4.0, 4.0, 10.0]]),
        num_tokens=np.array([[10.0, 10.0, 10.0, 10.0]]),
        seconds=2.0,
        compile_seconds=1.0,
    )
    head, _, line = tables.accuracy([summary]).splitlines()
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:4] == ["entropy_bound", "3", "4", "75.0%"]
    assert cells[5:] == ["5.00", "3 - 4 - 8", "2.00", "20", "2.0", "1.0"]
    assert len(head) == len(line)


@pytest.mark.parametrize("num_seeds", [1, 2])
def test_table_of_pairs_is_on_the_same_examples(num_seeds):
    def summary(sampler, rights, nfe):
        is_correct = np.tile(np.array([rights], bool), (num_seeds, 1))
        nfe = np.full(is_correct.shape, nfe)
        return evaluation.Summary(sampler, is_correct, nfe, nfe, 1.0, 1.0)

    table = tables.paired(
        [
            summary("random", [1, 1, 0, 0, 0, 0, 0, 0], 8.0),
            summary("margin", [1, 0, 1, 1, 1, 0, 0, 0], 4.0),
            summary("entropy", [1, 1, 0, 0, 0, 0, 0, 0], 8.0),
        ]
    )
    _, _, margin, entropy = table.splitlines()
    cells = [cell.strip() for cell in margin.strip("|").split("|")]
    assert cells[:2] == ["margin", "+25.0"]
    low, high = map(float, cells[2].split(" to "))
    assert low < 0 < 25 < high
    # Three to one of four unequal ones: 5 of 16 outcomes are as uneven, on either side.
    assert cells[3:6] == (["3", "1", "0.62"] if num_seeds == 1 else [""] * 3)
    assert cells[6:] == ["2.00", "2.00 to 2.00"]
    cells = [cell.strip() for cell in entropy.split("|")]
    # The score interval's z^2 / (8 + z^2): that they agree on eight proves little.
    assert cells[2:4] == ["+0.0", "-32.4 to +32.4"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plan": evaluation.Plan(temperature=0.5, batch_size=2)}, "temperature"),
        ({"num": 0}, r"num_examples \(0\) must be at least 1"),
        ({"plan": evaluation.Plan(batch_size=0)}, r"batch_size \(0\) must be at least"),
        ({"specs": ("saber", "saber(n=2)")}, "must be given once"),
        ({"seeds": (0, 1, 0)}, r"seeds \(0, 1, 0\) must differ"),
        (
            {"plan": evaluation.Plan(example_seed=-1)},
            r"examples \(-1\) must be an",
        ),
        ({"plan": evaluation.Plan(batch_size=8, queue_length=4)}, "queue_length"),
        ({"plan": evaluation.Plan(split="train")}, r"split \(train\) must be one of"),
        ({"block_length": 16}, r"block_length \(16\) must be None, as in the evalua"),
    ],
)
def test_bad_input_is_named(model, whole, changes, message):
    directory, _ = whole
    before = sorted(p.stat().st_size for p in directory.iterdir())
    with pytest.raises(InputError, match=message):
        run(model, directory, **changes)
    assert sorted(p.stat().st_size for p in directory.iterdir()) == before


def test_lengths_are_of_a_copy_and_reach_rows_and_options():
    task = tasks.get("countdown")
    codec = Codec.of(task.tokenizer(), task.model_config(**SHAPE))
    own = task.gen_length
    for asked, lengths in (
        ({}, (own, None)),
        ({"gen_length": 20}, (20, None)),
        ({"block_length": own // 2}, (own, own // 2)),
        ({"gen_length": 20, "block_length": 5}, (20, 5)),
    ):
        changed = task.with_lengths(**asked)
        options = changed.options(codec, 0.5)
        assert (options.gen_length, options.block_length) == lengths
        rows = changed.encode(codec, task.examples("test", 2))
        assert [row.is_blank.sum() for row in rows] == [lengths[0]] * 2
    assert (task.gen_length, task.block_length) == (own, None) and own != 20
    # HumanEval writes the rows of a model without a chat template itself.
    example = Example("made up", "", humaneval.Problem("1+1", "f", "", ""))
    (row,) = tasks.get("humaneval").with_lengths(8, 4).encode(codec, [example])
    assert row.is_blank.sum() == 8


@pytest.mark.parametrize(
    ("name", "lengths", "message"),
    [
        ("humaneval", {"gen_length": 200}, r"multiple of block_length \(128\)"),
        ("humaneval", {"block_length": 100}, r"gen_length \(256\) must be a multiple"),
        ("humaneval", {"block_length": 0}, r"block_length \(0\) must be at least 1"),
        ("humaneval", {"gen_length": -256}, r"gen_length \(-256\) must be at least 1"),
        ("sudoku", {"gen_length": 64}, r"gen_length \(64\) must not be set for sudoku"),
        ("sudoku", {"block_length": 7}, r"gen_length \(64\) must be a multiple of bl"),
    ],
)
def test_lengths_that_do_not_fit_are_named(name, lengths, message):
    with pytest.raises(InputError, match=message):
        tasks.get(name).with_lengths(**lengths)


def test_a_block_length_is_recorded_and_must_stay(model, whole, tmp_path):
    _, in_one_block = whole
    specs = ("threshold(threshold=0.5)", "random")
    records = run(model, tmp_path, specs, block_length=16)
    identity = json.loads((tmp_path / "manifest.json").read_text())["identity"]
    assert (identity["gen_length"], identity["block_length"]) == (64, 16)
    # Blocks hold a threshold back: more forwards.
    spec = samplers.canonical_spec(specs[0])
    nfe, free = (
        sum(record["nfe"] for record in found if record["sampler"] == spec)
        for found in (records, in_one_block)
    )
    assert nfe > free
    before = (tmp_path / "records.jsonl").read_bytes()
    for other in (None, 32):
        with pytest.raises(InputError, match=r"block_length .* must be 16, as in the"):
            run(model, tmp_path, specs, block_length=other)
    assert (tmp_path / "records.jsonl").read_bytes() == before
    assert run(model, tmp_path, specs, block_length=16) == records


@pytest.mark.parametrize("changes", [{"temperature": -1.0}, {"batch_size": -2}])
def test_bad_input_leaves_a_new_directory_as_it_was(model, tmp_path, changes):
    bad = dataclasses.replace(PLAN, **changes)
    with pytest.raises(InputError, match=next(iter(changes))):
        run(model, tmp_path, plan=bad)
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_lists_the_runs_that_added_records(model, tmp_path):
    run(model, tmp_path, SPECS[:1], num=4)
    run(model, tmp_path, SPECS[:1], num=4)  # Adds nothing.
    run(model, tmp_path, SPECS[1:], num=3, seeds=(0, 1))
    runs = json.loads((tmp_path / "manifest.json").read_text())["runs"]
    specs = [samplers.canonical_spec(spec) for spec in SPECS]
    listed = [(r["samplers"], r["seeds"], r["num_examples"]) for r in runs]
    assert listed == [(specs[:1], [0], 4), (sorted(specs[1:]), [0, 1], 3)]
    (environment,) = environments(tmp_path)
    assert environment == runs[0]["environment"] == runs[1]["environment"]
    assert environment["jax"] == jax.__version__


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{}", "no identity"),
        ('{"identity": {}}', "no runs"),
        ('{"identity": 3, "runs": []}', "identity is 3"),
        ('{"identity": {}, "runs": [{}]}', "no environment"),
        ('{"identity": {}, "runs": 7}', "not iterable"),
        ('{"identity":', "Expecting value: line 1"),
        ("", "Expecting value: line 1"),
        ("hello", "Expecting value: line 1"),
        (b"\xff\xfe\xff", "can't decode"),
        ("[]", "list indices"),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path, content, reason):
    path = tmp_path / "manifest.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for read in (
        lambda: Manifest(tmp_path, {}, {}),
        lambda: environments(tmp_path),
    ):
        with pytest.raises(InputError) as error:
            read()
        said = str(error.value)
        assert said.startswith(f"{path} must be the manifest of an evaluation (")
        assert reason in said and "another directory" in said and "\n" not in said


def test_records_without_a_manifest_are_of_nobody_knows_what(model, whole, tmp_path):
    content = (whole[0] / "records.jsonl").read_bytes()
    (tmp_path / "records.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=r"has records.jsonl, but no manifest.json"):
        run(model, tmp_path)
    assert (tmp_path / "records.jsonl").read_bytes() == content


@pytest.mark.parametrize(
    "line",
    [
        "",
        "hello",
        '{"sampler": "random", "se',
        "[]",
        "3",
        "null",
        '{"a": 1}',
        '{"sampler": "random", "seed": 0, "index": [1]}',
        b"\xff" * 500,
    ],
)
@pytest.mark.parametrize("tail", [b"", b'{"sampler": "ran'])
def test_a_damaged_record_is_named(whole, tmp_path, line, tail):
    """But for a last line without an end, which a kill leaves."""
    first, *rest = (whole[0] / "records.jsonl").read_bytes().splitlines()
    line = line if isinstance(line, bytes) else line.encode()
    content = b"\n".join([first, line, *rest, tail])
    path = tmp_path / "records.jsonl"
    path.write_bytes(content)
    for read in (Log, read_records):
        with pytest.raises(InputError) as error:
            read(tmp_path)
        said = str(error.value)
        assert said.startswith(f"{path}, line 2 ({line.decode(errors='replace')!r:.60}")
        assert "delete the line" in said and "\n" not in said and len(said) < 400
        assert path.read_bytes() == content
    path.write_bytes(b"\n".join([first, *rest, tail]))
    assert len(read_records(tmp_path)) == 1 + len(rest)


def test_more_examples_ask_for_those_only(model, tmp_path, whole):
    """3 are there, so the second run's calls begin in the middle of a whole run's."""
    run(model, tmp_path, SPECS[:1], num=3)
    shown = []
    records = run(model, tmp_path, SPECS[:1], num=6, on_records=shown.append)
    assert len(shown[0]) == 3 and sum(map(len, shown)) == 6
    kept = read_records(tmp_path)
    assert sorted(r["index"] for r in kept[:3]) == [0, 1, 2] and len(kept) == 6
    _, expected = whole
    names = ("sampler", "index", "is_correct", "nfe", "text")
    assert [[r[n] for n in names] for r in records] == [
        [r[n] for n in names] for r in expected[:6]
    ]


def test_what_was_handed_over_before_a_stop_is_kept(model, whole, tmp_path):
    """The loop stops within the first call of four rows, two of them in flight."""

    def stop(records):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path, on_records=stop)
    kept = read_records(tmp_path)
    assert 0 < len(kept) < 4
    assert run(model, tmp_path) == whole[1]
    assert read_records(tmp_path)[: len(kept)] == kept


def test_samplers_take_turns(whole):
    """Four rows of each, then the other two; in a call, those that are done first."""
    directory, _ = whole
    found = read_records(directory)
    specs = [samplers.canonical_spec(spec) for spec in SPECS]
    calls = [found[i : i + 4] for i in (0, 4, 8)] + [
        found[i : i + 2] for i in (12, 14, 16)
    ]
    assert [sorted((r["sampler"], r["index"]) for r in call) for call in calls] == [
        [(spec, i) for i in indices]
        for indices in (range(4), range(4, 6))
        for spec in specs
    ]


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
    accuracy, paired = (table.splitlines() for table in out.split("\n\n"))
    assert (len(accuracy), len(paired)) == (4, 3)
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
    assert "threshold: 100%" in error and "6/6" in error
    assert f"right={num_right / 3:.1%}, seed=0" in error

    status, more, _ = run_script("evaluate", *arguments, "--sampler=margin")
    assert status == 0
    last = f"The records of {workdir} are of 2 commits: abcdef0, fedcba9+."
    assert more.splitlines()[-2:] == ["", last]
    records = read_records(workdir)
    assert [record["run"] for record in records] == [0] * 6 + [1] * 3


@pytest.mark.parametrize("script", ["evaluate", "sweep"])
@pytest.mark.parametrize(
    "flag", ["--block_length=24", "--block_length=24", "--gen_length=100"]
)
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


def _script(checkpoint, workdir):
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
        "--batch_size=4",
        "--queue_length=10",
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
    rng, num_kills = random.Random(0), 0
    while num_kills < 5:
        size = _size(tmp_path / "killed")
        process = subprocess.Popen(
            _script(checkpoint, tmp_path / "killed"),
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
        num_kills += 1
    last = subprocess.run(
        _script(checkpoint, tmp_path / "killed"), cwd=root, capture_output=True
    )
    assert last.returncode == 0, last.stderr
    fields = ("sampler", "seed", "index", "text", "nfe", "is_correct", "place")
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
