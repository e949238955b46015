"""The PyTorch model of a checkpoint or of a module, whatever its family."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from dlm_jax.checkpoints import common, hf_format
from dlm_jax.errors import InputError
from dlm_jax.models import registry
from dlm_jax.models.family import Family, Module
from dlm_jax.parity.torch_llada import device, load_llada, with_weights

# From an architecture to what loads a directory of it.
LOADERS: Mapping[str, Callable[[pathlib.Path], torch.nn.Module]] = {
    "LLaDAModelLM": load_llada,
}
# From an architecture to what makes a model of a config and of weights by their names.
_MAKERS: Mapping[str, Callable[[Any, Mapping[str, torch.Tensor]], torch.nn.Module]] = {
    "LLaDAModelLM": with_weights,
}


def load(directory: str | pathlib.Path) -> torch.nn.Module:
    """Loads a checkpoint in Hugging Face format into an eager PyTorch model.

    The model is put on a GPU if there is one.

    Raises:
      InputError: if the family has no such model, a file is missing or the weights are
        not the config's.
    """
    directory = pathlib.Path(directory)
    family, _ = hf_format.read_config(directory)
    return _found(LOADERS, family, str(directory))(directory)


def twin(model: Module) -> torch.nn.Module:
    """The eager PyTorch model with a copy of a module's weights.

    The copy is made in the memory of the device, or by way of host memory where the
    two libraries are on different ones; no file is written. It is put on a GPU if
    PyTorch sees one.

    Raises:
      InputError: if the family has no such model.
    """
    family = registry.of(model)
    make = _found(_MAKERS, family, "model")
    params = common.flatten(model)
    slots = hf_format.slots(family.weights, common.shapes(params))
    weights = {}
    for path, param in params.items():
        # All layers at once: a view of each is copied, in PyTorch's layout.
        stacked = tensor(param)
        for slot in slots:
            if slot.path == path:
                own = stacked if slot.layer is None else stacked[slot.layer]
                own = own.T if slot.is_transposed else own
                weights[slot.name] = own.clone(memory_format=torch.contiguous_format)
    return make(model.config, weights)


def tensor(array: jax.Array) -> torch.Tensor:
    """An array as a tensor on PyTorch's device; without a copy if it lies there."""
    platforms = {place.platform for place in array.devices()}
    is_there = platforms == {"gpu" if device() == "cuda" else "cpu"}
    if is_there and len(array.devices()) == 1:
        return torch.from_dlpack(array)
    host = np.array(array)
    if host.dtype == jnp.bfloat16:  # PyTorch does not take NumPy's.
        return torch.from_numpy(host.view(np.int16)).view(torch.bfloat16).to(device())
    return torch.from_numpy(host).to(device())


def _found(
    table: Mapping[str, Callable], family: Family, name: str
) -> Callable[..., torch.nn.Module]:
    """What a table has for a family.

    Raises:
      InputError: if that is nothing.
    """
    if family.architecture not in table:
        raise InputError(
            f"{name}: no PyTorch model of {family.architecture} (there is one of "
            f"{', '.join(table)})"
        )
    return table[family.architecture]
