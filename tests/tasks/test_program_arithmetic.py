"""How many programs there are."""

import itertools
import random

import pytest
from scipy.stats import binomtest

from dlm_jax.tasks.program import drawing, grammar
from dlm_jax.tasks.program import task as task_module
from dlm_jax.tasks.program import text as program_text
from dlm_jax.tasks.program.grammar import KINDS, Op

TASK = task_module.Program()


def test_num_programs_is_what_enumeration_gives():
    ops = [
        Op(name, constants)
        for name, kind in KINDS.items()
        for constants in itertools.product(*kind.constants)
        if len(constants) < 2 or constants[0] != constants[1]
    ]
    assert drawing.num_programs(1) == len(ops)
    sources = [KINDS[op.kind].source for op in ops]
    num = sum(
        KINDS[first.kind].target == source and first.kind != second.kind
        for first in ops
        for second, source in zip(ops, sources, strict=True)
    )
    assert drawing.num_programs(2) == num


def sequence(rng):
    """Three operations, all sequences equally likely."""
    weights = [drawing._num_constants(kind) for kind in KINDS.values()]
    while True:
        names = rng.choices(list(KINDS), weights, k=3)
        kinds = [KINDS[name] for name in names]
        if all(
            a.target == b.source and a is not b for a, b in itertools.pairwise(kinds)
        ):
            return tuple(Op(n, drawing._draw_constants(rng, KINDS[n])) for n in names)


def fits(rng, program, limits):
    """Whether a few tries find a specification and a text within the limits."""
    function, argument = "f", program_text.ARGUMENTS[grammar.source_of(program)][0]

    def specification():
        return program_text.describe(rng, program, function, argument)

    def text():
        style = program_text.draw_style(rng, program, argument)
        return program_text.write(program, function, argument, style)

    return all(
        any(len(task_module.encode(write())) <= most for _ in range(20))
        # An EOS follows the text.
        for write, most in ((specification, limits.prompt), (text, limits.answer - 1))
    )


# An enumeration gives 601,883 for the shipped task, 3,247,021 for the other.
@pytest.mark.parametrize(
    ("asked", "least"), [(TASK, 300_000), (task_module.LongProgram(), 1_000_000)]
)
def test_there_are_more_than_a_million_specifications(asked, least):
    rng = random.Random(0)
    num_drawn, num_kept = 1500, 0
    for program in (sequence(rng) for _ in range(num_drawn)):
        key = task_module.key_of(program)
        if key is None or task_module.split_of_program(program, key) == "none":
            continue
        num_kept += fits(rng, program, asked.limits)
    # Above the true share for one sample in a thousand.
    share = binomtest(num_kept, num_drawn).proportion_ci(0.998, "exact").low
    num_programs = drawing.num_programs(3) * share
    assert num_programs > least
    # Each may have any of these names, in a specification of the same length.
    names = [
        *program_text.FUNCTIONS,
        *itertools.chain(*program_text.ARGUMENTS.values()),
    ]
    assert all(len(task_module.encode(f" {name}")) == 1 for name in names)
    num_names = len(program_text.FUNCTIONS) * min(
        map(len, program_text.ARGUMENTS.values())
    )
    assert num_programs * num_names > 1_000_000


@pytest.mark.parametrize(
    ("asked", "least"), [(task_module.LongProgram(), 425), (TASK, 375)]
)
def test_most_training_rows_do_something_new(asked, least):
    draws = task_module._draws(random.Random(0), "train", asked.limits)
    programs, keys, *_ = zip(*itertools.islice(draws, 500), strict=True)
    assert len(set(programs)) > least + 40
    assert len(set(keys)) > least
