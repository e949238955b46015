"""Trains the 9x9 Sudoku model shipped in dlm_jax/zoo/sudoku.

python -m experiments.train --config=configs/train_sudoku.py --workdir=runs/sudoku
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The run that made the shipped model."""
    return ConfigDict(
        {
            "seed": 0,
            "batch_size": 64,
            "model": {
                "d_model": 128,
                "n_heads": 4,
                "n_layers": 6,
                "mlp_hidden_size": 352,
            },
            "data": {"seed": 1, "num": 40_000, "min_clues": 24, "max_clues": 36},
            "train": {
                "num_steps": 5500,
                "learning_rate": 2e-3,
                "warmup_steps": 150,
                "weight_decay": 0.01,
                "ema_decay": 0.999,
                "checkpoint_every": 250,
            },
        }
    )
