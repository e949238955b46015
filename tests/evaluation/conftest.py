"""A small model and its evaluation, which several files look at."""

import jax
import pytest
from evaluation_runs import SHAPE, TASK, run
from flax import nnx

from dlm_jax import checkpoints
from dlm_jax.devices.runner import DataParallel
from dlm_jax.models import as_denoiser
from dlm_jax.models.llada import LLaDA
from dlm_jax.text.codec import Codec


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    graph, params = nnx.split(LLaDA(TASK.model_config(**SHAPE), rngs=nnx.Rngs(0)))
    model = nnx.merge(graph, jax.tree.map(lambda weight: 4 * weight, params))
    files = TASK.tokenizer().save_pretrained(tmp_path_factory.mktemp("tokenizer"))
    directory = tmp_path_factory.mktemp("model") / "hf"
    checkpoints.save_hf(model, directory, files)
    return directory


@pytest.fixture(scope="session")
def model(checkpoint):
    model = checkpoints.load(checkpoint)
    codec = Codec.load(checkpoint, model.config)
    return DataParallel(*as_denoiser(model)), codec


@pytest.fixture(scope="session")
def whole(model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    return directory, run(model, directory)
