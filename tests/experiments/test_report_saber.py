"""The report on Saber: what is watched, compared and said of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import TableDenoiser

from dlm_jax import checkpoints, samplers
from dlm_jax.core.keys import row_keys
from dlm_jax.core.loop import generate
from dlm_jax.core.options import Options
from dlm_jax.errors import InputError
from dlm_jax.evaluation import run as evaluation
from dlm_jax.evaluation.records import read_records
from dlm_jax.models import as_denoiser
from dlm_jax.models.llada import LLaDA
from dlm_jax.samplers.low_confidence import LowConfidence
from dlm_jax.tasks import sudoku
from dlm_jax.text.prompts import Encoded, pad
from experiments.studies.saber import analysis, cases, claims, measure

TASK = sudoku.Sudoku()
SHAPE = {"d_model": 32, "n_heads": 2, "n_layers": 1, "mlp_hidden_size": 48}
NAN = np.nan


def small_model():
    graph, params = nnx.split(LLaDA(TASK.model_config(**SHAPE), rngs=nnx.Rngs(0)))
    return nnx.merge(graph, jax.tree.map(lambda weight: 4 * weight, params))


def infills(blanks, mask_id, length=6):
    """Rows of `length` tokens with masks at some places."""
    rows = []
    for places in blanks:
        is_blank = np.isin(np.arange(length), places)
        tokens = np.where(is_blank, mask_id, 1).astype(np.int32)
        rows.append(Encoded(tokens, is_blank, is_infill=True))
    return rows


def test_where_nothing_depends_on_context_no_confidence_changes():
    table = np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32)
    rows = infills([[1, 2, 4], [0, 5]], mask_id=4)
    watched = analysis.watch(
        TableDenoiser(mask_id=4),
        jnp.asarray(table),
        LowConfidence(),
        rows,
        Options(gen_length=4),
        batch_size=2,
    )
    p = np.exp(table) / np.exp(table).sum(axis=1, keepdims=True)
    best = p[:, :4].max(axis=1)
    for i, places in enumerate([[1, 2, 4], [0, 5]]):
        n = len(places)
        assert watched.num_steps[i] == n
        seen = watched.confidence[i, : n + 1, :n]
        np.testing.assert_allclose(seen, np.tile(best[places], (n + 1, 1)), rtol=1e-5)
        assert np.isnan(watched.confidence[i, :, n:]).all()
        assert np.isnan(watched.confidence[i, n + 1 :]).all()
        # One token a step, the most confident first.
        order = np.argsort(-best[places])
        assert watched.commit_step[i][:n][order].tolist() == list(range(n))
        assert watched.is_mask[i].sum(axis=1)[: n + 1].tolist() == [*range(n, -1, -1)]
    drift = analysis.drift(watched, min_tokens=1)
    assert [point["num"] for point in drift] == [5, 3, 1]
    np.testing.assert_allclose([point["mean"] for point in drift], 0, atol=1e-6)
    assert all(point["fell"] == 0 for point in drift)


def test_confidences_are_those_of_the_loop_and_of_the_bare_model():
    model = small_model()
    denoiser, params = as_denoiser(model)
    rows = infills([[1, 2, 4, 7, 8], [0, 3, 9]], model.config.mask_token_id, length=10)
    options = Options(gen_length=5)
    watched = analysis.watch(
        denoiser, params, LowConfidence(), rows, options, batch_size=3
    )
    done = generate(
        denoiser,
        params,
        LowConfidence(),
        pad(rows, 16),
        row_keys(0, np.arange(2)),
        options.replace(has_trajectory=True),
    )
    canvas = np.asarray(done.trajectory.canvas)
    num_compared = 0
    for i, row in enumerate(rows):
        (places,) = np.nonzero(row.is_blank)
        for step in range(len(places) + 1):
            tokens = canvas[i, step, :10]
            hidden, _ = model.hidden(
                jnp.asarray(tokens)[None],
                jnp.arange(10)[None],
                jnp.ones((1, 1, 10), bool),
                jnp.arange(10)[None],
            )
            p = np.asarray(jax.nn.softmax(hidden[0] @ model.head.T, axis=-1))
            is_mask = tokens == model.config.mask_token_id
            p_best = np.delete(p, model.config.mask_token_id, axis=1).max(axis=1)
            p_held = p[np.arange(10), tokens]
            expected = np.where(is_mask, p_best, p_held)[places]
            seen = watched.confidence[i, step, : len(places)]
            np.testing.assert_allclose(seen, expected, rtol=1e-4, atol=1e-6)
            if step < len(places):
                log_prob = np.asarray(done.trajectory.log_prob)[i, step, places]
                own = is_mask[places]
                np.testing.assert_allclose(
                    seen[own], np.exp(log_prob[own]), rtol=1e-4, atol=1e-6
                )
                num_compared += own.sum()
    assert num_compared == 5 + 4 + 3 + 2 + 1 + 3 + 2 + 1
    assert analysis.drift(watched, min_tokens=1)[0]["mean"] != 0


def test_guidance_is_refused():
    with pytest.raises(InputError, match=r"guidance \(1.0\) must be 0"):
        analysis.watch(
            TableDenoiser(mask_id=4),
            jnp.zeros((16, 5)),
            LowConfidence(),
            infills([[1]], 4),
            Options(gen_length=1, guidance=1.0),
        )


@pytest.fixture
def watched():
    """Two rows; the second has one blank, which is decided in its only step."""
    confidence = np.full((2, 4, 3), NAN)
    confidence[0] = [[0.2, 0.4, 0.6], [0.3, 0.5, 0.7], [0.5, 0.8, 0.5], [0.9, 0.7, 0.9]]
    confidence[1, :2, 0] = [0.9, 1.0]
    is_mask = np.zeros((2, 4, 3), bool)
    is_mask[0] = [[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]]
    is_mask[1, 0, 0] = True
    return analysis.Watched(
        confidence=confidence,
        is_mask=is_mask,
        commit_step=np.array([[2, 1, 0], [0, -1, -1]]),
        num_steps=np.array([3, 1]),
    )


def test_rise_takes_means_over_undecided_blanks_then_over_rows(watched):
    points = analysis.rise(watched, num_bins=3)
    assert [point["num"] for point in points] == [2, 1, 1]
    # At the start: row 0 has 0.2, 0.4, 0.6, row 1 has 0.9.
    np.testing.assert_allclose([p["mean"] for p in points], [0.65, 0.4, 0.5])
    np.testing.assert_allclose([p["best"] for p in points], [0.75, 0.5, 0.5])
    assert points[0]["mean_low"] == pytest.approx(0.4)
    assert points[0]["mean_high"] == pytest.approx(0.9)


def test_drift_and_falls_count_from_the_commit(watched):
    points = analysis.drift(watched, min_tokens=1)
    # After one step: 0.7 - 0.6, 0.8 - 0.5, 0.9 - 0.5 and 1.0 - 0.9.
    np.testing.assert_allclose(points[0]["mean"], (0.1 + 0.3 + 0.4 + 0.1) / 4)
    # After two: 0.5 - 0.6 and 0.7 - 0.5; after three: 0.9 - 0.6.
    np.testing.assert_allclose(points[1]["mean"], 0.05)
    assert [p["fell"] for p in points] == [0, 0.5, 0]
    assert [p["num"] for p in points] == [4, 2, 1]
    # None fell, or there is one generation: a resample changes nothing.
    assert all((p["fell_low"], p["fell_high"]) == (p["fell"],) * 2 for p in points)
    assert analysis.drift(watched, min_tokens=2) == points[:2]
    everything = np.array([True, True])
    falls = analysis.falls(watched, everything, (0.0, 0.05, 0.2))
    assert falls == {"num": 4, "ever": [0.25, 0.25, 0], "at_end": [0, 0, 0]}
    one = analysis.falls(watched, np.array([False, True]), (0.0,))
    assert one == {"num": 1, "ever": [0], "at_end": [0]}
    none = analysis.falls(watched, ~everything, (0.0,))
    assert none["num"] == 0


def test_slope_is_of_each_generation_over_what_is_decided(watched):
    slope, (low, high) = analysis.slope(watched)
    # Row 0: means 0.4, 0.4, 0.5 at 0, 1/3, 2/3 decided; row 1 has one forward only.
    assert slope == pytest.approx(0.15)
    assert low == high == pytest.approx(slope)


def test_growth_is_of_blanks_and_not_of_which_are_left(watched):
    growth, interval = analysis.growth(watched)
    # 0.2 to 0.3, 0.4 to 0.5, 0.3 to 0.5; row 1 has no blank that outlives a step.
    assert growth == pytest.approx((0.1 + 0.1 + 0.2) / 3)
    assert interval == pytest.approx((growth, growth))
    # The surest goes first: what is left has a lower mean, though each blank grew.
    confidence = np.array([[[0.9, 0.1], [0.99, 0.2], [1.0, 0.3]]])
    is_mask = np.array([[[1, 1], [0, 1], [0, 0]]], bool)
    surest = analysis.Watched(confidence, is_mask, np.array([[0, 1]]), np.array([2]))
    assert analysis.slope(surest)[0] < 0
    assert analysis.growth(surest)[0] == pytest.approx(0.1)


def test_gap_is_of_shares_in_wrong_and_right_generations(watched):
    # Row 0: one of three tokens fell by 0.1; row 1: none of one.
    gap, interval = analysis.gap(watched, np.array([False, True]), 0.05)
    assert gap == pytest.approx(1 / 3) and interval == pytest.approx((1 / 3, 1 / 3))
    gap, _ = analysis.gap(watched, np.array([True, False]), 0.05)
    assert gap == pytest.approx(-1 / 3)
    assert analysis.gap(watched, np.array([True, True]), 0.05) is None


def records_of(spec, right, nfe, seconds, size):
    return [
        {
            "sampler": samplers.canonical_spec(spec),
            "seed": 0,
            "index": i,
            "name": f"test/{i}",
            "is_correct": is_right,
            "reason": "",
            "nfe": nfe,
            "num_tokens": 10,
            "text": "",
            "seconds": seconds[i // size],
            "compile_seconds": 0.5,
            "place": [i % size, size],
            "run": 0,
        }
        for i, is_right in enumerate(right)
    ]


def test_compared_by_example_and_by_call():
    a, b, c = "low_confidence", "saber", "saber(backtracking=False)"
    records = [
        *records_of(a, [1, 1, 0, 0], 8, [0.4, 0.2], size=2),
        *records_of(b, [1, 0, 1, 1], 4, [0.1, 0.1], size=2),
        # Two samplers to a call, as in a mixed lane: their time is not known.
        *(r | {"place": [0, 8]} for r in records_of(c, [1, 1, 1, 1], 2, [0.1], 4)),
    ]
    results = {s.sampler: s for s in evaluation.summaries(records)}
    own, other, mixed = measure.compare(records, results, [a, b, c], a)
    assert own.against is None and own.spec == a and own.speed_up == (1, 1, 1)
    assert (own.num_calls, other.num_calls, mixed.num_calls) == (2, 2, 0)
    assert (other.against.num_first_only, other.against.num_second_only) == (2, 1)
    assert other.against.difference == pytest.approx(0.25)
    assert other.nfe_gain == 2 and other.nfe_interval == (2, 2)
    assert other.speed_up == pytest.approx((3, 2, 4))
    assert np.isnan(mixed.speed_up).all() and mixed.nfe_gain == 4
    # A call of two runs is not timed, and the other says it all.
    records[4]["run"] = 1
    _, other = measure.compare(records, results, [a, b], a)
    assert (other.num_calls, other.speed_up) == (1, pytest.approx((2, 2, 2)))
    # Nor are calls of different runs compared: batch sizes may differ.
    for record in records[4:8]:
        record["run"] = 1
    _, other = measure.compare(records, results, [a, b], a)
    assert other.num_calls == 0 and np.isnan(other.speed_up).all()
    assert measure.find([own, other], "saber(mu=8, n=2)") is other
    assert measure.find([own, other], "margin") is None
    fixed, broken = cases.only_one_correct(records, b, a)
    assert [p[0]["index"] for p in fixed] == [2, 3]
    assert [p[1]["index"] for p in broken] == [1]
    gain, (low, high) = measure.over_others(results, b, [a, c])
    assert gain == pytest.approx(0) and low < 0 < high


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.01, 0.03, "reproduced"),
        (0.05, 0.08, "reproduced"),
        (0.005, 0.01, "reproduced in direction, smaller than published"),
        (-0.01, 0.03, "unclear at this scale"),
        (-0.03, 0.01, "not reproduced"),
        (-0.05, -0.01, "not reproduced"),
        (0.0, 0.0, "not reproduced"),
    ],
)
def test_verdict_follows_from_the_interval(low, high, expected):
    assert claims.verdict(low, high, 0, 0.019) == expected
    # The same of a ratio, where nothing is 1.
    assert claims.verdict(1 + low, 1 + high, 1, 1.019) == expected


@pytest.mark.parametrize(
    ("controls", "expected"),
    [
        ([], "reproduced in direction, smaller than published"),
        ([0.9, 1.05], "reproduced in direction, smaller than published"),
        ([1.3], "not reproduced"),
    ],
)
def test_a_speed_up_must_exceed_that_of_equal_forwards(controls, expected):
    records = records_of("saber", [True] * 4, 10, [1.0], 4)
    (summary,) = evaluation.summaries(records)
    (main,) = measure.compare(records, {summary.sampler: summary}, ["saber"], "saber")
    main = dataclasses.replace(
        main, speed_up=(1.3, 1.1, 1.5), num_calls=4, nfe_gain=1.4
    )
    said = claims._speed_claim(main, controls)
    assert f"**{expected}**" in said
    assert ("told from noise" in said) == (max(controls, default=0) > 1)


@pytest.mark.parametrize(
    ("p_value", "expected"), [(0.01, "**reproduced**"), (0.5, "**unclear")]
)
def test_an_interval_that_the_exact_test_does_not_confirm_is_no_claim(
    p_value, expected
):
    measured = 0.1, (0.01, 0.2)
    said = claims._accuracy_claim("Accuracy", 0.02, measured, p_value, 0.5)
    assert expected in said and "+10.0 (+1.0 to +20.0)" in said


CONFIG = """
from ml_collections import ConfigDict
def get_config():
    return ConfigDict({
        "tasks": ("sudoku",),
        "samplers": ("low_confidence", "margin", "saber"),
        "others": ("low_confidence", "margin"),
        "ablations": ("saber(backtracking=False)",),
        "sweep": ("saber(n=2)", "saber(n=4)"),
        "num_examples": 9, "num_watched": 2, "num_cases": 1,
        "quick": {"num_examples": 4},
        "split": "valid", "example_seed": 0, "seed": 0, "temperature": 0.0,
        "batch_size": 2, "queue_length": 4,
    })
