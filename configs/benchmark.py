"""What `experiments.benchmark` measures where no flag says otherwise.

    python -m experiments.benchmark

fills held-out puzzles with the shipped Sudoku model, in the compiled loop and in an
eager PyTorch loop.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Defaults of the flags of the same names, and the puzzles."""
    return ConfigDict(
        {
            # Shipped model that is used without --checkpoint.
            "zoo": "sudoku",
            # Gains are over the first one: a token a step.
            "samplers": ("low_confidence", "threshold", "entropy_bound", "saber"),
            "batch_sizes": (1, 32),
            # Held-out puzzles per run, at least one batch.
            "num_puzzles": 8,
            "num_pairs": 5,
            "seed": 0,
        }
    )
