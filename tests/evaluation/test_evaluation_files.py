"""An evaluation's directory: the manifest, damaged records, stops."""

import json
import random

import jax
import pytest
from evaluation_runs import SPECS, run

from dlm_jax import samplers
from dlm_jax.errors import InputError
from dlm_jax.evaluation.records import Log, Manifest, environments, read_records


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
