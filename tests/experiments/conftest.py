"""A small model, for races."""

import jax
import pytest
from flax import nnx
from race_helpers import SHAPE, SUDOKU

from dlm_jax import checkpoints
from dlm_jax.devices.runner import DataParallel
from dlm_jax.models import as_denoiser
from dlm_jax.models.llada import LLaDA


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A random Sudoku model whose confidences spread over (0, 1)."""
    config = SUDOKU.model_config(**SHAPE)
    graph, params = nnx.split(LLaDA(config, rngs=nnx.Rngs(0)))
    model = nnx.merge(graph, jax.tree.map(lambda weight: 4 * weight, params))
    directory = tmp_path_factory.mktemp("model") / "hf"
    files = SUDOKU.tokenizer().save_pretrained(tmp_path_factory.mktemp("tokenizer"))
    checkpoints.save_hf(model, directory, files)
    return directory


@pytest.fixture(scope="session")
def parallel(checkpoint):
    return DataParallel(*as_denoiser(checkpoints.load(checkpoint)))
