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
                "n_layers": 3,
                "mlp_hidden_size": 352,
            },
            "data": {},
            # What takes long is learning to look at the specification at all, which
            # three layers do on short programs: a step takes a fifth of the time.
            "stages": (
                {
                    "data": {"num_steps": 2, "prompt": 24, "answer": 32},
                    "stop_at": None,
                    "train": {
                        "num_steps": 3000,
                        "learning_rate": 2e-3,
                        "warmup_steps": 100,
                        "ema_decay": 0.998,
                        "checkpoint_every": 200,
                    },
                },
                {
                    "is_deepened": True,
                    "data": {},
                    "stop_at": None,
                    "train": {
                        "num_steps": 2000,
                        "learning_rate": 1.5e-3,
                        "warmup_steps": 100,
                        "ema_decay": 0.998,
                        "checkpoint_every": 100,
                        "seed": 1,
                    },
                },
            ),
        }
    )
