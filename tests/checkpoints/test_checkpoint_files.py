"""Checkpoints as they are found: wrapped, half downloaded, files around them."""

import dataclasses
import json
import shutil

import checkpoint_files as files
import numpy as np
import pytest

from dlm_jax import checkpoints, zoo
from dlm_jax.checkpoints import CheckpointError
from dlm_jax.errors import InputError
from dlm_jax.evaluation import provenance
from dlm_jax.text.codec import Codec

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"
TIED = dataclasses.replace(files.CONFIG, weight_tying=True)
HEAD = "model.transformer.ff_out.weight"
EMBEDDING = "model.transformer.wte.weight"


# --- Names of weights ---------------------------------------------------------------


def _shorten(name):
    return name.removeprefix("model.")


def _compiled_blocks(name):
    return name.replace("blocks.", "blocks._orig_mod.")


@pytest.mark.parametrize(
    ("rename", "told"),
    [
        (lambda name: f"module.{name}", "must not begin with 'module.'"),
        (lambda name: f"_orig_mod.{name}", "must not begin with '_orig_mod.'"),
        (lambda name: f"module._orig_mod.{name}", "begin with 'module._orig_mod.'"),
        (lambda name: f"student.{name}", "must not begin with 'student.'"),
        (_compiled_blocks, "must not have '_orig_mod.' inside"),
        (_shorten, "lack 'model.' at the beginning"),
    ],
)
def test_a_wrapper_s_names_are_one_problem(tmp_path, rename, told):
    tensors = files.random_tensors()
    renamed = {rename(name): tensor for name, tensor in tensors.items()}
    directory = files.write(tmp_path / "hf", renamed)
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load(directory)
    (problem,) = caught.value.problems
    num_more = len(set(renamed) - set(tensors)) - 1
    assert told in problem and f", and {num_more} more)" in problem
    name = min(name for name in tensors if rename(name) != name)
    assert f"({rename(name)} must be {name}, and" in problem
    assert len(str(caught.value)) < 400


def test_a_wrapped_copy_beside_the_weights_is_not_taken_for_them(tmp_path):
    tensors = files.random_tensors()
    copy = {f"ema.{name}": tensor for name, tensor in tensors.items()}
    directory = files.write(tmp_path / "hf", tensors | copy)
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load(directory)
    assert len(caught.value.problems) == len(copy)


def test_other_names_are_counted_not_listed(tmp_path):
    tensors = {f"x.{i}.y": np.zeros(1, np.float32) for i in range(300)}
    directory = files.write(tmp_path / "hf", tensors)
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load(directory)
    num_problems = 300 + len(files.random_tensors())
    assert len(caught.value.problems) == num_problems
    assert str(caught.value).endswith(f"; and {num_problems - 12} more problems")
    assert len(str(caught.value)) < 1500


# --- Tied weights -------------------------------------------------------------------


@pytest.mark.parametrize("num_shards", [1, 3])
def test_tied_weights_may_be_stored_twice(tmp_path, num_shards):
    tensors = files.random_tensors(TIED)
    tensors[EMBEDDING][-1] = np.nan
    tensors[HEAD] = tensors[EMBEDDING].copy()
    directory = files.write(tmp_path / "hf", tensors, TIED, num_shards)
    model = checkpoints.load(directory)
    np.testing.assert_array_equal(model.head, tensors[EMBEDDING])


@pytest.mark.parametrize("row", [0, 150, 303])
def test_tied_weights_that_differ_are_refused(tmp_path, row):
    tensors = files.random_tensors(TIED)
    tensors[HEAD] = tensors[EMBEDDING].copy()
    tensors[HEAD][row, 3] += 1e-6
    directory = files.write(tmp_path / "hf", tensors, TIED)
    with pytest.raises(
        CheckpointError, match=r"ff_out\.weight .* values of its own: co"
    ):
        checkpoints.load(directory)


# --- Files that are not what their names say ----------------------------------------


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (POINTER, "a Git LFS pointer, not the file: run git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page, not the file"),
        (b"", "it is empty: download it again"),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_wrong_download_is_named(tmp_path, name, content, told):
    directory = shutil.copytree(zoo.path("sudoku"), tmp_path / "model")
    config = checkpoints.read_config(directory)
    (directory / name).write_bytes(content)
    with pytest.raises(InputError, match=told) as caught:
        checkpoints.load(directory)
        Codec.load(directory, config)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_pickles_are_named_where_safetensors_are_missing(tmp_path):
    directory = files.write(tmp_path / "hf", files.random_tensors())
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is no substitute"):
        checkpoints.load(directory)


# --- What a checkpoint's digest depends on ------------------------------------------

