"""The one command for a GPU: its parts on a small model, its budget and its table."""

import json
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DATA

from dlm_jax.core.keys import row_keys
from dlm_jax.core.predict import predict
from dlm_jax.parity import traces
from experiments.timing import aims, ceilings, heads, parts, steps, torch_loops

_DOCS = DATA.parents[1] / "docs/results/speed.md"


@pytest.fixture
def quick(monkeypatch):
    """Nothing here depends on how long anything takes."""
    for module in (steps, ceilings):
        monkeypatch.setattr(module, "_SECONDS", 0.001)
    monkeypatch.setattr(ceilings, "_COPY_SECONDS", 0.0)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def table(out):
    """What, aim, measured and met of every line."""
    lines = [x for x in out.splitlines() if x.startswith("| ")][1:]
    return [[cell.strip() for cell in x.strip("|").split("|")] for x in lines]


@pytest.mark.usefixtures("quick")
def test_two_parts_on_a_small_model(run_script, tmp_path):
    status, out, err = run_script(
        "on_gpu",
        "--preset=tiny",
        "--only=windows_1,predict",
        "--num_pairs=1",
        f"--output={tmp_path}",
    )
    assert status == 0, err
    (window,), (predicted,) = (
        read(tmp_path / f"{name}.jsonl") for name in ("windows_1", "predict")
    )
    for record in (window, predicted):
        assert record["device"] == jax.local_devices()[0].device_kind
        assert record["preset"] == "tiny" and record["jax"] == jax.__version__
        assert {"driver", "torch", "commit"} <= record.keys()
    read_ms = window["weights_ms"]
    assert window["window_per_weights"] == pytest.approx(window["window_ms"] / read_ms)
    (setup,) = read(tmp_path / "setup.jsonl")
    assert setup["total_seconds"] > setup["loading_seconds"] > 0
    if setup["handing_seconds"] is not None:
        assert setup["seconds"] == setup["total_seconds"]
    lines = {what: (measured, met) for what, _, measured, met in table(out)}
    measured = f"{predicted['predict_per_plain']:.2f}"
    assert lines["predict / one plain einsum"][0] == measured
    assert lines["recorded float32 runs that match, kv2"] == ("not measured", "-")
    assert "not for this" in out


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_all_parts_on_a_small_model(run_script, monkeypatch, tmp_path):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    # A busy machine is as good.
    unlimited = {x: part._replace(minutes=1000) for x, part in parts.PARTS.items()}
    monkeypatch.setattr(parts, "PARTS", unlimited)
    status, out, err = run_script(
        "on_gpu",
        "--preset=tiny",
        "--num_pairs=1",
        "--minutes=10000",
        f"--output={tmp_path}",
    )
    assert status == 0, (out, err)
    assert "failed" not in out
    assert all(measured != "not measured" for _, _, measured, _ in table(out))
    for batch in (1, 8, 32):
        found = read(tmp_path / f"generations_{batch}.jsonl")
        kinds = [(x["cache"], x.get("reference")) for x in found]
        eager = ("dual", torch_loops.EAGER)
        assert kinds == [("none", None), ("dual", None), eager]
        # Three tokens a step of blocks of eight, two blocks.
        assert {x["nfe"] for x in found} == {6}
        assert {x["batch_size"] for x in found} == {batch}
    replayed = []
    for group in parts.TRACED:
        first, *rest = read(tmp_path / f"traces_{group}.jsonl")
        assert first["num"] == first["num_matches"] == len(rest) > 0
        replayed += [record["trace"] for record in rest]
    recorded = traces.load_directory(DATA / "traces")
    assert sorted(replayed) == sorted(x.name for x in recorded)
    found = read(tmp_path / "refreshed_32.jsonl")
    assert [x["num_refreshed"] for x in found] == [1, 2, 4, 8]


@pytest.fixture
def stubs(monkeypatch):
    """Parts that take no time, and those that were run."""
    seen = []

    def part(name, minutes=1.0):
        def run(bench):
            seen.append(name)
            assert bench == "bench"
            return [{"share": 1.0, "step_ms": 3.0, "window_ms": 30.0}]

        return parts.Part(minutes, run)

    monkeypatch.setattr(parts, "PARTS", {x: part(x) for x in ("steps_1", "traces_kv2")})
    ready = "bench", {"handing_seconds": 1.0}
    monkeypatch.setattr(parts, "setup", lambda *_: ready)
    return seen, part


def run_at(run_script, output, *flags):
    return run_script("on_gpu", "--preset=tiny", f"--output={output}", *flags)


def test_a_part_that_fails_leaves_the_others(run_script, stubs, monkeypatch, tmp_path):
    seen, part = stubs

    def fails(bench):
        raise ValueError("no\nmemory")

    monkeypatch.setitem(parts.PARTS, "steps_1", parts.Part(1, fails))
    status, out, err = run_at(run_script, tmp_path)
    assert (status, err) == (1, "")
    assert "steps_1 failed: ValueError: no memory\n" in out
    assert "Not measured: steps_1." in out
    assert [
        "recorded float32 runs that match, kv2",
        "at least 100%",
        "100%",
        "yes",
    ] in (table(out))
    # The same command does what is missing, and nothing again.
    monkeypatch.setitem(parts.PARTS, "steps_1", part("steps_1"))
    status, out, err = run_at(run_script, tmp_path)
    assert (status, err) == (0, "")
    assert seen == ["traces_kv2", "steps_1"]
    assert ["step of full forwards, ms, batch 1", "at most 15", "3.00", "yes"] in (
        table(out)
    )
    status, again, _ = run_at(run_script, tmp_path, "--report_only")
    assert status == 0 and table(again) == table(out)
    assert len(seen) == 2


