"""Functions to a specification: words, meaning and Python text must say the same."""

import dataclasses
import itertools
import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from dlm_jax.errors import InputError
from dlm_jax.sandbox import sandbox
from dlm_jax.tasks.program import drawing, grammar
from dlm_jax.tasks.program import task as task_module
from dlm_jax.tasks.program import text as program_text
from dlm_jax.tasks.program.grammar import KINDS, TESTS, Choice, Op
from dlm_jax.text.codec import Codec

TASK = task_module.Program()
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


@pytest.fixture(scope="module")
def tokenizer():
    return TASK.tokenizer()


def test_tokenizer_gives_texts_back_exactly(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    codec = Codec.load(
        tmp_path,
        TASK.model_config(d_model=32, n_heads=4, n_layers=1, mlp_hidden_size=32),
    )
    assert len(set(task_module.VOCABULARY)) == len(tokenizer) < 256
    rng = random.Random(0)
    used = set()
    for _ in range(2000):
        program = drawing.draw(rng, 5)
        function = rng.choice(program_text.FUNCTIONS)
        argument = rng.choice(program_text.ARGUMENTS[grammar.source_of(program)])
        style = program_text.draw_style(rng, program, argument)
        prompt = program_text.describe(rng, program, function, argument)
        answer = program_text.write(program, function, argument, style)
        ids = task_module.encode(prompt) + task_module.encode(answer)
        used.update(ids)
        # The Rust tokenizer is slow; a part of the texts will do.
        if len(used) % 10 == 0:
            assert codec.tokenizer(prompt + answer)["input_ids"] == ids
            assert codec.tokenizer.decode(ids) == prompt + answer
    # All but the special tokens are of use.
    assert set(range(len(tokenizer))) - used == {0, 1, 2}


def test_unknown_words_are_refused(tokenizer):
    shape = {"d_model": 32, "n_heads": 4, "n_layers": 1, "mlp_hidden_size": 32}
    codec = Codec.of(tokenizer, TASK.model_config(**shape))
    for text in ("write a poem of a list xs", "keep\tit", "keep  it", "sort é"):
        with pytest.raises(InputError, match="cannot be written"):
            codec.encode([text], 8)


def test_splits_share_no_program_with_training_or_each_other():
    keys = {
        split: {task_module.key_of(e.truth.program) for e in TASK.examples(split, 15)}
        for split in TASK.splits
    }
    assert [len(found) for found in keys.values()] == [15] * 3
    draws = task_module._draws(random.Random(0), "train", TASK.limits)
    for program, key, *_ in itertools.islice(draws, 150):
        assert not any(key in found for found in keys.values())
        assert task_module.split_of_program(program, key) == "train"
        assert not any(drawing.is_unseen(*pair) for pair in drawing.pairs(program))
    for example in TASK.examples("unseen", 15):
        pairs = drawing.pairs(example.truth.program)
        assert any(drawing.is_unseen(*pair) for pair in pairs)


def test_some_pairs_of_all_types_are_kept_for_the_unseen_split():
    pairs = [
        (a, b)
        for a, b in itertools.permutations(KINDS, 2)
        if KINDS[a].target == KINDS[b].source
    ]
    unseen = [pair for pair in pairs if drawing.is_unseen(*pair)]
    assert 1 / 18 < len(unseen) / len(pairs) < 1 / 8
    assert {KINDS[a].target for a, _ in unseen} == set(grammar.TYPES)


def test_more_examples_begin_with_the_same_ones():
    few, more = TASK.examples("test", 3, seed=1), TASK.examples("test", 9, seed=1)
    assert more[:3] == few
    assert TASK.examples("test", 3, seed=2) != few
    with pytest.raises(InputError, match=r"split \(hard\) must be one of"):
        TASK.examples("hard", 1)


def test_programs_that_do_the_same_have_one_key():
    def key(*steps):
        return task_module.key_of(steps)

    over, even = Op("keep_over", (5,)), Op("keep_even")
    assert key(over, even) == key(even, over) != key(over, Op("keep_odd"))
    assert key(Op("add_each", (2,)), Op("add_each", (3,))) == key(Op("add_each", (5,)))
    assert key(Op("sort"), Op("reverse")) == key(Op("sort_down"))
    assert key(Op("add", (5,))) != key(Op("add", (6,)))
    # Steps that change nothing, and outputs that are always the same.
    assert key(Op("sort"), Op("sort")) is None
    assert key(over, Op("keep_under", (3,))) is None


def test_training_rows_look_like_canvases(tokenizer, tmp_path):
    shape = {"d_model": 32, "n_heads": 4, "n_layers": 1, "mlp_hidden_size": 32}
    codec = Codec.of(tokenizer, TASK.model_config(**shape))
    batch_at = TASK.training_batches({}, batch_size=16, seed=3, workdir=tmp_path)
    tokens, is_maskable, is_valid = batch_at(5)
    for first, again in zip(batch_at(5), (tokens, is_maskable, is_valid), strict=True):
        np.testing.assert_array_equal(first, again)
    assert (batch_at(6)[0] != tokens).any()
    assert tokens.shape == (16, 68) and tokens.dtype == np.int32
    assert (is_maskable.sum(1) == TASK.gen_length).all()
    assert not (is_maskable & ~is_valid).any()
    names = set()
    for row, maskable, valid in zip(tokens, is_maskable, is_valid, strict=True):
        prompt = tokenizer.decode(row[valid & ~maskable])
        (encoded,) = codec.encode([prompt], TASK.gen_length)
        # The canvas of inference, filled.
        np.testing.assert_array_equal(encoded.is_blank, maskable[valid])
        answer = codec.decode(encoded, row)
        assert answer.startswith("def ") and answer.endswith("\n")
        names.add(answer.split("(")[0])
        ends = row[maskable] == task_module.EOS_ID
        assert ends[-1] and (np.diff(ends.astype(int)) >= 0).all()
    assert len(names) > 3
    message = r"^data \(num\) must be among max_steps, prompt, answer, is_told_only$"
    with pytest.raises(InputError, match=message):
        TASK.training_batches(
            {"num": 3, "prompt": 24}, batch_size=1, seed=0, workdir=tmp_path
        )


def test_a_stage_may_hide_only_what_the_specification_tells(tmp_path):
    def batch(**data):
        make = TASK.training_batches(data, batch_size=16, seed=0, workdir=tmp_path)
        return make(0)

    tokens, is_maskable, is_valid = batch()
    told_tokens, is_told, told_valid = batch(is_told_only=True)
    np.testing.assert_array_equal(told_tokens, tokens)
    np.testing.assert_array_equal(told_valid, is_valid)
    starts = is_maskable.argmax(1)
    for row, start, maskable, told in zip(
        tokens, starts, is_maskable, is_told, strict=True
    ):
        expected = [bool(m) and t in row[:start] for t, m in zip(row, maskable)]  # noqa: B905
        np.testing.assert_array_equal(told, expected)
    # The function's name stands after 'def'.
    assert is_told[np.arange(16), starts + 1].all()


@pytest.mark.parametrize(
    ("asked", "data"),
    [
        (TASK, {}),
        (task_module.LongProgram(), {}),
        (TASK, {"max_steps": 2, "prompt": 24, "answer": 32}),
    ],
)
def test_programs_fit_the_limits_of_their_task_or_stage(asked, data, tmp_path):
    limits = dataclasses.replace(asked.limits, **data)
    batch_at = asked.training_batches(data, batch_size=32, seed=0, workdir=tmp_path)
    tokens, is_maskable, is_valid = batch_at(0)
    assert tokens.shape == (32, limits.prompt + limits.answer)
    assert (is_maskable.sum(1) == limits.answer).all()
    assert ((is_valid & ~is_maskable).sum(1) <= limits.prompt).all()
    assert (tokens[np.arange(32), is_valid.sum(1) - 1] == task_module.EOS_ID).all()
    for row, maskable in zip(tokens, is_maskable, strict=True):
        answer = "".join(task_module.VOCABULARY[t] for t in row[maskable])
        lines = answer.split("<|endoftext|>")[0].splitlines()
        # Each step is a statement, of which a loop or a choice has up to four lines.
        assert 2 <= len(lines) <= 1 + 4 * limits.max_steps


@pytest.mark.parametrize("asked", [TASK, task_module.LongProgram()])
def test_examples_fit_the_limits_of_their_task(asked):
    lengths = {len(e.truth.program) for e in asked.examples("test", 60)}
    assert lengths == set(range(2, asked.limits.max_steps + 1))
    for example in asked.examples("test", 20):
        assert len(task_module.encode(example.prompt)) <= asked.limits.prompt


@pytest.fixture(scope="module")
def examples():
    return TASK.examples("valid", 6)


def test_inputs_are_of_one_type_and_tell_programs_apart(examples):
    for example in examples:
        question = example.truth
        source = {"list": list, "str": str, "int": int}
        expected = source[grammar.source_of(question.program)]
        assert len(question.inputs) == 12
        assert all(type(value) is expected for value in question.inputs)
        assert question.inputs[0] in ([], "", 0)
        assert len(set(map(repr, question.outputs))) > 1


def test_every_style_is_right(examples):
    rng = random.Random(0)
    for example in examples:
        question = example.truth
        texts = set()
        for _ in range(3):
            style = program_text.draw_style(rng, question.program, "given")
            text = program_text.write(
                question.program, question.function, "given", style
            )
            texts.add(text)
            verdict = TASK.verdict(example, text)
            assert verdict.is_correct and verdict.reason == "", verdict.reason
        assert len(texts) > 1


def question_of(*steps):
    inputs = ([], [3, 1], [1, 2, 3])
    outputs = tuple(grammar.run(steps, value) for value in inputs)
    return task_module.Question(steps, "f", inputs, outputs)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("def f(xs):\n    return sum(xs) + 1\n", r"f\(\[\]\) is 1, not 0"),
        (
            "def f(xs):\n    return sum(xs) + (len(xs) > 2)\n",
            r"f\(\[1, 2, 3\]\) is 7, not 6",
        ),
        ("def f(xs):\n    return float(sum(xs))\n", r"is 0.0, not 0"),
        ("def f(xs):\n    return sum(xs\n", "SyntaxError"),
        ("def g(xs):\n    return sum(xs)\n", "f"),
        ("def f(xs):\n    return xs[0]\n", "IndexError"),
        ("def f(xs):\n    return total\n", "NameError"),
        ("def f(xs):\n    while True:\n        pass\n", "."),
        ("", "."),
    ],
)
def test_wrong_functions_are_refused_with_the_reason(answer, reason):
    verdict = task_module.judge(question_of(Op("sum")), answer)
    assert not verdict.is_correct
    assert re.search(reason, verdict.reason), verdict.reason


def test_order_and_constants_matter(examples):
    num_compared = 0
    for example in examples:
        question = example.truth
        others = itertools.islice(
            task_module._draws(random.Random(1), "train", TASK.limits), 2
        )
        for program, *_ in others:
            if grammar.source_of(program) != grammar.source_of(question.program):
                continue
            style = program_text.draw_style(random.Random(0), program, "given")
            text = program_text.write(program, question.function, "given", style)
            num_compared += 1
            assert not TASK.verdict(example, text).is_correct
    assert num_compared
