"""config.json and generation_config.json: a shape that can be built, or one line."""

import json
import math
import shutil

import pytest
from chat_tokenizer import CONFIG, make_tokenizer
from damage import WRONG_FILES, contents_of, inputs, read
from helpers import DATA
from hypothesis import example, given
from hypothesis import strategies as st

from dlm_jax import checkpoints
from dlm_jax.errors import InputError
from dlm_jax.outline import read_outline
from dlm_jax.text.stops import eos_ids

LLADA = CONFIG.to_hf()
SDAR = json.loads((DATA / "checkpoints" / "sdar_a" / "config.json").read_text())
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
CONTENTS = st.one_of(
    contents_of(LLADA),
    contents_of(SDAR),
    contents_of({**SDAR, **ROPE, "layer_types": ["full_attention"]}),
    contents_of({**LLADA, "mlp_hidden_size": None, "hidden_size": LLADA["d_model"]}),
    st.sampled_from(WRONG_FILES),
)


def _with(config, **changes):
    return json.dumps({**config, **changes}).encode()


# `json.dumps` would write neither.
LONG = json.dumps(LLADA).replace('"rope_theta": 10000.0', '"rope_theta": 1' + "0" * 400)
DEEP = '{"rope_scaling": ' + "[" * 940 + "]" * 940 + "}"
FOUND = [
    _with(SDAR, layer_types=5),
    _with(SDAR, layer_types=[[]]),
    _with(LLADA, rope_theta=math.nan),
    _with(LLADA, rope_theta=0),
    _with(LLADA, rms_norm_eps=-math.inf),
    _with(LLADA, max_sequence_length=0),
    _with(LLADA, vocab_size=-1),
    _with(LLADA, d_model=2**62, n_heads=1, n_kv_heads=1),
    _with(LLADA, mlp_hidden_size=None, mlp_ratio=10**10, d_model="a"),
    _with(LLADA, mlp_hidden_size=None, mlp_ratio=[1]),
    _with(LLADA, clip_qkv="a" * 100_000),
    LONG.encode(),
    DEEP.encode(),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("configs")


def _config(folder, content):
    (folder / "config.json").write_bytes(content)
    found = read(checkpoints.read_config, folder)
    if isinstance(found, InputError):
        assert str(folder) in str(found)
    return found


@inputs(40)
@given(content=CONTENTS)
def test_config(folder, content):
    found = _config(folder, content)
    if not isinstance(found, Exception):
        again = type(found).from_hf(found.to_hf())
        assert again == found


@pytest.mark.parametrize("content", FOUND, ids=range(len(FOUND)))
def test_configs_that_were_not_refused(folder, content):
    assert isinstance(_config(folder, content), InputError)


def _checkpoint(path):
    make_tokenizer().save_pretrained(path)
    shutil.copy(DATA / "checkpoints" / "sdar_a" / "model.safetensors", path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return _checkpoint(tmp_path_factory.mktemp("checkpoint"))


@inputs(4)
@given(content=st.one_of(contents_of(LLADA), contents_of(SDAR)))
@example(content=_with(LLADA, max_sequence_length=2**31 - 1, n_layers=2**31 - 1))
@example(content=_with(LLADA, d_model=2**30, mlp_hidden_size=2**31 - 1, n_heads=1))
def test_outline(checkpoint, content):
    (checkpoint / "config.json").write_bytes(content)
    read(read_outline, checkpoint)


@inputs(3)
@given(content=st.one_of(contents_of(LLADA), contents_of(SDAR)))
@example(content=_with(LLADA, n_layers=2**31 - 1))
@example(content=_with(LLADA, n_layers=0))
def test_load(checkpoint, content):
    (checkpoint / "config.json").write_bytes(content)
    read(checkpoints.load, checkpoint)


@inputs(20)
@given(
    content=st.one_of(
        contents_of({"eos_token_id": [1, 2], "temperature": 0.0}),
        contents_of({"eos_token_id": 1}),
        st.sampled_from(WRONG_FILES),
    )
)
@example(content=b"[1]")
@example(content=b'{"eos_token_id": ' + b"9" * 5000 + b"}")
@example(content=b"[" * 100_000)
def test_generation_config(folder, content):
    (folder / "generation_config.json").write_bytes(content)
    found = read(eos_ids, folder, CONFIG)
    if not isinstance(found, Exception):
        assert all(0 <= token < CONFIG.embedding_size for token in found)
