"""Mazes as an infilling task: a path is drawn from start to goal.

The text of a maze of 5x5 cells is nine lines of nine characters without the outer
wall, each line ended by a newline: 90 characters, one token each. '#' is wall, S the
start, G the goal; every other place is a blank, to be filled by 'o' on the path and '.'
off it. Lines of exactly 10 tokens, and a rotary base that makes 2 pi / 10 one of the
frequencies (`Maze.model_config`), make "same column" one phase.

Mazes have loops, so that there are several ways, often equally short ones: where they
part, the marginals of single places are uncertain, and only places that are filled with
regard to each other make a path. Any such path is correct.

The generator is written here. The alternative, the library maze-dataset, is LGPL-3,
needs plotting and notebooks, and makes one maze at a time.
"""

import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int, Int32
from scipy import sparse
from scipy.sparse import csgraph

from dlm_jax.core.keys import check_seed
from dlm_jax.tasks.base import (
    BLANK,
    BatchAt,
    CharacterTask,
    Example,
    Verdict,
)
from dlm_jax.tasks.splits import first_distinct, split_of
from dlm_jax.text.page import Grid

# Token ids are places in this list.
VOCABULARY = (
    "<|startoftext|>",
    "<|endoftext|>",
    "\n",
    *"#.oSG",
    "<|mdm_mask|>",
)
EOS_ID = VOCABULARY.index("<|endoftext|>")
MASK_ID = VOCABULARY.index("<|mdm_mask|>")
_NEWLINE, _WALL, _OFF, _ON, _START, _GOAL = map(VOCABULARY.index, "\n#.oSG")
SIDE = 5
NUM_CELLS = SIDE * SIDE
WIDTH = 2 * SIDE - 1
PERIOD = WIDTH + 1
NUM_TOKENS = WIDTH * PERIOD
# Openings besides those of the spanning tree; each makes a loop.
NUM_EXTRA = 6
# Fewest steps from cell to cell between start and goal.
MIN_STEPS = 5
HELD_OUT = ("test", "valid")
# One maze in so many goes to each of them.
SHARE = 16

# Canvas position of each cell; that of the wall between two is halfway.
CELLS = np.add.outer(2 * PERIOD * np.arange(SIDE), 2 * np.arange(SIDE)).ravel()
_GRID = np.arange(NUM_CELLS).reshape(SIDE, SIDE)
# The pairs of cells side by side.
PAIRS = np.concatenate(
    [
        np.stack([_GRID[:, :-1].ravel(), _GRID[:, 1:].ravel()], 1),
        np.stack([_GRID[:-1].ravel(), _GRID[1:].ravel()], 1),
    ]
)