def test_what_needs_no_model_makes_none(run_script, stubs, monkeypatch, tmp_path):
    seen = []

    def run(bench):
        seen.append(bench)
        return [{"share": 1.0}]

    monkeypatch.setitem(
        parts.PARTS, "traces_kv2", parts.Part(1, run, needs_model=False)
    )
    monkeypatch.setattr(parts, "setup", None)
    status, out, err = run_at(run_script, tmp_path, "--only=traces_kv2")
    assert (status, err) == (0, "")
    assert seen == [None] and "setup:" not in out


def test_a_part_has_a_limit(run_script, stubs, monkeypatch, tmp_path):
    seen, part = stubs

    def slow(bench):
        time.sleep(60)

    monkeypatch.setitem(parts.PARTS, "steps_1", parts.Part(0.001, slow))
    monkeypatch.setitem(parts.PARTS, "predict", part("predict", minutes=50.0))
    status, out, _ = run_at(run_script, tmp_path, "--minutes=5")
    assert status == 1 and seen == ["traces_kv2"]
    assert "steps_1 failed: more than 0.001 min\n" in out
    assert "predict: not begun, for it may take 50 min of " in out


def test_records_of_another_shape_are_refused(run_script, stubs, tmp_path):
    seen, _ = stubs
    assert run_at(run_script, tmp_path, "--only=traces_kv2")[0] == 0
    status, out, err = run_at(run_script, tmp_path, "--dtype=float32")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "dtype (float32) must be bfloat16, as in" in err
    assert seen == ["traces_kv2"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--only=steps_2", "only (steps_2) must be among steps_1, traces_kv2"),
        ("--report_only", "holds no records"),
    ],
)
@pytest.mark.usefixtures("stubs")
def test_what_cannot_be_done_is_one_line(flags, message, run_script, tmp_path):
    status, out, err = run_at(run_script, tmp_path / "none", flags)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert message in err


@pytest.mark.usefixtures("stubs")
def test_a_damaged_record_is_one_line(run_script, tmp_path):
    (tmp_path / "traces_kv2.jsonl").write_text("{")
    status, _, err = run_at(run_script, tmp_path)
    assert (status, err.count("\n")) == (1, 1)
    assert "traces_kv2.jsonl is damaged, remove it" in err


def test_an_aim_is_met_from_its_side():
    eager, compiled = torch_loops.EAGER, torch_loops.COMPILED
    records = {
        "steps_1": [
            {"reference": eager, "ratio": 1.44, "step_ms": 15.0, "of_peak": 0.7},
        ],
        "compiled_1": [{"reference": compiled, "ratio": 0.5}],
        "generations_8": [
            {"cache": "none", "gain": 1.0},
            {"cache": "dual", "gain": 4.5},
            {"cache": "dual", "reference": eager, "gain": 1.0, "ratio": 1.2},
        ],
    }
    lines = {x[0]: x[1:] for x in table(aims.table(records))}
    assert lines["steps/s beside eager PyTorch, batch 1"] == [
        "at least 1.45",
        "1.44",
        "no",
    ]
    assert lines["step of full forwards, ms, batch 1"][2] == "yes"
    assert lines["share of the matmul peak, batch 1"] == [
        "at least 70%",
        "70.0%",
        "yes",
    ]
    assert lines["steps/s beside torch.compile, batch 1"] == ["-", "0.50", "-"]
    assert lines["dual against none, batch 8"] == ["at least 4", "4.50", "yes"]
    assert lines["dual beside eager PyTorch's dual, batch 8"] == ["-", "1.20", "-"]
    assert lines["dual against none, batch 32"] == ["at least 4", "not measured", "-"]


def test_every_aim_is_of_a_part():
    assert {aim.part for aim in aims.AIMS} == {"setup", *parts.PARTS}


def test_the_plain_einsum_gives_what_predict_gives():
    keys = jax.random.split(jax.random.key(0), 2)
    hidden, head = (
        jax.random.normal(key, shape)
        for key, shape in zip(keys, [(2, 3, 16), (40, 16)], strict=True)
    )
    # The mask would be the best token of every position.
    head = head.at[7].set(0).at[7, 0].set(100)
    hidden = hidden.at[..., 0].set(1)
    token, log_prob = heads.plain(hidden, head, 7)
    positions = jnp.zeros((2, 3), jnp.int32)
    expected = predict(
        hidden[None],
        head,
        positions,
        (),
        mask_id=7,
        keys=row_keys(0, np.arange(2)),
        positions=positions,
    )
    assert (token != 7).all()
    np.testing.assert_array_equal(token, expected.token)
    np.testing.assert_allclose(log_prob, expected.log_prob, rtol=1e-5)


def test_the_documentation_has_the_command_and_its_parts():
    page = _DOCS.read_text()
    section = page.split("## On a GPU: one command, not yet run")[1].split("\n## ")[0]
    assert re.findall(r"^    (python .*)$", section, re.M) == [
        "python -m experiments.on_gpu"
    ]
    cells = re.findall(r"^\| (`.*?`) \|", section, re.M)
    named = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert named == {"setup"} | {re.sub(r"_\d+$", "_N", x) for x in parts.PARTS}
