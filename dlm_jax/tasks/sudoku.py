"""9x9 Sudoku as an infilling task: the blanks of a printed grid are what is generated.

The text of a grid is nine lines of nine digits, each line ended by a newline: 90
characters, one token each; '.' marks a blank in text for people, the mask token on the
canvas. The period of exactly ten tokens per row matters: with a rotary base that makes
2 pi / 10 one of the frequencies (`model_config`), "same column" is one phase, and a
model learns the rules from about half as many puzzles as with a base of 100.
"""

import dataclasses
import importlib.resources
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from dlm_jax import text
from dlm_jax.errors import InputError
from dlm_jax.models.llada import LLaDAConfig
from dlm_jax.tasks import sudoku_puzzles
from dlm_jax.types import Prompts

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


@dataclasses.dataclass(frozen=True)
class Example:
    """One puzzle.

    Attributes:
      name: unique within its split.
      puzzle: int8 [81]; 0 where blank.
      solution: int8 [81].
    """

    name: str
    puzzle: Int[np.ndarray, "81"]
    solution: Int[np.ndarray, "81"]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and the first reason why not."""

    is_correct: bool
    reason: str


def examples(split: str, num: int, seed: int = 0) -> list[Example]:
    """Puzzles of a split; no test puzzle is a training one under any symmetry.

    Args:
      split: 'test' (500 puzzles of 26 to 36 clues, in file order), 'hard' (published
        ones, in the order of HARD_PUZZLES), or 'valid' (new ones for each seed).
      num: how many.
      seed: of the validation puzzles.

    Raises:
      InputError: for an unknown split, or a number of examples that it does not have.
    """
    if split not in _SPLITS:
        raise InputError(f"split ({split}) must be one of {', '.join(_SPLITS)}")
    if num < 1:
        raise InputError(f"num ({num}) must be at least 1")
    names, puzzles, solutions = _SPLITS[split](num, seed)
    if num > len(names):
        raise InputError(f"num ({num}) must be at most {len(names)} for {split}")
    return [Example(*fields) for fields in zip(names, puzzles, solutions, strict=True)]


_Columns = tuple[list[str], Int[np.ndarray, "n 81"], Int[np.ndarray, "n 81"]]


def _test_split(num: int, seed: int) -> _Columns:
    file = importlib.resources.files("dlm_jax.tasks") / "data/sudoku_test.txt"
    texts = file.read_text().split()
    return _fixed({f"test/{i}": text for i, text in enumerate(texts)}, num)


def _hard_split(num: int, seed: int) -> _Columns:
    return _fixed(HARD_PUZZLES, num)


def _valid_split(num: int, seed: int) -> _Columns:
    rng = np.random.default_rng([2, seed])
    puzzles, solutions = sudoku_puzzles.random_puzzles(rng, num)
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


def check_disjoint(solutions: Int[np.ndarray, "n 81"]) -> None:
    """Refuses training grids that a symmetry may turn into a test or a hard one.

    Raises:
      InputError: with the number of such grids.
    """
    held_out = examples("test", 500) + examples("hard", len(HARD_PUZZLES))
    keys = sudoku_puzzles.fingerprints(np.stack([e.solution for e in held_out]))
    num = len(set(keys) & set(sudoku_puzzles.fingerprints(solutions)))
    if num:
        raise InputError(f"training grids must not be held out, {num} may be: new seed")


def tokenizer() -> Any:
    """The tokenizer of the printed grid; `save_pretrained` writes its files."""
    return text.character_tokenizer(
        VOCABULARY, bos=VOCABULARY[0], eos=VOCABULARY[EOS_ID], mask=VOCABULARY[MASK_ID]
    )


def prompts(batch: Sequence[Example]) -> Prompts:
    """The canvases of some puzzles, [b, 90]; the blanks are to be generated."""
    tokens = encode(np.stack([example.puzzle for example in batch]))
    return Prompts(tokens, tokens == MASK_ID, np.ones(tokens.shape, bool))


def verdict(puzzle: Int[np.ndarray, "81"], answer: Int[np.ndarray, "81"]) -> Verdict:
    """Checks an answer by the rules alone, so any valid completion is right."""
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
            return Verdict(False, f"{digit} stands twice in {kind} {unit % 9 + 1}")
    return Verdict(True, "solved")


def parse(text: str) -> Int[np.ndarray, "81"]:
    """Reads a grid: 81 cells, blanks as '.', '0' or '_'; white space is ignored."""
    cells = "".join(text.split())
    if len(cells) != 81 or not set(cells) <= set(".0_123456789"):
        raise InputError(
            f"grid ({cells[:90]}) must be 81 digits, blanks as '.', got {len(cells)}"
        )
    return np.array([int(c) if c.isdigit() else 0 for c in cells], np.int8)


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


def model_config(
    *, d_model: int, n_heads: int, n_layers: int, mlp_hidden_size: int
) -> LLaDAConfig:
    """A LLaDA of this shape for grids."""
    head_dim = d_model // n_heads
    return LLaDAConfig(
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        n_layers=n_layers,
        mlp_hidden_size=mlp_hidden_size,
        vocab_size=len(VOCABULARY),
        embedding_size=16,
        max_sequence_length=128,
        # Frequency i is theta^(-2i / head_dim): the second one is 2 pi / 10.
        rope_theta=(10 / (2 * math.pi)) ** (head_dim / 2),
        rms_norm_eps=1e-5,
        weight_tying=False,
        mask_token_id=MASK_ID,
        eos_token_id=EOS_ID,
        pad_token_id=EOS_ID,
    )


def cached_puzzles(
    path: str | os.PathLike, *, seed: int, num: int, min_clues: int, max_clues: int
) -> tuple[Int[np.ndarray, "n 81"], Int[np.ndarray, "n 81"]]:
    """Random puzzles and solutions, kept in a file so that they are made only once."""
    path = pathlib.Path(path)
    made_by = np.array([seed, num, min_clues, max_clues])
    if path.exists():
        with np.load(path) as file:
            if np.array_equal(file["made_by"], made_by):
                return file["puzzles"], file["solutions"]
    puzzles, solutions = sudoku_puzzles.random_puzzles(
        np.random.default_rng(seed), num, min_clues=min_clues, max_clues=max_clues
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    np.savez_compressed(partial, made_by=made_by, puzzles=puzzles, solutions=solutions)
    os.replace(partial, path)
    return puzzles, solutions


def training_batches(
    puzzles: Int[np.ndarray, "n 81"],
    solutions: Int[np.ndarray, "n 81"],
    *,
    batch_size: int,
    seed: int,
    is_advanced: bool = False,
) -> Callable[[int], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Random puzzles of the set, each under a random symmetry, for `training.train`.

    The clues are prompt, the blanks are learned.

    Args:
      puzzles: 0 where blank.
      solutions: of the puzzles.
      batch_size: rows.
      seed: of the choice and the symmetries.
      is_advanced: take each puzzle as it stands after a random number of rounds of
        plain logic (`sudoku_puzzles.single_waves`), which is what a sampler that
        commits the surest cells first gets to see, rather than as it is set.

    Returns:
      A function of the step: tokens [b, 90] of the solutions, which of them are blanks
      of the puzzle, and which are valid (all). It depends on seed and step only.
    """
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
