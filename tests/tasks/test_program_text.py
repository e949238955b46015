"""Programs: words, meaning and Python text must say the same."""

import itertools
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm_jax.sandbox import sandbox
from dlm_jax.tasks.program import drawing, grammar
from dlm_jax.tasks.program import task as task_module
from dlm_jax.tasks.program import text as program_text
from dlm_jax.tasks.program.grammar import KINDS, TESTS, Choice, Op

ARGUMENTS = {
    "list": st.lists(st.integers(-30, 30), max_size=9),
    "str": st.text("aeiobnrstAEBTzZ ", max_size=20),
    "int": st.integers(-2000, 2000),
}
SEEDS = st.integers(0, 2**32)


def drawn(seed):
    """A program, the argument's name and a text of it."""
    rng = random.Random(seed)
    program = drawing.draw(rng, 5)
    argument = rng.choice(program_text.ARGUMENTS[grammar.source_of(program)])
    style = program_text.draw_style(rng, program, argument)
    return program, argument, program_text.write(program, "f", argument, style)


def executed(text, name, value):
    names = {}
    exec(text, names)
    return names[name](value)


def run_with_text(program, value):
    style = program_text.Style(
        tuple((name, "a") for name in grammar.TYPES), "x", 0, False, False, True
    )
    return executed(program_text.write(program, "f", "b", style), "f", value)


@given(SEEDS, st.data())
@settings(max_examples=250)
def test_python_text_does_what_the_steps_mean(seed, data):
    program, _, text = drawn(seed)
    value = data.draw(ARGUMENTS[grammar.source_of(program)])
    kept = list(value) if isinstance(value, list) else value
    meant = grammar.run(program, value)
    assert value == kept
    assert sandbox.is_equal(executed(text, "f", value), meant)
    assert value == kept


@pytest.mark.parametrize("name", KINDS)
def test_every_operation_in_every_style(name):
    kind, rng = KINDS[name], random.Random(name)
    for variant, is_loop in itertools.product((0, 1), (False, True)):
        op = Op(name, drawing._draw_constants(rng, kind))
        locals_ = tuple((target, "a") for target in grammar.TYPES)
        style = program_text.Style(locals_, "x", variant, is_loop, True, not is_loop)
        text = program_text.write((op,), "f", "b", style)
        for value in task_module._PROBES[kind.source]:
            assert executed(text, "f", value) == grammar.run((op,), value), text


class Reader:
    """Understands a specification again, from the phrases alone."""

    def __init__(self, source):
        self.phrases = self._patterns(KINDS)
        self.tests = self._patterns(TESTS)
        self.source = source

    @staticmethod
    def _patterns(kinds):
        return [
            (
                re.compile(re.sub(r"\\\{\d\\\}", r"(\\w+)", re.escape(phrase))),
                name,
                kind,
            )
            for name, kind in kinds.items()
            for phrase in kind.phrases
        ]

    def _read(self, text, patterns, source):
        found = [
            (name, self._constants(match))
            for pattern, name, kind in patterns
            if kind.source == source and (match := pattern.fullmatch(text))
        ]
        (only,) = found  # else the words are open to doubt
        return only

    @staticmethod
    def _constants(match):
        return tuple(int(c) if c.isdigit() else c for c in match.groups())

    def _ordered(self, body):
        """Clauses in the order of execution; a choice is one."""
        sentences = []
        for sentence in body.removesuffix(".\n").split(". "):
            tied = re.fullmatch(
                "(then|next|after that|right before that|at the very start|at the end)"
                ", (.*)",
                sentence,
            )
            tie, told = tied.groups() if tied else ("", sentence)
            if tie == "right before that":
                sentences.insert(-1, told)
            elif tie == "at the very start":
                sentences.insert(0, told)
            else:
                sentences.append(told)
        for sentence in sentences:
            if sentence.startswith("if "):
                yield sentence
            elif match := re.fullmatch(
                "before you (.*), (.*)|(.*), but first (.*)", sentence
            ):
                yield from reversed(list(filter(None, match.groups())))
            else:
                yield from re.split(", then | and then ", sentence)

    def program(self, body):
        steps, source = [], self.source
        for clause in self._ordered(body):
            if match := re.fullmatch("if (.*), (.*), otherwise (.*)", clause):
                test = self._read(match[1], self.tests, source)
                sides = [
                    Op(*self._read(match[i], self.phrases, source)) for i in (2, 3)
                ]
                steps.append(Choice(*test, *sides))
            else:
                steps.append(Op(*self._read(clause, self.phrases, source)))
                source = KINDS[steps[-1].kind].target
        return tuple(steps)


def test_words_leave_no_doubt_about_the_program():
    readers = {source: Reader(source) for source in grammar.TYPES}
    rng = random.Random(0)
    orders = set()
    for _ in range(1500):
        program = drawing.draw(rng, 5)
        source = grammar.source_of(program)
        prompt = program_text.describe(rng, program, "f", "xs")
        header, body = prompt.split(": ", 1)
        assert grammar.TYPES[source] in header and " f" in header and " xs" in header
        assert readers[source].program(body) == program, prompt
        orders |= set(re.findall("before|at the very start|but first|at the end", body))
    assert len(orders) == 4
