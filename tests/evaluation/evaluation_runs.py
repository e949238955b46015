"""Evaluations of a small model."""

import zlib

from dlm_jax.evaluation import run as evaluation
from dlm_jax.tasks import sudoku
from dlm_jax.tasks.base import Example, Verdict

TASK = sudoku.Sudoku()
SHAPE = {"d_model": 32, "n_heads": 2, "n_layers": 2, "mlp_hidden_size": 48}
SPECS = ("threshold(threshold=0.5)", "threshold(threshold=0.9)", "random")
PLAN = evaluation.Plan(batch_size=2, queue_length=4)


class Arbitrary(sudoku.Sudoku):
    """An arbitrary half is right: a random model would solve no puzzle."""

    def verdict(self, example: Example, answer: str) -> Verdict:
        number = zlib.crc32(answer.encode())
        return Verdict(number % 2 == 0, str(number))


def run(
    model,
    directory,
    specs=SPECS,
    num=6,
    plan=PLAN,
    is_mixed=False,
    seeds=(0,),
    on_records=lambda records: None,
    block_length=None,
):
    parallel, codec = model
    todo = evaluation.lanes(specs, seeds, is_mixed)
    about = {"checkpoint": "x"}
    task = Arbitrary().with_lengths(block_length=block_length)
    records = evaluation.run(
        parallel,
        codec,
        task,
        plan,
        todo,
        num,
        directory,
        about=about,
        on_records=on_records,
    )
    times = ("seconds", "compile_seconds", "run")
    return [{k: v for k, v in r.items() if k not in times} for r in records]
