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

# How transformers calls the dtype in config.json, before and since version 5.
_DTYPE_NAMES = ("torch_dtype", "dtype")
_DTYPES = ("bfloat16", "float32", "float64")
# Where transformers keeps chat templates beside the first.
_TEMPLATES = "additional_chat_templates"
_TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "generation_config.json",
    "vocab.*",
    "merges.txt",
    f"{_TEMPLATES}/*.jinja",
)
# What Hugging Face's own loader needs, and what a licence asks for. Code is carried
# along and never run.
_CARRIED = (
    "*.py",
    "preprocessor_config.json",
    "processor_config.json",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "COPYING*",
    "COPYRIGHT*",
    "USE_POLICY*",
)


def astype(model: Module, dtype: jax.typing.DTypeLike) -> Module:
    """A copy of the model with its parameters in another dtype."""
    graph, state = nnx.split(model)
    return nnx.merge(graph, jax.tree.map(lambda x: x.astype(dtype), state))


def tokenizer_files(directory: str | os.PathLike) -> tuple[Path, ...]:
    """The tokenizer and generation files that belong to a checkpoint, sorted."""
    return _matching(Path(directory), _TOKENIZER)


def companions(directory: str | os.PathLike) -> tuple[Path, ...]:
    """The files that a converted checkpoint takes along, sorted.

    Those of `tokenizer_files`, code that Hugging Face's `auto_map` names, and licences.
    """
    return _matching(Path(directory), _TOKENIZER + _CARRIED)


def _matching(directory: Path, patterns: Sequence[str]) -> tuple[Path, ...]:
    found = {path for pattern in patterns for path in directory.glob(pattern)}
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


def hf_config(model: Module, origin: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What config.json holds of a model.

    Args:
      model: with parameters of one dtype.
      origin: contents of the config.json that it was read from. If it is still the
        model's, its fields are kept, those too that are unknown here: `auto_map`, which
        names the code that Hugging Face's loader runs, does not come from the model.
    """
    dtype = str(dtype_of(model))
    if origin is None or _shape(model, origin) != model.config:
        return {**model.config.to_hf(), "torch_dtype": dtype}
    kept = {name: x for name, x in origin.items() if name not in _DTYPE_NAMES}
    names = [name for name in _DTYPE_NAMES if name in origin] or _DTYPE_NAMES[:1]
    return kept | dict.fromkeys(names, dtype)


def _shape(model: Module, origin: Mapping[str, Any]) -> ModelConfig | None:
    """The shape that the contents of a config.json mean; None if they mean none."""
    try:
        return type(model.config).from_hf(origin)
    except InputError:
        return None


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
    """Copies files into a directory; further chat templates have one of their own."""
    for file in map(Path, sources):
        is_below = file.parent.name == _TEMPLATES
        target = directory / _TEMPLATES if is_below else directory
        target.mkdir(exist_ok=True)
        shutil.copyfile(file, target / file.name)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a file of indented JSON."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
