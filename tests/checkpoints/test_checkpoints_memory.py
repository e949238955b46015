"""Peak memory of converting a checkpoint of a billion parameters, measured."""

import json
import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util
from helpers import finish, free_port, start_script
from safetensors.numpy import save_file

from dlm_jax.checkpoints import hf_format
from dlm_jax.models import registry
from dlm_jax.models.llada import LLaDA, LLaDAConfig

_CONFIG = LLaDAConfig(
    d_model=2048,
    n_heads=16,
    n_kv_heads=4,
    n_layers=20,
    mlp_hidden_size=6144,
    vocab_size=32768,
    embedding_size=32768,
    max_sequence_length=1024,
    rope_theta=500000.0,
    rms_norm_eps=1e-5,
    weight_tying=False,
    mask_token_id=3,
    eos_token_id=2,
    pad_token_id=2,
)
_NUM_SHARDS = 6


@pytest.fixture(scope="module")
def big_checkpoint(tmp_path_factory):
    """Six shards of random bfloat16; every layer's tensors lie in several of them."""
    model = nnx.eval_shape(lambda: LLaDA(_CONFIG, rngs=nnx.Rngs(0), dtype=jnp.bfloat16))
    params = traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(model)), sep=".")
    shapes = {path: spec.shape for path, spec in params.items()}
    slots = hf_format.slots(registry.of(_CONFIG).weights, shapes)
    directory = tmp_path_factory.mktemp("big") / "hf"
    directory.mkdir()
    rng = np.random.default_rng(0)
    weight_map = {}
    for number in range(_NUM_SHARDS):
        name = f"model-{number + 1:05d}-of-{_NUM_SHARDS:05d}.safetensors"
        tensors = {}
        for slot in slots[number::_NUM_SHARDS]:
            bits = rng.integers(2**16, size=slot.shape, dtype=np.uint16)
            # Without the top bit of the exponent it is a finite number below 2.
            tensors[slot.name] = (bits & 0xBFFF).view(np.dtype(jnp.bfloat16))
        save_file(tensors, directory / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, name))
    (directory / hf_format.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    (directory / hf_format.CONFIG).write_text(json.dumps(_CONFIG.to_hf()))
    yield directory, slots
    shutil.rmtree(directory)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("target", ["orbax", "hf"])
def test_peak_memory_of_a_conversion(big_checkpoint, dtype, target):
    directory, slots = big_checkpoint
    largest = 2 * max(int(np.prod(slot.shape)) for slot in slots)
    arguments = {
        "checkpoint": directory,
        "output": directory.with_name("out"),
        "dtype": dtype,
        "format": target,
    }
    done = run_all([arguments])[0]
    shutil.rmtree(arguments["output"])
    found = figures(done)
    assert found["parameters"] >= 1e9
    assert found["bytes"] == found["parameters"] * np.dtype(dtype).itemsize
    assert found["peak memory"] < found["bytes"] + 2 * largest + 2**30


@pytest.mark.slow
def test_no_process_of_four_holds_the_whole_model(big_checkpoint):
    directory, _ = big_checkpoint
    arguments = {
        "checkpoint": directory,
        "output": directory.with_name("out"),
        "coordinator": f"localhost:{free_port()}",
        "num_processes": 4,
    }
    said = run_all([{**arguments, "process_id": i} for i in range(4)])
    shutil.rmtree(arguments["output"])
    for found in map(figures, said):
        assert found["bytes"] > 2e9
        # A quarter, read and in Orbax's hands, and what any process takes.
        assert found["peak memory"] < 2 * found["bytes"] / 4 + 0.6 * 2**30


def run_all(processes):
    """What conversions print that run at the same time."""
    said = finish(
        [
            start_script("convert", [f"--{name}={value}" for name, value in p.items()])
            for p in processes
        ]
    )
    print(*said)
    return said


def figures(said):
    found = re.findall(r"^(\w+(?: memory)?) +([\d,]+)", said, re.MULTILINE)
    return {name: int(value.replace(",", "")) for name, value in found}
