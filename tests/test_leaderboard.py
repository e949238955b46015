"""The leaderboard: a line per sampler, made once and with one checkpoint."""

import dataclasses

import jax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm_jax import checkpoints, evaluation, leaderboard, samplers, zoo
from dlm_jax.errors import InputError
from dlm_jax.leaderboard import Entry
from dlm_jax.models.llada import LLaDA
from dlm_jax.tasks import sudoku

TASK = sudoku.Sudoku()
SHAPE = {"d_model": 32, "n_heads": 2, "n_layers": 1, "mlp_hidden_size": 48}


def entry(spec="saber", right=3, nfe=5.0, task="sudoku", num=4, digest="d1"):
    spec = samplers.to_spec(samplers.parse(spec))
    return Entry(task, spec, right, num, nfe, digest, "abcdef0123+")


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
    entries = [entry(f"threshold(threshold={t!r})", right) for t, right in pairs]
    leaderboard.write(path, entries)
    assert leaderboard.read(path) == sorted(entries, key=lambda e: e.sampler)
    before = path.read_text().splitlines()
    leaderboard.write(path, [*leaderboard.read(path), entry(task="maze")])
    after = path.read_text().splitlines()
    assert len(after) == len(before) + 1 and set(before) < set(after)


def test_no_file_is_an_empty_board(tmp_path):
    assert leaderboard.read(tmp_path / "none.csv") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("right", "wrong"), "must have the columns task, sampler, right"),
        (("5.0", "many"), "line 2: could not convert"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, change, message):
    path = tmp_path / "leaderboard.csv"
    leaderboard.write(path, [entry()])
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(InputError, match=message):
        leaderboard.read(path)


def test_a_sampler_stands_once(tmp_path):
    path = tmp_path / "leaderboard.csv"
    leaderboard.write(path, [entry(), entry(right=2)])
    with pytest.raises(InputError, match="on sudoku twice"):
        leaderboard.read(path)


def test_missing_is_what_is_not_there_in_any_spelling():
    entries = [entry("saber(n=2)"), entry("random", task="maze")]
    specs = ["saber", "random", "saber(n=3)", "saber(mu=8.0, n=3)"]
    found = leaderboard.missing(entries, "sudoku", specs, 4, "d1")
    assert found == [samplers.to_spec(samplers.parse(s)) for s in specs[1:3]]
    # Another task's checkpoint is another.
    assert leaderboard.missing(entries, "program", specs[:1], 4, "d2")
    with pytest.raises(InputError, match=r"checkpoint of sudoku \(d2\) must be d1"):
        leaderboard.missing(entries, "sudoku", specs, 4, "d2")
    with pytest.raises(InputError, match=r"num_examples of sudoku \(5\) must be 4"):
        leaderboard.missing(entries, "sudoku", specs, 5, "d1")
    with pytest.raises(InputError, match="mine"):
        leaderboard.missing(entries, "sudoku", ["mine"], 4, "d1")


def test_table_has_the_best_first_and_marks_the_front():
    lines = leaderboard.table(
        [
            entry("random", right=1, nfe=9.0),
            entry("saber", right=3, nfe=4.0),
            entry("threshold", right=2, nfe=2.0),
            entry("margin", right=3, nfe=9.0),
        ]
    ).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[0] for row in cells[2:]] == [
        *("`saber`", "`margin`", "`threshold`", "`random`")
    ]
    assert [row[5] for row in cells[2:]] == ["yes", "", "yes", ""]
    assert cells[2][1:5] == ["3 of 4", "75.0%", "30.1% to 95.4%", "4.00"]
    assert cells[2][6] == "abcdef0+"


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
    (first,) = leaderboard.read(path)
    assert first.sampler == "threshold(threshold=0.9)" and first.num == 3
    log = tmp_path / "runs" / "sudoku"
    records = evaluation.read_records(log)
    assert first.nfe == pytest.approx(sum(r["nfe"] for r in records) / 3, abs=1e-4)
    assert out == (tmp_path / "out" / "leaderboard.md").read_text()

    added = "--sampler=threshold(threshold=0.5)"
    assert run_script("leaderboard", *arguments, added)[0] == 0
    entries = leaderboard.read(path)
    assert [e.sampler for e in entries] == [
        *("threshold(threshold=0.5)", first.sampler)
    ]
    assert entries[1] == first
    assert len(evaluation.read_records(log)) == 6
    assert "`threshold(threshold=0.5)`" in (tmp_path / "out/leaderboard.md").read_text()

    # Another model: nothing is evaluated, and nothing written.
    other = nnx.merge(
        *(nnx.split(model)[0], jax.tree.map(lambda w: 2 * w, nnx.split(model)[1]))
    )
    monkeypatch.setattr(zoo, "path", lambda name: tmp_path / "other")
    checkpoints.save_hf(other, tmp_path / "other", files)
    before = path.read_bytes()
    status, _, error = run_script("leaderboard", *arguments, "--sampler=random")
    assert status == 1
    assert error.startswith("error: checkpoint of sudoku (")
    assert len(error.splitlines()) == 1
    assert path.read_bytes() == before
    assert len(evaluation.read_records(log)) == 6
    assert dataclasses.asdict(first)["checkpoint"] != "d1"


def test_an_unknown_task_is_named(run_script):
    status, _, error = run_script("leaderboard", "--task=chess")
    assert status == 1 and "task (chess) must be one of" in error
