"""Countdown: combining given numbers with + - * / to reach a target.

A continuation task, with which arXiv:2410.14157 compared diffusion and autoregressive
models. '03 07 25 -> 96:' is continued by '25+07=32,32*03=96': each equation takes two
of the numbers that are there and leaves its result, until the target is all that is
left.

Every number has two digits, and what separates them takes one character in an equation
as in the prompt. The same digit of every number is thus at the same place modulo 3, and
an equation is always 9 tokens, the last one EOS: a small model need not learn where
things are before it learns to calculate. Numbers are asked in ascending order and the
larger operand is written first, and sums and products of three numbers are in one
order, for the same reason; the verdict takes any order, and numbers without leading
zeros.
"""

import functools
import itertools
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Int, Int32

from dlm_jax.core.keys import check_seed
from dlm_jax.tasks.base import (
    BatchAt,
    CharacterTask,
    Example,
    Verdict,
)
from dlm_jax.tasks.splits import first_distinct, split_of

OPERATORS = "+-*/"
# Token ids are places in this list.
VOCABULARY = (
    "<|startoftext|>",
    "<|endoftext|>",
    *"0123456789",
    *OPERATORS,
    *"=, >:",
    "<|mdm_mask|>",
)
EOS_ID = VOCABULARY.index("<|endoftext|>")
MASK_ID = VOCABULARY.index("<|mdm_mask|>")
_ZERO = VOCABULARY.index("0")
_PLUS = VOCABULARY.index("+")
# Tokens of an equation, with what ends it.
PERIOD = 9
LARGEST_GIVEN = 20
LARGEST = 99
HELD_OUT = ("test", "valid", "hard")
# One puzzle in so many goes to each of them.
SHARE = 16
# Examples that a split has: a few thousand puzzles of three numbers fall to each.
MOST_EXAMPLES = 1000

_EQUATION = re.compile(r"\s*([0-9]{1,9})([-+*/])([0-9]{1,9})=([0-9]{1,9})\s*")


class Puzzle(NamedTuple):
    """Given numbers and a target.

    Attributes:
      numbers: each to be used once.
      target: what is to be reached.
    """

    numbers: tuple[int, ...]
    target: int


