"""safetensors files and their index: tensors, or one line."""

import dataclasses
import json
import shutil

import checkpoint_files
import numpy as np
import pytest
from damage import (
    MESSAGE,
    VALUES,
    WRONG_FILES,
    bytes_of,
    contents_of,
    damaged,
    inputs,
    read,
)
from damage import texts_of as json_of
from hypothesis import example, given
from hypothesis import strategies as st

from dlm_jax import checkpoints
from dlm_jax.checkpoints import common, hf_format
from dlm_jax.errors import InputError
from dlm_jax.models import llada

DTYPES = [
    "BF16",
    "F16",
    "F32",
    "F64",
    "I8",
    "I64",
    "U8",
    "BOOL",
    "F8_E4M3",
    "F8_E5M2",
    "F8_E8M0",
    "F4",
    "F6_E2M3",
    "C64",
    "X",
]
SIZES = st.sampled_from([0, 1, 7, 8, 2**20, 2**31, 2**53, 2**60, 2**63, 2**64 - 1, -1])
TIED = dataclasses.replace(checkpoint_files.CONFIG, weight_tying=True, n_layers=1)


def _file(header, data=b"", length=None):
    header = header if isinstance(header, bytes) else header.encode("utf-8", "replace")
    length = len(header) if length is None else length
    return (length % 2**64).to_bytes(8, "little") + header + data


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small checkpoint of one shard."""
    path = tmp_path_factory.mktemp("whole") / "model"
    tensors = checkpoint_files.random_tensors(TIED)
    return checkpoint_files.write(path, tensors, TIED)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, whole):
    """What is damaged; each test writes the file that it reads."""
    path = tmp_path_factory.mktemp("damaged")
    shutil.copy(whole / "config.json", path)
    return path


@pytest.fixture(scope="module")
def expected():
    """The tensors that the model needs."""
    model = common.abstract(llada.LLaDA, TIED, np.dtype("float32"))
    weights = llada.FAMILY.weights
    return hf_format.slots(weights, common.shapes(common.flatten(model)))


HEADER = {
    "__metadata__": {"format": "pt"},
    "model.transformer.wte.weight": {
        "dtype": "F32",
        "shape": [304, 16],
        "data_offsets": [0, 19456],
    },
    "model.transformer.ff_out.weight": {
        "dtype": "BF16",
        "shape": [2, 2],
        "data_offsets": [19456, 19464],
    },
}
DATA = bytes(19464)
FIELDS = st.one_of(SIZES, st.lists(SIZES, max_size=3), st.sampled_from(DTYPES), VALUES)


@st.composite
def files(draw):
    header = draw(
        st.one_of(
            json_of(HEADER, FIELDS),
            damaged(HEADER, FIELDS).map(json.dumps),
            st.just(json.dumps(HEADER)),
            st.text(max_size=30),
        )
    )
    length = draw(st.none() | SIZES)
    data = draw(st.sampled_from([DATA, DATA[:-1], DATA + b"\0", b""]))
    return _file(header, data, length)


def _header(**tensors):
    return json.dumps(
        {
            name: {"dtype": "F32", "shape": shape, "data_offsets": [start, stop]}
            for name, (shape, start, stop) in tensors.items()
        }
    )


WTE, HEAD = "model.transformer.wte.weight", "model.transformer.ff_out.weight"


@inputs(50)
@given(
    content=st.one_of(
        files(),
        files(),
        bytes_of(_file(json.dumps(HEADER), DATA)),
        st.binary(max_size=64),
        st.sampled_from(WRONG_FILES),
    )
)
@example(content=_file(b"{}", length=2**60))
@example(content=_file(_header(a=([2**60], 0, 4))))
@example(content=_file(_header(**{WTE: ([], 0, 4), HEAD: ([], 4, 8)}), bytes(8)))
@example(content=_file(_header(**{"a." * 100_000 + "b": ([1], 0, 4)}), bytes(4)))
def test_weights(folder, expected, content):
    (folder / "model.safetensors").write_bytes(content)
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    found = read(hf_format.survey, folder)
    if not isinstance(found, Exception):
        problems = read(hf_format.compare, llada.FAMILY.weights, expected, found)
        assert problems  # None of these is the whole model.
        error = checkpoints.CheckpointError(folder, problems)
        assert len(str(error)) < MESSAGE


SHARDS = ["model-1.safetensors", "model-2.safetensors"]
INDEX = {
    "metadata": {"total_size": 19456},
    "weight_map": {WTE: SHARDS[0], HEAD: SHARDS[1], "a": SHARDS[1]},
}
NAMES = st.sampled_from(
    [*SHARDS, "", ".", "..", "a\0b", "\ud800", "/etc/passwd", "../a", "config.json"]
)


@inputs(25)
@given(
    content=st.one_of(
        contents_of(INDEX, NAMES | VALUES),
        contents_of(INDEX, NAMES),
        st.sampled_from(WRONG_FILES),
    )
)
@example(content=b'{"weight_map": {"a": ".."}}')
@example(content=b'{"weight_map": {"a": ""}}')
@example(content=b'{"weight_map": {"a": "b\\u0000"}}')
@example(content=b'{"weight_map": {"a": "\\ud800"}}')
def test_index(folder, content):
    (folder / "model.safetensors").unlink(missing_ok=True)
    for shard in SHARDS:
        (folder / shard).write_bytes(_file(json.dumps(HEADER), DATA))
    (folder / "model.safetensors.index.json").write_bytes(content)
    read(hf_format.survey, folder)
    named = read(checkpoints.essential_files, folder)
    if not isinstance(named, Exception):
        assert {path.parent for path in named} == {folder}
    for shard in SHARDS:
        (folder / shard).unlink()
    (folder / "model.safetensors.index.json").unlink()


def test_index_of_many_tensors(folder):
    # Looking for repeated keys once took the square of their number.
    index = {"weight_map": {f"a.{i}": SHARDS[0] for i in range(50_000)}}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    assert len(read(hf_format.survey, folder).reported) == 50_000
    path.unlink()


@inputs(5)
@given(edit=st.tuples(st.integers(8, 1400), st.integers(1, 255)))
def test_load(tmp_path_factory, whole, edit):
    place, bits = edit
    path = tmp_path_factory.mktemp("loaded") / "model"
    shutil.copytree(whole, path)
    content = bytearray((path / "model.safetensors").read_bytes())
    content[place] ^= bits
    (path / "model.safetensors").write_bytes(content)
    read(checkpoints.load, path)
    shutil.rmtree(path)


def test_scalars_that_are_tied(folder):
    content = _file(_header(**{WTE: ([], 0, 4), HEAD: ([], 4, 8)}), bytes(8))
    (folder / "model.safetensors").write_bytes(content)
    assert isinstance(read(checkpoints.load, folder), InputError)
