"""Evaluation: what is judged and counted, and that a stop changes nothing."""

import dataclasses
import json
import zlib

import numpy as np
import pytest
from evaluation_runs import PLAN, SHAPE, SPECS, TASK, run

from dlm_jax import samplers, tasks
from dlm_jax.devices import batches
from dlm_jax.errors import InputError
from dlm_jax.evaluation import run as evaluation
from dlm_jax.evaluation import tables
from dlm_jax.evaluation.records import read_records
from dlm_jax.tasks import humaneval
from dlm_jax.tasks.base import Example
from dlm_jax.text.codec import Codec


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
        cache="none",
        is_correct=np.array([[True, True, False, True]]),
        nfe=np.array([[2.0, 4.0, 4.0, 10.0]]),
        num_whole=np.array([[2.0, 4.0, 4.0, 10.0]]),
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
        return evaluation.Summary(
            sampler=sampler,
            cache="none",
            is_correct=is_correct,
            nfe=nfe,
            num_whole=nfe,
            num_tokens=nfe,
            seconds=1.0,
            compile_seconds=1.0,
        )

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


@pytest.mark.parametrize("precision", ["highest", "default"])
def test_a_precision_reaches_the_options_and_the_manifest(precision):
    codec = Codec.of(TASK.tokenizer(), TASK.model_config(**SHAPE))
    plan = evaluation.Plan.of({"precision": precision})
    assert plan.options(TASK, codec, 0).precision == precision
    # What older versions began goes on.
    known = {} if precision == "highest" else {"precision": precision}
    fields = evaluation.Plan().identity
    assert {x: y for x, y in plan.identity.items() if x not in fields} == known


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
