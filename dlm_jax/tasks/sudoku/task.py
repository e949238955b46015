"""9x9 Sudoku as an infilling task: the blanks of a printed grid are what is generated.

The text of a grid is nine lines of nine digits, each line ended by a newline: 90
characters, one token each; '.' marks a blank in text for people, the mask token on the
canvas. The period of exactly ten tokens per row matters: with a rotary base that makes
2 pi / 10 one of the frequencies (`model_config`), "same column" is one phase, and a
model learns the rules from about half as many puzzles as with a base of 100.
"""

import importlib.resources
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int

from dlm_jax.core.keys import check_seed
from dlm_jax.errors import InputError
from dlm_jax.tasks.base import BLANK, BatchAt, CharacterTask, Example, Verdict
from dlm_jax.tasks.splits import cached
from dlm_jax.tasks.sudoku import puzzles as sudoku_puzzles
from dlm_jax.text.page import Grid

# Token ids are places in this list.
VOCABULARY = (
    "<|startoftext|>",
    "<|endoftext|>",
    "\n",
    *"123456789",
    "<|mdm_mask|>",
)
EOS_ID = VOCABULARY.index("<|endoftext|>")
NEWLINE_ID = VOCABULARY.index("\n")
MASK_ID = VOCABULARY.index("<|mdm_mask|>")
_FIRST_DIGIT = VOCABULARY.index("1")
NUM_TOKENS = 90
# Canvas positions of the 81 cells.
CELLS = np.arange(81) + np.arange(81) // 9

# Puzzles published as especially hard (for people or for search) or as famous examples,
# under the names by which collections know them. Each has one solution.
HARD_PUZZLES = {
    "AI Escargot": (
        "1....7.9..3..2...8..96..5....53..9...1..8...26....4...3......1..4......7..7...3.."
    ),
    "Golden Nugget": (
        ".......39.....1..5..3.5.8....8.9...6.7...2...1..4.......9.8..5..2....6..4..7....."
    ),
    "Easter Monster": (
        "1.......2.9.4...5...6...7...5.9.3.......7.......85..4.7.....6...3...9.8...2.....1"
    ),
    "Platinum Blonde": (
        ".......12........3..23..4....18....5.6..7.8.......9.....85.....9...4.5..47...6..."
    ),
    "Red Dwarf": (
        "12.3....435....1....4........54..2..6...7.........8.9...31..5.......9.7.....6...8"
    ),
    "Cheese": (
        ".2..5.7..4..1....68....3...2....8..3.4..2.5.....6...1...2.9.....9......57.4...9.."
    ),
    "Fata Morgana": (
        "........3..1..56...9..4..7......9.5.7.......8.5.4.2....8..2..9...35..1..6........"
    ),
    "Silver Plate": (
        "...7..8......4..3......9..16..5......1..3..4...5..1..75..2..6...3..8..9...7.....2"
    ),
    "Tungsten Rod": (
        "7.8...3.....2.1...5.........4.....263...8.......1...9..9.6....4....7.5..........."
    ),
    "World's hardest 2010": (
        "..53.....8......2..7..1.5..4....53...1..7...6..32...8..6.5....9..4....3......97.."
    ),
    "World's hardest 2012": (
        "8..........36......7..9.2...5...7.......457.....1...3...1....68..85...1..9....4.."
    ),
    "17 clues": (
        ".......1.4.........2...........5.4.7..8...3....1.9....3..4..2...5.1........8.6..."
    ),
    "17 clues, slow to search": (
        "..............3.85..1.2.......5.7.....4...1...9.......5......73..2.1........4...9"
    ),
}


