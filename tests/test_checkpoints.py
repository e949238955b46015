"""Checkpoints: every kind of damage is refused, every round trip is exact."""

import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from dlm_jax import checkpoints, hf_format
from dlm_jax.checkpoints import CheckpointError
from dlm_jax.errors import InputError
from dlm_jax.models.llada import LLaDA, tiny

_PREFIX = "model.transformer."
_CONFIG = dataclasses.replace(
    tiny(),
    **{"d_model": 16, "n_heads": 2, "n_kv_heads": 1, "n_layers": 2},
    **{"mlp_hidden_size": 24, "embedding_size": 304},
)


def _shapes(config=_CONFIG) -> dict[str, tuple[int, ...]]:
    """The tensors of a LLaDA checkpoint, written out independently of the loader."""
    d, f = config.d_model, config.mlp_hidden_size
    kv = config.n_kv_heads * config.head_dim
    shapes = {"wte": (304, d), "ln_f": (d,)}
    if not config.weight_tying:
        shapes["ff_out"] = (304, d)
    for layer in range(config.n_layers):
        for name, shape in {
            **{"attn_norm": (d,), "ff_norm": (d,)},
            **{"q_proj": (d, d), "attn_out": (d, d)},
            **{"k_proj": (kv, d), "v_proj": (kv, d)},
            **{"ff_proj": (f, d), "up_proj": (f, d), "ff_out": (d, f)},
        }.items():
            shapes[f"blocks.{layer}.{name}"] = shape
    return {f"{_PREFIX}{name}.weight": shape for name, shape in shapes.items()}


def _tensors(config=_CONFIG, dtype=np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(shape).astype(dtype)
        for name, shape in _shapes(config).items()
    }


