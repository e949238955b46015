"""Counts near-ties of a nearly certain model: float32 against float64 and PyTorch.

    python -m experiments.certainty            # needs PyTorch, part of '.[test]'

Fills Sudoku puzzles with the shipped model and each sampler: in float32 and in float64
by the compiled loop, and in float32 by the eager PyTorch loop. One row per sampler: the
share of forwards in which two blanks tie for the most confident, and how many puzzles
have the same tokens and the same number of forwards.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from dlm_jax import samplers, zoo
from dlm_jax.core.canvas import Generation, Prompts
from dlm_jax.core.keys import row_keys
from dlm_jax.core.loop import generate
from dlm_jax.core.options import Options
from dlm_jax.errors import InputError
from dlm_jax.evaluation.tables import markdown
from dlm_jax.models import as_denoiser
from dlm_jax.tasks import sudoku
from dlm_jax.tasks.base import load
from dlm_jax.text.prompts import pad
from experiments import _app
from experiments.timing.ties import num_equal, tied

_SAMPLER = flags.DEFINE_multi_string(
    "sampler",
    ["saber", "low_confidence", "entropy_bound", "threshold"],
    "Sampler spec, such as saber(n=2, mu=8)",
)
_NUM = flags.DEFINE_integer(
    "num_examples", 64, "Number of puzzles: the first ones of the test split."
)


def main(argv: Sequence[str]) -> None:
    """Fills, compares and prints a table."""
    del argv
    try:
        from dlm_jax.parity import torch_llada
        from experiments.timing import eager
    except ImportError:
        raise InputError("this comparison needs PyTorch: '.[test]'") from None
    task, path = sudoku.Sudoku(), zoo.path("sudoku")
    rules = samplers.parse_all(_SAMPLER.value)
    _, codec = load(task, path)
    rows = task.encode(codec, task.examples("test", _NUM.value))
    prompts = pad(rows, rows[0].tokens.size)
    twin = torch_llada.load_llada(path)
    table = [
        [
            "sampler",
            "steps with a tie",
            "float32 = float64",
            "float32 = PyTorch float32",
            "PyTorch float32 = float64",
        ]
    ]
    for spec, rule in tqdm(rules.items(), unit="sampler", disable=None):
        eager.check(rule, prompts, None)
        narrow = _fill(rule, prompts, "float32")
        with jax.enable_x64(True):
            wide = _fill(rule, prompts, "float64")
        theirs = eager.fill(twin, rule, prompts, sudoku.MASK_ID)
        found = [(x.tokens, x.num_steps) for x in (narrow, wide)]
        counts = [
            num_equal(*pair)
            for pair in (
                (found[0], found[1]),
                (found[0], theirs),
                (theirs, found[1]),
            )
        ]
        shares = [f"{count} of {_NUM.value}" for count in counts]
        table.append(
            [f"`{spec}`", f"{tied(narrow, prompts, sudoku.MASK_ID):.1%}", *shares]
        )
    print(markdown(table))


def _fill(rule: Any, prompts: Prompts, dtype: str) -> Generation:
    """The puzzles filled by the compiled loop, with every step, on the host."""
    denoiser, params = as_denoiser(load(sudoku.Sudoku(), zoo.path("sudoku"), dtype)[0])
    most = int(np.asarray(prompts.is_blank).sum(axis=1).max())
    result = generate(
        denoiser=denoiser,
        params=params,
        sampler=rule,
        prompts=prompts,
        keys=row_keys(0, np.arange(len(prompts.tokens))),
        options=Options(most, has_trajectory=True),
    )
    return jax.device_get(result)


if __name__ == "__main__":
    _app.run(main)