class Sudoku(CharacterTask):
    """Infilling of 9x9 grids.

    The splits are 'test' (1,000 puzzles of 26 to 36 clues, in file order), 'hard'
    (published ones, in the order of HARD_PUZZLES) and 'valid' (new ones for each seed).
    No test puzzle is a training one under any symmetry. An example's truth is its
    puzzle, int8 [81], 0 where blank.
    """

    name: ClassVar[str] = "sudoku"
    splits: ClassVar[tuple[str, ...]] = ("test", "hard", "valid")
    is_infill: ClassVar[bool] = True
    gen_length: int = 64
    vocabulary: ClassVar[tuple[str, ...]] = VOCABULARY
    period: ClassVar[int] = 10
    grid: ClassVar[Grid | None] = Grid(9, box=3)
    embedding_size: ClassVar[int] = 16
    max_sequence_length: ClassVar[int] = 128

    def size(self, split: str) -> int | None:
        self.check(split, 1)
        return _SIZES.get(split)

    def examples(self, split: str, num: int, seed: int = 0) -> list[Example]:
        self.check(split, num, seed, self.size(split))
        names, puzzles, _ = _SPLITS[split](num, seed)
        return [
            Example(name, to_text(puzzle).replace(".", BLANK), puzzle)
            for name, puzzle in zip(names, puzzles, strict=True)
        ]

    def verdict(self, example: Example, answer: str) -> Verdict:
        return verdict(example.truth, _cells(answer))

    def pretty(self, text: str) -> str:
        return pretty(_cells(text))

    def training_batches(
        self,
        data: Mapping[str, Any],
        *,
        batch_size: int,
        seed: int,
        workdir: pathlib.Path,
    ) -> BatchAt:
        """Random puzzles of a set, each under a random symmetry.

        The clues are prompt, the blanks are learned.

        Args:
          data: `seed`, `num`, `min_clues` and `max_clues` of the set, and
            `is_advanced`: take each puzzle as it is after a random number of rounds
            of plain logic (`puzzles.single_waves`), which is what a sampler that
            commits the surest cells first gets to see, rather than as it is set.
          batch_size: rows.
          seed: of the choice and the symmetries.
          workdir: where the set is kept.

        Raises:
          InputError: if a puzzle of the set may be a test or a hard one, or for a seed
            out of range.
        """
        check_seed(data["seed"], "data.seed")
        check_seed(seed)
        made_by = {name: value for name, value in data.items() if name != "is_advanced"}
        made = cached(workdir / "puzzles.npz", made_by, _random_puzzles)
        check_disjoint(made["solutions"])
        return batches(
            **made, batch_size=batch_size, seed=seed, is_advanced=data["is_advanced"]
        )


_Columns = tuple[list[str], Int[np.ndarray, "n 81"], Int[np.ndarray, "n 81"]]


def _test_split(num: int, seed: int) -> _Columns:
    file = importlib.resources.files("dlm_jax.tasks.sudoku") / "data/sudoku_test.txt"
    texts = file.read_text().split()
    return _fixed({f"test/{i}": text for i, text in enumerate(texts)}, num)


def _hard_split(num: int, seed: int) -> _Columns:
    return _fixed(HARD_PUZZLES, num)


