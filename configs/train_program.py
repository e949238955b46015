"""Trains the model that writes small Python functions, task `program`.

python -m experiments.train --config=configs/train_program.py --workdir=runs/program

Every row is new: no program is drawn from a stored set.

Not run to its end yet, and no model is shipped. Stage 1 took 2 minutes on two cores,
and 400 steps of stage 2 as many (by then function names were copied without error,
constants in half of the cases). One stage of 1,800 steps on everything with six layers
ended at loss 0.385 and solved none of 128 validation programs.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The run as it is planned."""
    return ConfigDict(
        {
            "task": "program",
            "seed": 0,
            "batch_size": 64,
            "model": {
                "d_model": 128,
                "n_heads": 4,
                "n_layers": 3,
                "mlp_hidden_size": 352,
            },
            "data": {},
            # All at once, it learns Python long before it reads the specification: the
            # gradients of what is told there drown in those of the rest. Alone, they
            # teach it to copy, which then stays.
            "stages": (
                {
                    "data": {
                        "max_steps": 2,
                        "prompt": 24,
                        "answer": 32,
                        "is_told_only": True,
                    },
                    "stop_at": None,
                    "train": {
                        "num_steps": 1500,
                        "learning_rate": 2e-3,
                        "warmup_steps": 50,
                        "ema_decay": 0.99,
                        "checkpoint_every": 200,
                    },
                },
                {
                    "data": {"max_steps": 2, "prompt": 24, "answer": 32},
                    "stop_at": None,
                    "train": {
                        "num_steps": 1200,
                        "learning_rate": 2e-3,
                        "warmup_steps": 50,
                        "ema_decay": 0.995,
                        "checkpoint_every": 200,
                        "seed": 1,
                    },
                },
                {
                    # Few masks: what is left to learn in such rows is what the steps of
                    # the specification ask for.
                    "data": {"max_steps": 2, "prompt": 24, "answer": 32},
                    "stop_at": None,
                    "train": {
                        "num_steps": 1000,
                        "learning_rate": 2e-3,
                        "warmup_steps": 50,
                        "ema_decay": 0.995,
                        "focus_power": 0.4,
                        "checkpoint_every": 200,
                        "seed": 2,
                    },
                },
                {
                    "is_deepened": True,
                    "data": {},
                    "stop_at": None,
                    "train": {
                        "num_steps": 1400,
                        "learning_rate": 2e-3,
                        "warmup_steps": 50,
                        "ema_decay": 0.995,
                        "checkpoint_every": 100,
                        "seed": 3,
                    },
                },
                {
                    "data": {},
                    "stop_at": None,
                    "train": {
                        "num_steps": 2000,
                        "learning_rate": 2e-3,
                        "warmup_steps": 50,
                        "ema_decay": 0.995,
                        # Somewhat fewer masks: the mistakes left were single operators,
                        # numbers and letters.
                        "focus_power": 0.6,
                        "checkpoint_every": 200,
                        "seed": 4,
                    },
                },
                {
                    "data": {},
                    "stop_at": None,
                    "train": {
                        "num_steps": 1500,
                        "learning_rate": 2e-3,
                        "warmup_steps": 50,
                        "ema_decay": 0.995,
                        "focus_power": 0.8,
                        "checkpoint_every": 200,
                        "seed": 5,
                    },
                },
            ),
        }
    )
