"""Checkpoints: strict, streaming Hugging Face <-> Flax, and Orbax with shardings.

A checkpoint is a directory. In Hugging Face format it holds `config.json` and
`model.safetensors`, or shards with `model.safetensors.index.json`. In Orbax format it
holds `config.json`, `params/` and `files.json`: the sizes of the files in `params/`,
written last, so that an incomplete copy does not load. Either may hold tokenizer files.
`load` reads both.
"""

import functools
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tqdm
from flax import nnx
from jaxtyping import PyTree
from safetensors.numpy import save_file

from dlm_jax import files
from dlm_jax.checkpoints import hf_format
from dlm_jax.checkpoints.hf_format import CheckpointError
from dlm_jax.checkpoints.staging import staged
from dlm_jax.errors import InputError
from dlm_jax.models.llada import LLaDA, LLaDAConfig

_PARAMS = "params"
_INVENTORY = "files.json"
_DTYPES = ("bfloat16", "float32", "float64")
# XLA adopts a host buffer without copying it only at this alignment, in bytes.
_ALIGNMENT = 64
_CHUNK_BYTES = 2**25
_COMPANIONS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "generation_config.json",
    "vocab.*",
    "merges.txt",
)


def load(
    directory: str | Path,
    dtype: jax.typing.DTypeLike | None = None,
    shardings: PyTree = None,
) -> LLaDA:
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
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"checkpoint ({directory}) is not a directory")
    if (directory / _PARAMS).is_dir():
        return load_orbax(directory, dtype, shardings)
    return load_hf(directory, dtype, shardings)


def read_config(directory: str | Path) -> LLaDAConfig:
    """The shape of a checkpoint's model.

    Raises:
      CheckpointError: if it is missing, damaged or not supported.
    """
    return hf_format.read_config(Path(directory))[1]


def load_hf(
    directory: str | Path,
    dtype: jax.typing.DTypeLike | None = None,
    shardings: PyTree = None,
) -> LLaDA:
    """Loads a Hugging Face directory; arguments and errors are those of `load`.

    Reads a slab of one tensor at a time straight into the stacked parameter, so that
    host memory holds the parameters and little more; of those that are sharded over
    several hosts, each reads its own part only. Nothing is read before all names,
    shapes and dtypes have been found right.
    """
    directory = Path(directory)
    format_, config = hf_format.read_config(directory)
    found = hf_format.survey(directory)
    stored = [hf_format.DTYPES.get(tensor.dtype) for tensor in found.tensors.values()]
    dtype = _choose_dtype(dtype, stored)
    abstract = _abstract(format_.model, config, dtype)
    specs = _flatten(abstract)
    slots = hf_format.slots(format_, _shapes(specs))
    problems = hf_format.compare(slots, found)
    if problems:
        raise CheckpointError(directory, problems)
    placements = _broadcast(shardings, specs)
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
    return _merge(abstract, params)


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
    model: LLaDA,
    directory: str | Path,
    extra_files: Iterable[str | Path] = (),
    max_shard_bytes: int = 2**29,
) -> None:
    """Writes a model in Hugging Face format, in the dtype of its parameters.

    Args:
      model: with parameters in bfloat16 or float32.
      directory: must not exist; appears only when everything has been written.
      extra_files: copied along, as `companions` finds them.
      max_shard_bytes: a shard is closed before it would grow past this; a tensor that
        is larger is alone in its shard. Shards are put together in host memory.

    Raises:
      InputError: if the directory exists or the dtype has no place in the format.
    """
    params = _flatten(model)
    dtype = _dtype(model)
    if dtype not in hf_format.DTYPES.values():
        raise InputError(f"dtype ({dtype}) must be bfloat16 or float32")
    config = _hf_config(model)
    slots = hf_format.slots(hf_format.FORMATS[config["model_type"]], _shapes(params))
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
            _write_json(staging / hf_format.INDEX, index)
        _copy(extra_files, staging)
        # Last: what is left of a killed process has no config and does not load.
        _write_json(staging / hf_format.CONFIG, config)


def save_orbax(
    model: LLaDA, directory: str | Path, extra_files: Iterable[str | Path] = ()
) -> None:
    """Writes a model in Orbax format; arguments and errors are those of `save_hf`.

    Of a model that is sharded over several hosts, each writes its own part; all of them
    call this, and see the same file system.

    Parameters are written uncompressed, in chunks of at most 32 MiB and one file each:
    Orbax's defaults (one database, compressed) hold them in memory almost twice.
    """
    config = _hf_config(model)
    params = nnx.to_pure_dict(nnx.state(model))
    save_args = jax.tree.map(
        lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), params
    )
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False)
    num_bytes = sum(param.nbytes for param in jax.tree.leaves(params))
    with staged(directory, num_bytes) as staging:
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(
                staging.absolute() / _PARAMS,
                args=ocp.args.PyTreeSave(params, save_args=save_args),
            )
        if jax.process_index():
            return
        _copy(extra_files, staging)
        _write_json(staging / hf_format.CONFIG, config)
        # Last: what is left of a killed process has no inventory and does not load.
        _write_json(staging / _INVENTORY, _inventory(staging / _PARAMS))


