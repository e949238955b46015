"""What `experiments.report_eb` measures.

    python -m experiments.report_eb [--quick]

compares EB-Sampler with fixed numbers of tokens a step.
"""

from collections.abc import Sequence

from ml_collections import ConfigDict

from dlm_jax.tasks.maze import Maze

# For each error proxy of EB-Sampler, who commits fixed numbers in the same order.
_ORDERS = {"entropy": "entropy", "confidence": "low_confidence", "margin": "margin"}


def _curves(ks: Sequence[int], gammas: Sequence[float]) -> dict[str, tuple[str, ...]]:
    """Each is one program: its specs differ in traced numbers only."""
    fixed = {
        f"{name}, k tokens a step": tuple(f"{name}(schedule=fixed(k={k}))" for k in ks)
        for name in _ORDERS.values()
    }
    return fixed | {
        f"entropy_bound, {proxy}": tuple(
            f"entropy_bound(gamma={gamma}, error_proxy='{proxy}')" for gamma in gammas
        )
        for proxy in _ORDERS
    }


def _split_specs(ks: Sequence[int], gammas: Sequence[float | str]) -> tuple[str, ...]:
    """Both of one order, so that they differ in how many they commit only."""
    return (
        *(f"entropy_bound(gamma={gamma})" for gamma in gammas),
        *(f"entropy(schedule=fixed(k={k}))" for k in ks),
    )


def get_config() -> ConfigDict:
    """The whole report, and under `quick` what differs in the quick one."""
    ks, gammas = (1, 2, 4, 8, 16), (0.001, 0.01, 0.1, 0.3, 1)
    return ConfigDict(
        {
            # As in the paper; others with a model can be asked for.
            "tasks": ("sudoku", "maze", "program"),
            "curves": _curves(ks, gammas),
            "split": "valid",
            "num_examples": 1000,
            "example_seed": 0,
            "seed": 0,
            "temperature": 0.0,
            "batch_size": 32,
            "queue_length": 512,
            # Compared on the same examples, each with one token a step in its own order
            # too; all of them are in curves.
            "baseline": "low_confidence",
            "compared": tuple(
                (f"entropy_bound(gamma={gamma}, error_proxy='{proxy}')", order)
                for gamma in (0.1, 0.01, 0.001)
                for proxy, order in _ORDERS.items()
            ),
            # Published are 2 to 3 times fewer forwards and no loss. On the few hundred
            # problems of HumanEval or MBPP a smaller loss could not be seen either.
            "min_ratio": 2.5,
            "margin": 0.02,
            "floor": 0.1,
            "error_split_specs": _split_specs((*ks, Maze.gen_length), (*gammas, "inf")),
            "error_split_examples": 200,
            "quick": {"num_examples": 100, "error_split_examples": 50},
        }
    )