def _write(directory: Path, tensors, config=_CONFIG, num_shards: int = 1) -> Path:
    """Writes a checkpoint; every layer's tensors lie in several shards."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config.to_hf()))
    (directory / "tokenizer.json").write_text("{}")
    if num_shards == 1:
        save_file(tensors, directory / "model.safetensors")
        return directory
    weight_map = {}
    for number in range(num_shards):
        shard = f"model-{number + 1:05d}-of-{num_shards:05d}.safetensors"
        part = dict(itertools.islice(tensors.items(), number, None, num_shards))
        save_file(part, directory / shard)
        weight_map.update(dict.fromkeys(part, shard))
    _write_index(directory, weight_map)
    return directory


def _read_index(directory: Path) -> dict[str, str]:
    path = directory / "model.safetensors.index.json"
    return json.loads(path.read_text())["weight_map"]


def _write_index(directory: Path, weight_map: dict[str, str]) -> None:
    path = directory / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _rewrite(file: Path, change) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


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
    return checkpoints.load(_write(tmp_path_factory.mktemp("m") / "hf", _tensors()))


@pytest.fixture(scope="module")
def orbax_directory(tmp_path_factory, model) -> Path:
    directory = tmp_path_factory.mktemp("orbax") / "params_and_config"
    checkpoints.save_orbax(model, directory)
    return directory


# --- Hugging Face -> Flax -----------------------------------------------------------


@pytest.mark.parametrize("num_shards", [1, 5])
@pytest.mark.parametrize("is_tied", [False, True])
def test_every_tensor_arrives_in_its_place(tmp_path, num_shards, is_tied):
    config = dataclasses.replace(_CONFIG, weight_tying=is_tied)
    tensors = _tensors(config)
    model = checkpoints.load(_write(tmp_path / "hf", tensors, config, num_shards))
    assert model.config == config
    for path, value in _params(model).items():
        head, _, name = path.rpartition(".")
        if not head:
            np.testing.assert_array_equal(value, tensors[f"{_PREFIX}{path}.weight"])
            continue
        assert value.shape[0] == config.n_layers
        for layer in range(config.n_layers):
            tensor = tensors.pop(f"{_PREFIX}blocks.{layer}.{name}.weight")
            np.testing.assert_array_equal(value[layer], tensor.T)
    assert not [name for name in tensors if "blocks" in name]
    assert (model.ff_out is None) == is_tied


@pytest.mark.parametrize("stored", [np.float32, np.float16, jnp.bfloat16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_dtypes_are_cast_by_rounding_once(tmp_path, stored, dtype):
    tensors = _tensors(dtype=stored)
    directory = _write(tmp_path / "hf", tensors)
    with jax.enable_x64(dtype == "float64"):
        model = checkpoints.load(directory, dtype)
        found = np.asarray(model.wte[...])
    assert str(found.dtype) == dtype
    np.testing.assert_array_equal(found, tensors[f"{_PREFIX}wte.weight"].astype(dtype))


@pytest.mark.parametrize(
    ("stored", "expected"),
    [(np.float32, "float32"), (np.float16, "float32"), (jnp.bfloat16, "bfloat16")],
)
def test_dtype_is_that_of_the_files_by_default(tmp_path, stored, expected):
    directory = _write(tmp_path / "hf", _tensors(dtype=stored))
    model = checkpoints.load(directory)
    assert {str(value.dtype) for value in _params(model).values()} == {expected}


def test_mixed_dtypes_become_float32(tmp_path):
    tensors = _tensors(dtype=jnp.bfloat16)
    name = f"{_PREFIX}ln_f.weight"
    tensors[name] = tensors[name].astype(np.float32)
    model = checkpoints.load(_write(tmp_path / "hf", tensors))
    assert {str(value.dtype) for value in _params(model).values()} == {"float32"}


@pytest.mark.parametrize(
    ("dtype", "message"),
    [("int8", r"dtype \(int8\) must be one of"), ("float64", "needs JAX_ENABLE_X64")],
)
def test_impossible_dtypes_are_refused(tmp_path, dtype, message):
    directory = _write(tmp_path / "hf", _tensors())
    with pytest.raises(InputError, match=message):
        checkpoints.load(directory, dtype)


def _drop(directory):
    _rewrite(directory / _SHARD, lambda tensors: tensors.pop(_NAME))


def _drop_everywhere(directory):
    _drop(directory)
    weight_map = _read_index(directory)
    del weight_map[_NAME]
    _write_index(directory, weight_map)


def _add(directory):
    extra = np.zeros(3, np.float32)
    _rewrite(directory / _SHARD, lambda tensors: tensors.update(extra=extra))
    _write_index(directory, {**_read_index(directory), "extra": _SHARD})


def _add_unlisted(directory):
    extra = np.zeros(3, np.float32)
    _rewrite(directory / _SHARD, lambda tensors: tensors.update(extra=extra))


def _duplicate(directory):
    tensor = load_file(directory / _SHARD)[_NAME]
    other = directory / "model-00001-of-00003.safetensors"
    _rewrite(other, lambda tensors: tensors.update({_NAME: tensor}))


def _misplace(directory):
    other = "model-00001-of-00003.safetensors"
    _write_index(directory, {**_read_index(directory), _NAME: other})


def _reshape(directory):
    _rewrite(
        directory / _SHARD,
        lambda tensors: tensors.update({_NAME: np.zeros((16, 8), np.float32)}),
    )


def _retype(directory):
    _rewrite(
        directory / _SHARD,
        lambda tensors: tensors.update({_NAME: np.zeros((8, 16), np.int8)}),
    )


def _truncate(directory):
    os.truncate(directory / _SHARD, (directory / _SHARD).stat().st_size - 1)


def _truncate_header(directory):
    os.truncate(directory / _SHARD, 100)


def _empty(directory):
    os.truncate(directory / _SHARD, 0)


def _remove(directory):
    (directory / _SHARD).unlink()


def _remove_index(directory):
    (directory / hf_format.INDEX).unlink()


def _damage_index(directory):
    os.truncate(directory / hf_format.INDEX, 100)


def _point_outside(directory):
    _write_index(directory, {**_read_index(directory), _NAME: f"../{_SHARD}"})


def _repeat_in_index(directory):
    path = directory / hf_format.INDEX
    path.write_text(path.read_text().replace("}}", f', "{_NAME}": "{_SHARD}"}}}}'))


def _tie(directory):
    config = dataclasses.replace(_CONFIG, weight_tying=True)
    (directory / "config.json").write_text(json.dumps(config.to_hf()))


def _remove_config(directory):
    (directory / "config.json").unlink()


def _use_alibi(directory):
    (directory / "config.json").write_text(json.dumps({**_CONFIG.to_hf(), "alibi": 1}))


def _use_gpt2(directory):
    config = {**_CONFIG.to_hf(), "model_type": "gpt2"}
    (directory / "config.json").write_text(json.dumps(config))


_NAME = f"{_PREFIX}blocks.0.k_proj.weight"
_SHARD = "model-00002-of-00003.safetensors"
_INDEX = "model.safetensors.index.json"
_DAMAGES = {
    _drop: [f"{_NAME} is not in {_SHARD}, where {_INDEX} places it"],
    _drop_everywhere: [f"{_NAME} is missing"],
    _add: [f"extra (in {_SHARD}) is not a weight of it"],
    _add_unlisted: [
        f"extra is in {_SHARD}, where {_INDEX} does not place it",
        f"extra (in {_SHARD}) is not a weight of it",
    ],
    _duplicate: [
        f"{_NAME} is in more than one shard (model-00001-of-00003.safetensors, "
        f"{_SHARD})"
    ],
    _misplace: [f"{_NAME} is in {_SHARD}, where {_INDEX} does not place it"],
    _reshape: [f"{_NAME} is (16, 8), must be (8, 16)"],
    _retype: [f"{_NAME} is I8, must be one of BF16, F16, F32"],
    _truncate: [f"{_SHARD} is truncated or damaged"],
    _truncate_header: [f"{_SHARD} is truncated or damaged"],
    _empty: [f"{_SHARD} is truncated or damaged"],
    _remove: [f"{_SHARD} is missing"],
    _remove_index: [
        *(f"model-0000{i}-of-00003.safetensors is not in {_INDEX}" for i in (1, 2, 3)),
        "model.safetensors is missing",
    ],
    _damage_index: [f"{_INDEX} is damaged"],
    _point_outside: [f"{_INDEX}: weight_map must map tensors to names of shards"],
    _repeat_in_index: [f"{_INDEX} is damaged (repeated: {_NAME})"],
    _tie: [
        f"{_PREFIX}ff_out.weight (in model-00003-of-00003.safetensors) is not a weight"
    ],
    _remove_config: ["config.json is missing"],
    _use_alibi: ["config.json: not supported: alibi=1"],
    _use_gpt2: ["config.json: model_type ('gpt2') must be one of ['llada']"],
}


@pytest.mark.parametrize("damage", _DAMAGES)
def test_damage_is_refused(tmp_path, damage):
    directory = _write(tmp_path / "hf", _tensors(), num_shards=3)
    damage(directory)
    with pytest.raises(CheckpointError) as error:
        checkpoints.load(directory)
    assert "\n" not in str(error.value)
    assert len(error.value.problems) == len(_DAMAGES[damage])
    for problem, expected in zip(error.value.problems, _DAMAGES[damage], strict=True):
        assert problem.startswith(expected)


def test_all_problems_are_in_one_error(tmp_path):
    directory = _write(tmp_path / "hf", _tensors(), num_shards=4)
    (directory / "model-00001-of-00004.safetensors").unlink()
    os.truncate(directory / "model-00002-of-00004.safetensors", 1000)

    def change(tensors):
        names = sorted(tensors)
        tensors["surplus"] = tensors.pop(names[0])
        tensors[names[1]] = np.zeros((1, 2, 3), np.float32)
        tensors[names[2]] = tensors[names[2]].astype(np.int32)

    _rewrite(directory / "model-00003-of-00004.safetensors", change)
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


def test_a_damaged_single_file_is_refused(tmp_path):
    directory = _write(tmp_path / "hf", _tensors())
    os.truncate(directory / "model.safetensors", 5000)
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        checkpoints.load(directory)
    with pytest.raises(InputError, match="is not a directory"):
        checkpoints.load(tmp_path / "nothing")


# --- Flax -> Hugging Face -----------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("max_shard_bytes", [2**30, 9000, 1])
def test_hf_round_trip_is_bit_exact(tmp_path, dtype, max_shard_bytes):
    tensors = _tensors(dtype=dtype)
    directory = _write(tmp_path / "a", tensors, num_shards=3)
    model = checkpoints.load(directory)
    checkpoints.save_hf(
        model,
        tmp_path / "b",
        checkpoints.companions(directory),
        max_shard_bytes=max_shard_bytes,
    )
    _assert_equal(checkpoints.load(tmp_path / "b"), model)
    files = sorted((tmp_path / "b").glob("*.safetensors"))
    found = {}
    for file in files:
        part = load_file(file)
        assert len(part) == 1 or sum(x.nbytes for x in part.values()) <= max_shard_bytes
        found.update(part)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].tobytes() == tensor.tobytes()
    assert (len(files) == 1) == (max_shard_bytes == 2**30)
    assert (len(files) > 1) == (tmp_path / "b" / _INDEX).is_file()
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
    blocks = {name: split for name in hf_format._LLADA_MATRICES}
    blocks |= dict.fromkeys(hf_format._LLADA_NORMS, whole)
    shardings = {"wte": whole, "ln_f": whole, "ff_out": whole, "blocks": blocks}
    directory = orbax_directory
    if load == "hf":
        directory = tmp_path / "hf"
        checkpoints.save_hf(model, directory)
    found = checkpoints.load(directory, shardings=shardings)
    _assert_equal(found, model)
    assert found.blocks.q_proj[...].sharding == split
    assert found.wte[...].sharding == whole


def test_orbax_restores_on_more_devices(orbax_directory):
    """Written on one device, read by each of four: bit-exact."""
    script = f"""
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from dlm_jax import checkpoints
mesh = jax.make_mesh((4,), ("model",), axis_types=(AxisType.Auto,))
whole = checkpoints.load({str(orbax_directory)!r})
split = NamedSharding(mesh, P("model"))
shardings = {{"wte": split, "ff_out": split, "ln_f": NamedSharding(mesh, P()),
             "blocks": NamedSharding(mesh, P(None, "model"))}}
