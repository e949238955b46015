"""Recorded PyTorch runs match canvas by canvas; a planted difference is found."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm_jax import checkpoints, samplers
from dlm_jax.core.canvas import Prompts
from dlm_jax.core.keys import row_keys
from dlm_jax.core.loop import generate
from dlm_jax.core.options import Options
from dlm_jax.errors import InputError
from dlm_jax.models import as_denoiser
from dlm_jax.parity import margins, replay, traces

DATA = pathlib.Path(__file__).parents[1] / "data"
TRACES = {trace.name: trace for trace in traces.load_directory(DATA / "traces")}
CONFIDENT = "llada_low_confidence_s6_g32_b16__kv2_seed3_p0"
GUIDED = "llada_low_confidence_cfg__kv4_seed0_p0"
THRESHOLD = "fastdllm_threshold_0.9__kv2_seed3_p0"
SIX_STEPS = "low_confidence(schedule=linear(steps=6))"
# With an exact cache: its first forward only writes that.
BLOCKS = "sdar_static_b4_s2_stop__sdar_a_p12_g20"
SABER = "saber_released_n2_b16__kv2_seed3_p0"


@functools.cache
def model(checkpoint: str):
    denoiser, params = as_denoiser(checkpoints.load(DATA / checkpoint))
    return denoiser, params, functools.partial(generate, denoiser, params)


def replayed(trace: traces.Trace, **options) -> replay.Comparison:
    return replay.replay(trace, *model(trace.checkpoint), **options)


def our_run(trace: traces.Trace, spec: str, sample: replay.Sample | None = None):
    """A run of ours on a trace's prompt, and its record."""
    start, length = trace.prompt.shape[1], trace.canvas.shape[1]
    column = np.arange(48)[None]  # the length that replay pads to
    tokens = np.zeros((1, 48), np.int32)
    tokens[:, :start] = trace.prompt
    prompts = Prompts(tokens, (column >= start) & (column < length), column < length)
    options = Options(gen_length=32, block_length=16, has_trajectory=True)
    sample = sample or model(trace.checkpoint)[2]
    sampler = samplers.parse(spec)
    keys = row_keys(0, np.zeros(1, np.int32))
    generation = sample(sampler, prompts, keys, options)
    recorded = traces.record(
        generation,
        prompts,
        sampler,
        options,
        name="ours",
        checkpoint=trace.checkpoint,
        mask_id=299,
    )
    return generation, recorded


@pytest.mark.parametrize("name", TRACES)
def test_recorded_run_matches(name):
    comparison = replayed(TRACES[name])
    assert comparison.is_match, comparison


@pytest.mark.parametrize(("name", "step"), [(CONFIDENT, 3), (BLOCKS, 1)])
def test_other_token_is_a_real_divergence(name, step):
    trace = TRACES[name]
    canvas = trace.canvas.copy()
    i = int(np.flatnonzero(canvas[step] != canvas[step + 1])[0])
    token = int(canvas[step + 1, i])
    canvas[step + 1 :, i] = token + 1
    found = replayed(dataclasses.replace(trace, canvas=canvas)).divergence
    assert (found.step, found.position) == (step, i)
    assert (found.reference_token, found.token) == (token + 1, token)
    assert found.label == "real"
    flax_model = checkpoints.load(DATA / trace.checkpoint)
    logits = flax_model(jnp.asarray(trace.canvas[step : step + 1]))
    probability = np.asarray(jax.nn.softmax(logits[0, i]))
    assert found.gap == pytest.approx(
        probability[token] - probability[token + 1], abs=1e-4
    )


