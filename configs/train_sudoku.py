"""Trains the 9x9 Sudoku model shipped in dlm_jax/zoo/sudoku.

python -m experiments.train --config=configs/train_sudoku.py --workdir=runs/sudoku

Expected: three hours on two cores shared with other work; loss 0.27 at the end of stage
1, 0.19, 0.18 and 0.11 at the ends of the others. Of 500 test puzzles `low_confidence`
then solves 97 % in 50 forwards each, `entropy_bound(gamma=0.01)` 97 % in 6.6 and
`entropy_bound(gamma=0.1)` 94 % in 4.1.

glibc gives large buffers back to the kernel after every step and asks for them again:
with MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=16000000000 in the environment a step on
a CPU takes about 15 % less time.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The run that made the shipped model."""
    return ConfigDict(
        {
            "task": "sudoku",
            "seed": 0,
            "batch_size": 64,
            "model": {
                "d_model": 128,
                "n_heads": 4,
                "n_layers": 6,
                "mlp_hidden_size": 352,
            },
            "data": {"seed": 1, "num": 40_000, "min_clues": 24, "max_clues": 36},
            # Each stage starts from the averaged weights of the one before.
            "stages": (
                {
                    "data": {"is_advanced": False},
                    "stop_at": 4250,
                    "train": {
                        "num_steps": 5500,
                        "learning_rate": 2e-3,
                        "warmup_steps": 150,
                        # Rows with less than 60 % masked are learned by then.
                        "focus_step": 2750,
                        "focus_power": 3.0,
                        "checkpoint_every": 250,
                    },
                },
                {
                    # Puzzles as far as plain logic has brought them: what is left is
                    # what is hard, which random masks hardly ever show.
                    "data": {"is_advanced": True},
                    "stop_at": None,
                    "train": {
                        "num_steps": 2100,
                        "learning_rate": 1e-3,
                        "warmup_steps": 50,
                        "focus_power": 4.0,
                        "checkpoint_every": 150,
                        "seed": 1,
                    },
                },
                {
                    # The same again: the model still learned when its rate ran out.
                    "data": {"is_advanced": True},
                    "stop_at": None,
                    "train": {
                        "num_steps": 4000,
                        "learning_rate": 1e-3,
                        "warmup_steps": 50,
                        "focus_power": 4.0,
                        "checkpoint_every": 200,
                        "seed": 2,
                    },
                },
                {
                    # Twice the layers: one more of them sees one more round ahead.
                    "is_deepened": True,
                    "data": {"is_advanced": True},
                    "stop_at": None,
                    "train": {
                        "num_steps": 2000,
                        "learning_rate": 1e-3,
                        "warmup_steps": 50,
                        "focus_power": 4.0,
                        "checkpoint_every": 200,
                        "seed": 3,
                    },
                },
            ),
        }
    )