class Countdown(CharacterTask):
    """Reaching a target with three numbers of 1 to 20.

    The splits are 'test', 'valid' and 'hard': puzzles that have one solution only, see
    `solutions`. Which one a puzzle is in is the hash of its numbers and target. An
    example's truth is its `Puzzle`.

    Attributes:
      num_numbers: how many are given.
    """

    name: ClassVar[str] = "countdown"
    splits: ClassVar[tuple[str, ...]] = HELD_OUT
    is_infill: ClassVar[bool] = False
    num_numbers: ClassVar[int] = 3
    gen_length: int = 2 * PERIOD
    vocabulary: ClassVar[tuple[str, ...]] = VOCABULARY
    period: ClassVar[int] = PERIOD
    embedding_size: ClassVar[int] = 32
    max_sequence_length: ClassVar[int] = 64

    def size(self, split: str) -> int:
        self.check(split, 1)
        return MOST_EXAMPLES

    def examples(self, split: str, num: int, seed: int = 0) -> list[Example]:
        self.check(split, num, seed, MOST_EXAMPLES)

        def draw(lot: int) -> Iterator[Puzzle]:
            rng = np.random.default_rng([seed, lot])
            given, equations = random_puzzles(rng, 512, self.num_numbers)
            for numbers, target in zip(given, equations[:, -1, 3], strict=True):
                puzzle = Puzzle(tuple(numbers.tolist()), int(target))
                if _split(numbers, target) == split and (
                    split != "hard" or len(solutions(puzzle)) == 1
                ):
                    yield puzzle

        return [
            Example(f"{split}/{seed}/{i}", prompt(puzzle), puzzle)
            for i, puzzle in enumerate(first_distinct(draw, num))
        ]

    def verdict(self, example: Example, answer: str) -> Verdict:
        return verdict(example.truth, answer)

    def training_batches(
        self,
        data: Mapping[str, Any],
        *,
        batch_size: int,
        seed: int,
        workdir: pathlib.Path,
    ) -> BatchAt:
        """New puzzles in every step, each with the solution that it was made from.

        Args:
          data: `seed` of the puzzles; and the `largest_given` number and the
            `operator_weights` of `random_puzzles`, which in the splits are its own.
          batch_size: rows.
          seed: of the stage, so that each has other puzzles.
          workdir: nothing is kept.

        Raises:
          InputError: for a seed out of range.
        """
        check_seed(data["seed"], "data.seed")
        check_seed(seed)
        drawn_from = {
            name: data[name]
            for name in ("largest_given", "operator_weights")
            if name in data
        }

        def batch_at(step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            rng = np.random.default_rng([data["seed"], seed, step])
            lots: list[np.ndarray] = []
            while sum(map(len, lots)) < batch_size:
                # A few more than are kept on average.
                num = batch_size + batch_size // 3 + 4
                given, equations = random_puzzles(
                    rng, num, self.num_numbers, **drawn_from
                )
                is_kept = [
                    _split(numbers, target) == "train"
                    for numbers, target in zip(given, equations[:, -1, 3], strict=True)
                ]
                lots.append(encode(given[is_kept], equations[is_kept]))
            tokens = np.concatenate(lots)[:batch_size]
            is_maskable = np.zeros(tokens.shape, bool)
            is_maskable[:, -self.gen_length :] = True
            return tokens, is_maskable, np.ones_like(is_maskable)

        return batch_at


class Countdown4(Countdown):
    """Reaching a target with four numbers: two dozen times as many ways to try.

    No model of it is shipped; it is there for larger ones.
    """

    name: ClassVar[str] = "countdown4"
    num_numbers: ClassVar[int] = 4
    gen_length: int = 3 * PERIOD


def random_puzzles(
    rng: np.random.Generator,
    num: int,
    num_numbers: int,
    largest_given: int = LARGEST_GIVEN,
    operator_weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
) -> tuple[Int[np.ndarray, "n k"], Int[np.ndarray, "n k-1 4"]]:
    """Random numbers, and random equations that use them up; the target results.

    Two numbers that are there are drawn, then one of the operations whose result is in
    1 to LARGEST; there always is one. Of orders that are the same sum or product, one
    is kept, see `_ordered`.

    Args:
      rng: drawn from.
      num: how many, n.
      num_numbers: given ones, k.
      largest_given: they are drawn from 1 to this.
      operator_weights: of OPERATORS, how likely each is next to the others that can be
        drawn.

    Returns:
      The given numbers in ascending order; and of each equation the larger operand, the
      place in OPERATORS, the smaller operand and the result.
    """
    pool = np.sort(rng.integers(1, largest_given + 1, (num, num_numbers)), 1)
    given = pool
    equations = []
    for _ in range(num_numbers - 1):
        pool = rng.permuted(pool, axis=1)
        a, b = pool[:, :2].max(1), pool[:, :2].min(1)
        results = np.stack([a + b, a - b, a * b, a // b], 1)
        may_be = (results >= 1) & (results <= LARGEST)
        may_be[:, 3] = a % b == 0
        # The largest of u^(1 / w) is each in proportion to its weight w.
        drawn = rng.random(results.shape) ** (1 / np.asarray(operator_weights))
        operator = np.where(may_be, drawn, -1).argmax(1)
        result = results[np.arange(num), operator]
        equations.append(np.stack([a, operator, b, result], 1))
        pool = np.concatenate([result[:, None], pool[:, 2:]], 1)
    for first in range(num_numbers - 2):
        pair = _ordered(equations[first], equations[first + 1])
        equations[first], equations[first + 1] = pair
    return given, np.stack(equations, 1)


def _ordered(
    first: Int[np.ndarray, "n 4"], second: Int[np.ndarray, "n 4"]
) -> tuple[Int[np.ndarray, "n 4"], Int[np.ndarray, "n 4"]]:
    """One order of two equations that are a sum or product of three numbers.

    What is added comes before what is taken away, larger numbers before smaller ones:
    a model need not choose between 3 + 5 + 9, 9 + 5 + 3 and so on, which it would have
    to do at several tokens alike.

    Args:
      first: equations, as `random_puzzles` gives them.
      second: the ones after them.

    Returns:
      The same, where the second one uses the result of the first.
    """
    a, operator, b, result = first.T
    c, then, d, target = second.T
    plus, minus, times = (OPERATORS.index(sign) for sign in "+-*")
    is_larger = c == result
    is_used = is_larger | (d == result)
    # Whether a, b and the number that joins them are taken away.
    is_swapped = (then == minus) & ~is_larger
    is_negative = [
        is_swapped,
        is_swapped ^ (operator == minus),
        (then == minus) & is_larger,
    ]
    numbers = np.stack([a, b, np.where(is_larger, d, c)], 1)
    order = np.lexsort((-numbers, np.stack(is_negative, 1)), axis=1)
    x, y, z = np.take_along_axis(numbers, order, 1).T
    num_negative = np.sum(is_negative, 0)
    is_sum = is_used & (np.maximum(operator, then) <= minus)
    is_product = is_used & (operator == times) & (then == times)
    signs = (
        np.where(is_product, times, np.where(num_negative == 2, minus, plus)),
        np.where(is_product, times, np.where(num_negative == 0, plus, minus)),
    )
    between = np.choose(signs[0], [x + y, x - y, x * y])
    is_kept = ~(is_sum | is_product) | (between > LARGEST)
    high, low = np.maximum(between, z), np.minimum(between, z)
    new = (
        np.stack([x, signs[0], y, between], 1),
        np.stack([high, signs[1], low, target], 1),
    )
    is_kept = is_kept[:, None]
    return np.where(is_kept, first, new[0]), np.where(is_kept, second, new[1])


def encode(
    given: Int[np.ndarray, "n k"], equations: Int[np.ndarray, "n k-1 4"]
) -> Int32[np.ndarray, "n l"]:
    """Tokens of the prompts, each with its equations and one EOS.

    Args:
      given: the numbers.
      equations: as `random_puzzles` gives them.
    """
    num = len(given)

    def written(*columns: Int[np.ndarray, "n"] | str) -> np.ndarray:
        """Columns of numbers as two digits, and a character or EOS as it is."""
        pieces = []
        for column in columns:
            if isinstance(column, str):
                pieces += [np.full(num, VOCABULARY.index(column))]
            else:
                pieces += [_ZERO + column // 10, _ZERO + column % 10]
        return np.stack(pieces, 1)

    pieces = [written(numbers, " ") for numbers in given.T]
    pieces += [written("-", ">", " ", equations[:, -1, 3], ":")]
    for index, (a, operator, b, result) in enumerate(equations.transpose(1, 2, 0)):
        is_last = index == equations.shape[1] - 1
        pieces += [written(a), _PLUS + operator[:, None], written(b, "=", result)]
        pieces += [written(VOCABULARY[EOS_ID] if is_last else ",")]
    return np.concatenate(pieces, 1).astype(np.int32)


def prompt(puzzle: Puzzle) -> str:
    """What is to be continued, as '03 07 25 -> 96:'."""
    given = "".join(f"{number:02} " for number in sorted(puzzle.numbers))
    return f"{given}-> {puzzle.target:02}:"


@functools.lru_cache(maxsize=1 << 16)
def solutions(puzzle: Puzzle) -> frozenset[tuple[tuple[int, str, int], ...]]:
    """All solutions; those that differ in the order of operands or equations are one.

    Args:
      puzzle: of few numbers, for all that can be done with them is tried.

    Returns:
      Each solution as its operations (larger operand, operator, smaller one), sorted.
    """
    if len(puzzle.numbers) == 1:
        return frozenset([()] if puzzle.numbers[0] == puzzle.target else [])
    found = set()
    places = range(len(puzzle.numbers))
    for i, j in itertools.combinations(places, 2):
        b, a = sorted((puzzle.numbers[i], puzzle.numbers[j]))
        rest = [puzzle.numbers[k] for k in places if k not in (i, j)]
        for operator in OPERATORS:
            result = _result(a, operator, b)
            if result is not None:
                left = Puzzle(tuple(sorted([*rest, result])), puzzle.target)
                for others in solutions(left):
                    found.add(tuple(sorted([(a, operator, b), *others])))
    return frozenset(found)


def _result(a: int, operator: str, b: int) -> int | None:
    """None if it is not a natural number."""
    if operator == "/":
        return a // b if b and a % b == 0 else None
    result = {"+": a + b, "-": a - b, "*": a * b}[operator]
    return result if result >= 0 else None


def _split(numbers: Int[np.ndarray, "k"], target: Any) -> str:
    key = np.append(np.sort(numbers), target).astype(np.uint8).tobytes()
    return split_of(key, HELD_OUT, SHARE)


def verdict(puzzle: Puzzle, answer: str) -> Verdict:
    """Calculates an answer's equations, in natural numbers.

    Args:
      puzzle: what was asked.
      answer: equations, separated by commas.
    """
    left = list(puzzle.numbers)
    for equation in answer.split(","):
        match = _EQUATION.fullmatch(equation)
        if not match:
            # Cut short: where masks are left, it may be all there is.
            return Verdict(False, f"not an equation: {equation.strip()[:12]!r}")
        operator = match[2]
        a, b, written = int(match[1]), int(match[3]), int(match[4])
        for number in (a, b):
            if number not in left:
                return Verdict(False, f"{equation}: there is no {number} left")
            left.remove(number)
        result = _result(a, operator, b)
        if result is None:
            return Verdict(False, f"{equation}: not a natural number")
        if result != written:
            return Verdict(False, f"{equation}: the result is {result}")
        left.append(result)
    if len(left) > 1:
        listed = ", ".join(map(str, left))
        return Verdict(False, f"{len(left)} numbers are left: {listed}")
    if left[0] != puzzle.target:
        return Verdict(False, f"the result is {left[0]}, not {puzzle.target}")
    return Verdict(True, f"the result is {puzzle.target}")