def test_guided_logits_of_a_position():
    """The padded row's logits are those of the row alone, with the released formula."""
    trace = TRACES[GUIDED]
    start, length, i = trace.prompt.shape[1], trace.canvas.shape[1], 9
    rows = np.zeros((2, length + 4), np.int32)
    rows[:, :length] = trace.canvas[5]
    rows[1, :start] = 299
    is_valid = np.arange(length + 4)[None] < length
    denoiser, params, _ = model(trace.checkpoint)
    found = margins.logits_at(
        denoiser, params, rows[:1], rows[1:], is_valid, i, guidance=0.8, block_length=16
    )
    flax_model = checkpoints.load(DATA / trace.checkpoint)
    with_prompt, without = flax_model(jnp.asarray(rows[:, :length]))
    wanted = without[i] + (0.8 + 1) * (with_prompt[i] - without[i])
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_other_order_reports_the_gap_of_the_two_positions():
    trace = TRACES[CONFIDENT]
    generation, _ = our_run(trace, SIX_STEPS)
    log_prob = np.asarray(generation.trajectory.log_prob)[0, 0]
    is_first = trace.canvas[0] != trace.canvas[1]
    log_prob = log_prob[: is_first.size]
    worst = int(np.argmin(np.where(is_first, log_prob, np.inf)))
    # The last of the open block is not the runner-up: far from a tie.
    other = int(np.argmin(np.where(np.isfinite(log_prob), log_prob, np.inf)))
    canvas = trace.canvas.copy()
    canvas[1, [worst, other]] = [299, 7]
    found = replayed(dataclasses.replace(trace, canvas=canvas)).divergence
    assert (found.step, found.position) == (0, min(worst, other))
    assert found.label == "real"
    assert found.gap == pytest.approx(
        np.exp(log_prob[worst]) - np.exp(log_prob[other]), rel=1e-5
    )


@pytest.mark.parametrize(
    ("offset", "label"), [(2e-6, None), (-2e-6, "near-tie"), (-0.03, "real")]
)
def test_threshold_beside_a_confidence(offset, label):
    """The reference just misses a confidence; so do we, or we just or clearly pass."""
    generation, _ = our_run(TRACES[THRESHOLD], "threshold(threshold=0.5)")
    first = np.exp(np.asarray(generation.trajectory.log_prob)[0, 0])
    # Not the best, which is always committed: here the rule's bound decides.
    confidence = float(np.sort(first)[-2])
    _, trace = our_run(TRACES[THRESHOLD], f"threshold(threshold={confidence + 2e-6!r})")
    ours = f"threshold(threshold={confidence + offset!r})"
    trace = dataclasses.replace(trace, params={**trace.params, "spec": ours})
    found = replayed(trace).divergence
    if label is None:
        assert found is None
    else:
        assert (found.step, found.reference_token) == (0, 299)
        assert (found.label, found.gap) == (label, None)


def test_twin_tokens_are_a_near_tie():
    """Two tokens with the same logits: the recorded run may hold either."""
    base = TRACES[CONFIDENT]
    flax_model = checkpoints.load(DATA / base.checkpoint)
    is_first = base.canvas[0] != base.canvas[1]
    token, twin = int(base.canvas[1][is_first][0]), 298
    head = np.array(flax_model.head)
    head[twin] = head[token]
    flax_model.ff_out[...] = jnp.asarray(head)
    denoiser, params = as_denoiser(flax_model)
    sample = functools.partial(generate, denoiser, params)
    _, trace = our_run(base, SIX_STEPS, sample)
    steps, columns = np.nonzero(
        (trace.canvas[1:] == token) & (trace.canvas[:-1] == denoiser.mask_id)
    )
    step, i = int(steps[0]), int(columns[0])
    canvas = trace.canvas.copy()
    canvas[step + 1 :, i] = twin
    trace = dataclasses.replace(trace, canvas=canvas)
    found = replay.replay(trace, denoiser, params, sample).divergence
    assert (found.step, found.position) == (step, i)
    assert (found.reference_token, found.token) == (twin, token)
    assert found.gap < 1e-6
    assert found.label == "near-tie"


def test_final_only_compares_output_and_nfe():
    trace = TRACES[SABER]
    final = dataclasses.replace(
        trace, canvases=traces.FINAL_ONLY, canvas=trace.canvas[-1:]
    )
    assert replayed(final).is_match
    assert not replayed(dataclasses.replace(final, nfe=trace.nfe + 1)).is_match
    changed = final.canvas.copy()
    changed[0, -1] += 1
    found = replayed(dataclasses.replace(final, canvas=changed)).divergence
    assert (found.step, found.position) == (None, changed.shape[1] - 1)
    assert found.label == "unlocated"


