"""Records and manifests of evaluations: read, or one line; nothing else is changed."""

import json
import os

import pytest
from damage import WRONG_FILES, bytes_of, contents_of, inputs, read, texts_of
from hypothesis import example, given
from hypothesis import strategies as st

from dlm_jax.errors import InputError
from dlm_jax.evaluation import records
from dlm_jax.evaluation import run as evaluation
from dlm_jax.evaluation.provenance import describe

IDENTITY = {"task": "maze", "checkpoint": "0f", "num_examples": 2, "split": "test"}
MANIFEST = {
    "identity": IDENTITY,
    "runs": [{"samplers": ["margin"], "environment": {"commit": "0cd3c7", "jax": "0"}}],
}
RECORD = {
    "sampler": "margin(schedule=fixed(k=1))",
    "cache": "none",
    "seed": 0,
    "index": 1,
    "text": "15",
    "is_correct": True,
    "nfe": 4,
    "num_tokens": 2,
    "is_complete": True,
    "has_nan": False,
    "seconds": 0.5,
    "compile_seconds": 1.5,
    "run": 0,
}
LINES = st.lists(
    st.one_of(texts_of(RECORD), st.just(json.dumps(RECORD)), st.text(max_size=9)),
    max_size=3,
).map(lambda lines: "".join(x + "\n" for x in lines).encode("utf-8", "surrogatepass"))


@pytest.fixture
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluation")


def _readers(folder):
    for reader in (records.read_records, records.environments, records.commits):
        read(reader, folder)
    found = read(records.read_records, folder)
    if not isinstance(found, Exception):
        for record in found:
            records.key(record)
        # Whatever a line holds, a table can be made of it.
        last = {records.key(record): record for record in found}
        read(evaluation.summaries, list(last.values()), ["here"])
    environments = read(records.environments, folder)
    if not isinstance(environments, Exception):
        for environment in environments:
            read(describe, environment)
    read(records.check_directory, folder, IDENTITY)
    read(records.Manifest, folder, IDENTITY, {})
    read(records.Log, folder)
    assert set(os.listdir(folder)) <= {"manifest.json", "records.jsonl"}


@inputs(20)
@given(content=st.one_of(contents_of(MANIFEST), st.sampled_from(WRONG_FILES)))
@example(content=b"[" * 100_000)
@example(content=b'{"identity": {}, "runs": [{"environment": {"commit": []}}]}')
def test_manifest(folder, content):
    (folder / "manifest.json").write_bytes(content)
    (folder / "records.jsonl").write_text(json.dumps(RECORD) + "\n")
    _readers(folder)
    assert (folder / "manifest.json").read_bytes() == content


@inputs(20)
@given(
    content=st.one_of(
        LINES,
        bytes_of((json.dumps(RECORD) + "\n").encode() * 2),
        st.sampled_from(WRONG_FILES),
    )
)
@example(content=b"[" * 100_000 + b"\n")
def test_records(folder, content):
    (folder / "manifest.json").write_text(json.dumps(MANIFEST))
    path = folder / "records.jsonl"
    path.write_bytes(content)
    _readers(folder)
    # At most a line that was not written to its end is cut off.
    left = path.read_bytes()
    assert content.startswith(left)
    assert b"\n" not in content[len(left) :]


def test_records_of_another_kind(folder):
    (folder / "records.jsonl").mkdir()
    assert isinstance(read(records.read_records, folder), (InputError, OSError))
