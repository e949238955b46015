"""Random programs of the grammar, and the pairs that training never sees."""

import functools
import itertools
import random
from collections.abc import Iterator, Sequence

from dlm_jax.tasks.program.grammar import (
    KINDS,
    TESTS,
    TYPES,
    Choice,
    Kind,
    Op,
    Step,
    Steps,
)
from dlm_jax.tasks.splits import split_of

# One in so many pairs of kinds never appears side by side in training.
_UNSEEN_SHARE = 12


@functools.cache
def _kinds(source: str, is_changing: bool) -> tuple[str, ...]:
    """Operations on a type that change it, or that do not."""
    return tuple(
        name
        for name, kind in KINDS.items()
        if kind.source == source and (kind.target != source) == is_changing
    )


@functools.cache
def _tests(source: str) -> tuple[str, ...]:
    return tuple(name for name, test in TESTS.items() if test.source == source)


def _draw_op(rng: random.Random, names: Sequence[str], last: Sequence[str]) -> Op:
    """An operation of another kind than those just before it."""
    name = rng.choice(names)
    while name in last:
        name = rng.choice(names)
    return Op(name, _draw_constants(rng, KINDS[name]))


def _draw_constants(rng: random.Random, kind: Kind) -> tuple:
    constants = tuple(rng.choice(values) for values in kind.constants)
    # A letter that is replaced by itself.
    while len(constants) == 2 and constants[0] == constants[1]:
        constants = tuple(rng.choice(values) for values in kind.constants)
    return constants


def draw(rng: random.Random, max_steps: int) -> Steps:
    """A random program of two to max_steps steps, at most one of them a choice.

    Args:
      rng: drawn from.
      max_steps: 2 to 5.
    """
    (value_type,) = rng.choices(tuple(TYPES), (12, 6, 2))
    shares = {2: 2, 3: 7, 4: 8, 5: 3}
    numbers = range(2, max_steps + 1)
    (num_steps,) = rng.choices(numbers, [shares[number] for number in numbers])
    # At most one choice, in about one program of three.
    place = rng.randrange(3 * num_steps)
    steps: list[Step] = []
    last: tuple[str, ...] = ()
    for index in range(num_steps):
        if index == place:
            name = rng.choice(_tests(value_type))
            constants = _draw_constants(rng, TESTS[name])
            names = _kinds(value_type, False)
            then = _draw_op(rng, names, last)
            otherwise = _draw_op(rng, names, (*last, then.kind))
            steps.append(Choice(name, constants, then, otherwise))
            last = (then.kind, otherwise.kind)
        else:
            is_last = index == num_steps - 1
            # Numbers have few operations that give something else.
            share = (0.3 if value_type == "int" else 0.6) if is_last else 0.12
            is_changing = rng.random() < share
            op = _draw_op(rng, _kinds(value_type, is_changing), last)
            steps.append(op)
            last, value_type = (op.kind,), KINDS[op.kind].target
    return tuple(steps)


def _step_kinds(step: Step) -> tuple[str, ...]:
    if isinstance(step, Choice):
        return step.then.kind, step.otherwise.kind
    return (step.kind,)


def pairs(program: Steps) -> Iterator[tuple[str, str]]:
    """Kinds that follow one another, through either side of a choice."""
    for before, after in itertools.pairwise(program):
        for first in _step_kinds(before):
            for second in _step_kinds(after):
                yield first, second


@functools.cache
def is_unseen(first: str, second: str) -> bool:
    """Whether two kinds never follow one another in training."""
    return split_of(f"{first} {second}", ("unseen",), _UNSEEN_SHARE) == "unseen"


def num_programs(num_steps: int) -> int:
    """How many different sequences of so many operations there are, choices left out.

    An operation is not followed by one of its own kind. The constants are counted.
    """
    ending = {name: _num_constants(kind) for name, kind in KINDS.items()}
    for _ in range(num_steps - 1):
        ending = {
            name: _num_constants(kind)
            * sum(
                number
                for before, number in ending.items()
                if KINDS[before].target == kind.source and before != name
            )
            for name, kind in KINDS.items()
        }
    return sum(ending.values())


def _num_constants(kind: Kind) -> int:
    number = 1
    for values in kind.constants:
        number *= len(values)
    # The two letters of a replacement differ.
    return number - len(kind.constants[0]) if len(kind.constants) == 2 else number
