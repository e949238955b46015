"""Trains a larger model of a task than the shipped one, for an accelerator.

    python -m experiments.train --config=configs/train_large.py:maze \
        --workdir=runs/maze_large

The task follows the colon: sudoku, maze, countdown or program. The stages are
those of configs/train_TASK.py, with four times the rows in a step and three times the
steps, for a model of 12 layers that is still at most 16 MiB. Not run yet: it was made
for a machine that was not available.
"""

import importlib

from ml_collections import ConfigDict

from dlm_jax import tasks
from dlm_jax.errors import InputError

_LAYERS, _ROWS, _STEPS = 12, 4, 3


def get_config(task: str = "program") -> ConfigDict:
    """The shipped model's run, enlarged.

    Raises:
      InputError: if nothing of this name can be trained.
    """
    name = tasks.trainable(task).name
    try:
        config = importlib.import_module(f"configs.train_{name}").get_config()
    except ModuleNotFoundError:
        raise InputError(f"task ({name}) has no configs/train_{name}.py") from None
    num_doublings = sum(stage.get("is_deepened", False) for stage in config.stages)
    config.model = {
        "d_model": 160,
        # Heads as wide as the shipped model's: the rotary base rests on it.
        "n_heads": 5,
        "n_layers": _LAYERS // 2**num_doublings,
        "mlp_hidden_size": 448,
    }
    config.batch_size *= _ROWS
    config.stages = tuple(
        {
            **stage,
            "stop_at": stage["stop_at"] and _STEPS * stage["stop_at"],
            "train": {
                name: value * _STEPS if name in ("num_steps", "focus_step") else value
                for name, value in stage["train"].items()
            },
        }
        for stage in config.stages
    )
    return config