def load_orbax(
    directory: str | Path,
    dtype: jax.typing.DTypeLike | None = None,
    shardings: PyTree = None,
) -> LLaDA:
    """Loads an Orbax directory; arguments and errors are those of `load`.

    For each device the chunks that its part of a sharded parameter touches are read,
    whole, so that one at a border is read more than once. Processes do not wait for
    each other, so that one whose reading fails leaves none behind.
    """
    directory = Path(directory)
    format_, config = hf_format.read_config(directory)
    _check_inventory(directory)
    path = directory.absolute() / _PARAMS
    # By default Orbax ends with a collective over all processes. But nothing is written
    # that another would have to wait for.
    process = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=process,
        active_processes={process},
        barrier_sync_key_prefix=str(process),
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
        stored = _flatten_dict(checkpointer.metadata(path).item_metadata.tree)
        dtype = _choose_dtype(dtype, [np.dtype(item.dtype) for item in stored.values()])
        abstract = _abstract(format_.model, config, dtype)
        specs = _flatten(abstract)
        expected, found = _shapes(specs), _shapes(stored)
        problems = [
            f"{name} is {found.get(name, 'missing')}, must be "
            f"{expected.get(name, 'left out')}"
            for name in sorted(expected.keys() | found.keys())
            if expected.get(name) != found.get(name)
        ]
        if problems:
            raise CheckpointError(directory, problems)
        placements = _broadcast(shardings, specs)
        target = _unflatten_dict(
            {
                name: jax.ShapeDtypeStruct(spec.shape, dtype, sharding=placements[name])
                for name, spec in specs.items()
            }
        )
        restore_args = ocp.checkpoint_utils.construct_restore_args(target)
        params = checkpointer.restore(
            path, args=ocp.args.PyTreeRestore(target, restore_args=restore_args)
        )
    return _merge(abstract, _flatten_dict(params))


def astype(model: LLaDA, dtype: jax.typing.DTypeLike) -> LLaDA:
    """A copy of the model with its parameters in another dtype."""
    graph, state = nnx.split(model)
    return nnx.merge(graph, jax.tree.map(lambda x: x.astype(dtype), state))


def companions(directory: str | Path) -> tuple[Path, ...]:
    """The tokenizer and generation files that belong to a checkpoint, sorted."""
    directory = Path(directory)
    found = {path for pattern in _COMPANIONS for path in directory.glob(pattern)}
    return tuple(sorted(path for path in found if path.is_file()))


def _flatten_dict(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Keys become paths: "blocks.q_proj"."""
    return flax.traverse_util.flatten_dict(tree, sep=".")


def _unflatten_dict(flat: Mapping[str, Any]) -> dict[str, Any]:
    return flax.traverse_util.unflatten_dict(dict(flat), sep=".")


def _flatten(model: LLaDA) -> dict[str, Any]:
    return _flatten_dict(nnx.to_pure_dict(nnx.state(model)))


def _shapes(flat: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {path: tuple(value.shape) for path, value in flat.items()}


def _abstract(model: type[LLaDA], config: LLaDAConfig, dtype: np.dtype) -> LLaDA:
    return nnx.eval_shape(
        lambda: model(config, rngs=nnx.Rngs(0), dtype=jnp.dtype(dtype))
    )


def _merge(abstract: LLaDA, params: Mapping[str, jax.Array]) -> LLaDA:
    graph, state = nnx.split(abstract)
    nnx.replace_by_pure_dict(state, _unflatten_dict(params))
    return nnx.merge(graph, state)


def _broadcast(shardings: PyTree, flat: Mapping[str, Any]) -> dict[str, Any]:
    """One sharding for each path."""
    if shardings is None:
        shardings = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return _flatten_dict(jax.tree.broadcast(shardings, _unflatten_dict(flat)))


def _dtype(model: LLaDA) -> np.dtype:
    dtypes = {np.dtype(value.dtype) for value in _flatten(model).values()}
    if len(dtypes) > 1:
        names = ", ".join(sorted(map(str, dtypes)))
        raise InputError(f"parameters ({names}) must be of one dtype")
    return dtypes.pop()


def _hf_config(model: LLaDA) -> dict[str, Any]:
    return {**model.config.to_hf(), "torch_dtype": str(_dtype(model))}


def _choose_dtype(
    dtype: jax.typing.DTypeLike | None, stored: Sequence[np.dtype | None]
) -> np.dtype:
    if dtype is None:
        is_kept = len(set(stored)) == 1 and str(stored[0]) in _DTYPES
        dtype = stored[0] if is_kept else np.float32
    dtype = np.dtype(dtype)
    if str(dtype) not in _DTYPES:
        raise InputError(f"dtype ({dtype}) must be one of {', '.join(_DTYPES)}")
    is_x64_enabled = jnp.result_type(float) == np.float64
    if dtype == np.float64 and not is_x64_enabled:
        raise InputError("dtype (float64) needs JAX_ENABLE_X64=1 in the environment")
    return dtype


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


def _inventory(params: Path) -> dict[str, int]:
    return {
        path.relative_to(params).as_posix(): path.stat().st_size
        for path in sorted(params.rglob("*"))
        if path.is_file()
    }


def _check_inventory(directory: Path) -> None:
    expected = hf_format.read_json(directory, _INVENTORY)
    found = _inventory(directory / _PARAMS)
    problems = [
        f"{_PARAMS}/{name} has {found[name]} bytes, must have {size}"
        if name in found
        else f"{_PARAMS}/{name} is missing"
        for name, size in expected.items()
        if found.get(name) != size
    ]
    if problems:
        raise CheckpointError(directory, problems)


def _copy(sources: Iterable[str | Path], directory: Path) -> None:
    for file in sources:
        shutil.copyfile(file, directory / Path(file).name)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
