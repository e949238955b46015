"""What `experiments.report_saber` runs.

    python -m experiments.report_saber

measures Saber's claims on the shipped models; `--quick` on fewer examples.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The samplers, and how they are asked."""
    return ConfigDict(
        {
            # The first is the one on which the published claims are tested. Others with
            # a model, countdown, sudoku and maze, can be asked for.
            "tasks": ("program",),
            # The first is what the others are compared with.
            "samplers": (
                "low_confidence",
                "low_confidence(schedule=fixed(k=2))",
                "random",
                "left_to_right",
                "margin",
                "entropy",
                "threshold(threshold=0.9)",
                "factor",
                "entropy_bound",
                "saber",
                "saber_released",
            ),
            # Rules that look at the model, over whose mean a gain is claimed.
            "others": (
                "low_confidence",
                "margin",
                "entropy",
                "threshold(threshold=0.9)",
                "factor",
                "entropy_bound",
            ),
            "ablations": (
                "saber(backtracking=False)",
                "saber(acceleration=False)",
                "saber(threshold=0.9)",
            ),
            # They share calls, so their time is not known.
            "sweep": (
                *(f"saber(n={n})" for n in (1, 2, 4, 8)),
                *(f"saber(mu={mu})" for mu in (2, 4, 16, 32)),
            ),
            "num_examples": 1000,
            "quick": {"num_examples": 100},
            # Of them, how many are watched step by step.
            "num_watched": 200,
            "num_cases": 2,
            "split": "valid",
            "example_seed": 0,
            "seed": 0,
            "temperature": 0.0,
            "batch_size": 32,
            "queue_length": 256,
        }
    )
