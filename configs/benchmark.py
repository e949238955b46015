"""What `experiments.benchmark` measures where no flag says otherwise.

    python -m experiments.benchmark

fills held-out puzzles with the shipped Sudoku model, in the compiled loop and in an
eager PyTorch loop.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """Defaults of the flags of the same names, and the puzzles."""
    return ConfigDict(
        {
            # Shipped model that is used without --checkpoint.
            "zoo": "sudoku",
            # Of its task; test has 1,000 puzzles.
            "split": "test",
            # Gains are over the first one: a token a step.
            "sampler": ("low_confidence", "threshold", "entropy_bound", "saber"),
            # Each sampler runs with each cache: none, prefix, dual(refresh_every=8).
            "cache": ("none",),
            # Rows that a cache refreshes in one iteration; the backend's own without.
            "num_refreshed": config_dict.placeholder(int),
            "batch_sizes": (1, 32),
            # Held-out puzzles per run: 8 at batch size 1, 256 at 32.
            "rows_per_slot": 8,
            "num_pairs": 3,
            # Of random prompts.
            "prompt_length": 64,
            "gen_length": 64,
            # Without one, an answer is one block.
            "block_length": config_dict.placeholder(int),
            "precision": "highest",
            "seed": 0,
        }
    )
