"""The Sudoku task against kept libraries, and what its symmetries must preserve."""

import numpy as np
import pytest
from dokusan.boards import BoxSize
from dokusan.boards import Sudoku as Dokusan
from dokusan.solvers import backtrack
from hypothesis import given, settings
from hypothesis import strategies as st
from sudoku import Sudoku as PySudoku

from dlm_jax.errors import InputError
from dlm_jax.tasks.sudoku import puzzles as sudoku_puzzles
from dlm_jax.tasks.sudoku import task as sudoku
from dlm_jax.text.codec import Codec


def _library_says_unique(puzzle: np.ndarray) -> bool:
    board = [[int(d) or None for d in row] for row in puzzle.reshape(9, 9)]
    return not PySudoku(3, 3, board=board).has_multiple_solutions()


def puzzles_of(split, num, seed=0):
    examples = sudoku.Sudoku().examples(split, num, seed)
    return np.stack([example.truth for example in examples])


@pytest.fixture(scope="module")
def made():
    return sudoku_puzzles.random_puzzles(np.random.default_rng(0), 40)


def test_generated_puzzles_are_unique_by_a_library(made):
    puzzles, solutions = made
    num_clues = (puzzles != 0).sum(1)
    assert num_clues.min() >= 26 and num_clues.max() <= 36
    assert len(set(num_clues)) > 5
    for puzzle, solution in zip(puzzles, solutions, strict=True):
        assert sudoku.verdict(puzzle, solution).is_correct
        assert _library_says_unique(puzzle)


def test_solver_agrees_with_a_library(made):
    puzzles, solutions = made
    num_solutions, found = sudoku_puzzles.solve(puzzles)
    assert (num_solutions == 1).all()
    np.testing.assert_array_equal(found, solutions)
    for puzzle, solution in zip(puzzles[:8], solutions, strict=False):
        board = Dokusan.from_list(puzzle.reshape(9, 9).tolist(), BoxSize(3, 3))
        other = [cell.value for cell in backtrack(board).cells()]
        np.testing.assert_array_equal(solution, other)


def test_uniqueness_is_what_a_library_says(made):
    rng = np.random.default_rng(1)
    puzzles = made[0].copy()
    # Taking some clues away leaves about half of them ambiguous.
    puzzles[rng.random(puzzles.shape) < 0.07] = 0
    num_solutions, _ = sudoku_puzzles.solve(puzzles)
    expected = [_library_says_unique(puzzle) for puzzle in puzzles]
    assert 5 < sum(expected) < 35
    np.testing.assert_array_equal(num_solutions == 1, expected)


def test_solver_counts_none_one_and_many():
    _, solutions = sudoku_puzzles.random_puzzles(np.random.default_rng(2), 1)
    grids = np.repeat(solutions, 4, axis=0)
    grids[1, 0] = grids[1, 0] % 9 + 1  # clashes with another clue
    grids[2, :] = 0
    # Two rows that share a band: some pair of digits may be swapped, or all cells fit.
    grids[3, :18] = 0
    num_solutions, found = sudoku_puzzles.solve(grids, max_solutions=50)
    assert num_solutions[0] == 1 and num_solutions[1] == 0
    assert num_solutions[2] == 50 and num_solutions[3] >= 1
    assert not found[1].any()
    for row in (0, 2, 3):
        assert sudoku.verdict(grids[row], found[row]).is_correct


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_symmetries_keep_validity_uniqueness_and_fingerprint(made, seed):
    puzzles, solutions = made
    rng = np.random.default_rng(seed)
    moved, moved_solutions = sudoku_puzzles.random_symmetries(rng, puzzles, solutions)
    num_solutions, found = sudoku_puzzles.solve(moved)
    assert (num_solutions == 1).all()
    np.testing.assert_array_equal(found, moved_solutions)
    assert not (moved == puzzles).all(1).any()
    before, after = map(sudoku_puzzles.fingerprints, (solutions, moved_solutions))
    assert before == after
    assert len(set(before)) == len(before)


def test_test_split_is_what_its_seeds_make():
    puzzles = puzzles_of("test", 1000)
    _, solutions = sudoku_puzzles.solve(puzzles)
    halves = [
        sudoku_puzzles.random_puzzles(np.random.default_rng(seed), 500)
        for seed in (3, 4)
    ]
    made, made_solutions = map(np.concatenate, zip(*halves, strict=True))
    np.testing.assert_array_equal(puzzles, made)
    np.testing.assert_array_equal(solutions, made_solutions)
    assert len(set(sudoku_puzzles.fingerprints(solutions))) == 1000


