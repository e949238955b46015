"""MBPP (arXiv:2108.07732): small Python functions told in a sentence, 500 for tests.

The data: `text` (or `prompt`, in the sanitized form), `code`, `test_list`, `task_id`
and, where they are there, `test_setup_code` and `test_imports`, as
google-research-datasets/mbpp on the hub has them, or the original mbpp.jsonl: of a file
that names no split, the task ids 11 to 510 are the tests. The styles:

- `opencompass`: three worked examples as a conversation, then the task. OpenCompass'
  mbpp_gen_830460, which LLaDA's released evaluation uses (ML-GSAI/LLaDA, opencompass).
  That config ends in an assistant's turn of the line [BEGIN]. The code that sends it
  stops before the turn which the model is to write, so the line is not sent.
- `opencompass_begin`: the same with the line, as the beginning of the answer.
- `harness`: the first three examples as text that is continued, as
  lm-evaluation-harness' mbpp.

An answer is correct if its code passes all tests. OpenCompass and lm-evaluation-harness
run all text between the tags; here `extraction` finds the function, whatever is around
it.
"""

import ast
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from dlm_jax.errors import NOT_PYTHON, InputError
from dlm_jax.sandbox import sandbox
from dlm_jax.tasks.base import Verdict
from dlm_jax.tasks.extraction import extract, statements_of
from dlm_jax.tasks.published import Published, Style, shipped, table
from dlm_jax.tasks.rows import Row
from dlm_jax.text.codec import Messages

_INSTRUCTION = "You are an expert Python programmer, and here is your task: "
_SPLITS = {
    "test": range(11, 511),
    "validation": range(511, 601),
    "train": range(601, 975),
    "prompt": range(1, 11),
}
# OpenCompass lets a program run for 10 s.
_LIMITS = sandbox.Limits(cpu_seconds=10, wall_seconds=60.0)
_RUN_TEST = "run_the_test"


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
      name: the task id.
      text: the sentence.
      code: a correct program.
      tests: assertions.
      setup: Python to be run before them.
    """

    name: str
    text: str
    code: str
    tests: tuple[str, ...]
    setup: str = ""


def _chat(problem: Problem, shots: Sequence[Problem]) -> Messages:
    del shots
    tests = "\n".join(problem.tests)
    task = (
        f"{_INSTRUCTION}{problem.text} Your code should pass these tests:\n\n "
        f"{tests}  \n"
    )
    return [*shipped("mbpp_opencompass"), {"role": "user", "content": task}]


def _few_shot(problem: Problem, shots: Sequence[Problem]) -> str:
    del shots

    def asked(text: str, tests: Sequence[str]) -> str:
        lines = "\n".join(tests[:3])
        return (
            f"{_INSTRUCTION}{text} Your code should pass these tests:\n\n{lines}\n"
            "[BEGIN]\n"
        )

    solved = [
        f"{asked(x['text'], x['test_list'])}{x['code']}\n[DONE]\n\n"
        for x in shipped("mbpp_harness")
    ]
    return "".join(solved) + asked(problem.text, problem.tests)


class MBPP(Published):
    """Small functions; an example's truth is a `Problem`."""

    name: ClassVar[str] = "mbpp"
    splits: ClassVar[tuple[str, ...]] = tuple(_SPLITS)
    form: ClassVar[str] = "`task_id`, `text` or `prompt`, `code` and `test_list`"
    subset: ClassVar[str] = "full"
    styles: ClassVar[dict[str, Style]] = table(
        Style("opencompass", _chat),
        Style("opencompass_begin", _chat, opening="[BEGIN]\n"),
        Style("harness", _few_shot, stops=("[DONE]",)),
    )
    gen_length: int = 256
    block_length: int = 256

    def belongs(self, row: Row, split: str) -> bool:
        return row.number("task_id") in _SPLITS[split]

    def problem(self, row: Row, index: int, split: str) -> Problem:
        del index, split
        imports = row.texts("test_imports", default=())
        setup = row.text("test_setup_code", default="")
        found = Problem(
            name=str(row.number("task_id")),
            text=row.text("text", "prompt"),
            code=row.text("code"),
            tests=row.texts("test_list"),
            setup="\n".join([*imports, setup]).strip(),
        )
        if not found.tests:
            raise InputError(f"{row.where}: test_list must not be empty")
        for kind, source in (
            ("code", found.code),
            ("test_setup_code", found.setup),
            *(("test_list", test) for test in found.tests),
        ):
            try:
                ast.parse(source)
            except NOT_PYTHON as error:
                raise InputError(
                    f"{row.where}: {kind} must be Python: {error}"
                ) from None
        return found

    def judge(self, problem: Problem, answer: str) -> Verdict:
        names = tested(problem)
        if len(names) == 1 and not _is_class(problem.code, names[0]):
            found = extract(answer, names[0])
            if not found.program:
                return Verdict(False, found.reason)
            outcome = sandbox.run_checks(
                found.program,
                _checks(problem.tests),
                names[0],
                _LIMITS,
                prelude=problem.setup,
            )
            return Verdict(outcome.is_passed, outcome.reason)
        # Tests that make objects of the program's own classes run beside it.
        program = statements_of(answer)
        if not program:
            return Verdict(False, "the answer has no Python")
        return _run_beside(program, problem)


def tested(problem: Problem) -> list[str]:
    """The names of the correct program that the tests use."""
    used = {
        node.id
        for source in (problem.setup, *problem.tests)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Name)
    }
    return [node.name for node in _definitions(problem.code) if node.name in used]


def _definitions(code: str) -> list[Any]:
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    found = {
        node.name: node for node in ast.parse(code).body if isinstance(node, kinds)
    }
    return list(found.values())


def _is_class(code: str, name: str) -> bool:
    return any(
        isinstance(node, ast.ClassDef) and node.name == name
        for node in _definitions(code)
    )


def _checks(tests: Sequence[str]) -> str:
    """Checks of `sandbox.run_checks` that make the assertions."""
    lines = [
        # A test of several lines may hold a string of several: it is not indented.
        f"    {test.strip()}" if "\n" not in test.strip() else f"    exec({test!r})"
        for test in tests
    ]
    return "\n".join(["def check(candidate):", *lines, ""])


def _run_beside(program: str, problem: Problem) -> Verdict:
    """Runs the setup and the tests in the program's own process, one after another."""
    runner = f"def {_RUN_TEST}(test):\n    exec(test, globals())\n"
    steps = [problem.setup, *problem.tests] if problem.setup else list(problem.tests)
    made = sandbox.calls(
        f"{program}\n\n{runner}", _RUN_TEST, [(step,) for step in steps], _LIMITS
    )
    for step, result in zip(steps, made.results, strict=False):
        if not result.has_returned:
            return Verdict(False, f"{result.reason} in: {' '.join(step.split())[:200]}")
    return Verdict(made.status == "finished", made.reason)
