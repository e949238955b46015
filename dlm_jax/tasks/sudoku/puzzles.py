"""9x9 Sudoku grids: solving, generating, transforming. NumPy only, many grids at once.

A grid is 81 digits in reading order, 0 where blank. The solver works on candidate sets
as bit masks (bit k - 1: digit k is still possible), with the grids on the LAST axis, so
that every rule is a handful of vector operations for thousands of grids together.
"""

import numpy as np
from jaxtyping import Bool, Int, UInt16

from dlm_jax.errors import InputError

NUM_CELLS = 81
_LEAST_CLUES = 17
# Rounds of digging without one new puzzle after which there is no hope of another.
_MAX_FRUITLESS = 1000
_ALL = np.uint16(0b111111111)
_CELLS = np.arange(NUM_CELLS)
_ROW, _COLUMN = _CELLS // 9, _CELLS % 9
_BOX = _ROW // 3 * 3 + _COLUMN // 3
# The cells of each row, column and box [27, 9], and the three units of each cell.
UNITS = np.stack(
    [np.flatnonzero(of == k) for of in (_ROW, _COLUMN, _BOX) for k in range(9)]
)
_UNITS_OF = np.stack([_ROW, 9 + _COLUMN, 18 + _BOX])


def _once_and_again(
    bits: UInt16[np.ndarray, "u 9 n"],
) -> tuple[UInt16[np.ndarray, "u n"], UInt16[np.ndarray, "u n"]]:
    """Bits that occur at least once, and at least twice, among nine cells."""
    once, again = bits[:, 0].copy(), np.zeros_like(bits[:, 0])
    for k in range(1, 9):
        again |= once & bits[:, k]
        once |= bits[:, k]
    return once, again


def _any_unit(bits: UInt16[np.ndarray, "27 n"]) -> UInt16[np.ndarray, "81 n"]:
    """Per cell, the union over its row, column and box."""
    row, column, box = _UNITS_OF
    return bits[row] | bits[column] | bits[box]


def _propagate(
    candidates: UInt16[np.ndarray, "81 n"],
) -> tuple[UInt16[np.ndarray, "81 n"], Bool[np.ndarray, "n"]]:
    """Applies naked and hidden singles until nothing changes; says what is possible."""
    candidates = candidates.copy()
    is_possible = np.ones(candidates.shape[1], bool)
    active = np.arange(candidates.shape[1])
    while active.size:
        before = candidates[:, active]
        single = np.where(before & (before - np.uint16(1)), np.uint16(0), before)
        taken, clash = _once_and_again(single[UNITS])
        after = np.where(single, before, before & ~_any_unit(taken))
        once, again = _once_and_again(after[UNITS])
        hidden = after & _any_unit(once & ~again)
        after = np.where(hidden, hidden, after)
        good = (after != 0).all(0) & (clash == 0).all(0) & (once == _ALL).all(0)
        candidates[:, active] = after
        is_possible[active] = good
        active = active[good & (after != before).any(0)]
    return candidates, is_possible


def _to_candidates(grids: Int[np.ndarray, "n 81"]) -> UInt16[np.ndarray, "81 n"]:
    bits = np.concatenate([[_ALL], 1 << np.arange(9)]).astype(np.uint16)
    return np.ascontiguousarray(bits[grids].T)


def _to_digits(candidates: UInt16[np.ndarray, "81 n"]) -> Int[np.ndarray, "n 81"]:
    return np.bitwise_count(candidates - np.uint16(1)).T.astype(np.int8) + np.int8(1)


def solve(
    puzzles: Int[np.ndarray, "n 81"], *, max_solutions: int = 2, chunk: int = 4096
) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n 81"]]:
    """Counts the solutions of each puzzle, up to a limit.

    Args:
      puzzles: grids, 0 where blank.
      max_solutions: counting stops there; 2 decides uniqueness.
      chunk: how many search states are expanded together.

    Returns:
      The number of solutions of each puzzle, at most max_solutions, and one solution of
      each (zeros where there is none).
    """
    candidates, owner = _to_candidates(puzzles), np.arange(len(puzzles))
    num_solutions = np.zeros(len(puzzles), np.int64)
    solution = np.zeros((len(puzzles), NUM_CELLS), np.int8)
    while owner.size:
        # The newest states first: depth-first, so that the stack stays short.
        now, candidates = candidates[:, -chunk:], candidates[:, :-chunk]
        now_owner, owner = owner[-chunk:], owner[:-chunk]
        now, is_possible = _propagate(now)
        is_open = is_possible & (num_solutions[now_owner] < max_solutions)
        now, now_owner = now[:, is_open], now_owner[is_open]
        num_left = np.bitwise_count(now)
        is_solved = (num_left == 1).all(0)
        solved = now_owner[is_solved]
        np.add.at(num_solutions, solved, 1)
        solution[solved] = _to_digits(now[:, is_solved])
        now, now_owner = now[:, ~is_solved], now_owner[~is_solved]
        # Branch on a cell with the fewest candidates: its lowest one, or the others.
        num_left = np.where(num_left == 1, 10, num_left)[:, ~is_solved]
        cell, column = num_left.argmin(0), np.arange(now.shape[1])
        bits = now[cell, column]
        lowest = bits & (~bits + np.uint16(1))
        guess, rest = now.copy(), now
        guess[cell, column], rest[cell, column] = lowest, bits ^ lowest
        candidates = np.concatenate([candidates, rest, guess], axis=1)
        owner = np.concatenate([owner, now_owner, now_owner])
    return np.minimum(num_solutions, max_solutions), solution


