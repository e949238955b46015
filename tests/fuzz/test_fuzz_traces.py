"""Traces: a recorded run, or one line; nothing is unpickled."""

import io
import json
import os
import zipfile

import numpy as np
import pytest
from damage import VALUES, WRONG_FILES, bytes_of, contents_of, inputs, read
from helpers import DATA
from hypothesis import example, given
from hypothesis import strategies as st

from dlm_jax.errors import InputError
from dlm_jax.parity import traces
from dlm_jax.parity.rules import sampler_for

NAMES = (
    "llada_low_confidence_cfg__kv4_seed0_p0",
    "sdar_dynamic_b8_s4_t0.5_stop__sdar_a_p6_g20",
)
WHOLE = [
    (
        json.loads((DATA / "traces" / f"{name}.json").read_text()),
        (DATA / "traces" / f"{name}.npz").read_bytes(),
    )
    for name in NAMES
]
OWN = {
    "spec": "saber(n=2)",
    "gen_length": 32,
    "cache": "dual(refresh_every=8)",
    "early_stop": True,
    "block_length": 32,
    "temperature": 0.0,
    "guidance": 0.5,
    "mask_id": 299,
    "stop_ids": [1],
    "suppressed_ids": [],
    "deferred_ids": [],
    "logits_dtype": "bfloat16",
}


class _Mark:
    def __reduce__(self):
        return os.mkdir, (os.path.join(os.environ["DLM_JAX_FUZZ_MARK"], "mark"),)


def _npy(shape, dtype="<i4", data=b""):
    header = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode()
    header += b" " * (-(10 + len(header) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def _npz(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


SIZES = st.sampled_from([0, 1, 2, 38, 2**20, 2**34, 2**60, 2**63, -1, 2.5, None, "a"])
KINDS = st.sampled_from(["<i4", ">i4", "<i8", "|O", "|V4", "<f8", "|b1", "M8[s]", "x"])
ARRAYS = st.one_of(
    st.builds(
        _npy,
        st.lists(SIZES, max_size=3).map(tuple),
        KINDS,
        st.sampled_from([b"", bytes(4), bytes(152)]),
    ),
    st.binary(max_size=20),
)
CONTENTS = st.one_of(
    *[bytes_of(arrays) for _, arrays in WHOLE],
    st.builds(_npz, prompt=ARRAYS, canvas=ARRAYS),
    st.builds(_npz, prompt=ARRAYS),
    ARRAYS,
    st.sampled_from(WRONG_FILES),
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("traces") / "run.json"


def _load(path, fields, arrays):
    path.write_bytes(fields)
    path.with_suffix(".npz").write_bytes(arrays)
    trace = read(traces.load, path)
    if not isinstance(trace, Exception):
        read(sampler_for, trace)
    return trace


WRITTEN = [json.dumps(fields).encode() for fields, _ in WHOLE]


@inputs(25)
@given(content=contents_of(WHOLE[0][0]))
@example(content=b"[" * 100_000)
@example(content=b'{"nfe": ' + b"9" * 5000 + b"}")
def test_fields(path, content):
    _load(path, content, WHOLE[0][1])


@inputs(20)
@given(
    field=st.sampled_from([*OWN, *WHOLE[1][0]["params"]]),
    value=VALUES,
    which=st.sampled_from(["own", "recorded"]),
)
@example(field="block_length", value=0, which="own")
@example(field="stop_ids", value=5, which="own")
@example(field="spec", value=["saber"], which="own")
@example(field="logits_dtype", value="x", which="own")
def test_arguments(path, field, value, which):
    fields, arrays = WHOLE[0] if which == "own" else WHOLE[1]
    params = OWN if which == "own" else fields["params"]
    written = {**fields, "params": {**params, field: value}}
    try:
        content = json.dumps(written).encode()
    except ValueError:  # an integer that is too long for text
        return
    _load(path, content, arrays)


@inputs(40)
@given(content=CONTENTS)
@example(content=_npz(prompt=_npy((1, 2**60)), canvas=_npy((2**60, 2**60))))
@example(content=_npy((2**60,)))
def test_arrays(path, content):
    _load(path, WRITTEN[0], content)


def test_bomb(path):
    zeros = _npy((1, 2**28), data=bytes(2**20))
    bomb = _npz(prompt=zeros, canvas=zeros)
    # A member that says how long it will be; nobody waits for it.
    claimed = bomb.replace(
        len(zeros).to_bytes(4, "little"), (2**31).to_bytes(4, "little")
    )
    found = _load(path, WRITTEN[0], claimed)
    assert "takes at most" in str(found)


def test_nothing_is_unpickled(path, tmp_path, monkeypatch):
    monkeypatch.setenv("DLM_JAX_FUZZ_MARK", str(tmp_path))
    file = io.BytesIO()
    objects = np.array([[_Mark()]], object)
    np.savez(file, prompt=objects, canvas=objects)
    found = _load(path, WRITTEN[0], file.getvalue())
    assert isinstance(found, InputError)
    assert not (tmp_path / "mark").exists()
    # It would have been made.
    file.seek(0)
    assert np.load(file, allow_pickle=True)["prompt"].size == 1
    assert (tmp_path / "mark").exists()
