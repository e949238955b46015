"""What both formats share: parameters by their paths, dtypes, files beside them."""

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from dlm_jax.errors import InputError
from dlm_jax.models.family import ModelConfig, Module

_DTYPES = ("bfloat16", "float32", "float64")
_COMPANIONS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "generation_config.json",
    "vocab.*",
    "merges.txt",
)


def astype(model: Module, dtype: jax.typing.DTypeLike) -> Module:
    """A copy of the model with its parameters in another dtype."""
    graph, state = nnx.split(model)
    return nnx.merge(graph, jax.tree.map(lambda x: x.astype(dtype), state))


def companions(directory: str | os.PathLike) -> tuple[Path, ...]:
    """The tokenizer and generation files that belong to a checkpoint, sorted."""
    directory = Path(directory)
    found = {path for pattern in _COMPANIONS for path in directory.glob(pattern)}
    return tuple(sorted(path for path in found if path.is_file()))


def flatten_dict(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Keys become paths: "blocks.q_proj"."""
    return flax.traverse_util.flatten_dict(tree, sep=".")


def unflatten_dict(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse of `flatten_dict`."""
    return flax.traverse_util.unflatten_dict(dict(flat), sep=".")


def flatten(model: Module) -> dict[str, Any]:
    """The parameters of a model by their paths."""
    return flatten_dict(nnx.to_pure_dict(nnx.state(model)))


def shapes(flat: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter."""
    return {path: tuple(value.shape) for path, value in flat.items()}


def abstract(module: type[Any], config: ModelConfig, dtype: np.dtype) -> Module:
    """A model without values: shapes and dtypes only."""
    return nnx.eval_shape(
        lambda: module(config, rngs=nnx.Rngs(0), dtype=jnp.dtype(dtype))
    )


def merge(abstract: Module, params: Mapping[str, jax.Array]) -> Module:
    """A model of `abstract` with values, by their paths."""
    graph, state = nnx.split(abstract)
    nnx.replace_by_pure_dict(state, unflatten_dict(params))
    return nnx.merge(graph, state)


def broadcast(shardings: PyTree, flat: Mapping[str, Any]) -> dict[str, Any]:
    """One sharding for each path."""
    if shardings is None:
        shardings = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return flatten_dict(jax.tree.broadcast(shardings, unflatten_dict(flat)))


def dtype_of(model: Module) -> np.dtype:
    """The one dtype of all parameters.

    Raises:
      InputError: if they have several.
    """
    dtypes = {np.dtype(value.dtype) for value in flatten(model).values()}
    if len(dtypes) > 1:
        names = ", ".join(sorted(map(str, dtypes)))
        raise InputError(f"parameters ({names}) must be of one dtype")
    return dtypes.pop()


def hf_config(model: Module) -> dict[str, Any]:
    """What config.json holds of a model."""
    return {**model.config.to_hf(), "torch_dtype": str(dtype_of(model))}


def choose_dtype(
    dtype: jax.typing.DTypeLike | None, stored: Sequence[np.dtype | None]
) -> np.dtype:
    """The dtype of a loaded model, see `checkpoints.load`.

    Args:
      dtype: what was asked for.
      stored: dtypes of the parameters in the files; None for one that models lack.

    Raises:
      InputError: for a dtype that models do not take.
    """
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


def copy(sources: Iterable[str | Path], directory: Path) -> None:
    """Copies files into a directory."""
    for file in sources:
        shutil.copyfile(file, directory / Path(file).name)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a file of indented JSON."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