def random_solutions(rng: np.random.Generator, num: int) -> Int[np.ndarray, "n 81"]:
    """Full grids, each filled by random guesses and propagation from an empty one.

    A grid whose guesses lead to a contradiction starts again from the empty grid.
    """
    empty = np.full((NUM_CELLS, num), _ALL)
    candidates = empty.copy()
    active = np.arange(num)
    while active.size:
        now = candidates[:, active]
        num_left = np.bitwise_count(now)
        order = rng.random(now.shape, dtype=np.float32)
        cell = np.where(num_left == 1, 10, num_left + order).argmin(0)
        column = np.arange(active.size)
        bit = np.uint16(1) << np.arange(9, dtype=np.uint16)[:, None]
        weight = rng.random((9, active.size), dtype=np.float32)
        weight[(now[cell, column] & bit) == 0] = -1
        now[cell, column] = bit[weight.argmax(0), 0]
        now, is_possible = _propagate(now)
        candidates[:, active] = np.where(is_possible, now, empty[:, active])
        is_done = is_possible & (np.bitwise_count(now) == 1).all(0)
        active = active[~is_done]
    return _to_digits(candidates)


def random_puzzles(
    rng: np.random.Generator, num: int, *, min_clues: int = 26, max_clues: int = 36
) -> tuple[Int[np.ndarray, "n 81"], Int[np.ndarray, "n 81"]]:
    """Puzzles with exactly one solution, by digging holes into random full grids.

    Cells are visited in random order; one is blanked if the solution stays unique,
    until the puzzle has its number of clues, drawn uniformly from min_clues to
    max_clues. The few that cannot get there are replaced by new ones with the same
    number, so that the numbers stay uniform.

    Args:
      rng: the source of all choices.
      num: of puzzles.
      min_clues: the fewest clues of a puzzle. With fewer than 17 none has one solution
        (arXiv:1201.0749), and digging hardly ever comes below 21.
      max_clues: the most.

    Returns:
      The puzzles (0 where blank) and their solutions.

    Raises:
      InputError: for numbers of clues that are impossible, or that digging does not
        reach.
    """
    if not _LEAST_CLUES <= min_clues <= max_clues <= NUM_CELLS:
        raise InputError(
            f"min_clues ({min_clues}) and max_clues ({max_clues}) must be in order and "
            f"in [{_LEAST_CLUES}, {NUM_CELLS}]"
        )
    target = rng.integers(min_clues, max_clues + 1, num)
    puzzles = np.zeros((num, NUM_CELLS), np.int8)
    solutions = np.zeros((num, NUM_CELLS), np.int8)
    missing, num_fruitless = np.arange(num), 0
    while missing.size:
        if num_fruitless == _MAX_FRUITLESS:
            raise InputError(
                f"min_clues ({min_clues}): no puzzle of {target[missing].max()} clues "
                f"or fewer was found in {_MAX_FRUITLESS} rounds"
            )
        grids = random_solutions(rng, missing.size)
        dug = _dig(rng, grids, target[missing])
        is_done = (dug != 0).sum(1) == target[missing]
        puzzles[missing[is_done]] = dug[is_done]
        solutions[missing[is_done]] = grids[is_done]
        missing = missing[~is_done]
        num_fruitless = 0 if is_done.any() else num_fruitless + 1
    return puzzles, solutions


def _dig(
    rng: np.random.Generator,
    solutions: Int[np.ndarray, "n 81"],
    target: Int[np.ndarray, "n"],
) -> Int[np.ndarray, "n 81"]:
    """Blanks cells one by one while the solution stays unique, down to target clues."""
    puzzles = solutions.copy()
    order = rng.permuted(np.tile(_CELLS, (len(puzzles), 1)), axis=1)
    for cell in order.T:
        active = np.flatnonzero((puzzles != 0).sum(1) > target)
        trial = puzzles[active]
        trial[np.arange(active.size), cell[active]] = 0
        num_solutions, _ = solve(trial)
        is_unique = num_solutions == 1
        puzzles[active[is_unique]] = trial[is_unique]
    return puzzles


