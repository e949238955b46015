"""The maze task against scipy's graphs and plain enumeration of paths."""

import itertools
import math
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csgraph

from configs import train_maze
from dlm_jax.errors import InputError
from dlm_jax.tasks import base, maze
from dlm_jax.tasks.splits import split_of
from dlm_jax.text.codec import Codec
from dlm_jax.training import loop as training

TASK = maze.Maze()
SMALL = {"d_model": 8, "n_heads": 2, "n_layers": 1, "mlp_hidden_size": 8}


def batch(step=0, batch_size=64, data_seed=1, seed=0):
    batch_at = TASK.training_batches(
        {"seed": data_seed}, batch_size=batch_size, seed=seed, workdir=pathlib.Path()
    )
    return batch_at(step)


def places(shown):
    """The lines of a maze's text as an array of characters, 9x9."""
    return np.array([list(line) for line in shown.splitlines()])


def place_graph(is_node):
    """Adjacency of places of the 9x9 text, as a matrix over all of them."""
    number = np.arange(is_node.size).reshape(is_node.shape)
    graph = np.zeros((is_node.size,) * 2)
    for a, b in (
        (number[:, :-1][is_node[:, :-1] & is_node[:, 1:]], 1),
        (number[:-1][is_node[:-1] & is_node[1:]], is_node.shape[1]),
    ):
        graph[a, a + b] = graph[a + b, a] = 1
    return graph


@pytest.fixture(scope="module")
def made():
    return maze.random_mazes(np.random.default_rng(0), 60)


@pytest.fixture(scope="module")
def codec():
    return Codec.of(TASK.tokenizer(), TASK.model_config(**SMALL))


def test_mazes_are_connected_with_the_loops_asked_for(made):
    prompts, paths = made
    assert len(prompts) > 50
    for prompt, path in zip(prompts, paths, strict=True):
        is_open = places(maze.to_text(prompt)) != "#"
        assert is_open[::2, ::2].all() and not is_open[1::2, 1::2].any()
        graph = place_graph(is_open)
        num_parts, labels = csgraph.connected_components(graph, directed=False)
        assert num_parts == 1 + (~is_open).sum()
        assert len(set(labels[is_open.ravel()])) == 1
        # A connected graph has as many loops as edges beyond those of a tree.
        assert graph.sum() / 2 - is_open.sum() + 1 == maze.NUM_EXTRA
        assert (prompt == maze.MASK_ID).sum() == TASK.gen_length
        marks = places(maze.to_text(path))
        ends = [int(np.flatnonzero(marks == mark)[0]) for mark in "SG"]
        steps = csgraph.shortest_path(graph, unweighted=True)[ends[0], ends[1]]
        assert steps >= 2 * maze.MIN_STEPS
        # The training target is a shortest path.
        assert (marks == "o").sum() == steps - 1


def test_openings_differ_from_maze_to_maze(made):
    share = (made[0] == maze.MASK_ID).mean(0)[(maze.CELLS[maze.PAIRS].sum(1)) // 2]
    assert share.min() > 0.4 and share.max() < 0.95
    assert len({prompt.tobytes() for prompt in made[0]}) == len(made[0])


@given(seed=st.integers(0, 2**32 - 1))
def test_distances_and_numbers_of_shortest_paths(seed):
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.random((2, maze.NUM_CELLS, maze.NUM_CELLS)) < 0.08, 1)
    # A chain keeps it connected, as what is asked for must be.
    upper |= np.eye(maze.NUM_CELLS, k=1, dtype=bool)
    adjacent = (upper | upper.transpose(0, 2, 1)).astype(float)
    goals = rng.integers(maze.NUM_CELLS, size=2)
    distances, num_paths = maze.shortest_paths(adjacent, goals)
    for graph, goal, distance, num in zip(
        adjacent, goals, distances, num_paths, strict=True
    ):
        expected = csgraph.shortest_path(graph, unweighted=True)[goal]
        np.testing.assert_array_equal(distance, expected)
        # Walks as long as the distance are the shortest paths.
        for cell in range(maze.NUM_CELLS):
            walks = np.linalg.matrix_power(graph, int(expected[cell]))[goal, cell]
            assert num[cell] == walks