def test_training_grids_that_are_held_out_are_refused():
    _, solutions = sudoku_puzzles.random_puzzles(np.random.default_rng(1), 50)
    sudoku.check_disjoint(solutions)
    held_out = sudoku_puzzles.solve(puzzles_of("test", 1))[1][0]
    turned = held_out.reshape(9, 9).T.ravel() % 9 + 1
    with pytest.raises(InputError, match="1 may: change"):
        sudoku.check_disjoint(np.concatenate([solutions, turned[None]]))


def test_hard_puzzles_have_one_solution():
    puzzles = puzzles_of("hard", len(sudoku.HARD_PUZZLES))
    num_solutions, solutions = sudoku_puzzles.solve(puzzles)
    assert (num_solutions == 1).all()
    for puzzle, solution in zip(puzzles, solutions, strict=True):
        assert sudoku.verdict(puzzle, solution).is_correct


def test_validation_puzzles_depend_on_the_seed_and_not_on_the_number():
    first, more, other = (
        puzzles_of("valid", num, seed=seed) for num, seed in ((3, 0), (101, 0), (3, 1))
    )
    np.testing.assert_array_equal(first, more[:3])
    assert (more[100] != more[0]).any()
    assert (first != other).any()


def test_verdict_gives_the_first_reason(made):
    puzzle, solution = made[0][0], made[1][0]
    blank = int(np.flatnonzero(puzzle == 0)[0])
    clue = int(np.flatnonzero(puzzle)[0])
    where = f"row {blank // 9 + 1}, column {blank % 9 + 1}"

    def reason(cell, digit):
        answer = solution.copy()
        answer[cell] = digit
        result = sudoku.verdict(puzzle, answer)
        assert not result.is_correct
        return result.reason

    assert reason(blank, 0) == f"no digit at {where}"
    wrong = solution[clue] % 9 + 1
    assert reason(clue, wrong).endswith(f"changed from {puzzle[clue]} to {wrong}")
    wrong = solution[blank] % 9 + 1
    assert reason(blank, wrong) == f"{wrong} appears twice in row {blank // 9 + 1}"


def test_verdict_names_columns_and_boxes():
    # Rows of a cyclic square are right everywhere except in the boxes.
    rows = np.arange(9)
    cyclic = ((rows[:, None] + rows) % 9 + 1).astype(np.int8)
    empty = np.zeros(81, np.int8)
    assert "twice in box 1" in sudoku.verdict(empty, cyclic.reshape(81)).reason
    same = np.tile(rows.astype(np.int8) + 1, 9)
    assert sudoku.verdict(empty, same).reason == "1 appears twice in column 1"


def test_text_tokens_and_grid_are_one(made):
    puzzle = made[0][0]
    text = sudoku.to_text(puzzle)
    assert len(text) == sudoku.NUM_TOKENS
    np.testing.assert_array_equal(sudoku.parse(text), puzzle)
    np.testing.assert_array_equal(sudoku.parse(text.replace(".", "0")), puzzle)
    tokens = sudoku.encode(puzzle[None])
    spelled = "".join(sudoku.VOCABULARY[token] for token in tokens[0])
    assert spelled.replace("<|mdm_mask|>", ".") == text
    np.testing.assert_array_equal(sudoku.decode(tokens)[0], puzzle)


def test_pretty_rules_the_boxes():
    grid = sudoku.parse(sudoku.HARD_PUZZLES["World's hardest 2012"])
    lines = sudoku.pretty(grid).splitlines()
    assert lines[:4] == [
        "8 . . | . . . | . . .",
        ". . 3 | 6 . . | . . .",
        ". 7 . | . 9 . | 2 . .",
        "------+-------+------",
    ]
    assert len(lines) == 11


