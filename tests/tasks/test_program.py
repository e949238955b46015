"""The task on programs: tokens, splits, training rows, limits, verdicts."""

import dataclasses
import itertools
import random
import re

import numpy as np
import pytest

from dlm_jax.errors import InputError
from dlm_jax.tasks.program import drawing, grammar
from dlm_jax.tasks.program import task as task_module
from dlm_jax.tasks.program import text as program_text
from dlm_jax.tasks.program.grammar import KINDS, Op
from dlm_jax.text.codec import Codec

TASK = task_module.Program()


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