def test_shortest_paths_are_equally_likely():
    """Where two ways begin, each is taken in proportion to the paths it leads to."""
    prompts, paths = maze.random_mazes(np.random.default_rng(3), 1500)
    a, b = maze.PAIRS.T
    adjacent = np.zeros((len(prompts), maze.NUM_CELLS, maze.NUM_CELLS))
    is_open = prompts[:, (maze.CELLS[a] + maze.CELLS[b]) // 2] == maze.MASK_ID
    adjacent[:, a, b] = adjacent[:, b, a] = is_open
    ends = [maze.VOCABULARY.index(mark) for mark in "SG"]
    starts, goals = ((prompts[:, maze.CELLS] == end).argmax(1) for end in ends)
    distances, num_paths = maze.shortest_paths(adjacent, goals)
    shares, taken = [], []
    for row, start in enumerate(starts):
        following = np.flatnonzero(
            adjacent[row, start] * (distances[row] == distances[row, start] - 1)
        )
        ways = num_paths[row, following]
        if len(following) == 2 and ways[0] != ways[1]:
            rarer = following[ways.argmin()]
            shares.append(ways.min() / ways.sum())
            taken.append(paths[row, maze.CELLS[rarer]] == maze.VOCABULARY.index("o"))
    shares = np.array(shares)
    sigma = math.sqrt((shares * (1 - shares)).sum())
    assert abs(sum(taken) - shares.sum()) < 4 * sigma
    # Else the test would not tell it from a fair coin at each fork.
    assert len(shares) / 2 - shares.sum() > 6 * sigma


def small_maze(start, goal):
    """2x3 cells with all openings and one dead end, in the middle of walls."""
    marks = np.full((9, 9), "#")
    marks[2:5:2, 2:7] = base.BLANK
    marks[3, 2:7:2] = base.BLANK
    marks[5:7, 4] = base.BLANK
    marks[start], marks[goal] = "S", "G"
    return "".join("".join(line) + "\n" for line in marks)


def simple_paths(is_open, path, goal):
    if path[-1] == goal:
        yield frozenset(path)
        return
    row, column = path[-1]
    for down, right in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        step = row + down, column + right
        if is_open[step] and step not in path:
            yield from simple_paths(is_open, [*path, step], goal)


@pytest.mark.parametrize(
    ("start", "goal"), [((2, 2), (4, 6)), ((2, 4), (4, 4)), ((2, 2), (6, 4))]
)
def test_verdict_accepts_the_simple_paths_and_nothing_else(start, goal):
    prompt = small_maze(start, goal)
    example = base.Example("", prompt, prompt)
    blanks = [i for i, mark in enumerate(prompt) if mark == base.BLANK]
    accepted = set()
    for marks in itertools.product(".o", repeat=len(blanks)):
        answer = list(prompt)
        for place, mark in zip(blanks, marks, strict=True):
            answer[place] = mark
        if TASK.verdict(example, "".join(answer)).is_correct:
            on_path = np.isin(places("".join(answer)), list("oSG"))
            accepted.add(frozenset(map(tuple, np.argwhere(on_path).tolist())))
    expected = set(simple_paths(places(prompt) != "#", [start], goal))
    assert len(expected) >= 3
    assert accepted == expected


@given(data=st.data())
def test_right_answers_with_one_change_are_refused(made, data):
    row = data.draw(st.integers(0, len(made[0]) - 1))
    prompt, right = maze.to_text(made[0][row]), maze.to_text(made[1][row])
    example = base.Example("", prompt, prompt)
    assert TASK.verdict(example, right).is_correct
    place = data.draw(st.integers(0, len(right) - 1))
    others = [*"o.#SG\n", "<|mdm_mask|>", ""]
    others.remove(right[place])
    mark = data.draw(st.sampled_from(others))
    wrong = right[:place] + mark + right[place + 1 :]
    verdict = TASK.verdict(example, wrong)
    assert not verdict.is_correct and verdict.reason
    assert not TASK.verdict(example, right + "o").is_correct
    assert not TASK.verdict(example, "").is_correct


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (("Soooo", "o#.#.", "....G"), "the path forks at row 3, column 3"),
        (("Soo..", ".#.#.", "....G"), "the path ends at row 3, column 5, not at G"),
        (("S....", "o#.#.", "ooooG"), "a path from S to G"),
        (("S...o", "o#.#.", "ooooG"), "the o at row 3, column 7 is not on the path"),
        (("S....", "o#.#o", "ooooG"), "the path goes on past G at row 5, column 7"),
        (("Sooo_", ".#.#o", "....G"), "neither . nor o at row 3, column 7"),
        (("So#oo", ".#.#o", "....G"), "neither . nor o at row 3, column 5"),
        (("Soooo", ".o.#o", "....G"), "the maze was changed at row 4, column 4"),
    ],
)
def test_verdict_gives_the_first_reason(lines, reason):
    prompt = small_maze((2, 2), (4, 6))
    marks = places(prompt.replace(base.BLANK, "."))
    marks[2:5, 2:7] = [list(line) for line in lines]
    answer = "".join("".join(line) + "\n" for line in marks)
    verdict = TASK.verdict(base.Example("", prompt, prompt), answer)
    assert verdict.reason == reason
    assert verdict.is_correct == reason.startswith("a path")


