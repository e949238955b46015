"""What `experiments.sweep` does where no flag says otherwise.

    python -m experiments.sweep --task=sudoku --workdir=runs/sweep/sudoku

draws accuracy against forwards for the samplers of both papers.
"""

from ml_collections import ConfigDict

_K = (1, 2, 3, 4, 6, 8, 12, 16)
_GAMMA = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_PROXIES = ("entropy", "confidence", "margin")


def get_config() -> ConfigDict:
    """Defaults of the flags of the same names, and the curves."""
    curves = {
        f"{name}, k tokens a step": tuple(f"{name}(schedule=fixed(k={k}))" for k in _K)
        for name in ("low_confidence", "entropy", "margin")
    }
    curves |= {
        f"entropy_bound, {proxy}": tuple(
            f"entropy_bound(gamma={gamma}, error_proxy='{proxy}')" for gamma in _GAMMA
        )
        for proxy in _PROXIES
    }
    curves["threshold"] = tuple(
        f"threshold(threshold={threshold})"
        for threshold in (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
    )
    curves["saber"] = tuple(f"saber(n={n})" for n in (1, 2, 4, 8, 16))
    return ConfigDict(
        {
            # Each is one program: its specs differ in traced numbers only.
            "curves": curves,
            "split": "valid",
            "num_examples": 1000,
            "example_seed": 0,
            "seed": 0,
            "temperature": 0.0,
            "batch_size": 32,
            "queue_length": 512,
        }
    )
