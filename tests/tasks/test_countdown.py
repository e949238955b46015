"""The countdown task against exact fractions and Python's own arithmetic."""

import collections
import fractions
import itertools
import operator
import pathlib
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import train_countdown
from dlm_jax.errors import InputError
from dlm_jax.tasks import base, countdown
from dlm_jax.text.codec import Codec
from dlm_jax.training import loop as training

TASKS = [countdown.Countdown(), countdown.Countdown4()]
SMALL = {"d_model": 8, "n_heads": 2, "n_layers": 1, "mlp_hidden_size": 8}
OPERATIONS = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
BY_NUMBERS = pytest.mark.parametrize("asked", TASKS, ids=lambda asked: asked.name)


def batch(asked, step=0, batch_size=128, data_seed=1, seed=0):
    batch_at = asked.training_batches(
        {"seed": data_seed}, batch_size=batch_size, seed=seed, workdir=pathlib.Path()
    )
    return batch_at(step)


def spelled(tokens):
    return "".join(countdown.VOCABULARY[token] for token in tokens)


def parts(line):
    """The numbers, target and answer of '03 07 25 -> 96:25+07=...'."""
    numbers, target, answer = re.fullmatch(r"([\d ]+) -> (\d+):(.*)", line).groups()
    puzzle = countdown.Puzzle(tuple(map(int, numbers.split())), int(target))
    return puzzle, answer


def is_right(puzzle, answer):
    """By fractions, and by what the equations use and leave as a whole."""
    used, made = collections.Counter(), collections.Counter(puzzle.numbers)
    results = []
    for equation in answer.split(","):
        match = re.fullmatch(r"(\d+)(\D)(\d+)=(\d+)", equation)
        if not match or match[2] not in OPERATIONS:
            return False
        a, b, result = (fractions.Fraction(int(match[i])) for i in (1, 3, 4))
        if match[2] == "/" and b == 0:
            return False
        used.update([int(a), int(b)])
        # What is used must have been there before this equation.
        if used - made or OPERATIONS[match[2]](a, b) != result:
            return False
        made[int(result)] += 1
        results.append(result)
    return made - used == collections.Counter([puzzle.target])


@st.composite
def attempts(draw):
    """A puzzle and equations that are often, but not always, a solution of it."""
    left = draw(st.lists(st.integers(0, 12), min_size=2, max_size=4))
    numbers, equations = tuple(left), []
    num = draw(st.integers(1, len(left)))
    for _ in range(min(num, len(left) - 1)):
        left = draw(st.permutations(left))
        a, b = left[:2]
        sign = draw(st.sampled_from("+-*/"))
        if sign in "-/" and a < b:
            a, b = b, a
        result = OPERATIONS[sign](a, b) if sign != "/" else a // max(b, 1)
        result = max(result + draw(st.sampled_from([0] * 9 + [1])), 0)
        equations.append(f"{a}{sign}{b}={result:02}")
        # Sometimes a number stays that has been used.
        used = draw(st.sampled_from([2] * 9 + [1]))
        left = [*left[used:], result]
    target = draw(st.sampled_from([left[-1]] * 5 + [7]))
    return countdown.Puzzle(numbers, target), ",".join(equations)


def test_verdict_agrees_with_fractions():
    seen = collections.Counter()

    @given(attempts())
    def check(attempt):
        puzzle, answer = attempt
        example = base.Example("", countdown.prompt(puzzle), puzzle)
        verdict = TASKS[0].verdict(example, answer)
        assert verdict.is_correct == is_right(puzzle, answer), verdict.reason
        seen[verdict.is_correct] += 1

    check()
    # Enough of both kinds, else this test shows nothing.
    assert min(seen[True], seen[False]) >= 15


def test_verdict_accepts_all_solutions_and_nothing_else():
    puzzle = countdown.Puzzle((2, 2, 4), 4)
    example = base.Example("", "", puzzle)
    numbers = (0, 1, 2, 4, 6, 8)
    terms = itertools.product(numbers, "+-*/", numbers, numbers)
    equations = ["{}{}{}={}".format(*term) for term in terms]
    answers = [
        ",".join(pair)
        for pair in itertools.product(equations, equations)
        if pair[0].endswith(("=0", "=4", "=8")) and pair[1].endswith("=4")
    ]
    answers = [answer for answer in answers if answer[0] in "24"]
    accepted = {a for a in answers if TASKS[0].verdict(example, a).is_correct}
    assert accepted == {answer for answer in answers if is_right(puzzle, answer)}
    assert {"2-2=0,0+4=4", "2*4=8,8/2=4", "4*2=8,8/2=4"} < accepted
    assert "2+2=4,4*4=4" not in accepted