def test_prompts_mark_the_blanks_and_answers_are_judged(made):
    task = sudoku.Sudoku()
    config = task.model_config(d_model=8, n_heads=2, n_layers=1, mlp_hidden_size=8)
    codec = Codec.of(task.tokenizer(), config)
    examples = task.examples("test", 2)
    for example, row in zip(examples, task.encode(codec, examples), strict=True):
        np.testing.assert_array_equal(row.tokens, sudoku.encode(example.truth[None])[0])
        np.testing.assert_array_equal(row.is_blank, row.tokens == sudoku.MASK_ID)
        assert row.is_blank.sum() <= task.gen_length
        shown = task.pretty(example.prompt)
        np.testing.assert_array_equal(
            sudoku.parse("".join(c for c in shown if c in ".123456789")), example.truth
        )
        _, solutions = sudoku_puzzles.solve(example.truth[None])
        solved = sudoku.encode(solutions)[0]
        assert task.verdict(example, codec.decode(row, solved)).is_correct
        cell = int(np.flatnonzero(row.is_blank)[3])
        for token, reason in ((sudoku.MASK_ID, "no digit"), (solved[cell] % 9 + 3, "")):
            wrong = solved.copy()
            wrong[cell] = token
            verdict = task.verdict(example, codec.decode(row, wrong))
            assert not verdict.is_correct and reason in verdict.reason


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sudoku.parse("12"), "must be 81 digits"),
        (lambda: puzzles_of("train", 1), "split (train) must be one of"),
        (lambda: puzzles_of("test", 1001), "num_examples (1001) must be at most 1000"),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(InputError, match=r"^[^\n]+$") as error:
        call()
    assert message in str(error.value)


def test_batches_are_functions_of_seed_and_step(made):
    batch_at = sudoku.batches(*made, 5, 3, False)
    tokens, is_maskable, is_valid = batch_at(7)
    for one, other in zip(batch_at(7), (tokens, is_maskable, is_valid), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (batch_at(8)[0] != tokens).any()
    assert is_valid.all()
    # What is shown when all blanks are masked is a puzzle with the tokens' solution.
    shown = np.where(is_maskable, sudoku.MASK_ID, tokens)
    num_solutions, found = sudoku_puzzles.solve(sudoku.decode(shown))
    assert (num_solutions == 1).all()
    np.testing.assert_array_equal(found, sudoku.decode(tokens))


def test_waves_follow_from_what_stands(made):
    puzzles, solutions = made
    waves = sudoku_puzzles.single_waves(puzzles)
    np.testing.assert_array_equal(waves == 0, puzzles != 0)
    is_reached = waves < 127
    # Enough of both kinds, else this test shows nothing.
    assert 0 < (~is_reached).any(1).sum() < len(puzzles) - 5
    row = int(np.flatnonzero(is_reached.all(1))[0])
    for cell in np.flatnonzero(puzzles[row] == 0):
        before = np.where(waves[row] < waves[row, cell], solutions[row], 0)
        digit = solutions[row, cell]
        units = [unit for unit in sudoku_puzzles.UNITS if cell in unit]
        seen = set(before[np.concatenate(units)]) - {0}

        def may_stand(other, before=before, digit=digit):
            peers = [unit for unit in sudoku_puzzles.UNITS if other in unit]
            return before[other] == 0 and digit not in before[np.concatenate(peers)]

        is_naked = len(seen) == 8
        is_hidden = any(sum(map(may_stand, unit)) == 1 for unit in units)
        assert is_naked or is_hidden


def test_advanced_batches_show_later_states_of_the_puzzles(made):
    plain, advanced = (
        sudoku.batches(*made, 200, 3, is_advanced)(0) for is_advanced in (False, True)
    )
    num_blanks, later = (batch[1].sum(1) for batch in (plain, advanced))
    assert later.min() >= 1
    assert later.mean() < 0.8 * num_blanks.mean()
    # Some stand as they were set; all still have the one solution.
    shown = np.where(advanced[1], sudoku.MASK_ID, advanced[0])
    num_solutions, found = sudoku_puzzles.solve(sudoku.decode(shown))
    assert (num_solutions == 1).all()
    np.testing.assert_array_equal(found, sudoku.decode(advanced[0]))
    assert (later >= 81 - 36).any()


def test_puzzles_are_made_once(tmp_path, monkeypatch):
    data = {"seed": 1, "num": 3, "min_clues": 30, "max_clues": 32}

    def tokens(**changes):
        batch_at = sudoku.Sudoku().training_batches(
            {**data, "is_advanced": False, **changes},
            batch_size=4,
            seed=0,
            workdir=tmp_path / "new",
        )
        return batch_at(0)[0]

    first, other = tokens(), tokens(seed=2)
    assert (first != other).any()

    def fail(*_args, **_options):
        raise AssertionError("made again")

    monkeypatch.setattr(sudoku_puzzles, "random_puzzles", fail)
    np.testing.assert_array_equal(tokens(seed=2), other)