AROUND = (
    ".cache/huggingface/download/config.json.metadata",
    ".DS_Store",
    ".git/HEAD",
    ".gitattributes",
    "params/.DS_Store",
    "README.md",
    "LICENSE",
    "modeling_llada.py",
    "__pycache__/modeling_llada.cpython-311.pyc",
    "model.safetensors.lock",
    "original/model.safetensors",
    "optimizer.pt",
    "notes.txt",
)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The shipped Sudoku model in both formats."""
    root = tmp_path_factory.mktemp("digest")
    shutil.copytree(zoo.path("sudoku"), root / "hf")
    model = checkpoints.load(root / "hf")
    extra_files = checkpoints.companions(root / "hf")
    checkpoints.save_orbax(model, root / "orbax", extra_files)
    return root


@pytest.mark.parametrize("kind", ["hf", "orbax"])
def test_files_around_a_checkpoint_do_not_change_its_digest(both, tmp_path, kind):
    directory = shutil.copytree(both / kind, tmp_path / "model")
    before = provenance.digest(directory)
    for name in AROUND:
        if kind == "orbax" or not name.startswith("params"):
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x")
    assert provenance.digest(directory) == before


@pytest.mark.parametrize("kind", ["hf", "orbax"])
def test_every_file_that_is_read_changes_the_digest(both, tmp_path, kind):
    before = provenance.digest(both / kind)
    names = ["config.json", "tokenizer.json", "tokenizer_config.json"]
    if kind == "hf":
        names += ["model.safetensors"]
    else:
        chunks = [x for x in (both / "orbax" / "params").rglob("*") if x.is_file()]
        names += [str(chunk.relative_to(both / "orbax")) for chunk in chunks[::7]]
    for i, name in enumerate(names):
        directory = shutil.copytree(both / kind, tmp_path / str(i))
        with (directory / name).open("ab") as file:
            file.write(b" ")
        assert provenance.digest(directory) != before, name
    for i, name in enumerate(("chat_template.jinja", "generation_config.json")):
        directory = shutil.copytree(both / kind, tmp_path / f"more{i}")
        (directory / name).write_text("{}")
        assert provenance.digest(directory) != before, name


def test_the_shipped_models_keep_the_digests_of_recorded_evaluations():
    """Of a directory without other files, a digest is what it always was."""
    assert provenance.digest(zoo.path("sudoku"))[:12] == "2c3f7045002c"
    assert provenance.digest(zoo.path("maze"))[:12] == "7cfe1d6c8de6"


# --- What a conversion takes along --------------------------------------------------


@pytest.fixture
def released(tmp_path):
    """A checkpoint with what released ones have around the weights."""
    directory = files.write(tmp_path / "in", files.random_tensors())
    config = json.loads((directory / "config.json").read_text())
    config |= {
        "auto_map": {"AutoModel": "modeling_llada.LLaDAModelLM"},
        "_name_or_path": "somewhere/else",
        "dtype": "float64",
        "transformers_version": "4.46.3",
        "a_field_of_tomorrow": {"x": [1, None]},
        "hidden_size": files.CONFIG.d_model,
    }
    (directory / "config.json").write_text(json.dumps(config))
    # Code that would be noticed, were it run.
    (directory / "modeling_llada.py").write_text("raise SystemExit('run')\n")
    (directory / "configuration_llada.py").write_text("raise SystemExit('run')\n")
    (directory / "LICENSE").write_text("MIT")
    (directory / "NOTICE.txt").write_text("of whom")
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tool.jinja").write_text("{{ x }}")
    return directory, config


def test_a_conversion_there_and_back_keeps_what_is_around(
    released, tmp_path, run_script
):
    directory, config = released
    there, back = tmp_path / "orbax", tmp_path / "back"
    flags = ["--dtype=bfloat16", f"--output={there}"]
    assert run_script("convert", f"--checkpoint={directory}", *flags)[0] == 0
    flags = ["--format=hf", f"--output={back}"]
    assert run_script("convert", f"--checkpoint={there}", *flags)[0] == 0
    for path in (there, back):
        found = json.loads((path / "config.json").read_text())
        # The dtype is what was written, under the name that the file had for it.
        assert found == config | {"dtype": "bfloat16"}
    written = {str(path.relative_to(back)) for path in back.rglob("*")}
    there_before = {str(path.relative_to(directory)) for path in directory.rglob("*")}
    assert written == there_before
    for name in (
        "modeling_llada.py",
        "LICENSE",
        "additional_chat_templates/tool.jinja",
    ):
        assert (back / name).read_bytes() == (directory / name).read_bytes()


def test_fields_of_another_model_are_not_kept(released, tmp_path):
    directory, config = released
    model = checkpoints.load(directory)
    origin = config | {"n_layers": 3}
    checkpoints.save_hf(model, tmp_path / "out", origin=origin)
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert found == model.config.to_hf() | {"torch_dtype": "float32"}
