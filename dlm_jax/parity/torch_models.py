"""The PyTorch model of a checkpoint, whatever its family."""

import pathlib
from collections.abc import Callable, Mapping

import torch

from dlm_jax.checkpoints import hf_format
from dlm_jax.errors import InputError
from dlm_jax.parity.torch_llada import load_llada

# From an architecture to what loads a directory of it.
LOADERS: Mapping[str, Callable[[pathlib.Path], torch.nn.Module]] = {
    "LLaDAModelLM": load_llada,
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
    if family.architecture not in LOADERS:
        raise InputError(
            f"{directory}: no PyTorch model of {family.architecture} (there is one of "
            f"{', '.join(LOADERS)})"
        )
    return LOADERS[family.architecture](directory)
