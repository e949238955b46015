"""LLaDA checkpoints in Hugging Face format, whole and damaged in every way."""

import dataclasses
import itertools
import json
import os
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from dlm_jax.checkpoints import hf_format
from dlm_jax.models.llada import tiny

PREFIX = "model.transformer."
CONFIG = dataclasses.replace(
    tiny(),
    d_model=16,
    n_heads=2,
    n_kv_heads=1,
    n_layers=2,
    mlp_hidden_size=24,
    embedding_size=304,
)


def tensor_shapes(config=CONFIG) -> dict[str, tuple[int, ...]]:
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
    return {f"{PREFIX}{name}.weight": shape for name, shape in shapes.items()}


def random_tensors(config=CONFIG, dtype=np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(shape).astype(dtype)
        for name, shape in tensor_shapes(config).items()
    }


def write(directory: Path, tensors, config=CONFIG, num_shards: int = 1) -> Path:
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
    write_index(directory, weight_map)
    return directory


def read_index(directory: Path) -> dict[str, str]:
    path = directory / "model.safetensors.index.json"
    return json.loads(path.read_text())["weight_map"]


def write_index(directory: Path, weight_map: dict[str, str]) -> None:
    path = directory / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def rewrite(file: Path, change) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def drop(directory):
    rewrite(directory / SHARD, lambda tensors: tensors.pop(NAME))


def drop_everywhere(directory):
    drop(directory)
    weight_map = read_index(directory)
    del weight_map[NAME]
    write_index(directory, weight_map)


def add(directory):
    extra = np.zeros(3, np.float32)
    rewrite(directory / SHARD, lambda tensors: tensors.update(extra=extra))
    write_index(directory, {**read_index(directory), "extra": SHARD})


def add_unlisted(directory):
    extra = np.zeros(3, np.float32)
    rewrite(directory / SHARD, lambda tensors: tensors.update(extra=extra))


def duplicate(directory):
    tensor = load_file(directory / SHARD)[NAME]
    other = directory / "model-00001-of-00003.safetensors"
    rewrite(other, lambda tensors: tensors.update({NAME: tensor}))


def misplace(directory):
    other = "model-00001-of-00003.safetensors"
    write_index(directory, {**read_index(directory), NAME: other})


def reshape(directory):
    rewrite(
        directory / SHARD,
        lambda tensors: tensors.update({NAME: np.zeros((16, 8), np.float32)}),
    )


def retype(directory):
    rewrite(
        directory / SHARD,
        lambda tensors: tensors.update({NAME: np.zeros((8, 16), np.int8)}),
    )


def truncate(directory):
    os.truncate(directory / SHARD, (directory / SHARD).stat().st_size - 1)


def truncate_header(directory):
    os.truncate(directory / SHARD, 100)


def empty(directory):
    os.truncate(directory / SHARD, 0)


def remove(directory):
    (directory / SHARD).unlink()


def remove_index(directory):
    (directory / hf_format.INDEX).unlink()


def damage_index(directory):
    os.truncate(directory / hf_format.INDEX, 100)


def point_outside(directory):
    write_index(directory, {**read_index(directory), NAME: f"../{SHARD}"})


def repeat_in_index(directory):
    path = directory / hf_format.INDEX
    path.write_text(path.read_text().replace("}}", f', "{NAME}": "{SHARD}"}}}}'))


def tie(directory):
    config = dataclasses.replace(CONFIG, weight_tying=True)
    (directory / "config.json").write_text(json.dumps(config.to_hf()))


def remove_config(directory):
    (directory / "config.json").unlink()


def use_alibi(directory):
    (directory / "config.json").write_text(json.dumps({**CONFIG.to_hf(), "alibi": 1}))


def use_gpt2(directory):
    config = {**CONFIG.to_hf(), "model_type": "gpt2"}
    (directory / "config.json").write_text(json.dumps(config))


def add_adapter_config(directory):
    (directory / "adapter_config.json").write_text("{}")


def add_adapter_weights(directory):
    for name in ("adapter_model.safetensors", "adapters.npz"):
        (directory / name).write_bytes(b"")


def leave_an_adapter_only(directory):
    for path in directory.iterdir():
        path.unlink()
    add_adapter_config(directory)


NAME = f"{PREFIX}blocks.0.k_proj.weight"
SHARD = "model-00002-of-00003.safetensors"
INDEX = "model.safetensors.index.json"
DAMAGES = {
    drop: [f"{NAME} is not in {SHARD}, where {INDEX} places it"],
    drop_everywhere: [f"{NAME} is missing"],
    add: [f"extra (in {SHARD}) is not a weight of it"],
    add_unlisted: [
        f"extra is in {SHARD}, where {INDEX} does not place it",
        f"extra (in {SHARD}) is not a weight of it",
    ],
    duplicate: [
        f"{NAME} is in more than one shard (model-00001-of-00003.safetensors, {SHARD})"
    ],
    misplace: [f"{NAME} is in {SHARD}, where {INDEX} does not place it"],
    reshape: [f"{NAME} is (16, 8), must be (8, 16)"],
    retype: [f"{NAME} is I8, must be one of BF16, F16, F32"],
    truncate: [f"{SHARD} is truncated or damaged"],
    truncate_header: [f"{SHARD} is truncated or damaged"],
    empty: [f"{SHARD} is truncated or damaged"],
    remove: [f"{SHARD} is missing"],
    remove_index: [
        *(f"model-0000{i}-of-00003.safetensors is not in {INDEX}" for i in (1, 2, 3)),
        "model.safetensors is missing",
    ],
    damage_index: [f"{INDEX} is damaged"],
    point_outside: [f"{INDEX}: weight_map must map tensors to names of shards"],
    repeat_in_index: [f"{INDEX} is damaged (repeated: {NAME})"],
    tie: [
        f"{PREFIX}ff_out.weight (in model-00003-of-00003.safetensors) is not a weight"
    ],
    remove_config: ["config.json is missing"],
    use_alibi: ["config.json: not supported: alibi=1"],
    add_adapter_config: ["adapter_config.json: adapters are not applied; merge it"],
    add_adapter_weights: [
        "adapter_model.safetensors, adapters.npz: adapters are not applied; merge it"
    ],
    leave_an_adapter_only: ["adapter_config.json: adapters are not applied; merge it"],
    use_gpt2: ["config.json: model_type ('gpt2') must be one of ['llada']"],
}
