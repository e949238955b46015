"""Checkpoints: every kind of damage is refused, every round trip is exact."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import checkpoint_files as files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from dlm_jax import checkpoints
from dlm_jax.checkpoints import CheckpointError, common, hf, hf_format, orbax
from dlm_jax.errors import InputError
from dlm_jax.models.llada import LLaDA


def _params(model: LLaDA) -> dict[str, np.ndarray]:
    flat = nnx.to_flat_state(nnx.state(model))
    return {".".join(path): np.asarray(value[...]) for path, value in flat}


def _assert_equal(found: LLaDA, expected: LLaDA) -> None:
    assert found.config == expected.config
    found, expected = _params(found), _params(expected)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        assert found[path].dtype == value.dtype
        np.testing.assert_array_equal(found[path], value)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> LLaDA:
    return checkpoints.load(
        files.write(tmp_path_factory.mktemp("m") / "hf", files.random_tensors())
    )


@pytest.fixture(scope="module")
def orbax_directory(tmp_path_factory, model) -> Path:
    directory = tmp_path_factory.mktemp("orbax") / "params_and_config"
    checkpoints.save_orbax(model, directory)
    return directory


# --- Hugging Face -> Flax -----------------------------------------------------------


@pytest.mark.parametrize("num_shards", [1, 5])
@pytest.mark.parametrize("is_tied", [False, True])
def test_every_tensor_arrives_in_its_place(tmp_path, num_shards, is_tied):
    config = dataclasses.replace(files.CONFIG, weight_tying=is_tied)
    tensors = files.random_tensors(config)
    model = checkpoints.load(files.write(tmp_path / "hf", tensors, config, num_shards))
    assert model.config == config
    for path, value in _params(model).items():
        head, _, name = path.rpartition(".")
        if not head:
            np.testing.assert_array_equal(
                value, tensors[f"{files.PREFIX}{path}.weight"]
            )
            continue
        assert value.shape[0] == config.n_layers
        for layer in range(config.n_layers):
            tensor = tensors.pop(f"{files.PREFIX}blocks.{layer}.{name}.weight")
            np.testing.assert_array_equal(value[layer], tensor.T)
    assert not [name for name in tensors if "blocks" in name]
    assert (model.ff_out is None) == is_tied


@pytest.mark.parametrize("stored", [np.float32, np.float16, jnp.bfloat16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_dtypes_are_cast_by_rounding_once(tmp_path, stored, dtype):
    tensors = files.random_tensors(dtype=stored)
    directory = files.write(tmp_path / "hf", tensors)
    with jax.enable_x64(dtype == "float64"):
        model = checkpoints.load(directory, dtype)
        found = np.asarray(model.wte[...])
    assert str(found.dtype) == dtype
    np.testing.assert_array_equal(
        found, tensors[f"{files.PREFIX}wte.weight"].astype(dtype)
    )


@pytest.mark.parametrize(
    ("stored", "expected"),
    [(np.float32, "float32"), (np.float16, "float32"), (jnp.bfloat16, "bfloat16")],
)
def test_dtype_is_that_of_the_files_by_default(tmp_path, stored, expected):
    directory = files.write(tmp_path / "hf", files.random_tensors(dtype=stored))
    model = checkpoints.load(directory)
    assert {str(value.dtype) for value in _params(model).values()} == {expected}


def test_mixed_dtypes_become_float32(tmp_path):
    tensors = files.random_tensors(dtype=jnp.bfloat16)
    name = f"{files.PREFIX}ln_f.weight"
    tensors[name] = tensors[name].astype(np.float32)
    model = checkpoints.load(files.write(tmp_path / "hf", tensors))
    assert {str(value.dtype) for value in _params(model).values()} == {"float32"}


@pytest.mark.parametrize(
    ("dtype", "message"),
    [("int8", r"dtype \(int8\) must be one of"), ("float64", "needs JAX_ENABLE_X64")],
)
def test_impossible_dtypes_are_refused(tmp_path, dtype, message):
    directory = files.write(tmp_path / "hf", files.random_tensors())
    with pytest.raises(InputError, match=message):
        checkpoints.load(directory, dtype)


@pytest.mark.parametrize("damage", files.DAMAGES)
def test_damage_is_refused(tmp_path, damage):
    directory = files.write(tmp_path / "hf", files.random_tensors(), num_shards=3)
    damage(directory)
    with pytest.raises(CheckpointError) as error:
        checkpoints.load(directory)
    assert "\n" not in str(error.value)
    assert len(error.value.problems) == len(files.DAMAGES[damage])
    for problem, expected in zip(
        error.value.problems, files.DAMAGES[damage], strict=True
    ):
        assert problem.startswith(expected)


def test_all_problems_are_in_one_error(tmp_path):
    directory = files.write(tmp_path / "hf", files.random_tensors(), num_shards=4)
    (directory / "model-00001-of-00004.safetensors").unlink()
    os.truncate(directory / "model-00002-of-00004.safetensors", 1000)

    def change(tensors):
        names = sorted(tensors)
        tensors["surplus"] = tensors.pop(names[0])
        tensors[names[1]] = np.zeros((1, 2, 3), np.float32)
        tensors[names[2]] = tensors[names[2]].astype(np.int32)

    files.rewrite(directory / "model-00003-of-00004.safetensors", change)
    with pytest.raises(CheckpointError) as error:
        checkpoints.load(directory)
    message = "; ".join(error.value.problems)
    for expected in (
        "model-00001-of-00004.safetensors is missing",
        "model-00002-of-00004.safetensors is truncated",
        "surplus is in model-00003-of-00004.safetensors, where",
        "surplus (in model-00003-of-00004.safetensors) is not a weight",
        "is not in model-00003-of-00004.safetensors, where",
        "is (1, 2, 3), must be",
        "is I32, must be one of",
    ):
        assert message.count(expected) == 1
    assert len(error.value.problems) == 7


def test_an_adapter_beside_orbax_parameters_is_refused(tmp_path, orbax_directory):
    directory = shutil.copytree(orbax_directory, tmp_path / "copy")
    checkpoints.load(directory)
    files.add_adapter_config(directory)
    for read in (checkpoints.load, checkpoints.read_config):
        with pytest.raises(CheckpointError, match="adapters are not applied"):
            read(directory)


def test_a_damaged_single_file_is_refused(tmp_path):
    directory = files.write(tmp_path / "hf", files.random_tensors())
    os.truncate(directory / "model.safetensors", 5000)
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        checkpoints.load(directory)
    with pytest.raises(InputError, match="is not a directory"):
        checkpoints.load(tmp_path / "nothing")


# --- Flax -> Hugging Face -----------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("max_shard_bytes", [2**30, 9000, 1])
def test_hf_round_trip_is_bit_exact(tmp_path, dtype, max_shard_bytes):
    tensors = files.random_tensors(dtype=dtype)
    directory = files.write(tmp_path / "a", tensors, num_shards=3)
    model = checkpoints.load(directory)
    checkpoints.save_hf(
        model,
        tmp_path / "b",
        checkpoints.companions(directory),
        max_shard_bytes=max_shard_bytes,
    )
    _assert_equal(checkpoints.load(tmp_path / "b"), model)
    shards = sorted((tmp_path / "b").glob("*.safetensors"))
    found = {}
    for file in shards:
        part = load_file(file)
        assert len(part) == 1 or sum(x.nbytes for x in part.values()) <= max_shard_bytes
        found.update(part)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].tobytes() == tensor.tobytes()
    assert (len(shards) == 1) == (max_shard_bytes == 2**30)
    assert (len(shards) > 1) == (tmp_path / "b" / files.INDEX).is_file()
    assert (tmp_path / "b" / "tokenizer.json").read_text() == "{}"


@pytest.mark.parametrize("save", [checkpoints.save_hf, checkpoints.save_orbax])
def test_unwritable_output_is_refused(tmp_path, model, monkeypatch, save):
    (tmp_path / "file").write_text("")
    (tmp_path / "directory").mkdir()
    for name in ("file", "directory"):
        with pytest.raises(InputError, match="already exists"):
            save(model, tmp_path / name)
    with pytest.raises(InputError, match="is not a writable directory"):
        save(model, tmp_path / "file" / "out")
    with pytest.raises(InputError, match="cannot be written: No such file"):
        save(model, "/proc/out")
    full = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(InputError, match="bytes, 0 are free"):
        save(model, tmp_path / "full")
    assert sorted(os.listdir(tmp_path)) == ["directory", "file"]


def test_float64_has_no_place_in_hf_files(tmp_path, model):
    with jax.enable_x64(True):
        wide = checkpoints.astype(model, jnp.float64)
        with pytest.raises(InputError, match=r"dtype \(float64\) must be"):
            checkpoints.save_hf(wide, tmp_path / "out")


# --- Orbax --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_orbax_round_trip_is_exact(tmp_path, model, dtype):
    model = checkpoints.astype(model, dtype)
    checkpoints.save_orbax(model, tmp_path / "orbax", [__file__])
    _assert_equal(checkpoints.load(tmp_path / "orbax"), model)
    wide = checkpoints.astype(model, "float32")
    _assert_equal(checkpoints.load(tmp_path / "orbax", "float32"), wide)
    assert (tmp_path / "orbax" / Path(__file__).name).is_file()


@pytest.mark.parametrize("load", ["orbax", "hf"])
def test_parameters_are_placed_as_asked(tmp_path, model, orbax_directory, load):
    mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec(None, None, "model"))
    whole = NamedSharding(mesh, PartitionSpec())
    blocks = {
        name: split if value.ndim == 3 else whole
        for name, value in nnx.to_pure_dict(nnx.state(model.blocks)).items()
    }
    shardings = {"wte": whole, "ln_f": whole, "ff_out": whole, "blocks": blocks}
    directory = orbax_directory
    if load == "hf":
        directory = tmp_path / "hf"
        checkpoints.save_hf(model, directory)
    found = checkpoints.load(directory, shardings=shardings)
    _assert_equal(found, model)
    assert found.blocks.q_proj[...].sharding == split
    assert found.wte[...].sharding == whole


def test_orbax_restores_on_more_devices(tmp_path, monkeypatch):
    """Written on one device, read by each of four: bit-exact, each its part."""
    # So small that a chunk lies in one part, but for those at the vocabulary's borders:
    # one in two parts is read once or twice, as their readers meet or not.
    monkeypatch.setattr(orbax, "_CHUNK_BYTES", 2**12)
    shape = {"d_model": 64, "n_layers": 4, "mlp_hidden_size": 256}
    config = dataclasses.replace(files.CONFIG, **shape)
    directory = tmp_path / "orbax"
    checkpoints.save_orbax(LLaDA(config, rngs=nnx.Rngs(0)), directory)
    script = f"""
