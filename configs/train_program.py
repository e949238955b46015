"""Trains the model that writes small Python functions, task `program`.

python -m experiments.train --config=configs/train_program.py --workdir=runs/program

Every row is new: no program is drawn from a stored set.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The run that made the shipped model."""
    return ConfigDict(
        {
            "task": "program",
            "seed": 0,
            "batch_size": 64,
            "model": {
                "d_model": 128,
                "n_heads": 4,
                "n_layers": 6,
                "mlp_hidden_size": 352,
            },
            "data": {},
            "stages": (
                {
                    "data": {},
                    "stop_at": None,
                    "train": {
                        "num_steps": 1800,
                        "learning_rate": 2e-3,
                        "warmup_steps": 100,
                        "ema_decay": 0.998,
                        "checkpoint_every": 200,
                    },
                },
                {
                    # By now it writes Python, but not what was asked: of short programs
                    # it learns to look at the specification.
                    "data": {"num_steps": 2, "prompt": 24, "answer": 32},
                    "stop_at": None,
                    "train": {
                        "num_steps": 1800,
                        "learning_rate": 2e-3,
                        "warmup_steps": 100,
                        "ema_decay": 0.998,
                        "checkpoint_every": 200,
                        "seed": 1,
                    },
                },
                {
                    "data": {},
                    "stop_at": None,
                    "train": {
                        "num_steps": 1500,
                        "learning_rate": 2e-3,
                        "warmup_steps": 100,
                        "ema_decay": 0.998,
                        "checkpoint_every": 200,
                        "seed": 2,
                    },
                },
            ),
        }
    )
