"""Checkpoints in Hugging Face format, read and written tensor by tensor; `load`.

A checkpoint is a directory. In Hugging Face format it holds `config.json` and
`model.safetensors`, or shards with `model.safetensors.index.json`. In Orbax format it
holds `config.json`, `params/` and `files.json`: the sizes of the files in `params/`,
written last, so that an incomplete copy does not load. Either may hold tokenizer files.
`load` reads both.
"""

import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm
from jaxtyping import PyTree
from safetensors.numpy import save_file

from dlm_jax import files
from dlm_jax.checkpoints import common, hf_format, orbax
from dlm_jax.checkpoints.hf_format import CheckpointError
from dlm_jax.checkpoints.orbax import PARAMS, load_orbax
from dlm_jax.errors import InputError
from dlm_jax.models import registry
from dlm_jax.models.family import ModelConfig, Module

# XLA adopts a host buffer without copying it only at this alignment, in bytes.
_ALIGNMENT = 64


def load(
    directory: str | os.PathLike,
    dtype: jax.typing.DTypeLike | None = None,
    shardings: PyTree = None,
) -> Module:
    """Loads a checkpoint in either format.

    Args:
      directory: Hugging Face or Orbax directory.
      dtype: bfloat16, float32 or float64 (needs JAX_ENABLE_X64) of the parameters; by
        default that of the files (float32 if they are float16 or mixed).
      shardings: where to place parameters: a `jax.sharding.Sharding`, or a tree of them
        that is a prefix of the module's nested dict of parameters. By default the first
        local device.

    Raises:
      CheckpointError: naming everything that is missing, left over, damaged or wrong.
      InputError: for a dtype that models do not take.
    """
    directory = _existing(directory)
    if (directory / PARAMS).is_dir():
        return load_orbax(directory, dtype, shardings)
    return load_hf(directory, dtype, shardings)


def read_config(directory: str | os.PathLike) -> ModelConfig:
    """The shape of a checkpoint's model.

    Raises:
      InputError: if the directory does not exist.
      CheckpointError: if the config is missing, damaged or not supported.
    """
    return hf_format.read_config(_existing(directory))[1]


def read_origin(directory: str | os.PathLike) -> dict[str, Any]:
    """The contents of a checkpoint's config.json, as `save_hf` takes them.

    Raises:
      InputError: if the directory does not exist.
      CheckpointError: if the config is missing or damaged.
    """
    return hf_format.read_json(_existing(directory), hf_format.CONFIG)


def essential_files(directory: str | os.PathLike) -> list[Path]:
    """The files of a checkpoint that its results depend on, sorted.

    Those are weights, config.json and tokenizer, see `common.companions`. What
    downloads, file browsers and version control leave beside them is not among them,
    nor are a model card, a licence and code, which is never run.

    Raises:
      InputError: if the directory does not exist, or its index is damaged.
    """
    directory = _existing(directory)
    is_orbax = (directory / PARAMS).is_dir()
    weights = (orbax if is_orbax else hf_format).weight_files(directory)
    named = {directory / hf_format.CONFIG, *weights, *common.tokenizer_files(directory)}
    return sorted(path for path in named if path.is_file())


def _existing(directory: str | os.PathLike) -> Path:
    """The path of a checkpoint's directory.

    Raises:
      InputError: if it does not exist.
    """
    path = Path(directory)
    if not path.is_dir():
        raise InputError(f"checkpoint ({directory}) is not a directory")
    return path


