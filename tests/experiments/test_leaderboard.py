"""The leaderboard: a line per sampler, made once and with one checkpoint."""

import dataclasses

import jax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm_jax import checkpoints, samplers, zoo
from dlm_jax.errors import InputError
from dlm_jax.evaluation import provenance
from dlm_jax.evaluation.records import read_records
from dlm_jax.models.llada import LLaDA
from dlm_jax.tasks import sudoku
from experiments.studies.leaderboard import board
from experiments.studies.leaderboard.board import Entry, Setting

TASK = sudoku.Sudoku()
SHAPE = {"d_model": 32, "n_heads": 2, "n_layers": 1, "mlp_hidden_size": 48}


SETTING = Setting(
    "0123456789abcdef", 4, split="test", example_seed=0, seed=0, temperature=0.0
)
OTHERS = {
    "checkpoint": ("fedcba9876543210", "fedcba987654"),
    "num_examples": (5, "5"),
    "split": ("valid", "valid"),
    "example_seed": (1, "1"),
    "seed": (2, "2"),
    "temperature": (0.5, "0.5"),
}


def entry(spec="saber", correct=3, nfe=5.0, task="sudoku", setting=SETTING):
    spec = samplers.canonical_spec(spec)
    return Entry(task, spec, correct, nfe, 60, "abcdef0123+", setting)


@settings(max_examples=20)
@given(
    st.lists(
        st.tuples(st.floats(0, 1, width=32), st.integers(0, 4)),
        max_size=6,
        unique_by=lambda pair: pair[0],
    )
)
def test_entries_come_back_from_the_file(tmp_path_factory, pairs):
    path = tmp_path_factory.mktemp("board") / "leaderboard.csv"
    entries = [entry(f"threshold(threshold={t!r})", correct) for t, correct in pairs]
    board.write(path, entries)
    assert board.read(path) == sorted(entries, key=lambda e: e.sampler)
    before = path.read_text().splitlines()
    board.write(path, [*board.read(path), entry(task="maze")])
    after = path.read_text().splitlines()
    assert len(after) == len(before) + 1 and set(before) < set(after)
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_board_as_it_was(tmp_path):
    path = tmp_path / "new" / "leaderboard.csv"
    board.write(path, [entry()])
    before = path.read_bytes()
    with pytest.raises(AttributeError):
        board.write(path, [entry(), None])
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_no_file_is_an_empty_board(tmp_path):
    assert board.read(tmp_path / "none.csv") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("correct", "wrong"), "must have the columns task, sampler, correct"),
        (("5.0", "many"), "line 2: could not convert"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, change, message):
    path = tmp_path / "leaderboard.csv"
    board.write(path, [entry()])
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(InputError, match=message):
        board.read(path)


def test_a_sampler_stands_once(tmp_path):
    path = tmp_path / "leaderboard.csv"
    board.write(path, [entry(), entry(correct=2)])
    with pytest.raises(InputError, match="on sudoku twice"):
        board.read(path)


def test_missing_is_what_is_not_there_in_any_spelling():
    entries = [entry("saber(n=2)"), entry("random", task="maze")]
    specs = ["saber", "random", "saber(n=3)", "saber(mu=8.0, n=3)"]
    found = board.missing(entries, "sudoku", specs, SETTING)
    assert found == [samplers.canonical_spec(s) for s in specs[1:3]]
    with pytest.raises(InputError, match="mine"):
        board.missing(entries, "sudoku", ["mine"], SETTING)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Setting)])
def test_no_line_of_another_setting_joins(tmp_path, name):
    value, shown = OTHERS[name]
    other = dataclasses.replace(SETTING, **{name: value})
    known = str(getattr(SETTING, name))[:12]
    message = rf"{name} of sudoku \({shown}\) must be {known}, as on the leaderboard$"
    with pytest.raises(InputError, match=f"^{message}"):
        board.missing([entry()], "sudoku", ["random"], other)
    # Another task has a setting of its own.
    assert board.missing([entry()], "maze", ["random"], other)

    path = tmp_path / "leaderboard.csv"
    entries = [entry(), entry("threshold", task="maze", setting=other)]
    board.write(path, entries)
    assert board.read(path) == entries[::-1]
    board.write(path, [entry(), entry("threshold", setting=other)])
    with pytest.raises(InputError, match=rf"leaderboard\.csv: {name} of sudoku"):
        board.read(path)