@BY_NUMBERS
@given(data=st.data())
def test_right_answers_with_another_digit_are_refused(asked, data):
    tokens = batch(asked)[0]
    row = data.draw(st.integers(0, len(tokens) - 1))
    puzzle, answer = parts(spelled(tokens[row]).removesuffix("<|endoftext|>"))
    example = base.Example("", "", puzzle)
    assert asked.verdict(example, answer).is_correct
    places = [place for place, mark in enumerate(answer) if mark.isdigit()]
    place = data.draw(st.sampled_from(places))
    digits = "0123456789".replace(answer[place], "")
    for other in (data.draw(st.sampled_from(digits)), "<|mdm_mask|>", ","):
        wrong = answer[:place] + other + answer[place + 1 :]
        verdict = asked.verdict(example, wrong)
        assert not verdict.is_correct and verdict.reason
    # Nor is a part of it an answer.
    assert not asked.verdict(example, answer[:place]).is_correct


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "not an equation: ''"),
        ("25+07", "not an equation: '25+07'"),
        ("7-25=-18,32*3=96", "not an equation: '7-25=-18'"),
        ("25+08=33,33*3=99", "25+08=33: there is no 8 left"),
        ("25+25=50,50+3=53", "25+25=50: there is no 25 left"),
        ("25+07=32,25+7=32", "25+7=32: there is no 25 left"),
        ("25+07=31,31*03=93", "25+07=31: the result is 32"),
        ("25/07=03,03*03=09", "25/07=03: not a natural number"),
        ("03-07=04,25*04=100", "03-07=04: not a natural number"),
        ("25+07=32", "2 numbers are left: 3, 32"),
        ("25+07=32,32+03=35", "the result is 35, not 96"),
        ("25+7=32, 3*32=96", "the result is 96"),
    ],
)
def test_verdict_gives_the_first_reason(answer, reason):
    puzzle = countdown.Puzzle((3, 7, 25), 96)
    verdict = countdown.verdict(puzzle, answer)
    assert verdict.reason == reason
    assert verdict.is_correct == (reason == "the result is 96")


def test_nothing_is_divided_by_zero():
    puzzle = countdown.Puzzle((2, 2, 3), 3)
    verdict = countdown.verdict(puzzle, "2-2=0,3/0=3")
    assert verdict.reason == "3/0=3: not a natural number"


@given(
    numbers=st.tuples(*[st.integers(1, 12)] * 3).map(sorted), target=st.integers(1, 30)
)
def test_solutions_are_what_python_calculates(numbers, target):
    """All bracketings of all orders, of which those are left that stay natural."""
    expected = set()
    for a, b, c in itertools.permutations(numbers):
        for one, two in itertools.product(OPERATIONS, repeat=2):
            for formula in (f"({a}{one}{b}){two}{c}", f"{c}{two}({a}{one}{b})"):
                first = fractions.Fraction(OPERATIONS[one](a, b)).limit_denominator()
                try:
                    value = eval(formula)
                except ZeroDivisionError:
                    continue
                if first < 0 or first.denominator > 1 or value != target:
                    continue
                steps = [(max(a, b), one, min(a, b))]
                steps += [(max(first, c), two, min(first, c))]
                expected.add(tuple(sorted((int(x), s, int(y)) for x, s, y in steps)))
    assert countdown.solutions(countdown.Puzzle(tuple(numbers), target)) == expected


@BY_NUMBERS
def test_training_rows_are_right_through_the_tokenizer(asked):
    codec = Codec.of(asked.tokenizer(), asked.model_config(**SMALL))
    tokens, is_maskable, is_valid = batch(asked)
    assert len(tokens) == 128 and is_valid.all()
    assert (is_maskable.sum(1) == asked.gen_length).all()
    puzzles = [parts(spelled(row))[0] for row in tokens]
    examples = [base.Example("", countdown.prompt(p), p) for p in puzzles]
    for example, canvas, row, is_blank in zip(
        examples, asked.encode(codec, examples), tokens, is_maskable, strict=True
    ):
        # What the model is asked looks as what it was trained on.
        np.testing.assert_array_equal(canvas.is_blank, is_blank)
        np.testing.assert_array_equal(canvas.tokens[~is_blank], row[~is_blank])
        answer = codec.decode(canvas, row)
        assert asked.verdict(example, answer).is_correct
        assert is_right(example.truth, answer)
        assert row[-1] == countdown.EOS_ID and canvas.tokens.size <= codec.max_length
        written = codec.tokenizer(example.prompt + answer)["input_ids"]
        np.testing.assert_array_equal(written, row[:-1])
        unfinished = codec.decode(canvas, canvas.tokens)
        assert "not an equation" in asked.verdict(example, unfinished).reason
    assert asked.options(codec).gen_length == asked.gen_length