class Maze(CharacterTask):
    """Infilling of 5x5 mazes with a path from start to goal.

    The splits are 'test' and 'valid'; which one a maze is in is the hash of its walls,
    start and goal. An example's truth is its prompt.
    """

    name: ClassVar[str] = "maze"
    splits: ClassVar[tuple[str, ...]] = HELD_OUT
    is_infill: ClassVar[bool] = True
    # Cells without start and goal, and openings.
    gen_length: int = NUM_CELLS - 2 + NUM_CELLS - 1 + NUM_EXTRA
    vocabulary: ClassVar[tuple[str, ...]] = VOCABULARY
    period: ClassVar[int] = PERIOD
    grid: ClassVar[Grid | None] = Grid(
        WIDTH, styles={"#": "wall", "o": "path", ".": "off", "S": "end", "G": "end"}
    )
    embedding_size: ClassVar[int] = 16
    max_sequence_length: ClassVar[int] = 128

    def examples(self, split: str, num: int, seed: int = 0) -> list[Example]:
        self.check(split, num, seed)

        def draw(lot: int) -> list[str]:
            prompts, _ = random_mazes(np.random.default_rng([seed, lot]), 256)
            return [to_text(prompt) for prompt in prompts if _split(prompt) == split]

        return [
            Example(f"{split}/{seed}/{i}", prompt, prompt)
            for i, prompt in enumerate(first_distinct(draw, num))
        ]

    def verdict(self, example: Example, answer: str) -> Verdict:
        return verdict(example.truth, answer)

    def pretty(self, text: str) -> str:
        """With the outer wall; only the path is seen, and '?' where a mask is left."""
        shown = text.replace(VOCABULARY[MASK_ID], "?")
        lines = shown.replace(BLANK, " ").replace(".", " ").splitlines()
        edge = "#" * (WIDTH + 2)
        return "\n".join([edge, *(f"#{line}#" for line in lines), edge])

    def training_batches(
        self,
        data: Mapping[str, Any],
        *,
        batch_size: int,
        seed: int,
        workdir: pathlib.Path,
    ) -> BatchAt:
        """New mazes in every step, each with a random one of its shortest paths.

        Walls, start and goal are prompt, the rest is learned.

        Args:
          data: `seed` of the mazes.
          batch_size: rows.
          seed: of the stage, so that each has other mazes.
          workdir: nothing is kept.

        Raises:
          InputError: for a seed out of range.
        """
        check_seed(data["seed"], "data.seed")
        check_seed(seed)

        def batch_at(step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            rng = np.random.default_rng([data["seed"], seed, step])
            shown, tokens = np.empty((2, 0, NUM_TOKENS), np.int32)
            while len(tokens) < batch_size:
                # A few more than are kept on average.
                prompts, paths = random_mazes(rng, batch_size + batch_size // 5 + 4)
                is_kept = [_split(prompt) == "train" for prompt in prompts]
                shown = np.concatenate([shown, prompts[is_kept]])
                tokens = np.concatenate([tokens, paths[is_kept]])
            is_maskable = shown[:batch_size] == MASK_ID
            return tokens[:batch_size], is_maskable, np.ones_like(is_maskable)

        return batch_at


def random_mazes(
    rng: np.random.Generator, num: int
) -> tuple[Int32[np.ndarray, "n l"], Int32[np.ndarray, "n l"]]:
    """Random mazes with start and goal, and a path through each.

    The openings are a minimum spanning tree under random weights, as Kruskal's
    randomised algorithm makes it, and NUM_EXTRA more. The goal is any cell, the start
    any that is at least MIN_STEPS away. All shortest paths are equally likely.

    Args:
      rng: drawn from.
      num: how many to draw; n is less by those where no start is far enough.

    Returns:
      Tokens of the mazes, with masks at their blanks, and of the same mazes filled.
    """
    rows = np.arange(num)
    adjacent = np.zeros((num, NUM_CELLS, NUM_CELLS))
    # All mazes are one graph of many parts, which takes one call.
    edges = (PAIRS.T[:, None] + NUM_CELLS * rows[:, None]).reshape(2, -1)
    weights = 1 + rng.random(edges.shape[1])  # zero would be no edge
    graph = sparse.coo_array((weights, tuple(edges)), [num * NUM_CELLS] * 2)
    a, b = csgraph.minimum_spanning_tree(graph.tocsr()).nonzero()
    adjacent[a // NUM_CELLS, a % NUM_CELLS, b % NUM_CELLS] = 1
    adjacent = np.maximum(adjacent, adjacent.transpose(0, 2, 1))
    is_open = adjacent[:, PAIRS[:, 0], PAIRS[:, 1]] > 0
    order = np.where(is_open, np.inf, rng.random(is_open.shape))
    extra = PAIRS[np.argpartition(order, NUM_EXTRA, 1)[:, :NUM_EXTRA]]
    adjacent[rows[:, None], extra[..., 0], extra[..., 1]] = 1
    adjacent[rows[:, None], extra[..., 1], extra[..., 0]] = 1

    goals = rng.integers(NUM_CELLS, size=num)
    distances, num_paths = shortest_paths(adjacent, goals)
    starts = np.where(distances < MIN_STEPS, -1.0, rng.random(distances.shape)).argmax(
        1
    )
    kept = np.flatnonzero(distances[rows, starts] >= MIN_STEPS)
    adjacent, goals, starts = adjacent[kept], goals[kept], starts[kept]
    distances, num_paths = distances[kept], num_paths[kept]
    rows = np.arange(len(kept))

    prompts = np.full((len(kept), NUM_TOKENS), _WALL, np.int32)
    prompts[:, WIDTH::PERIOD] = _NEWLINE
    prompts[:, CELLS] = MASK_ID
    row, a, b = adjacent.nonzero()
    prompts[row, (CELLS[a] + CELLS[b]) // 2] = MASK_ID
    paths = np.where(prompts == MASK_ID, _OFF, prompts)
    here = starts
    for _ in range(distances[rows, starts].max(initial=0)):
        # Cells one step nearer to the goal, weighted by the ways on from there.
        is_nearer = distances == (distances[rows, here] - 1)[:, None]
        ways = np.cumsum(adjacent[rows, here] * is_nearer * num_paths, 1)
        draw = rng.random(len(rows)) * ways[:, -1]
        following = (ways > draw[:, None]).argmax(1)
        following = np.where(here == goals, goals, following)
        paths[rows, CELLS[following]] = _ON
        paths[rows, (CELLS[here] + CELLS[following]) // 2] = _ON
        here = following
    for tokens in (prompts, paths):
        tokens[rows, CELLS[starts]], tokens[rows, CELLS[goals]] = _START, _GOAL
    return prompts, paths


def shortest_paths(
    adjacent: Float[np.ndarray, "n c c"], goals: Int[np.ndarray, "n"]
) -> tuple[Int[np.ndarray, "n c"], Float[np.ndarray, "n c"]]:
    """Steps from each cell to its maze's goal, and the number of shortest paths.

    Args:
      adjacent: 1 where one may step from cell to cell, else 0; symmetric, connected.
      goals: a cell of each maze.
    """
    num_paths = np.eye(NUM_CELLS)[goals]
    distances = np.where(num_paths > 0, 0, -1)
    frontier = num_paths
    for step in range(1, NUM_CELLS):
        frontier = (adjacent @ frontier[:, :, None])[:, :, 0] * (distances < 0)
        distances[frontier > 0] = step
        num_paths = num_paths + frontier
        if not frontier.any():
            break
    return distances, num_paths


def to_text(tokens: Int[np.ndarray, "l"]) -> str:
    """The text of a maze, with BLANK for the mask token."""
    return "".join(BLANK if t == MASK_ID else VOCABULARY[t] for t in tokens)


def _split(prompt: Int[np.ndarray, "l"]) -> str:
    return split_of(prompt.astype(np.uint8).tobytes(), HELD_OUT, SHARE)


def verdict(prompt: str, answer: str) -> Verdict:
    """Walks the path of an answer; any simple path to the goal is correct.

    Args:
      prompt: the maze, with BLANK where an answer may write.
      answer: the maze filled.
    """
    for place, asked in enumerate(prompt):
        found = answer[place : place + 1]
        if asked == BLANK and found not in (".", "o"):
            # A mask that is left is longer than one character: all that follows it
            # cannot be placed.
            return Verdict(False, f"neither . nor o at {_where(place)}")
        if asked != BLANK and found != asked:
            return Verdict(False, f"the maze was changed at {_where(place)}")
    if len(answer) != len(prompt):
        return Verdict(False, "text follows the maze")
    on_path = {place for place, mark in enumerate(answer) if mark in "oSG"}
    here, goal = answer.index("S"), answer.index("G")
    while True:
        on_path.remove(here)
        # Newlines are on no path, so that no step leaves a line.
        sides = (here - PERIOD, here - 1, here + 1, here + PERIOD)
        following = [place for place in sides if place in on_path]
        if here == goal and following:
            return Verdict(False, f"the path goes on past G at {_where(here)}")
        if len(following) > 1:
            return Verdict(False, f"the path forks at {_where(here)}")
        if not following:
            break
        here = following[0]
    if here != goal:
        return Verdict(False, f"the path ends at {_where(here)}, not at G")
    if on_path:
        return Verdict(False, f"the o at {_where(min(on_path))} is not on the path")
    return Verdict(True, "a path from S to G")


def _where(place: int) -> str:
    return f"row {place // PERIOD + 1}, column {place % PERIOD + 1}"
