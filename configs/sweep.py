"""What `experiments.sweep` does where no flag says otherwise.

    python -m experiments.sweep --task=sudoku --workdir=runs/sweep/sudoku

draws accuracy against forwards for every sampler of the registry.
"""

from ml_collections import ConfigDict, config_dict

from dlm_jax.samplers import SAMPLERS

# Few: one token a step costs as much as a whole curve of an adaptive sampler.
_K = (1, 3, 8, 16)
_GAMMA = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_THRESHOLD = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
_FACTOR = (0.01, 0.03, 0.1, 0.3, 1.0, 2.0)
_PROXIES = ("entropy", "confidence", "margin")
_ORDERS = ("low_confidence", "entropy", "margin", "random", "left_to_right")


def get_config() -> ConfigDict:
    """Defaults of the flags of the same names, and the curves."""
    curves = {
        f"{name}, k tokens a step": tuple(f"{name}(schedule=fixed(k={k}))" for k in _K)
        for name in _ORDERS
    }
    curves |= {
        f"entropy_bound, {proxy}": tuple(
            f"entropy_bound(gamma={gamma}, error_proxy='{proxy}')" for gamma in _GAMMA
        )
        for proxy in _PROXIES
    }
    curves["threshold"] = tuple(f"threshold(threshold={t})" for t in _THRESHOLD)
    curves |= {
        name: tuple(f"{name}(factor={factor})" for factor in _FACTOR)
        for name in ("factor", "factor_released")
    }
    curves["saber, n"] = tuple(f"saber(n={n})" for n in (1, 2, 4, 8, 16))
    # A sampler may appear only once: n 4 with mu 8 is on the curve above.
    curves["saber, mu at n 4"] = tuple(f"saber(n=4, mu={mu})" for mu in (2, 4, 16, 32))
    curves["saber_released, n"] = tuple(f"saber_released(n={n})" for n in (2, 4, 8))
    # A sampler without a curve of its own is a point, at its defaults.
    drawn = {spec.partition("(")[0] for line in curves.values() for spec in line}
    curves |= {name: (name,) for name in SAMPLERS if name not in drawn}
    return ConfigDict(
        {
            "task": "sudoku",
            # Of a published task: where its problems are, and how they are written.
            "data": config_dict.placeholder(str),
            "prompt_style": config_dict.placeholder(str),
            # With or without the chat template, where the task does not decide.
            "chat": config_dict.placeholder(bool),
            # Each is one program, as its specs differ in traced numbers only; but for
            # saber_released, whose n is static.
            "curves": curves,
            "cache": "none",
            # valid, where a task has it, or else its first.
            "split": config_dict.placeholder(str),
            # The first 1000, or all where there are fewer.
            "num_examples": config_dict.placeholder(int),
            "example_seed": 0,
            "seed": 0,
            # Of the task, where none are given.
            "gen_length": config_dict.placeholder(int),
            "block_length": config_dict.placeholder(int),
            "temperature": 0.0,
            "guidance": 0.0,
            "suppress_eos": False,
            "defer_stops": False,
            "early_stop": True,
            "precision": "highest",
            "batch_size": 32,
            "queue_length": 512,
        }
    )
