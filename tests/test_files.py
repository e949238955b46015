"""Files and directories appear whole or not at all."""

import os
import shutil

import pytest

from dlm_jax import files
from dlm_jax.errors import InputError


@pytest.mark.parametrize("is_directory", [False, True])
def test_output_appears_at_the_end_and_its_parents_with_it(tmp_path, is_directory):
    path = tmp_path / "new" / "parent" / "out"
    with files.staged(path, is_directory=is_directory) as partial:
        assert partial.is_dir() == is_directory and partial.parent == path.parent
        (partial / "a" if is_directory else partial).write_text("whole")
        assert not path.exists()
    assert (path / "a" if is_directory else path).read_text() == "whole"
    assert os.listdir(path.parent) == ["out"]


@pytest.mark.parametrize("is_directory", [False, True])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_nothing(tmp_path, is_directory, error):
    with (
        pytest.raises(error),
        files.staged(tmp_path / "out", is_directory=is_directory) as partial,
    ):
        (partial / "a" if is_directory else partial).write_text("half")
        raise error
    assert not os.listdir(tmp_path)


def test_an_existing_file_is_replaced_only_on_demand_and_only_at_the_end(tmp_path):
    path = tmp_path / "out"
    path.write_text("old")
    with pytest.raises(InputError, match="already exists"), files.staged(path):
        pytest.fail("the block must not run")
    with pytest.raises(ValueError), files.staged(path, may_exist=True) as partial:
        partial.write_text("half")
        raise ValueError
    assert path.read_text() == "old"
    with files.staged(path, may_exist=True) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["out"]


def test_outputs_that_cannot_be_are_refused_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "link", "."):
        with pytest.raises(InputError, match="already exists"):
            files.check_output(tmp_path / name)
    for name in ("file/out", "file/more/out", "link/out"):
        with pytest.raises(InputError, match="is not a writable directory"):
            files.check_output(tmp_path / name)
    files.check_output(tmp_path / "new" / "out")
    full = shutil.disk_usage(tmp_path)._replace(free=4)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    files.check_output(tmp_path / "out", 4)
    with pytest.raises(InputError, match="takes 5 bytes, 4 are free"):
        files.check_output(tmp_path / "out", 5)


def test_jsonl_is_one_object_a_line_in_utf_8(tmp_path):
    path = tmp_path / "out.jsonl"
    files.write_jsonl(path, [{"a": 1}, {"b": "é\n"}])
    assert path.read_text(encoding="utf-8") == '{"a": 1}\n{"b": "é\\n"}\n'
    with pytest.raises(TypeError):
        files.write_jsonl(tmp_path / "other", [{"a": 1}, {"b": object()}])
    assert os.listdir(tmp_path) == ["out.jsonl"]