def _valid_split(num: int, seed: int) -> _Columns:
    # In lots of 100, so that asking for more does not change the first ones.
    lots = [
        sudoku_puzzles.random_puzzles(np.random.default_rng([2, seed, lot]), 100)
        for lot in range(-(-num // 100))
    ]
    puzzles, solutions = (
        np.concatenate(grids)[:num] for grids in zip(*lots, strict=True)
    )
    return [f"valid/{seed}/{i}" for i in range(num)], puzzles, solutions


def _fixed(texts: Mapping[str, str], num: int) -> _Columns:
    """The first puzzles of a set, solved."""
    names = list(texts)[:num]
    puzzles = np.stack([parse(texts[name]) for name in names])
    _, solutions = sudoku_puzzles.solve(puzzles)
    return names, puzzles, solutions


_SPLITS: dict[str, Callable[[int, int], _Columns]] = {
    "test": _test_split,
    "hard": _hard_split,
    "valid": _valid_split,
}
# Of the splits that are not drawn.
_SIZES = {"test": 1000, "hard": len(HARD_PUZZLES)}


def check_disjoint(solutions: Int[np.ndarray, "n 81"]) -> None:
    """Refuses training grids that a symmetry may turn into a test or a hard one.

    Raises:
      InputError: with the number of such grids.
    """
    held_out = [_test_split(1000, 0)[2], _hard_split(len(HARD_PUZZLES), 0)[2]]
    keys = sudoku_puzzles.fingerprints(np.concatenate(held_out))
    num = len(set(keys) & set(sudoku_puzzles.fingerprints(solutions)))
    if num:
        raise InputError(
            f"training grids must not equal held-out ones, but {num} may: change the "
            "data's seed"
        )


def verdict(puzzle: Int[np.ndarray, "81"], answer: Int[np.ndarray, "81"]) -> Verdict:
    """Checks an answer by the rules alone, so any valid completion is correct."""
    for cell in range(81):
        where = f"row {cell // 9 + 1}, column {cell % 9 + 1}"
        if not 1 <= answer[cell] <= 9:
            return Verdict(False, f"no digit at {where}")
        if puzzle[cell] not in (0, answer[cell]):
            changed = f"changed from {puzzle[cell]} to {answer[cell]}"
            return Verdict(False, f"the clue at {where} was {changed}")
    for unit, cells in enumerate(sudoku_puzzles.UNITS):
        digits, counts = np.unique(answer[cells], return_counts=True)
        if (counts > 1).any():
            kind = ("row", "column", "box")[unit // 9]
            digit = digits[counts.argmax()]
            return Verdict(False, f"{digit} appears twice in {kind} {unit % 9 + 1}")
    return Verdict(True, "solved")


def parse(text: str) -> Int[np.ndarray, "81"]:
    """Reads a grid: 81 cells, blanks as '.', '0' or '_'; white space is ignored."""
    cells = "".join(text.split())
    if len(cells) != 81 or not set(cells) <= set(".0_123456789"):
        raise InputError(
            f"grid ({cells[:90]}) must be 81 digits, blanks as '.', got {len(cells)}"
        )
    return np.array([int(c) if c.isdigit() else 0 for c in cells], np.int8)


def _cells(text: str) -> Int[np.ndarray, "81"]:
    """The cells of a printed grid as far as it is one; 0 where a digit should be."""
    # A mask that is left is written with more than one character: it and all that
    # follows it cannot be placed.
    digits = [int(c) if c in "123456789" else 0 for c in "".join(text.split())]
    return np.array((digits + [0] * 81)[:81], np.int8)


def to_text(grid: Int[np.ndarray, "81"]) -> str:
    """The text of a grid: nine lines of nine characters, '.' where blank."""
    lines = grid.reshape(9, 9)
    return "".join("".join(str(c or ".") for c in line) + "\n" for line in lines)


def pretty(grid: Int[np.ndarray, "81"]) -> str:
    """A grid for people, with its boxes ruled."""
    lines = []
    for row, line in enumerate(to_text(grid).split()):
        if row in (3, 6):
            lines.append("------+-------+------")
        lines.append(" | ".join(" ".join(line[k : k + 3]) for k in (0, 3, 6)))
    return "\n".join(lines)


def encode(grids: Int[np.ndarray, "n 81"]) -> Int[np.ndarray, "n 90"]:
    """Tokens of the text of each grid; the mask token where a cell is 0."""
    tokens = np.full((len(grids), NUM_TOKENS), NEWLINE_ID, np.int32)
    tokens[:, CELLS] = np.where(grids == 0, MASK_ID, grids + (_FIRST_DIGIT - 1))
    return tokens


def decode(tokens: Int[np.ndarray, "n 90"]) -> Int[np.ndarray, "n 81"]:
    """Digits of the cells, 0 where a token is not a digit."""
    digits = tokens[:, CELLS] - (_FIRST_DIGIT - 1)
    return np.where((digits >= 1) & (digits <= 9), digits, 0).astype(np.int8)


def _random_puzzles(seed: int, num: int, **clues: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    puzzles, solutions = sudoku_puzzles.random_puzzles(rng, num, **clues)
    return {"puzzles": puzzles, "solutions": solutions}


def batches(
    puzzles: Int[np.ndarray, "n 81"],
    solutions: Int[np.ndarray, "n 81"],
    batch_size: int,
    seed: int,
    is_advanced: bool,
) -> BatchAt:
    """What `Sudoku.training_batches` gives, for given puzzles."""
    waves = sudoku_puzzles.single_waves(puzzles) if is_advanced else None

    def batch_at(step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rng = np.random.default_rng([seed, step])
        chosen = rng.integers(len(puzzles), size=batch_size)
        puzzle, solution = puzzles[chosen], solutions[chosen]
        if waves is not None:
            wave = waves[chosen]
            # At least one blank stays: the last wave is never revealed.
            last = np.where(wave < 127, wave, 0).max(1) + (wave == 127).any(1)
            num_waves = rng.integers(last)
            puzzle = np.where(wave <= num_waves[:, None], solution, puzzle)
        puzzle, solution = sudoku_puzzles.random_symmetries(rng, puzzle, solution)
        is_maskable = np.zeros((batch_size, NUM_TOKENS), bool)
        is_maskable[:, CELLS] = puzzle == 0
        return encode(solution), is_maskable, np.ones_like(is_maskable)

    return batch_at
