"""The trainings that are described: of the shipped models, and larger ones."""

import importlib

import flax.nnx as nnx
import jax
import pytest

from configs import train_large
from dlm_jax import checkpoints, tasks, zoo
from dlm_jax.errors import InputError
from dlm_jax.models.llada import LLaDA
from dlm_jax.training import loop as training

SHIPPED = ("sudoku", "maze", "countdown", "program")


def final_model(config):
    """The shape of what the stages end with."""
    task = tasks.trainable(config.task)
    num_doublings = sum(stage.get("is_deepened", False) for stage in config.stages)
    shape = {**config.model, "n_layers": config.model.n_layers * 2**num_doublings}
    return task.model_config(**shape)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_config_of_a_shipped_model_is_of_it(name):
    config = importlib.import_module(f"configs.train_{name}").get_config()
    assert final_model(config) == checkpoints.read_config(zoo.path(name))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_larger_model_may_be_shipped_too(name):
    config = train_large.get_config(name)
    model = final_model(config)
    weights = nnx.state(nnx.eval_shape(lambda: LLaDA(model, rngs=nnx.Rngs(0))))
    size = sum(4 * leaf.size for leaf in jax.tree.leaves(weights))
    shipped = (zoo.path(name) / "model.safetensors").stat().st_size
    assert 1.5 * shipped < size < 16 * 2**20
    own = importlib.import_module(f"configs.train_{name}").get_config()
    assert model.head_dim == final_model(own).head_dim
    for stage, small in zip(config.stages, own.stages, strict=True):
        train = training.TrainConfig(**stage["train"])
        assert train.num_steps == 3 * small["train"]["num_steps"]
        assert stage["stop_at"] == (small["stop_at"] and 3 * small["stop_at"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("chess", r"task \(chess\) must be one of"),
        ("humaneval", r"task \(humaneval\) has no training data"),
        ("countdown4", r"task \(countdown4\) has no configs/train_countdown4\.py"),
    ],
)
def test_what_cannot_be_trained_is_refused(name, message):
    with pytest.raises(InputError, match=message):
        train_large.get_config(name)
