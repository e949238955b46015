"""Points, fronts and areas of a sweep against counts by hand."""

import csv
import zlib

import jax
import numpy as np
import pytest
from flax import nnx

from configs import sweep
from dlm_jax import checkpoints, samplers, tasks
from dlm_jax.evaluation import stats, sweeps
from dlm_jax.evaluation.records import read_records
from dlm_jax.evaluation.run import Summary
from dlm_jax.models.llada import LLaDA
from dlm_jax.tasks import sudoku
from dlm_jax.tasks.base import Verdict

CURVES = {
    "bound": ("entropy_bound(gamma=0.5)", "entropy_bound"),
    "random": ("random", "random(schedule=fixed(k=4))"),
}
RIGHT = {"bound": (6, 9), "random": (8, 5)}
NFE = {"bound": (2.0, 4.0), "random": (16.0, 4.0)}


@pytest.fixture
def made():
    results = [
        Summary(
            sampler=samplers.canonical_spec(spec),
            cache="none",
            is_correct=np.arange(10)[None] < right,
            nfe=np.full((1, 10), nfe),
            num_whole=np.full((1, 10), nfe),
            num_tokens=np.full((1, 10), 12.0),
            seconds=nfe,
            compile_seconds=0.0,
        )
        for name, specs in CURVES.items()
        for spec, right, nfe in zip(specs, RIGHT[name], NFE[name], strict=True)
    ]
    # The order of results does not matter.
    return sweeps.points(CURVES, results[::-1])


def test_points_stand_in_their_curves_with_intervals(made):
    assert list(made) == ["bound", "random"]
    for name, line in made.items():
        assert [point["sampler"] for point in line] == list(CURVES[name])
        assert [point["accuracy"] for point in line] == [n / 10 for n in RIGHT[name]]
        assert [point["nfe"] for point in line] == list(NFE[name])
        # 120 tokens, in NFE seconds.
        assert [point["tpf"] for point in line] == [12 / nfe for nfe in NFE[name]]
        assert [point["tps"] for point in line] == [120 / nfe for nfe in NFE[name]]
        for point, right in zip(line, RIGHT[name], strict=True):
            interval = stats.accuracy_interval(np.arange(10)[None] < right)
            assert (point["accuracy_low"], point["accuracy_high"]) == interval
    # Both others cost as much or more, and are right less often.
    is_pareto = [point["is_pareto"] for line in made.values() for point in line]
    assert is_pareto == [True, True, False, False]
    # By forwards, whatever the order of the points.
    assert sweeps.front({"bound": made["bound"][::-1]}) == made["bound"]
    assert sweeps.front(made) == made["bound"]


def test_areas_are_means_over_the_logarithm_of_the_budget(made):
    # From 1 to 16 are four doublings; before its cheapest point a curve has nothing.
    areas = sweeps.areas(made)
    assert areas == pytest.approx(
        {
            "bound": (0 + 0.6 + 0.9 + 0.9) / 4,
            "random": (0 + 0 + 0.5 + 0.5) / 4,
            "all": (0 + 0.6 + 0.9 + 0.9) / 4,
        }
    )


def test_table_names_the_best_and_the_cheapest_near_it(made):
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in sweeps.table(made).splitlines()
    ]
    assert rows[0][3:6] == ["its NFE", "its TPF", "its TPS"]
    assert rows[2] == ["bound", "0.600", "90.0%", "4.0", "3.00", "30", "4.0", "2 of 2"]
    best = ["80.0%", "16.0", "0.75", "8"]
    assert rows[3] == ["random", "0.250", *best, "16.0", "0 of 2"]
    assert rows[4][:2] == ["all", "0.600"]
    assert "TP" not in sweeps.table(made, has_speeds=False)
    # Runs that differ have no TPS.
    unknown = {"bound": [{**point, "tps": None} for point in made["bound"]]}
    assert sweeps.table(unknown).splitlines()[2].split("|")[6].strip() == "-"
    near = {**made["bound"][0], "accuracy": 0.895}
    table = sweeps.table({"bound": [near, made["bound"][1]]})
    assert table.splitlines()[2].split("|")[7].strip() == "2.0"


