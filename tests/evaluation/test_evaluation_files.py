"""An evaluation's directory: the manifest, damaged records, stops."""

import dataclasses
import errno
import json
import os
import random

import jax
import pytest
from evaluation_runs import PLAN, SPECS, run

from dlm_jax import samplers
from dlm_jax.errors import InputError
from dlm_jax.evaluation import run as evaluation
from dlm_jax.evaluation import tables
from dlm_jax.evaluation.records import (
    Log,
    Manifest,
    conditions,
    environments,
    read_records,
)


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


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("is_correct", None),
        ("is_correct", "yes"),
        ("nfe", None),
        ("nfe", "12"),
        ("num_tokens", None),
        ("seconds", [1]),
        ("compile_seconds", None),
        ("is_complete", "true"),
        ("run", "0"),
    ],
)
def test_a_record_that_was_changed_by_hand_is_named(whole, tmp_path, field, value):
    """None: the field is not there. Tables need it."""
    first, second, *rest = (whole[0] / "records.jsonl").read_bytes().splitlines()
    record = json.loads(second)
    del record[field]
    if value is not None:
        record[field] = value
    path = tmp_path / "records.jsonl"
    content = b"\n".join([first, json.dumps(record).encode(), *rest, b""])
    path.write_bytes(content)
    for read in (Log, read_records):
        with pytest.raises(InputError, match=r"records.jsonl, line 2 .* must be a rec"):
            read(tmp_path)
    assert path.read_bytes() == content


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


def test_a_run_goes_on_with_other_sizes_to_the_same_records(model, whole, tmp_path):
    def stop(records):
        raise KeyboardInterrupt

    def without_place(records):
        drop = ("place", "batch_size")
        return [{k: r[k] for k in r if k not in drop} for r in records]

    # Two stops, each with sizes of its own.
    for sizes in ((2, 4), (1, 3)):
        plan = dataclasses.replace(PLAN, batch_size=sizes[0], queue_length=sizes[1])
        with pytest.raises(KeyboardInterrupt):
            run(model, tmp_path, SPECS[:2], plan=plan, on_records=_later(stop))
    plan = dataclasses.replace(PLAN, batch_size=4, queue_length=9)
    records = run(model, tmp_path, SPECS[:2], plan=plan)
    assert without_place(records) == without_place(whole[1][:12])
    # Each record, and each run, says what its times depend on.
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert "batch_size" not in manifest["identity"]
    listed = [(run["batch_size"], run["queue_length"]) for run in manifest["runs"]]
    assert listed == [(2, 4), (1, 3), (4, 9)]
    found = read_records(tmp_path)
    assert {r["run"] for r in found} == {0, 1, 2}
    assert all(r["batch_size"] == listed[r["run"]][0] for r in found)
    specs = {record["sampler"] for record in found}
    of_both = [r for r in read_records(whole[0]) if r["sampler"] in specs]
    # The table is the unbroken run's, but for times, which are not mixed up silently.
    mixed, plain = (
        tables.accuracy(evaluation.summaries(some, conditions(path))).splitlines()
        for some, path in ((found, tmp_path), (of_both, whole[0]))
    )
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in mixed]
    expected = [[c.strip() for c in line.split("|")[1:-1]] for line in plain]
    assert cells[0] == expected[0]
    assert sorted(line[:8] for line in cells[2:]) == sorted(
        line[:8] for line in expected[2:]
    )
    # Rows of several batch sizes have no tokens per second, and the lines below say so.
    place = cells[0].index("tokens / s (TPS)")
    assert "-" in {line[place] for line in cells[2:]}
    assert "-" not in {line[place] for line in expected[2:]}
    said = tables.conditions(evaluation.summaries(found, conditions(tmp_path)))
    assert "No TPS for" in said and "batch 2" in said and "batch 1" in said


def _later(stop):
    """Calls stop with the third records that are new or known."""
    calls = []

    def on_records(records):
        calls.append(records)
        if len(calls) > 2:
            stop(records)

    return on_records


def test_a_directory_of_version_0_1_goes_on_with_other_sizes(model, whole, tmp_path):
    """Its manifest has the sizes in the identity."""
    manifest = json.loads((whole[0] / "manifest.json").read_text())
    for name in ("batch_size", "queue_length"):
        manifest["identity"][name] = manifest["runs"][0].pop(name)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    first = (whole[0] / "records.jsonl").read_bytes().splitlines(keepends=True)[0]
    (tmp_path / "records.jsonl").write_bytes(first)
    plan = dataclasses.replace(PLAN, batch_size=1, queue_length=3)
    run(model, tmp_path, SPECS[:1], num=3, plan=plan)
    changed = json.loads((tmp_path / "manifest.json").read_text())
    assert "batch_size" not in changed["identity"]
    assert [r["batch_size"] for r in changed["runs"]] == [PLAN.batch_size, 1]


def test_a_full_disk_leaves_whole_records(model, whole, monkeypatch, tmp_path):
    fsync, num = os.fsync, 0

    def full(descriptor):
        nonlocal num
        num += 1
        if num == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError) as caught:
            run(model, tmp_path)
    path = tmp_path / "records.jsonl"
    assert str(caught.value).startswith(f"{path} cannot be written: No space left on")
    content = path.read_bytes()
    assert content.endswith(b"}\n") and 2 <= content.count(b"\n") < 18
    assert run(model, tmp_path) == whole[1]
    assert path.read_bytes().startswith(content)


def test_calls_with_the_longest_rows_come_first():
    keys = evaluation._keys(evaluation.lanes(["random"], (0,), False)[0], 7)
    calls = evaluation._calls(keys, 3, [5, 5, 5, 4, 9, 4, 7])
    assert [[key.index for key in call] for call in calls] == [
        [3, 4, 5],
        [6],
        [0, 1, 2],
    ]
    equal = evaluation._calls(keys, 3, [5] * 7)
    assert [call[0].index for call in equal] == [0, 3, 6]