parts = checkpoints.load({str(orbax_directory)!r}, shardings=shardings)
for name in ("wte", "ff_out"):
    a, b = getattr(whole, name)[...], getattr(parts, name)[...]
    assert len(b.sharding.device_set) == 4 and len(a.sharding.device_set) == 1
    assert b.addressable_shards[0].data.shape == (76, 16)
    np.testing.assert_array_equal(a, b)
np.testing.assert_array_equal(whole.blocks.ff_out[...], parts.blocks.ff_out[...])
"""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    subprocess.run(
        [sys.executable, "-c", script], check=True, env={**os.environ, **flags}
    )


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
    config = dataclasses.replace(_CONFIG, n_layers=3, weight_tying=True)
    (directory / "config.json").write_text(json.dumps(config.to_hf()))
    with pytest.raises(CheckpointError) as error:
        checkpoints.load(directory)
    assert len(error.value.problems) == 10
    assert "blocks.ff_norm is (2, 16), must be (3, 16)" in error.value.problems
    assert "ff_out is (304, 16), must be left out" in error.value.problems


# --- Interruptions ------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError("disk"), KeyboardInterrupt()])
@pytest.mark.parametrize(
    ("save", "step"),
    [
        (checkpoints.save_hf, "_write_shard"),
        (checkpoints.save_hf, "_copy"),
        (checkpoints.save_hf, "_write_json"),
        (checkpoints.save_orbax, "_copy"),
        (checkpoints.save_orbax, "_inventory"),
        (checkpoints.save_orbax, "_write_json"),
    ],
)
def test_a_failed_save_leaves_nothing(tmp_path, model, monkeypatch, save, step, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(checkpoints, step, fail)
    with pytest.raises(type(error)):
        save(model, tmp_path / "out")
    assert not os.listdir(tmp_path)
    monkeypatch.undo()
    save(model, tmp_path / "out")
    _assert_equal(checkpoints.load(tmp_path / "out"), model)


@pytest.mark.parametrize("target", ["orbax", "hf"])
def test_a_killed_conversion_leaves_nothing_that_loads(tmp_path, target):
    """SIGKILL as soon as the first parameters are on disk."""
    config = dataclasses.replace(_CONFIG, d_model=1024, n_layers=4)
    directory = _write(tmp_path / "in", _tensors(config), config)
    output = tmp_path / "out"
    arguments = [f"--checkpoint={directory}", f"--output={output}"]
    command = [sys.executable, "-m", "experiments.convert", f"--format={target}"]
    process = subprocess.Popen([*command, *arguments], stderr=subprocess.DEVNULL)
    pattern = ".out.partial-*/params*/*/*" if target == "orbax" else ".out.partial-*/*"
    while process.poll() is None and not any(tmp_path.glob(pattern)):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not output.exists()
    (partial,) = tmp_path.glob(".out.partial-*")
    with pytest.raises(CheckpointError):
        checkpoints.load(partial)
    # What is left over is in nobody's way.
    checkpoints.save_orbax(checkpoints.load(directory), output)
    assert checkpoints.load(output).config == config


# --- The script ---------------------------------------------------------------------


def test_convert_there_and_back(tmp_path, run_script):
    tensors = _tensors(dtype=jnp.bfloat16)
    _write(tmp_path / "a", tensors, num_shards=2)
    status, out, err = run_script(
        "convert", f"--checkpoint={tmp_path / 'a'}", f"--output={tmp_path / 'b'}"
    )
    num_params = sum(tensor.size for tensor in tensors.values())
    assert (status, err) == (0, "")
    assert f"parameters  {num_params:,}\nbytes       {2 * num_params:,}\n" in out
    status, out, err = run_script(
        "convert",
        f"--checkpoint={tmp_path / 'b'}",
        f"--output={tmp_path / 'c'}",
        "--format=hf",
    )
    assert (status, err) == (0, "")
    found = load_file(tmp_path / "c" / "model.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor)
    assert (tmp_path / "c" / "tokenizer.json").is_file()
    run_script(
        "convert",
        f"--checkpoint={tmp_path / 'a'}",
        f"--output={tmp_path / 'd'}",
        "--dtype=float32",
    )
    assert checkpoints.load(tmp_path / "d").wte[...].dtype == jnp.float32


@pytest.mark.parametrize(
    "damage", [_remove, _truncate, _drop, _add, _reshape, _use_alibi, _damage_index]
)
def test_convert_answers_damage_with_one_line(tmp_path, run_script, damage):
    directory = _write(tmp_path / "in", _tensors(), num_shards=3)
    damage(directory)
    status, out, err = run_script(
        "convert", f"--checkpoint={directory}", f"--output={tmp_path / 'out'}"
    )
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"error: {directory}: {_DAMAGES[damage][0]}")
    assert os.listdir(tmp_path) == ["in"]


@pytest.mark.parametrize(
    ("output", "message"),
    [("in", "already exists"), ("in/config.json/out", "cannot be written")],
)
def test_convert_refuses_bad_outputs(tmp_path, run_script, output, message):
    directory = _write(tmp_path / "in", _tensors())
    before = {path: path.read_bytes() for path in directory.iterdir()}
    status, out, err = run_script(
        "convert", f"--checkpoint={directory}", f"--output={tmp_path / output}"
    )
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"error: output ({tmp_path / output}) {message}")
    assert {path: path.read_bytes() for path in directory.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint=x"], "--output must have a value"),
        (["--checkpoint=x", "--output=y", "--dtype=int4"], "--dtype=int4"),
        (["--checkpoint=x", "--output=y", "--fromat=hf"], "fromat"),
        (["--checkpoint=x", "--output=y", "z"], "unexpected arguments: z"),
        (["--checkpoint=x", "--output=y"], "checkpoint (x) is not a directory"),
    ],
)
def test_convert_refuses_bad_flags(
    tmp_path, monkeypatch, run_script, arguments, message
):
    monkeypatch.chdir(tmp_path)
    status, _, err = run_script("convert", *arguments)
    assert status == 1
    assert message in err
    assert "Traceback" not in err
    assert not os.listdir(tmp_path)