def test_training_rows_are_right_through_the_tokenizer(codec):
    tokens, is_maskable, is_valid = batch()
    assert tokens.shape == (64, maze.NUM_TOKENS) and is_valid.all()
    shown = np.where(is_maskable, codec.mask_id, tokens)
    prompts = [maze.to_text(row) for row in shown]
    examples = [base.Example("", prompt, prompt) for prompt in prompts]
    for example, canvas, filled, is_blank in zip(
        examples, TASK.encode(codec, examples), tokens, is_maskable, strict=True
    ):
        # What the model is asked looks as what it was trained on.
        np.testing.assert_array_equal(canvas.is_blank, is_blank)
        np.testing.assert_array_equal(canvas.tokens[~is_blank], filled[~is_blank])
        answer = codec.decode(canvas, filled)
        assert TASK.verdict(example, answer).is_correct
        np.testing.assert_array_equal(codec.tokenizer(answer)["input_ids"], filled)
        unfinished = codec.decode(canvas, canvas.tokens)
        assert "neither" in TASK.verdict(example, unfinished).reason


def test_batches_are_functions_of_seeds_and_step():
    first = batch(3, 8)
    for one, other in zip(first, batch(3, 8), strict=True):
        np.testing.assert_array_equal(one, other)
    for changed in (batch(4, 8), batch(3, 8, data_seed=2), batch(3, 8, seed=1)):
        assert (changed[0] != first[0]).any(1).all()


def test_held_out_mazes_are_not_trained_on():
    tokens, is_maskable, _ = batch(batch_size=300)
    keys = np.where(is_maskable, maze.MASK_ID, tokens).astype(np.uint8)
    splits = {split_of(key.tobytes(), ("test", "valid"), 16) for key in keys}
    assert splits == {"train"}
    for split in TASK.splits:
        for example in TASK.examples(split, 20):
            ids = [
                maze.MASK_ID if c == base.BLANK else maze.VOCABULARY.index(c)
                for c in example.prompt
            ]
            assert split_of(bytes(ids), ("test", "valid"), 16) == split


def test_examples_are_distinct_and_more_of_them_begin_the_same():
    first, more, other = (
        [example.prompt for example in TASK.examples("test", num, seed)]
        for num, seed in ((3, 0), (40, 0), (40, 1))
    )
    assert first == more[:3]
    valid = [example.prompt for example in TASK.examples("valid", 40)]
    assert len({*more, *other, *valid}) == 120
    names = [example.name for example in TASK.examples("test", 40)]
    assert len(set(names)) == 40


def test_pretty_shows_the_path_within_the_outer_wall():
    prompt = small_maze((2, 2), (4, 6))
    lines = TASK.pretty(prompt).splitlines()
    assert lines[0] == lines[-1] == "#" * 11 and {len(line) for line in lines} == {11}
    assert lines[3] == "###S    ###"
    answer = prompt.replace(base.BLANK, "o", 3).replace(base.BLANK, ".", 1)
    answer = answer.replace(base.BLANK, "<|mdm_mask|>")
    assert TASK.pretty(answer).splitlines()[3:5] == [
        "###Sooo ###",
        "###?#?#?###",
    ]


def test_bad_input_is_one_line():
    with pytest.raises(
        InputError, match=r"^split \(hard\) must be one of test, valid$"
    ):
        TASK.examples("hard", 1)


def test_config_fits_the_task():
    config = train_maze.get_config()
    shape = TASK.model_config(**config.model)
    assert config.task == TASK.name
    head_dim = shape.d_model // shape.n_heads
    assert shape.rope_theta ** (-2 / head_dim) * maze.PERIOD == pytest.approx(
        2 * math.pi
    )
    assert shape.max_sequence_length >= maze.NUM_TOKENS
    for stage in config.stages:
        training.TrainConfig(**stage["train"])
        TASK.training_batches(
            {**config.data, **stage["data"]},
            batch_size=2,
            seed=0,
            workdir=pathlib.Path(),
        )(0)
