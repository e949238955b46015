"""SDAR in both formats, by the script, and shared by devices."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import prompts_of
from safetensors.numpy import load_file, save_file

from dlm_jax import caches, checkpoints, samplers
from dlm_jax.core.keys import row_keys
from dlm_jax.core.options import Options
from dlm_jax.devices import runner
from dlm_jax.errors import InputError
from dlm_jax.models import registry, sdar
from dlm_jax.text.characters import character_tokenizer
from dlm_jax.text.codec import Codec

CONFIG = sdar.sdar_tiny()


def tensor_shapes(config=CONFIG):
    """The tensors of an SDAR checkpoint, written out independently of the loader."""
    d, f, vocabulary = config.d_model, config.mlp_hidden_size, config.embedding_size
    q, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    shapes = {"model.embed_tokens": (vocabulary, d), "model.norm": (d,)}
    if not config.weight_tying:
        shapes["lm_head"] = (vocabulary, d)
    for layer in range(config.n_layers):
        for name, shape in {
            "input_layernorm": (d,),
            "post_attention_layernorm": (d,),
            "self_attn.q_proj": (q, d),
            "self_attn.k_proj": (kv, d),
            "self_attn.v_proj": (kv, d),
            "self_attn.o_proj": (d, q),
            "self_attn.q_norm": (config.head_dim,),
            "self_attn.k_norm": (config.head_dim,),
            "mlp.gate_proj": (f, d),
            "mlp.up_proj": (f, d),
            "mlp.down_proj": (d, f),
        }.items():
            shapes[f"model.layers.{layer}.{name}"] = shape
    return {f"{name}.weight": shape for name, shape in shapes.items()}


def write(directory, config=CONFIG, dtype=np.float32):
    """Writes a checkpoint of random tensors and returns these."""
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.standard_normal(shape).astype(dtype)
        for name, shape in tensor_shapes(config).items()
    }
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config.to_hf()))
    (directory / "tokenizer.json").write_text("{}")
    save_file(tensors, directory / "model.safetensors")
    return tensors


def assert_same(found, expected):
    assert type(found) is sdar.SDAR
    assert found.config == expected.config
    found, expected = (nnx.to_pure_dict(nnx.state(x)) for x in (found, expected))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("is_tied", [False, True])
def test_every_tensor_arrives_in_its_place(tmp_path, is_tied):
    config = dataclasses.replace(CONFIG, weight_tying=is_tied)
    tensors = write(tmp_path / "hf", config)
    model = checkpoints.load(tmp_path / "hf")
    assert model.config == config
    assert (model.lm_head is None) == is_tied
    for path, value in checkpoints.common.flatten(model).items():
        if not path.startswith("blocks."):
            name = {"lm_head": "lm_head"}.get(path, f"model.{path}")
            expected = tensors.pop(f"{name}.weight")
            np.testing.assert_array_equal(value, expected)
            continue
        (part,) = {
            name.split(".", 3)[3].removesuffix(".weight")
            for name in tensors
            if name.endswith(f".{path.split('.')[1]}.weight")
        }
        assert value.shape[0] == config.n_layers
        for layer in range(config.n_layers):
            tensor = tensors.pop(f"model.layers.{layer}.{part}.weight")
            np.testing.assert_array_equal(value[layer], tensor.T)
    assert not tensors


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_both_formats_round_trip_exactly(tmp_path, dtype):
    tensors = write(tmp_path / "a", dtype=dtype)
    model = checkpoints.load(tmp_path / "a")
    checkpoints.save_orbax(model, tmp_path / "b")
    assert_same(checkpoints.load(tmp_path / "b"), model)
    checkpoints.save_hf(checkpoints.load(tmp_path / "b"), tmp_path / "c")
    found = load_file(tmp_path / "c" / "model.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].tobytes() == tensor.tobytes()
    written = json.loads((tmp_path / "c" / "config.json").read_text())
    assert written == {**CONFIG.to_hf(), "torch_dtype": str(np.dtype(dtype))}


@pytest.mark.parametrize(
    ("name", "shape", "problem"),
    [
        ("self_attn.q_norm", None, "is missing"),
        ("self_attn.k_norm", (16,), "is (16,), must be (8,)"),
        ("mlp.gate.weight", (4, 24), "is not a weight of it"),
        ("self_attn.q_proj.bias", (32,), "is not a weight of it"),
    ],
)
def test_damage_is_named(tmp_path, name, shape, problem):
    tensors = write(tmp_path / "hf")
    name = f"model.layers.1.{name}"
    name += "" if name.endswith(("weight", "bias")) else ".weight"
    if shape is None:
        del tensors[name]
    else:
        tensors[name] = np.zeros(shape, np.float32)
    save_file(tensors, tmp_path / "hf" / "model.safetensors")
    with pytest.raises(checkpoints.CheckpointError) as error:
        checkpoints.load(tmp_path / "hf")
    (found,) = error.value.problems
    assert found.startswith(name) and found.endswith(problem)


def test_convert_there_and_back(tmp_path, run_script):
    tensors = write(tmp_path / "a", dtype=jnp.bfloat16)
    status, out, err = run_script(
        "convert", f"--checkpoint={tmp_path / 'a'}", f"--output={tmp_path / 'b'}"
    )
    assert (status, err) == (0, "")
    assert f"parameters  {sum(x.size for x in tensors.values()):,}\n" in out
    status, _, err = run_script(
        "convert",
        f"--checkpoint={tmp_path / 'b'}",
        f"--output={tmp_path / 'c'}",
        "--format=hf",
    )
    assert (status, err) == (0, "")
    found = load_file(tmp_path / "c" / "model.safetensors")
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor)
    assert found.keys() == tensors.keys()
    assert (tmp_path / "c" / "tokenizer.json").is_file()


def test_a_random_preset_is_written(tmp_path, run_script):
    status, _, err = run_script(
        "convert", "--preset=sdar_tiny", "--format=hf", f"--output={tmp_path / 'hf'}"
    )
    assert (status, err) == (0, "")
    assert checkpoints.read_config(tmp_path / "hf") == CONFIG
    found = load_file(tmp_path / "hf" / "model.safetensors")
    assert {name: x.shape for name, x in found.items()} == tensor_shapes()


def test_ends_of_a_turn_are_qwens():
    texts = ("<s>", "</s>", "<|eot_id|>", "<|im_end|>", "<|endoftext|>", *"abc", "<m>")
    tokenizer = character_tokenizer(texts, bos="<s>", eos="</s>", mask="<m>")
    assert Codec.of(tokenizer, CONFIG).stop_ids == (1, 3, 4)


# --- Several devices ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_sharing", "message"),
    [
        (3, r"n_heads \(4\) must be a multiple of the devices that share a model"),
        (4, r"n_kv_heads \(2\) must be a multiple of the devices"),
        (0, r"devices that share a model \(0\) must be at least 1"),
    ],
)
def test_a_model_that_does_not_split_is_refused(num_sharing, message):
    with pytest.raises(InputError, match=message):
        registry.partition(CONFIG, num_sharing, "model")


SPECS = ("none", "block")


def generate(directory, num_sharing=None):
    """Tokens and forwards by cache, from all devices of this process."""
    loaded = runner.load(directory, "float64", num_sharing=num_sharing)
    prompts = prompts_of([3, 8, 5], 8, width=16, vocab_size=110)
    found = {}
    for spec in SPECS:
        options = Options(gen_length=8, block_length=4, cache=caches.parse(spec))
        result = loaded.parallel(
            samplers.parse("dynamic(threshold=0.5, schedule=quota(steps=2))"),
            prompts,
            row_keys(0, np.arange(3)),
            options,
        )
        assert result.is_complete.all()
        found[spec] = [result.tokens.tolist(), result.num_steps.tolist()]
    return found


def restore(directory):
    """Checks that each of four devices gets its part of a model shared by pairs."""
    mesh = runner.make_mesh(2)
    specs = registry.partition(checkpoints.read_config(directory), 2, "model")
    shardings = jax.tree.map(lambda spec: jax.NamedSharding(mesh, spec), specs)
    whole = checkpoints.load(directory)
    parts = checkpoints.load(directory, shardings=shardings)
    assert_same(parts, whole)
    shapes = {
        path: value.addressable_shards[0].data.shape
        for path, value in checkpoints.common.flatten(parts).items()
    }
    n, d, f = CONFIG.n_layers, CONFIG.d_model, CONFIG.mlp_hidden_size
    assert shapes == {
        "embed_tokens": (CONFIG.embedding_size // 2, d),
        "lm_head": (CONFIG.embedding_size // 2, d),
        "norm": (d,),
        "blocks.input_layernorm": (n, d),
        "blocks.post_attention_layernorm": (n, d),
        "blocks.q_norm": (n, CONFIG.head_dim),
        "blocks.k_norm": (n, CONFIG.head_dim),
        "blocks.q_proj": (n, d, 2 * CONFIG.head_dim),
        "blocks.k_proj": (n, d, CONFIG.head_dim),
        "blocks.v_proj": (n, d, CONFIG.head_dim),
        "blocks.o_proj": (n, 2 * CONFIG.head_dim, d),
        "blocks.gate_proj": (n, d, f // 2),
        "blocks.up_proj": (n, d, f // 2),
        "blocks.down_proj": (n, f // 2, d),
    }


def on_four_devices(hf, orbax):
    """What the test below runs in a process that sees four devices."""
    for directory in (hf, orbax):
        restore(directory)
    return [generate(orbax, num_sharing) for num_sharing in (1, 2)]


def test_devices_that_share_a_model_compute_the_same(tmp_path):
    """Restored from both formats in parts; with and without a cache of the heads."""
    model = registry.init(CONFIG, seed=2)
    graph, state = nnx.split(model)
    model = nnx.merge(graph, jax.tree.map(lambda x: 6 * x if x.ndim > 2 else x, state))
    directories = str(tmp_path / "hf"), str(tmp_path / "orbax")
    checkpoints.save_hf(model, directories[0])
    checkpoints.save_orbax(model, directories[1])
    child = "import json, test_sdar_files as t; print(json.dumps(t.on_four_devices"
    environment = {
        **os.environ,
        "JAX_NUM_CPU_DEVICES": "4",
        "JAX_ENABLE_X64": "1",
        "PYTHONPATH": os.pathsep.join(
            [os.getcwd(), str(Path(__file__).parent), *filter(None, sys.path)]
        ),
    }
    done = subprocess.run(
        [sys.executable, "-c", f"{child}(*{directories!r})))"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    with jax.enable_x64(True):
        expected = generate(directories[1])
    assert found == [expected, expected]
    # Rows of some length, and the exact cache changes no token.
    assert expected["none"][0] == expected["block"][0]
    assert len({tuple(row) for row in expected["none"][0]}) == 3