import jax, numpy as np, pathlib
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from dlm_jax import checkpoints

def load(shardings=None):
    before = num_read()
    model = checkpoints.load({str(directory)!r}, shardings=shardings)
    return model, num_read() - before

def num_read():
    count = pathlib.Path("/proc/self/io")  # Linux only
    return int(count.read_text().split()[1]) if count.exists() else 0

mesh = jax.make_mesh((4,), ("model",), axis_types=(AxisType.Auto,))
load()  # The first one also imports.
whole, num_whole = load()
split = NamedSharding(mesh, P("model"))
shardings = {{"wte": split, "ff_out": split, "ln_f": NamedSharding(mesh, P()),
             "blocks": NamedSharding(mesh, P(None, "model"))}}
parts, num_parts = load(shardings)
for name in ("wte", "ff_out"):
    a, b = getattr(whole, name)[...], getattr(parts, name)[...]
    assert len(b.sharding.device_set) == 4 and len(a.sharding.device_set) == 1
    assert b.addressable_shards[0].data.shape == (76, 64)
    np.testing.assert_array_equal(a, b)
np.testing.assert_array_equal(whole.blocks.ff_out[...], parts.blocks.ff_out[...])
print(num_whole, num_parts)
"""
    flags = {"JAX_NUM_CPU_DEVICES": "4"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        env={**os.environ, **flags},
        stdout=subprocess.PIPE,
        text=True,
    )
    num_whole, num_parts = map(int, done.stdout.split())
    if num_whole:
        params = (directory / "params").rglob("*")
        size = sum(path.stat().st_size for path in params if path.is_file())
        assert size < num_whole < 1.1 * size
        assert num_parts < 1.1 * size


def _orbax_copy(orbax_directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(orbax_directory, tmp_path / "copy"))


def test_damaged_orbax_files_are_listed(tmp_path, orbax_directory):
    directory = _orbax_copy(orbax_directory, tmp_path)
    (directory / "params" / "wte" / "0.0").unlink()
    os.truncate(directory / "params" / "ln_f" / "0", 7)
    with pytest.raises(CheckpointError) as error:
        checkpoints.load(directory)
    assert error.value.problems == (
        "params/ln_f/0 has 7 bytes, must have 64",
        "params/wte/0.0 is missing",
    )


@pytest.mark.parametrize("name", ["files.json", "config.json"])
def test_incomplete_orbax_directories_do_not_load(tmp_path, orbax_directory, name):
    directory = _orbax_copy(orbax_directory, tmp_path)
    (directory / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        checkpoints.load(directory)


def test_orbax_parameters_must_fit_the_config(tmp_path, orbax_directory):
    directory = _orbax_copy(orbax_directory, tmp_path)
    config = dataclasses.replace(files.CONFIG, n_layers=3, weight_tying=True)
    (directory / "config.json").write_text(json.dumps(config.to_hf()))
    with pytest.raises(CheckpointError) as error:
        checkpoints.load(directory)
    assert len(error.value.problems) == 10
    assert "blocks.ff_norm is (2, 16), must be (3, 16)" in error.value.problems
    assert "ff_out is (304, 16), must be left out" in error.value.problems


# --- Interruptions ------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError("disk"), KeyboardInterrupt()])
@pytest.mark.parametrize(
    ("save", "module", "step"),
    [
        (checkpoints.save_hf, hf, "_write_shard"),
        (checkpoints.save_hf, common, "copy"),
        (checkpoints.save_hf, common, "write_json"),
        (checkpoints.save_orbax, common, "copy"),
        (checkpoints.save_orbax, orbax, "_inventory"),
        (checkpoints.save_orbax, common, "write_json"),
    ],
)
def test_a_failed_save_leaves_nothing(
    tmp_path, model, monkeypatch, save, module, step, error
):
    def fail(*_):
        raise error

    monkeypatch.setattr(module, step, fail)
    with pytest.raises(type(error)):
        save(model, tmp_path / "out")
    assert not os.listdir(tmp_path)
    monkeypatch.undo()
    save(model, tmp_path / "out")
    _assert_equal(checkpoints.load(tmp_path / "out"), model)


@pytest.mark.parametrize("is_transposed", [False, True])
@given(data=st.data())
def test_a_part_of_a_parameter_is_read_from_the_tensors_that_hold_it(
    is_transposed, data, tmp_path_factory
):
    # More rows than are read at once.
    whole = np.arange(3 * 150 * 4, dtype=np.float32).reshape(3, 150, 4)
    file = tmp_path_factory.mktemp("parts") / "model.safetensors"
    stored = whole.swapaxes(1, 2) if is_transposed else whole
    save_file({f"layer{i}": x.copy() for i, x in enumerate(stored)}, file)
    bounds = [
        sorted(data.draw(st.sets(st.integers(0, size), min_size=2, max_size=2)))
        for size in whole.shape
    ]
    index = tuple(slice(*bound) for bound in bounds)
    part = np.full_like(whole[index], -1)
    for layer, tensor in enumerate(stored):
        slot = hf_format.Slot(f"layer{layer}", "p", layer, tensor.shape, is_transposed)
        where = hf_format.Stored(file, tensor.shape, "F32")
        hf_format.read_into(where, slot, index, part)
    np.testing.assert_array_equal(part, whole[index])