def test_the_page_says_each_task_s_setting_from_its_entries():
    other = Setting("d2", 9, split="valid", example_seed=1, seed=2, temperature=0.5)
    text = board.page([entry(), entry(task="maze", setting=other)], "command")
    maze, sudoku = text.split("## ")[1:]
    assert (
        "Checkpoint d2, the first 9 examples of the split `valid` (example seed 1)"
        in maze
    )
    assert "seed 2, temperature 0.5." in maze and "3 of 9" in maze
    assert "Checkpoint 0123456789ab, the first 4" in sudoku and "3 of 4" in sudoku
    assert "the split `test` (example seed 0), seed 0, temperature 0." in sudoku


def test_table_has_the_best_first_and_marks_the_front():
    lines = board.table(
        [
            entry("random", correct=1, nfe=9.0),
            entry("saber", correct=3, nfe=4.0),
            entry("threshold", correct=2, nfe=2.0),
            entry("margin", correct=3, nfe=9.0),
        ]
    ).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[0] for row in cells[2:]] == [
        "`saber`",
        "`margin`",
        "`threshold`",
        "`random`",
    ]
    assert [row[6] for row in cells[2:]] == ["yes", "", "yes", ""]
    # 60 tokens in 4 rows of 4 forwards.
    assert cells[2][1:6] == ["3 of 4", "75.0%", "30.1% to 95.4%", "4.00", "3.75"]
    assert cells[2][7] == "abcdef0+"


CONFIG = """
from ml_collections import ConfigDict
def get_config():
    return ConfigDict({
        "num_examples": {"sudoku": 3}, "samplers": ("threshold",), "split": "test",
        "example_seed": 0, "seed": 0, "temperature": 0.0, "batch_size": 2,
        "queue_length": 3,
    })
"""


def test_a_sampler_joins_with_one_command(tmp_path, monkeypatch, run_script):
    model = LLaDA(TASK.model_config(**SHAPE), rngs=nnx.Rngs(0))
    files = TASK.tokenizer().save_pretrained(tmp_path / "tokenizer")
    checkpoints.save_hf(model, tmp_path / "model", files)
    monkeypatch.setattr(zoo, "path", lambda name: tmp_path / "model")
    (tmp_path / "config.py").write_text(CONFIG)
    arguments = [
        f"--config={tmp_path / 'config.py'}",
        f"--workdir={tmp_path / 'runs'}",
        f"--out={tmp_path / 'out'}",
    ]
    path = tmp_path / "out" / "leaderboard.csv"
    status, out, error = run_script("leaderboard", *arguments)
    assert status == 0, error
    (first,) = board.read(path)
    assert first.sampler == "threshold(threshold=0.9)"
    digest = provenance.digest(tmp_path / "model")
    assert first.setting == dataclasses.replace(
        SETTING, checkpoint=digest, num_examples=3
    )
    log = tmp_path / "runs" / "sudoku"
    records = read_records(log)
    assert first.nfe == pytest.approx(sum(r["nfe"] for r in records) / 3, abs=1e-4)
    assert first.num_tokens == sum(r["num_tokens"] for r in records) > 0
    assert out == (tmp_path / "out" / "leaderboard.md").read_text()

    added = "--sampler=threshold(threshold=0.5)"
    assert run_script("leaderboard", *arguments, added)[0] == 0
    entries = board.read(path)
    assert [e.sampler for e in entries] == ["threshold(threshold=0.5)", first.sampler]
    assert entries[1] == first
    assert len(read_records(log)) == 6
    assert "`threshold(threshold=0.5)`" in (tmp_path / "out/leaderboard.md").read_text()

    # Another setting or model: nothing is evaluated, and nothing written.
    before = path.read_bytes()
    for changed, line in (
        ("temperature=1", r"temperature of sudoku (1.0) must be 0.0"),
        ("split=valid", "split of sudoku (valid) must be test"),
    ):
        status, _, error = run_script(
            "leaderboard", *arguments, "--sampler=random", f"--config.{changed}"
        )
        assert status == 1
        assert error == f"error: {line}, as on the leaderboard\n"
    other = nnx.merge(
        nnx.split(model)[0], jax.tree.map(lambda w: 2 * w, nnx.split(model)[1])
    )
    monkeypatch.setattr(zoo, "path", lambda name: tmp_path / "other")
    checkpoints.save_hf(other, tmp_path / "other", files)
    status, _, error = run_script("leaderboard", *arguments, "--sampler=random")
    assert status == 1
    assert error.startswith("error: checkpoint of sudoku (")
    assert len(error.splitlines()) == 1
    assert path.read_bytes() == before
    assert len(read_records(log)) == 6


def test_an_unknown_task_is_named(run_script):
    status, _, error = run_script("leaderboard", "--task=chess")
    assert status == 1 and "task (chess) must be one of" in error
