"""Operations of the grammar on lists of numbers and on numbers."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

# What the constants of operations may be.
DIGITS = tuple(range(1, 10))
FACTORS = tuple(range(2, 10))
BOUNDS = tuple(range(1, 21))
FEW = tuple(range(2, 6))
LETTERS = tuple("aeiobnrst")


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
            BOUNDS,
        ),
        "under": (
            ("keep the numbers less than {0}", "keep what is below {0}"),
            ("{x} < {0}",),
            lambda x, k: x < k,
            BOUNDS,
        ),
        "not_over": (
            ("remove the numbers greater than {0}", "remove what is above {0}"),
            ("{x} <= {0}",),
            lambda x, k: x <= k,
            BOUNDS,
        ),
        "not_under": (
            ("remove the numbers less than {0}", "remove what is below {0}"),
            ("{x} >= {0}",),
            lambda x, k: x >= k,
            BOUNDS,
        ),
        "multiple": (
            ("keep the multiples of {0}", "keep the numbers divisible by {0}"),
            ("{x} % {0} == 0",),
            lambda x, k: x % k == 0,
            FACTORS[1:],
        ),
        "not_multiple": (
            ("remove the multiples of {0}", "remove the numbers divisible by {0}"),
            ("{x} % {0} != 0",),
            lambda x, k: x % k != 0,
            FACTORS[1:],
        ),
        "not_equal": (
            ("remove every {0}",),
            ("{x} != {0}",),
            lambda x, k: x != k,
            DIGITS,
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
            DIGITS,
        ),
        "subtract": (
            ("subtract {0} from {them}", "decrease {them} by {0}"),
            ("{x} - {0}",),
            lambda x, k: x - k,
            DIGITS,
        ),
        "multiply": (
            ("multiply {them} by {0}",),
            ("{x} * {0}",),
            lambda x, k: x * k,
            FACTORS,
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
            FACTORS,
        ),
        "divide": (
            ("divide {them} by {0} rounding down",),
            ("{x} // {0}",),
            lambda x, k: x // k,
            FACTORS,
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
        (FEW,),
    ),
    "skip": Kind(
        "list",
        "list",
        ("drop the first {0} numbers",),
        ("{v}[{0}:]",),
        lambda v, k: [x for i, x in enumerate(v) if i >= k],
        (FEW,),
    ),
    "last": Kind(
        "list",
        "list",
        ("keep the last {0} numbers",),
        ("{v}[-{0}:]",),
        lambda v, k: [x for i, x in enumerate(v) if i >= len(v) - k],
        (FEW,),
    ),
    "chop": Kind(
        "list",
        "list",
        ("drop the last {0} numbers",),
        ("{v}[:-{0}]",),
        lambda v, k: [x for i, x in enumerate(v) if i < len(v) - k],
        (FEW,),
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
        (DIGITS,),
    ),
    "prepend": Kind(
        "list",
        "list",
        ("put {0} at the front",),
        ("[{0}] + {v}",),
        lambda v, k: [k, *v],
        (DIGITS,),
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
        (DIGITS,),
    ),
    "count_over": Kind(
        "list",
        "int",
        ("count the numbers greater than {0}",),
        ("{x} > {0}",),
        lambda v, k: len([x for x in v if x > k]),
        (BOUNDS,),
        "count",
    ),
    "count_under": Kind(
        "list",
        "int",
        ("count the numbers less than {0}",),
        ("{x} < {0}",),
        lambda v, k: len([x for x in v if x < k]),
        (BOUNDS,),
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


KINDS: dict[str, Kind] = {**_filters(), **_arithmetic(), **_LISTS}
