"""A grammar of small functions: their meaning, their Python and their wording.

A program is a sequence of steps on a list of numbers, a string or a number; each step
is an operation with its constants, or a choice between two of them. Its meaning is
computed here, step by step, and never by running Python text: text and meaning are
two independent readings of the same steps.
"""

import dataclasses
from typing import Any

from dlm_jax.tasks.program import arithmetic, strings
from dlm_jax.tasks.program.arithmetic import BOUNDS, DIGITS, FEW, LETTERS, Kind

# The types of values, and what a specification calls them.
TYPES = {"list": "a list", "str": "a string", "int": "an integer"}


@dataclasses.dataclass(frozen=True)
class Op:
    """An operation with its constants.

    Attributes:
      kind: a key of KINDS.
      constants: one of each of the kind's choices.
    """

    kind: str
    constants: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True)
class Choice:
    """Does one of two operations, neither of which changes the value's type.

    Attributes:
      test: a key of TESTS.
      constants: of the test.
      then: done if the test holds.
      otherwise: done if not.
    """

    test: str
    constants: tuple[Any, ...]
    then: Op
    otherwise: Op


Step = Op | Choice
Steps = tuple[Step, ...]


KINDS: dict[str, Kind] = arithmetic.KINDS | strings.KINDS

# What a choice may depend on. The target says nothing here: it is a truth value.
TESTS: dict[str, Kind] = {
    "sum_over": Kind(
        "list",
        "bool",
        ("the sum is greater than {0}",),
        ("sum({v}) > {0}",),
        lambda v, k: sum(v) > k,
        (BOUNDS,),
    ),
    "longer": Kind(
        "list",
        "bool",
        ("there are more than {0} numbers",),
        ("len({v}) > {0}",),
        lambda v, k: len(v) > k,
        (FEW,),
    ),
    "contains": Kind(
        "list",
        "bool",
        ("the list contains {0}",),
        ("{0} in {v}",),
        lambda v, k: any(x == k for x in v),
        (DIGITS,),
    ),
    "over": Kind(
        "int",
        "bool",
        ("it is greater than {0}",),
        ("{v} > {0}",),
        lambda v, k: v > k,
        (BOUNDS,),
    ),
    "even": Kind(
        "int", "bool", ("it is even",), ("{v} % 2 == 0",), lambda v: v % 2 == 0
    ),
    "text_longer": Kind(
        "str",
        "bool",
        ("it is longer than {0}",),
        ("len({v}) > {0}",),
        lambda v, k: len(v) > k,
        (BOUNDS[:12],),
    ),
    "has_letter": Kind(
        "str",
        "bool",
        ('it contains "{0}"',),
        ('"{0}" in {v}',),
        lambda v, k: any(c == k for c in v),
        (LETTERS,),
    ),
}


def source_of(program: Steps) -> str:
    """Type of a program's argument."""
    step = program[0]
    return (TESTS[step.test] if isinstance(step, Choice) else KINDS[step.kind]).source


def run_step(step: Step, value: Any) -> Any:
    """What a step makes of a value."""
    if isinstance(step, Choice):
        holds = TESTS[step.test].meaning(value, *step.constants)
        step = step.then if holds else step.otherwise
    return KINDS[step.kind].meaning(value, *step.constants)


def run(program: Steps, value: Any) -> Any:
    """What a program makes of its argument: a list of integers, a text or an integer.

    The argument is not changed.
    """
    for step in program:
        value = run_step(step, value)
    return value
