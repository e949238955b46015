"""Tasks: examples in, text out, verdict. One file per task; here, their registry."""

from dlm_jax.errors import InputError
from dlm_jax.tasks.base import Task, Trainable
from dlm_jax.tasks.countdown import Countdown, Countdown4
from dlm_jax.tasks.gsm8k import GSM8K
from dlm_jax.tasks.humaneval import HumanEval
from dlm_jax.tasks.math_problems import MATH
from dlm_jax.tasks.maze import Maze
from dlm_jax.tasks.mbpp import MBPP
from dlm_jax.tasks.program import LongProgram, Program
from dlm_jax.tasks.sudoku import Sudoku

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Sudoku(),
        Maze(),
        Countdown(),
        Countdown4(),
        Program(),
        LongProgram(),
        HumanEval(),
        MBPP(),
        GSM8K(),
        MATH(),
    )
}


def get(name: str) -> Task:
    """The task of a name.

    Raises:
      InputError: for an unknown name, with the known ones.
    """
    if name not in TASKS:
        raise InputError(f"task ({name}) must be one of {', '.join(sorted(TASKS))}")
    return TASKS[name]


def trainable(name: str) -> Trainable:
    """The task of a name, which must have a model of its own.

    Raises:
      InputError: for an unknown name, or a task without training data.
    """
    task = get(name)
    if not isinstance(task, Trainable):
        raise InputError(f"task ({name}) has no training data")
    return task
