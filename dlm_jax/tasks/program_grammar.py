"""A grammar of small functions: what they mean, how Python writes them, how one asks.

A program is a sequence of steps on a list of numbers, a string or a number; each step
is an operation with its constants, or a choice between two of them. Its meaning is
computed here, step by step, and never by running Python text: text and meaning are
two independent readings of the same steps.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

# The types of values, and what a specification calls them.
TYPES = {"list": "a list", "str": "a string", "int": "an integer"}

_DIGITS = tuple(range(1, 10))
_FACTORS = tuple(range(2, 10))
_BOUNDS = tuple(range(1, 21))
_FEW = tuple(range(2, 6))
_LETTERS = tuple("aeiobnrst")


@dataclasses.dataclass(frozen=True)
class Kind:
    """An operation without its constants.

    Attributes:
      source: type of what it takes.
      target: type of what it gives.
      phrases: ways to ask for it, with {0} and {1} for the constants.
      codes: Python expressions with {v} for the value and {x} for an element's name. Of
        an element-wise operation: the expression of the new element, or the condition
        for keeping it.
      meaning: (value, *constants) -> value.
      constants: the values that each constant may take.
      form: 'whole', or for lists 'map', 'filter' or 'count' if `codes` is about an
        element.
    """

    source: str
    target: str
    phrases: tuple[str, ...]
    codes: tuple[str, ...]
    meaning: Callable[..., Any]
    constants: tuple[tuple[Any, ...], ...] = ()
    form: str = "whole"


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


def _filters() -> dict[str, Kind]:
    """Keeping elements of a list."""
    tests: dict[str, tuple] = {
        "even": (
            ("keep the even numbers", "remove the odd numbers"),
            ("{x} % 2 == 0",),
            lambda x: x % 2 == 0,
        ),
        "odd": (
            ("keep the odd numbers", "remove the even numbers"),
            ("{x} % 2 == 1", "{x} % 2 != 0"),
            lambda x: x % 2 == 1,
        ),
        "positive": (
            ("keep the positive numbers",),
            ("{x} > 0",),
            lambda x: x > 0,
        ),
        "negative": (
            ("keep the negative numbers",),
            ("{x} < 0",),
            lambda x: x < 0,
        ),
        "over": (
            ("keep the numbers greater than {0}", "keep what is above {0}"),
            ("{x} > {0}",),
            lambda x, k: x > k,
            _BOUNDS,
        ),
        "under": (
            ("keep the numbers less than {0}", "keep what is below {0}"),
            ("{x} < {0}",),
            lambda x, k: x < k,
            _BOUNDS,
        ),
        "not_over": (
            ("remove the numbers greater than {0}", "remove what is above {0}"),
            ("{x} <= {0}",),
            lambda x, k: x <= k,
            _BOUNDS,
        ),
        "not_under": (
            ("remove the numbers less than {0}", "remove what is below {0}"),
            ("{x} >= {0}",),
            lambda x, k: x >= k,
            _BOUNDS,
        ),
        "multiple": (
            ("keep the multiples of {0}", "keep the numbers divisible by {0}"),
            ("{x} % {0} == 0",),
            lambda x, k: x % k == 0,
            _FACTORS[1:],
        ),
        "not_multiple": (
            ("remove the multiples of {0}", "remove the numbers divisible by {0}"),
            ("{x} % {0} != 0",),
            lambda x, k: x % k != 0,
            _FACTORS[1:],
        ),
        "not_equal": (
            ("remove every {0}",),
            ("{x} != {0}",),
            lambda x, k: x != k,
            _DIGITS,
        ),
    }

    def keep(holds: Callable[..., bool]) -> Callable[..., list[int]]:
        return lambda values, *constants: [x for x in values if holds(x, *constants)]

    return {
        f"keep_{name}": Kind(
            "list", "list", phrases, codes, keep(holds), tuple(constants), "filter"
        )
        for name, (phrases, codes, holds, *constants) in tests.items()
    }


def _arithmetic() -> dict[str, Kind]:
    """Arithmetic on a number, and on each number of a list."""
    rules: dict[str, tuple] = {
        "add": (
            ("add {0} to {them}", "increase {them} by {0}"),
            ("{x} + {0}",),
            lambda x, k: x + k,
            _DIGITS,
        ),
        "subtract": (
            ("subtract {0} from {them}", "decrease {them} by {0}"),
            ("{x} - {0}",),
            lambda x, k: x - k,
            _DIGITS,
        ),
        "multiply": (
            ("multiply {them} by {0}",),
            ("{x} * {0}",),
            lambda x, k: x * k,
            _FACTORS,
        ),
        "square": (("square {them}",), ("{x} * {x}", "{x} ** 2"), lambda x: x * x),
        "negate": (("negate {them}",), ("-{x}",), lambda x: -x),
        "absolute": (
            ("take the absolute value of {them}",),
            ("abs({x})",),
            lambda x: -x if x < 0 else x,
        ),
        "remainder": (
            ("take {them} modulo {0}",),
            ("{x} % {0}",),
            lambda x, k: x % k,
            _FACTORS,
        ),
        "divide": (
            ("divide {them} by {0} rounding down",),
            ("{x} // {0}",),
            lambda x, k: x // k,
            _FACTORS,
        ),
    }

    def each(rule: Callable[..., int]) -> Callable[..., list[int]]:
        return lambda values, *constants: [rule(x, *constants) for x in values]

    def said(phrases: Sequence[str], them: str) -> tuple[str, ...]:
        return tuple(phrase.replace("{them}", them) for phrase in phrases)

    kinds = {}
    for name, (phrases, codes, rule, *constants) in rules.items():
        kinds[f"{name}_each"] = Kind(
            "list",
            "list",
            said(phrases, "each number"),
            codes,
            each(rule),
            tuple(constants),
            "map",
        )
        kinds[name] = Kind(
            "int",
            "int",
            said(phrases, "it"),
            tuple(code.replace("{x}", "{v}") for code in codes),
            rule,
            tuple(constants),
        )
    return kinds


def _unique(values: list[int]) -> list[int]:
    kept: list[int] = []
    for value in values:
        if value not in kept:
            kept.append(value)
    return kept


_LISTS = {
    "reverse": Kind(
        "list",
        "list",
        ("reverse the list", "turn the list around"),
        ("{v}[::-1]",),
        lambda v: [v[len(v) - 1 - i] for i in range(len(v))],
    ),
    "sort": Kind(
        "list",
        "list",
        ("sort the list", "sort the list in ascending order"),
        ("sorted({v})",),
        lambda v: sorted(v),
    ),
    "sort_down": Kind(
        "list",
        "list",
        ("sort the list in descending order",),
        ("sorted({v}, reverse=True)", "sorted({v})[::-1]"),
        lambda v: sorted(v, key=lambda x: -x),
    ),
    "unique": Kind(
        "list", "list", ("remove duplicates",), ("list(dict.fromkeys({v}))",), _unique
    ),
    "first": Kind(
        "list",
        "list",
        ("keep the first {0} numbers",),
        ("{v}[:{0}]",),
        lambda v, k: [x for i, x in enumerate(v) if i < k],
        (_FEW,),
    ),
    "skip": Kind(
        "list",
        "list",
        ("drop the first {0} numbers",),
        ("{v}[{0}:]",),
        lambda v, k: [x for i, x in enumerate(v) if i >= k],
        (_FEW,),
    ),
    "last": Kind(
        "list",
        "list",
        ("keep the last {0} numbers",),
        ("{v}[-{0}:]",),
        lambda v, k: [x for i, x in enumerate(v) if i >= len(v) - k],
        (_FEW,),
    ),
    "chop": Kind(
        "list",
        "list",
        ("drop the last {0} numbers",),
        ("{v}[:-{0}]",),
        lambda v, k: [x for i, x in enumerate(v) if i < len(v) - k],
        (_FEW,),
    ),
    "every_second": Kind(
        "list",
        "list",
        ("keep every second number",),
        ("{v}[::2]",),
        lambda v: [x for i, x in enumerate(v) if i % 2 == 0],
    ),
    "append": Kind(
        "list",
        "list",
        ("append {0}", "put {0} at the end"),
        ("{v} + [{0}]",),
        lambda v, k: [*v, k],
        (_DIGITS,),
    ),
    "prepend": Kind(
        "list",
        "list",
        ("put {0} at the front",),
        ("[{0}] + {v}",),
        lambda v, k: [k, *v],
        (_DIGITS,),
    ),
    "sum": Kind(
        "list",
        "int",
        ("take the sum", "add up the numbers"),
        ("sum({v})",),
        lambda v: functools.reduce(lambda a, b: a + b, v, 0),
    ),
    "length": Kind(
        "list",
        "int",
        ("count the numbers", "take the length of the list"),
        ("len({v})",),
        lambda v: len(v),
    ),
    "largest": Kind(
        "list",
        "int",
        ("take the largest number or 0",),
        ("max({v}, default=0)",),
        lambda v: sorted(v)[-1] if v else 0,
    ),
    "smallest": Kind(
        "list",
        "int",
        ("take the smallest number or 0",),
        ("min({v}, default=0)",),
        lambda v: sorted(v)[0] if v else 0,
    ),
    "count_equal": Kind(
        "list",
        "int",
        ("count how often {0} occurs",),
        ("{v}.count({0})",),
        lambda v, k: len([x for x in v if x == k]),
        (_DIGITS,),
    ),
    "count_over": Kind(
        "list",
        "int",
        ("count the numbers greater than {0}",),
        ("{x} > {0}",),
        lambda v, k: len([x for x in v if x > k]),
        (_BOUNDS,),
        "count",
    ),
    "count_under": Kind(
        "list",
        "int",
        ("count the numbers less than {0}",),
        ("{x} < {0}",),
        lambda v, k: len([x for x in v if x < k]),
        (_BOUNDS,),
        "count",
    ),
    "digits": Kind(
        "int",
        "list",
        ("list the digits of it",),
        ("[int({x}) for {x} in str(abs({v}))]",),
        lambda v: _digits(abs(v)),
    ),
}


def _digits(number: int) -> list[int]:
    digits = [number % 10]
    while number > 9:
        number //= 10
        digits.insert(0, number % 10)
    return digits


def _reverse_text(text: str) -> str:
    return "".join(text[len(text) - 1 - i] for i in range(len(text)))


_STRINGS = {
    "upper": Kind(
        "str", "str", ("make it upper case",), ("{v}.upper()",), lambda v: v.upper()
    ),
    "lower": Kind(
        "str", "str", ("make it lower case",), ("{v}.lower()",), lambda v: v.lower()
    ),
    "swap_case": Kind(
        "str",
        "str",
        ("swap upper and lower case",),
        ("{v}.swapcase()",),
        lambda v: "".join(c.lower() if c.isupper() else c.upper() for c in v),
    ),
    "reverse_text": Kind(
        "str",
        "str",
        ("reverse it", "turn it around"),
        ("{v}[::-1]",),
        _reverse_text,
    ),
    "sort_characters": Kind(
        "str",
        "str",
        ("sort its characters",),
        ('"".join(sorted({v}))',),
        lambda v: "".join(sorted(v)),
    ),
    "reverse_words": Kind(
        "str",
        "str",
        ("reverse the order of its words",),
        ('" ".join({v}.split()[::-1])',),
        lambda v: " ".join(_words(v)[k] for k in range(len(_words(v)) - 1, -1, -1)),
    ),
    "first_characters": Kind(
        "str",
        "str",
        ("keep the first {0} characters",),
        ("{v}[:{0}]",),
        lambda v, k: "".join(c for i, c in enumerate(v) if i < k),
        (_FACTORS,),
    ),
    "skip_characters": Kind(
        "str",
        "str",
        ("drop the first {0} characters",),
        ("{v}[{0}:]",),
        lambda v, k: "".join(c for i, c in enumerate(v) if i >= k),
        (_FACTORS,),
    ),
    "last_characters": Kind(
        "str",
        "str",
        ("keep the last {0} characters",),
        ("{v}[-{0}:]",),
        lambda v, k: "".join(c for i, c in enumerate(v) if i >= len(v) - k),
        (_FACTORS,),
    ),
    "chop_characters": Kind(
        "str",
        "str",
        ("drop the last {0} characters",),
        ("{v}[:-{0}]",),
        lambda v, k: "".join(c for i, c in enumerate(v) if i < len(v) - k),
        (_FACTORS,),
    ),
    "remove_letter": Kind(
        "str",
        "str",
        ('remove every "{0}"',),
        ('{v}.replace("{0}", "")', '"".join({x} for {x} in {v} if {x} != "{0}")'),
        lambda v, k: "".join(c for c in v if c != k),
        (_LETTERS,),
    ),
    "remove_spaces": Kind(
        "str",
        "str",
        ("remove the spaces",),
        ('{v}.replace(" ", "")',),
        lambda v: "".join(c for c in v if c != " "),
    ),
    "replace_letter": Kind(
        "str",
        "str",
        ('replace "{0}" by "{1}"', 'change every "{0}" to "{1}"'),
        ('{v}.replace("{0}", "{1}")',),
        lambda v, k, m: "".join(m if c == k else c for c in v),
        (_LETTERS, _LETTERS),
    ),
    "append_letter": Kind(
        "str",
        "str",
        ('append "{0}"', 'put "{0}" at the end'),
        ('{v} + "{0}"',),
        lambda v, k: f"{v}{k}",
        (_LETTERS,),
    ),
    "prepend_letter": Kind(
        "str",
        "str",
        ('put "{0}" at the front',),
        ('"{0}" + {v}',),
        lambda v, k: f"{k}{v}",
        (_LETTERS,),
    ),
    "repeat": Kind(
        "str",
        "str",
        ("repeat it {0} times",),
        ("{v} * {0}",),
        lambda v, k: "".join(v for _ in range(k)),
        ((2, 3),),
    ),
    "text_length": Kind(
        "str",
        "int",
        ("count its characters", "take its length"),
        ("len({v})",),
        lambda v: len(v),
    ),
    "count_letter": Kind(
        "str",
        "int",
        ('count how often "{0}" occurs',),
        ('{v}.count("{0}")',),
        lambda v, k: len([c for c in v if c == k]),
        (_LETTERS,),
    ),
    "count_words": Kind(
        "str",
        "int",
        ("count its words",),
        ("len({v}.split())",),
        lambda v: len(_words(v)),
    ),
    "count_vowels": Kind(
        "str",
        "int",
        ("count its vowels",),
        ('sum({x} in "aeiou" for {x} in {v})',),
        lambda v: sum(1 for c in v if c in ("a", "e", "i", "o", "u")),
    ),
    "word_lengths": Kind(
        "str",
        "list",
        ("list the lengths of its words",),
        ("[len({x}) for {x} in {v}.split()]",),
        lambda v: [len(word) for word in _words(v)],
    ),
    "to_text": Kind(
        "int", "str", ("turn it into a string",), ("str({v})",), lambda v: f"{v:d}"
    ),
}


def _words(text: str) -> list[str]:
    """The words of a text, whose only white space is the space."""
    return [word for word in text.split(" ") if word]


KINDS: dict[str, Kind] = {**_filters(), **_arithmetic(), **_LISTS, **_STRINGS}

# What a choice may depend on. The target says nothing here: it is a truth value.
TESTS: dict[str, Kind] = {
    "sum_over": Kind(
        "list",
        "bool",
        ("the sum is greater than {0}",),
        ("sum({v}) > {0}",),
        lambda v, k: sum(v) > k,
        (_BOUNDS,),
    ),
    "longer": Kind(
        "list",
        "bool",
        ("there are more than {0} numbers",),
        ("len({v}) > {0}",),
        lambda v, k: len(v) > k,
        (_FEW,),
    ),
    "contains": Kind(
        "list",
        "bool",
        ("the list contains {0}",),
        ("{0} in {v}",),
        lambda v, k: any(x == k for x in v),
        (_DIGITS,),
    ),
    "over": Kind(
        "int",
        "bool",
        ("it is greater than {0}",),
        ("{v} > {0}",),
        lambda v, k: v > k,
        (_BOUNDS,),
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
        (_BOUNDS[:12],),
    ),
    "has_letter": Kind(
        "str",
        "bool",
        ('it contains "{0}"',),
        ('"{0}" in {v}',),
        lambda v, k: any(c == k for c in v),
        (_LETTERS,),
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
