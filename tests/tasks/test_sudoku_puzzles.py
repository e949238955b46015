"""Numbers of clues that cannot be had are refused; they are not sought for ever."""

import numpy as np
import pytest

from dlm_jax.errors import InputError
from dlm_jax.tasks.sudoku import puzzles as sudoku_puzzles


@pytest.mark.parametrize(("least", "most"), [(10, 30), (16, 16), (30, 82), (31, 30)])
def test_impossible_numbers_of_clues_are_refused(least, most):
    rng = np.random.default_rng(0)
    with pytest.raises(InputError) as error:
        sudoku_puzzles.random_puzzles(rng, 1, min_clues=least, max_clues=most)
    assert str(error.value) == (
        f"min_clues ({least}) and max_clues ({most}) must be in order and in [17, 81]"
    )


def test_a_number_that_digging_does_not_reach_ends_with_an_error(monkeypatch):
    monkeypatch.setattr(sudoku_puzzles, "_MAX_FRUITLESS", 2)
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match=r"no puzzle of 17 clues or fewer .* 2 rounds"):
        sudoku_puzzles.random_puzzles(rng, 1, min_clues=17, max_clues=17)


def test_full_grids_are_puzzles_of_81_clues():
    rng = np.random.default_rng(0)
    puzzles, solutions = sudoku_puzzles.random_puzzles(
        rng, 2, min_clues=81, max_clues=81
    )
    np.testing.assert_array_equal(puzzles, solutions)
    assert (np.sort(puzzles.reshape(-1, 9, 9), axis=2) == np.arange(1, 10)).all()