def test_sdar_s_static_rule_ignores_a_threshold():
    """Its evaluation program takes the static rule by a threshold of 1."""
    trace = TRACES[BLOCKS]
    params = {**trace.params, "threshold": 1.0}
    assert replayed(dataclasses.replace(trace, params=params)).is_match


def test_an_additional_forward_does_not_match():
    trace = TRACES[SABER]
    canvas = np.concatenate([trace.canvas, trace.canvas[-1:]])
    longer = dataclasses.replace(trace, canvas=canvas, nfe=trace.nfe + 1)
    comparison = replayed(longer)
    assert not comparison.is_match
    assert comparison.divergence.position is None


def test_our_recorded_runs_replay():
    _, trace = our_run(TRACES[CONFIDENT], "saber_released(n=2)")
    assert trace.sampler == "saber_released"
    assert "spec" in trace.params
    assert replayed(trace).is_match


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "wizard"}, "sampler 'wizard' is not available"),
        ({"remasking": "random"}, "remasking='random' is not available"),
        ({"top_p": 0.9}, "top_p=0.9 is not available"),
        ({"temperature": 0.5}, "temperature 0.5: random draws cannot be repeated"),
        ({"mask_id": 5}, r"mask_id \(5\) must be the checkpoint's \(299\)"),
        ({"block_length": 5}, "gen_length"),
        ({"steps": None}, "params: missing: steps"),
    ],
)
def test_what_cannot_be_replayed_is_refused(changes, message):
    trace = TRACES[CONFIDENT]
    name = changes.pop("sampler", trace.sampler)
    params = {**trace.params, **changes}
    params = {key: value for key, value in params.items() if value is not None}
    with pytest.raises(InputError, match=message):
        replayed(dataclasses.replace(trace, sampler=name, params=params))


def test_script_tells_matches_from_what_it_cannot_compare(tmp_path, run_script):
    trace = TRACES[CONFIDENT]
    traces.save(trace, tmp_path / "traces")
    unknown = dataclasses.replace(trace, name="zz", sampler="wizard")
    traces.save(unknown, tmp_path / "traces")
    flags = (f"--traces={tmp_path / 'traces'}", f"--checkpoint_root={DATA}")
    status, output, errors = run_script("compare", *flags)
    assert status == 1, errors
    lines = output.splitlines()
    assert lines[1].split() == [CONFIDENT, "low_confidence", "6", "6", "match"]
    assert "sampler 'wizard' is not available" in lines[2]
    assert lines[3] == "matched 1 of 2"
    # One without a match; test_reference.py has one where all match.
    status, output, errors = run_script("compare", *flags, "--only=wizard")
    assert status == 1, errors
    assert output.splitlines()[-1] == "matched 0 of 1"
    assert CONFIDENT not in output
    # With a sampler that is said to repeat it, and one that does not.
    for spec, status in ((SIX_STEPS, 0), ("left_to_right(schedule=fixed(k=3))", 1)):
        found, output, errors = run_script("compare", *flags, f"--sampler={spec}")
        assert found == status, errors
        lines = output.splitlines()[1:]
        assert [line.split()[0] for line in lines[:-1]] == [CONFIDENT, "zz"]
        assert all(f"  {spec}  " in line for line in lines[:-1])
        assert all(line.endswith("match") != status for line in lines[:-1])
        assert lines[-1] == f"matched {2 - 2 * status} of 2"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--only=lowconfidence"], "--only (lowconfidence) must be among"),
        (["--sampler=lowconfidence"], "sampler (lowconfidence) must be one of"),
        (["--traces=absent"], "absent is not a directory"),
    ],
)
def test_script_answers_bad_input_with_one_line(flags, message, run_script):
    status, output, errors = run_script(
        "compare", f"--traces={DATA / 'traces'}", *flags
    )
    assert (status, output) == (1, "")
    (line,) = errors.splitlines()
    assert line.startswith("error: ") and message in line