def single_waves(puzzles: Int[np.ndarray, "n 81"]) -> Int[np.ndarray, "n 81"]:
    """The round in which plain logic fills each cell.

    In a round, every blank is filled whose digit follows at once from the digits that
    stand: only one is left for the cell, or only one place for it in a unit.

    Returns:
      0 for clues, the round for others, 127 for cells that this logic never reaches.
    """
    digits = _to_candidates(puzzles)
    digits[digits == _ALL] = 0
    waves = np.where(puzzles == 0, np.int8(127), np.int8(0))
    for wave in range(1, NUM_CELLS):
        taken, _ = _once_and_again(digits[UNITS])
        free = np.where(digits, np.uint16(0), _ALL & ~_any_unit(taken))
        once, again = _once_and_again(free[UNITS])
        hidden = free & _any_unit(once & ~again)
        naked = np.where(free & (free - np.uint16(1)), np.uint16(0), free)
        found = np.where(naked, naked, hidden)
        if not found.any():
            break
        waves[(found != 0).T] = wave
        digits |= found
    return waves


def random_symmetries(
    rng: np.random.Generator, *grids: Int[np.ndarray, "n 81"]
) -> tuple[Int[np.ndarray, "n 81"], ...]:
    """Applies a random symmetry of Sudoku to each row, the same to each argument.

    Digits are relabelled, bands and stacks and the rows and columns inside them are
    permuted, and half of the grids transposed: 9! * 6^8 * 2 ways.
    """
    n = len(grids[0])

    def lines() -> np.ndarray:
        outer = rng.permuted(np.tile(np.arange(3), (n, 1)), axis=1)
        inner = rng.permuted(np.tile(np.arange(3), (n, 3, 1)), axis=2)
        return (outer[:, :, None] * 3 + inner).reshape(n, 9)

    rows, columns = lines()[:, :, None], lines()[:, None, :]
    is_transposed = rng.random((n, 1, 1)) < 0.5
    cells = np.where(is_transposed, rows + 9 * columns, 9 * rows + columns)
    cells = cells.reshape(n, NUM_CELLS)
    relabel = np.zeros((n, 10), np.int8)
    relabel[:, 1:] = rng.permuted(np.tile(np.arange(1, 10), (n, 1)), axis=1)
    return tuple(
        np.take_along_axis(relabel, np.take_along_axis(grid, cells, 1), 1)
        for grid in grids
    )


def fingerprints(solutions: Int[np.ndarray, "n 81"]) -> list[bytes]:
    """A key of each full grid that no symmetry changes: different keys, no relation.

    Two rows define a permutation of the digits (from a digit to the one below it). Its
    cycle lengths survive relabelling, any order of the columns, and swapping the two
    rows. Sorting them, apart for rows of one band and of two bands, forgets the order
    of the rows; sorting the keys of rows and of columns forgets which is which. What is
    left no symmetry can change. Unrelated grids may share a key.
    """
    grids = solutions.reshape(-1, 9, 9).astype(np.int64) - 1
    sides = (_cycle_types(grids), _cycle_types(grids.transpose(0, 2, 1)))
    return [
        b"".join(sorted(side.tobytes() for side in both))
        for both in zip(*sides, strict=True)
    ]


def _cycle_types(grids: Int[np.ndarray, "n 9 9"]) -> Int[np.ndarray, "n 36"]:
    """Sorted cycle types of the pairs of rows, in one band (9), then across (27)."""
    within, across = [], []
    for upper in range(9):
        for lower in range(upper + 1, 9):
            below = np.zeros((len(grids), 9), np.int64)
            np.put_along_axis(below, grids[:, upper], grids[:, lower], axis=1)
            place, code = below, np.zeros(len(grids), np.int16)
            is_done = np.zeros(below.shape, bool)
            # No digit stands below itself, so how many digits lie on cycles of length
            # 2, 3 and 4 tells the eight possible cycle types of nine digits apart.
            for _ in range(3):
                place = np.take_along_axis(below, place, axis=1)
                is_back = (place == np.arange(9)) & ~is_done
                is_done |= is_back
                code = code * 10 + is_back.sum(1, dtype=np.int16)
            (within if upper // 3 == lower // 3 else across).append(code)
    return np.concatenate(
        [np.sort(np.stack(codes, 1), axis=1) for codes in (within, across)], axis=1
    )
