"""The frozen setting of `experiments.leaderboard`.

    python -m experiments.leaderboard --sampler='entropy_bound(gamma=0.01)'

adds a sampler. What is set here must not change, or the lines cannot be compared.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Examples of each task, how they are asked, and who is on the board from start."""
    return ConfigDict(
        {
            "num_examples": {
                "countdown": 1000,
                "program": 1000,
                "maze": 1000,
                "sudoku": 1000,
            },
            "samplers": (
                "random",
                "left_to_right",
                "low_confidence",
                "low_confidence(schedule=fixed(k=2))",
                "margin",
                "entropy",
                "threshold",
                "factor",
                "entropy_bound",
                "entropy_bound(gamma=0.01)",
                "saber",
                "saber(n=1)",
            ),
            "split": "test",
            "example_seed": 0,
            "seed": 0,
            "temperature": 0.0,
            "batch_size": 32,
            "queue_length": 500,
        }
    )