def load_hf(
    directory: str | os.PathLike,
    dtype: jax.typing.DTypeLike | None = None,
    shardings: PyTree = None,
) -> Module:
    """Loads a Hugging Face directory; arguments and errors are those of `load`.

    Reads a slab of one tensor at a time straight into the stacked parameter, so that
    host memory holds the parameters and little more; of those that are sharded over
    several hosts, each reads its own part only. Nothing is read before all names,
    shapes and dtypes have been found right.
    """
    directory = Path(directory)
    family, config = hf_format.read_config(directory)
    found = hf_format.survey(directory)
    stored = [hf_format.DTYPES.get(tensor.dtype) for tensor in found.tensors.values()]
    dtype = common.choose_dtype(dtype, stored)
    abstract = common.abstract(family.module, config, dtype)
    specs = common.flatten(abstract)
    shapes = common.shapes(specs)
    hf_format.check_depth(directory, family.weights, shapes, found)
    slots = hf_format.slots(family.weights, shapes)
    problems = hf_format.compare(family.weights, slots, found)
    if problems:
        raise CheckpointError(directory, problems)
    placements = common.broadcast(shardings, specs)
    params = {}
    progress = tqdm.tqdm(
        total=len(slots), unit="tensor", delay=1, disable=None, leave=False
    )
    with progress:
        for path, spec in specs.items():
            own = {s: found.tensors[s.name] for s in slots if s.path == path}
            # Devices that hold the same part share one reading.
            read = functools.cache(functools.partial(_read_part, own, dtype))
            sharding = placements[path]
            where = sharding.addressable_devices_indices_map(spec.shape)
            parts = []
            for device, index in where.items():
                bounds = zip(index, spec.shape, strict=True)
                part = read(*(place.indices(size)[:2] for place, size in bounds))
                parts.append(jax.device_put(part, device, may_alias=True))
            params[path] = jax.make_array_from_single_device_arrays(
                spec.shape, sharding, parts
            )
            progress.update(len(own))
    return common.merge(abstract, params)


def _read_part(
    tensors: Mapping[hf_format.Slot, hf_format.Stored],
    dtype: np.dtype,
    *bounds: tuple[int, int],
) -> np.ndarray:
    """A part of a parameter, from start to stop along each axis."""
    index = [slice(start, stop) for start, stop in bounds]
    part = _aligned_empty([stop - start for start, stop in bounds], dtype)
    for slot, tensor in tensors.items():
        hf_format.read_into(tensor, slot, index, part)
    return part


def save_hf(
    model: Module,
    directory: str | os.PathLike,
    extra_files: Iterable[str | Path] = (),
    max_shard_bytes: int = 2**29,
    origin: Mapping[str, Any] | None = None,
) -> None:
    """Writes a model in Hugging Face format, in the dtype of its parameters.

    Args:
      model: with parameters in bfloat16 or float32.
      directory: must not exist; appears only when everything has been written.
      extra_files: copied along, as `companions` finds them.
      max_shard_bytes: a shard is closed before it would grow past this; a tensor that
        is larger is alone in its shard. Shards are put together in host memory.
      origin: contents of the config.json that the model was read from, whose fields are
        kept, see `common.hf_config`.

    Raises:
      InputError: if the directory exists or the dtype has no place in the format.
    """
    params = common.flatten(model)
    dtype = common.dtype_of(model)
    if dtype not in hf_format.DTYPES.values():
        raise InputError(f"dtype ({dtype}) must be bfloat16 or float32")
    config = common.hf_config(model, origin)
    slots = hf_format.slots(registry.of(model).weights, common.shapes(params))
    shards = hf_format.split(slots, dtype.itemsize, max_shard_bytes)
    num_bytes = sum(param.nbytes for param in params.values())
    weight_map = {}
    with files.staged(directory, num_bytes, is_directory=True) as staging:
        for number, shard in enumerate(shards, start=1):
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            name = hf_format.SINGLE if len(shards) == 1 else name
            _write_shard(staging / name, params, shard)
            weight_map.update(dict.fromkeys((slot.name for slot in shard), name))
        if len(shards) > 1:
            index = {"metadata": {"total_size": num_bytes}, "weight_map": weight_map}
            common.write_json(staging / hf_format.INDEX, index)
        common.copy(extra_files, staging)
        # Last: what is left of a killed process has no config and does not load.
        common.write_json(staging / hf_format.CONFIG, config)


def _aligned_empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    num_bytes = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(num_bytes + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + num_bytes].view(dtype).reshape(shape)


def _write_shard(
    file: Path, params: Mapping[str, jax.Array], shard: Sequence[hf_format.Slot]
) -> None:
    tensors = {slot.name: _tensor(params[slot.path], slot) for slot in shard}
    save_file(tensors, file, metadata={"format": "pt"})
    # safetensors makes files that only their owner may read.
    file.chmod(file.parent.stat().st_mode & 0o666)


_take_layer = jax.jit(lambda stacked, layer: stacked[layer])


def _tensor(param: jax.Array, slot: hf_format.Slot) -> np.ndarray:
    """Brings one tensor to the host: all of a stacked parameter might not fit twice."""
    if slot.layer is not None:
        param = _take_layer(param, slot.layer)
    tensor = np.asarray(param)
    return np.ascontiguousarray(tensor.T if slot.is_transposed else tensor)