@BY_NUMBERS
def test_numbers_stay_in_their_range_and_all_operators_occur(asked):
    given_numbers, equations = countdown.random_puzzles(
        np.random.default_rng(0), 2000, asked.num_numbers
    )
    assert given_numbers.min() == 1 and given_numbers.max() == 20
    assert (np.diff(given_numbers, axis=1) >= 0).all()
    results = equations[:, :, 3]
    assert results.min() == 1 and 90 < results.max() <= 99
    assert (equations[:, :, 0] >= equations[:, :, 2]).all()
    for step in range(asked.num_numbers - 1):
        share = np.bincount(equations[:, step, 1], minlength=4) / 2000
        assert share.min() > 0.03


def test_sums_and_products_of_three_numbers_are_in_one_order():
    given_numbers, equations = countdown.random_puzzles(
        np.random.default_rng(1), 20_000, 3
    )
    ways = collections.defaultdict(set)
    for numbers, pair in zip(given_numbers.tolist(), equations.tolist(), strict=True):
        operators = {countdown.OPERATORS[operator] for _, operator, _, _ in pair}
        if operators <= {"+", "-"} or operators == {"*"}:
            puzzle = operators == {"*"}, tuple(numbers), pair[-1][-1]
            ways[puzzle].add(tuple(map(tuple, pair)))
    assert len({is_product for is_product, _, _ in ways}) == 2
    assert {len(found) for found in ways.values()} == {1}


def test_batches_are_functions_of_seeds_and_step():
    first = batch(TASKS[0], 3)
    for one, other in zip(first, batch(TASKS[0], 3), strict=True):
        np.testing.assert_array_equal(one, other)
    for changed in (
        batch(TASKS[0], 4),
        batch(TASKS[0], 3, data_seed=2),
        batch(TASKS[0], 3, seed=1),
    ):
        assert (changed[0] != first[0]).any(1).mean() > 0.9


def test_held_out_puzzles_are_not_trained_on():
    held_out = [
        {example.truth for example in TASKS[0].examples(split, 300)}
        for split in TASKS[0].splits
    ]
    assert len(set.union(*held_out)) == 900
    trained = {
        parts(spelled(row))[0] for step in range(8) for row in batch(TASKS[0], step)[0]
    }
    assert not trained & set.union(*held_out)
    # Were they not refused, the test would have met some.
    given_numbers, equations = countdown.random_puzzles(
        np.random.default_rng(0), 1000, 3
    )
    drawn = {
        countdown.Puzzle(tuple(numbers.tolist()), int(target))
        for numbers, target in zip(given_numbers, equations[:, -1, 3], strict=True)
    }
    assert len(drawn & set.union(*held_out)) > 5


def test_hard_puzzles_have_one_solution():
    for example in TASKS[0].examples("hard", 30):
        assert len(countdown.solutions(example.truth)) == 1
    plain = TASKS[0].examples("test", 30)
    assert max(len(countdown.solutions(example.truth)) for example in plain) > 1


@BY_NUMBERS
@pytest.mark.parametrize("split", ["test", "valid"])
def test_examples_are_distinct_and_more_of_them_begin_the_same(asked, split):
    first, more, other = (
        asked.examples(split, num, seed) for num, seed in ((3, 0), (60, 0), (60, 1))
    )
    assert first == more[:3]
    assert len({example.prompt for example in more}) == 60
    assert [e.prompt for e in more] != [e.prompt for e in other]
    for example in more:
        assert parts(example.prompt) == (example.truth, "")
        assert len(example.truth.numbers) == asked.num_numbers
        assert countdown.solutions(example.truth)


@pytest.mark.parametrize(
    ("split", "num", "message"),
    [
        ("train", 1, r"^split \(train\) must be one of test, valid, hard$"),
        ("test", 1001, r"^num_examples \(1001\) must be at most 1000, those of test$"),
    ],
)
def test_bad_input_is_one_line(split, num, message):
    with pytest.raises(InputError, match=message):
        TASKS[0].examples(split, num)


def test_config_fits_the_task():
    config = train_countdown.get_config()
    shape = TASKS[0].model_config(**config.model)
    assert config.task == TASKS[0].name
    assert shape.embedding_size >= len(countdown.VOCABULARY) == shape.vocab_size
    for stage in config.stages:
        training.TrainConfig(**stage["train"])
        tokens, _, _ = TASKS[0].training_batches(
            {**config.data, **stage["data"]},
            batch_size=2,
            seed=0,
            workdir=pathlib.Path(),
        )(0)
        assert tokens.max() < shape.vocab_size


def test_operators_are_drawn_by_their_weights():
    weights = (1.0, 2.0, 3.0, 4.0)
    rng = np.random.default_rng(0)
    given, equations = countdown.random_puzzles(
        rng, 30_000, 2, largest_given=6, operator_weights=weights
    )
    # All four can be drawn where the larger number is a greater multiple.
    low, high = given.T
    is_free = (high > low) & (high % low == 0)
    share = np.bincount(equations[is_free, 0, 1], minlength=4) / is_free.sum()
    assert is_free.sum() > 5000
    np.testing.assert_allclose(share, np.divide(weights, 10), atol=0.02)