"""


def test_script_writes_the_report_and_goes_on_where_it_was(tmp_path, run_script):
    model = small_model()
    files = TASK.tokenizer().save_pretrained(tmp_path / "tokenizer")
    checkpoints.save_hf(model, tmp_path / "models" / "sudoku", files)
    (tmp_path / "config.py").write_text(CONFIG)
    arguments = [
        f"--config={tmp_path / 'config.py'}",
        f"--checkpoints={tmp_path / 'models'}",
        f"--workdir={tmp_path / 'runs'}",
        f"--output={tmp_path / 'reports' / 'saber.md'}",
        "--quick",
    ]
    status, _, error = run_script("report_saber", *arguments)
    assert status == 0, error
    report = (tmp_path / "reports" / "saber.md").read_text()
    log = tmp_path / "runs" / "sudoku" / "records.jsonl"
    records = read_records(log.parent)
    assert len(records) == 5 * 4
    for name in ("saber_confidence.png", "saber_drift.png"):
        assert name in report
        image = (tmp_path / "reports" / name).read_bytes()
        assert image.startswith(b"\x89PNG") and len(image) > 10_000
    # A random model solves nothing, with or without Saber.
    assert "0 of 4" in report
    claim = next(x for x in report.splitlines() if x.startswith("- Accuracy over `low"))
    assert "measured +0.0 (-49.0 to +49.0)" in claim and "**unclear" in claim
    # One call has no range, from which nothing can be said.
    assert "in a single call: **unclear**" in report
    assert "the mean of `low_confidence`, `margin`: published" in report
    assert "Rules with exactly the forwards of the first" in report
    mean = np.mean([r["nfe"] for r in records if r["sampler"].startswith("low_")])
    assert f"| {mean:.2f} |" in report
    size = log.stat().st_size
    assert run_script("report_saber", *arguments)[0] == 0
    assert log.stat().st_size == size
    again = (tmp_path / "reports" / "saber.md").read_text()
    assert again == report


@pytest.mark.parametrize(
    ("own", "num"),
    [
        (["--quick"], 4),
        # What the command line says stands, quick or not.
        pytest.param(["--quick", "--config.num_examples=3"], 3, marks=pytest.mark.slow),
        pytest.param([], 9, marks=pytest.mark.slow),
    ],
)
def test_a_quick_report_leaves_the_whole_one_alone(
    tmp_path, run_script, monkeypatch, own, num
):
    monkeypatch.chdir(tmp_path)
    study = tmp_path / "experiments/studies/saber"
    study.mkdir(parents=True)
    (study / "saber.md").write_text("The whole report.")
    model = small_model()
    files = TASK.tokenizer().save_pretrained(tmp_path / "tokenizer")
    checkpoints.save_hf(model, tmp_path / "models" / "sudoku", files)
    (tmp_path / "config.py").write_text(CONFIG)
    arguments = ["--config=config.py", "--checkpoints=models", "--config.num_watched=1"]
    assert run_script("report_saber", *arguments, *own)[0] == 0
    whole = (study / "saber.md").read_text()
    if "--quick" in own:
        assert whole == "The whole report."
        quick = (study / "saber_quick.md").read_text()
        assert f"{num} examples" in quick and "saber_quick_drift.png" in quick
    else:
        assert f"{num} examples" in whole and "range of 3 calls" in whole
        assert not (study / "saber_quick.md").exists()


def test_script_names_a_missing_model(tmp_path, run_script):
    status, _, error = run_script(
        "report_saber", "--tasks=sudoku", f"--checkpoints={tmp_path}"
    )
    assert status == 1
    assert len(error.strip().splitlines()) == 1 and "sudoku" in error
