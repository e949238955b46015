"""Orbax directories: a model, or one line; no file elsewhere is read."""

import json
import os
import shutil

import pytest
from chat_tokenizer import CONFIG
from damage import VALUES, WRONG_FILES, bytes_of, contents_of, inputs, read
from hypothesis import example, given
from hypothesis import strategies as st

from dlm_jax import checkpoints
from dlm_jax.errors import InputError
from dlm_jax.models import registry

SIZES = st.sampled_from([0, 1, 2**20, 2**31, 2**60, 2**63, -1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("orbax") / "model"
    checkpoints.save_orbax(registry.init(CONFIG), path)
    return path


def _sizes(path):
    """The inventory of what is there now, so that the damage itself is found."""
    params = path / "params"
    return {
        file.relative_to(params).as_posix(): file.stat().st_size
        for file in sorted(params.rglob("*"))
        if file.is_file()
    }


INVENTORY = {"_METADATA": 10, "blocks.q_proj/.zarray": 300, "d/process_0": 1}
NAMES = st.sampled_from(
    ["../config.json", "/etc/passwd", "..", "", ".", "a\0", "\ud800"]
)


@inputs(20)
@given(
    content=st.one_of(
        contents_of(INVENTORY),
        st.builds(
            lambda name, size: json.dumps({name: size}).encode(), NAMES, SIZES | VALUES
        ).filter(len),
        st.sampled_from(WRONG_FILES),
    )
)
@example(content=b'{"/etc/passwd": 1}')
@example(content=b'{"../../a": 1}')
def test_inventory(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("inventory")
    (path / "params").mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG.to_hf()))
    (path / "files.json").write_bytes(content)
    assert isinstance(read(checkpoints.load, path), InputError) or content == b"{}"
    named = read(checkpoints.essential_files, path)
    if not isinstance(named, Exception):
        assert all(path in file.resolve().parents for file in named)
    shutil.rmtree(path)


@inputs(4)
@given(data=st.data())
def test_directory(tmp_path_factory, whole, data):
    path = tmp_path_factory.mktemp("damaged") / "model"
    shutil.copytree(whole, path)
    names = [x for x in _sizes(path) if "/" not in x or ".zarray" in x]
    file = path / "params" / data.draw(st.sampled_from(names))
    content = file.read_bytes()
    try:
        damaged = contents_of(json.loads(content), SIZES | VALUES)
    except ValueError:
        damaged = bytes_of(content)
    file.write_bytes(data.draw(st.one_of(damaged, st.sampled_from(WRONG_FILES))))
    (path / "files.json").write_text(json.dumps(_sizes(path)))
    read(checkpoints.load, path)
    shutil.rmtree(path.parent)


def test_each_file_lost(tmp_path, whole):
    names = [x for x in _sizes(whole) if "/" not in x]
    assert names
    for name in names:
        path = tmp_path / "model"
        shutil.copytree(whole, path)
        os.remove(path / "params" / name)
        assert isinstance(read(checkpoints.load, path), InputError)
        (path / "files.json").write_text(json.dumps(_sizes(path)))
        read(checkpoints.load, path)
        shutil.rmtree(path)