def test_csv_has_a_line_for_each_point(made, tmp_path):
    sweeps.write_csv(tmp_path / "sweep.csv", made)
    with (tmp_path / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["curve"], row["sampler"]) for row in rows] == [
        (name, spec) for name, specs in CURVES.items() for spec in specs
    ]
    assert [float(row["nfe"]) for row in rows] == [2.0, 4.0, 16.0, 4.0]
    assert [float(row["tpf"]) for row in rows] == [6.0, 3.0, 0.75, 3.0]
    assert [float(row["tps"]) for row in rows] == [60.0, 30.0, 7.5, 30.0]
    areas = [float(row["area"]) for row in rows]
    assert areas == pytest.approx([0.6, 0.6, 0.25, 0.25])
    assert [float(row["area_of_all"]) for row in rows] == pytest.approx([0.6] * 4)


CONFIG = """
from ml_collections import ConfigDict
def get_config():
    return ConfigDict({
        "curves": {
            "threshold": ("threshold(threshold=0.3)", "threshold(threshold=0.9)"),
            "margin": ("margin",),
        },
        "split": "test", "num_examples": 3, "example_seed": 0, "seed": 0,
        "temperature": 0.0, "batch_size": 2, "queue_length": 4,
    })
"""


class Arbitrary(sudoku.Sudoku):
    """An arbitrary half is right: a random model would solve no puzzle."""

    def verdict(self, example, answer):
        return Verdict(zlib.crc32(answer.encode()) % 2 == 0, "")


def test_script_draws_what_the_records_say(tmp_path, monkeypatch, run_script):
    task = Arbitrary()
    shape = {"d_model": 32, "n_heads": 2, "n_layers": 1, "mlp_hidden_size": 48}
    graph, params = nnx.split(LLaDA(task.model_config(**shape), rngs=nnx.Rngs(0)))
    model = nnx.merge(graph, jax.tree.map(lambda weight: 4 * weight, params))
    files = task.tokenizer().save_pretrained(tmp_path / "tokenizer")
    checkpoints.save_hf(model, tmp_path / "model", files)
    (tmp_path / "config.py").write_text(CONFIG)
    monkeypatch.setattr(tasks, "get", lambda name: task)
    workdir = tmp_path / "runs"
    arguments = [
        f"--config={tmp_path / 'config.py'}",
        f"--checkpoint={tmp_path / 'model'}",
        f"--workdir={workdir}",
    ]
    status, out, error = run_script("sweep", *arguments)
    assert status == 0, error
    records = read_records(workdir)
    assert len(records) == 3 * 3
    with (workdir / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    # A ConfigDict sorts the curves.
    assert [(row["curve"], row["sampler"]) for row in rows] == [
        ("margin", "margin"),
        ("threshold", "threshold(threshold=0.3)"),
        ("threshold", "threshold"),
    ]
    for row in rows:
        spec = samplers.canonical_spec(row["sampler"])
        own = [record for record in records if record["sampler"] == spec]
        assert len(own) == int(row["num_examples"]) == 3
        for column, name in (("accuracy", "is_correct"), ("nfe", "nfe")):
            mean = np.mean([record[name] for record in own])
            assert float(row[column]) == pytest.approx(mean)
        num_tokens = sum(record["num_tokens"] for record in own)
        nfe, seconds = (sum(r[name] for r in own) for name in ("nfe", "seconds"))
        assert float(row["tpf"]) == pytest.approx(num_tokens / nfe)
        assert float(row["tps"]) == pytest.approx(num_tokens / seconds)
    assert (workdir / "sweep.png").read_bytes().startswith(b"\x89PNG")
    table = (workdir / "sweep.md").read_text()
    *lines, empty, line = table.splitlines()[2:]
    names = [line.split("|")[1].strip() for line in lines]
    assert names == ["margin", "threshold", "all"]
    assert (empty, line) == ("", "TPS: 1 x cpu, batch 2, dtype float32, cache none.")
    assert out.startswith(table) and str(workdir / "sweep.csv") in out

    names = ("records.jsonl", "manifest.json", "sweep.csv", "sweep.md")
    before = [(workdir / name).read_bytes() for name in names]
    status, again, _ = run_script("sweep", *arguments)
    assert status == 0 and again == out
    assert [(workdir / name).read_bytes() for name in names] == before

    status, _, error = run_script("sweep", *arguments, "--block_length=32")
    assert status == 1
    assert error.startswith("error: block_length (32) must be None, as in the evalua")


def test_config_has_every_sampler_and_none_twice():
    curves = sweep.get_config().curves
    rules = samplers.parse_all(spec for line in curves.values() for spec in line)
    assert {type(rule) for rule in rules.values()} == set(samplers.SAMPLERS.values())
    assert {rule.mu for rule in rules.values() if hasattr(rule, "mu")} > {8.0}
