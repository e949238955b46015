"""The contract that every sampler passes, minus what it declares it may do.

One row of `helpers.TABLE` puts a new sampler through all of it. The model is a small
LLaDA with random weights, in float64: there, summation order cannot decide which token
is best. What a sampler decides is also checked on two models that are nearly certain,
as trained ones are: the same with logits near 30, and the shipped Sudoku model.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    ALL_SPECS,
    DATA,
    TABLE,
    equations,
    infilling_of,
    prompts_of,
    stack,
    take_rows,
)

from dlm_jax import checkpoints, models, samplers, zoo
from dlm_jax.core import loop
from dlm_jax.core.checks import prepare
from dlm_jax.core.keys import row_keys
from dlm_jax.core.options import Options
from dlm_jax.core.row import start as start_row
from dlm_jax.core.slots import Job
from dlm_jax.samplers import schedules
from dlm_jax.tasks import sudoku
from dlm_jax.tasks.base import load
from dlm_jax.text.prompts import pad

GEN_LENGTH, BLOCK_LENGTH, WIDTH = 12, 4, 26
OPTIONS = Options(gen_length=GEN_LENGTH, block_length=BLOCK_LENGTH, has_trajectory=True)
every_sampler = pytest.mark.parametrize("spec", TABLE)


@pytest.fixture(scope="module", autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def model(float64):
    model = checkpoints.load(DATA / "checkpoints" / "tiny_kv2_seed3", "float64")
    return models.as_denoiser(model)


@pytest.fixture(scope="module")
def certain(model):
    """The same model with a head so large that its best logits are near 30."""
    denoiser, params = model
    params = jax.tree.map(lambda x: x, params)
    params["ff_out"].set_value(12 * params["ff_out"].get_value())
    return denoiser, params


def batch_of_seven(width=WIDTH):
    """Prompts of mixed lengths, an infilling, and a row with nothing to do."""
    prompts = prompts_of([1, 14, 6, 9], GEN_LENGTH, width=width)
    few = prompts_of([5], 7, width=width)
    nothing = prompts_of([8], 0, width=width)
    return stack([prompts, infilling_of(11, 17, width=width), few, nothing])


@functools.cache
def generated(denoiser, spec, temperature=0.0):
    """The batch of seven, generated once for all tests of a sampler."""
    options = dataclasses.replace(OPTIONS, temperature=temperature)
    prompts = batch_of_seven()
    keys = row_keys(7, np.arange(7))
    result = loop.generate(
        denoiser, _PARAMS[denoiser], samplers.parse(spec), prompts, keys, options
    )
    return prompts, jax.device_get(result)


_PARAMS = {}


@pytest.fixture
def run(model):
    denoiser, params = model
    _PARAMS[denoiser] = params
    return functools.partial(generated, denoiser)


def test_table_names_every_sampler():
    assert {re.match(r"\w+", spec)[0] for spec in TABLE} == set(samplers.SAMPLERS)


@every_sampler
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_fills_blanks_and_touches_nothing_else(run, model, spec, temperature):
    prompts, result = run(spec, temperature)
    sampler = samplers.parse(spec)
    num_blanks = prompts.is_blank.sum(axis=1)
    assert result.is_complete.all()
    assert not result.has_nan.any()
    assert (result.num_steps <= sampler.max_steps(GEN_LENGTH)).all()
    assert (result.num_steps[:6] > 0).all()
    assert result.num_steps[6] == num_blanks[6] == 0
    blank, tokens = prompts.is_blank, result.tokens
    assert (tokens[~blank] == prompts.tokens[~blank]).all()
    assert (tokens[blank] != model[0].mask_id).all()
    assert ((result.commit_step >= 0) == blank).all()
    assert (result.commit_step < result.num_steps[:, None]).all()
    assert ((result.confidence > 0) == blank).all()
    assert (result.confidence <= 1 + 1e-12).all()


@every_sampler
def test_decisions_keep_to_what_the_sampler_declares(run, model, spec):
    prompts, result = run(spec)
    sampler = samplers.parse(spec)
    mask_id = model[0].mask_id
    trajectory = result.trajectory
    for row in range(6):
        rank = np.where(
            prompts.is_blank[row], prompts.is_blank[row].cumsum() - 1, GEN_LENGTH
        )
        block_end = BLOCK_LENGTH
        is_mask = prompts.is_blank[row].copy()
        last_tokens = np.where(is_mask, mask_id, prompts.tokens[row])
        last_commit = np.full(WIDTH, -1)
        for step in range(result.num_steps[row]):
            canvas = trajectory.canvas[row, step]
            commit, remask = trajectory.commit[row, step], trajectory.remask[row, step]
            assert (canvas == last_tokens).all()
            assert ((canvas == mask_id) == is_mask)[prompts.is_blank[row]].all()
            is_open = rank < block_end
            assert (is_mask & is_open).any()
            assert not (commit & ~is_open).any()
            assert not (remask & ~is_open).any()
            assert sampler.may_rewrite or not (commit & ~is_mask).any()
            assert sampler.may_remask or not remask.any()
            assert sampler.may_remask_fresh or not (commit & remask).any()
            last_commit[commit] = step
            last_commit[remask] = -1
            is_mask = (is_mask & ~commit) | remask
            last_tokens = trajectory.canvas[row, step + 1]
            changed = last_tokens != canvas
            assert not (changed & ~(commit | remask)).any()
            if not (is_mask & is_open).any():
                block_end += BLOCK_LENGTH
        assert not is_mask.any()
        assert (last_tokens == result.tokens[row]).all()
        assert (last_commit == result.commit_step[row]).all()
        assert (trajectory.canvas[row, result.num_steps[row] :] == last_tokens).all()


@every_sampler
@pytest.mark.parametrize(("row", "width"), [(4, 17), (2, 40)])
def test_row_is_the_same_alone_and_at_any_padding(run, model, spec, row, width):
    _, result = run(spec, 0.8)
    denoiser, params = model
    length = 17 if row == 4 else 6 + GEN_LENGTH
    alone = take_rows(batch_of_seven(max(width, WIDTH)), [row])
    alone = jax.tree.map(lambda x: x[:, :width], alone)
    single = loop.generate(
        denoiser,
        params,
        samplers.parse(spec),
        alone,
        row_keys(7, np.array([row])),
        dataclasses.replace(OPTIONS, temperature=0.8),
    )
    assert single.num_steps[0] == result.num_steps[row]
    for name in ("tokens", "commit_step"):
        ours, batched = getattr(single, name)[0], getattr(result, name)[row]
        np.testing.assert_array_equal(ours[:length], batched[:length])
    np.testing.assert_allclose(
        single.confidence[0][:length], result.confidence[row][:length], rtol=1e-9
    )


@pytest.mark.parametrize(
    "spec", ["entropy_bound(gamma=1.0)", "saber", "saber_released"]
)
def test_row_with_guidance_and_stops_is_the_same_alone(model, spec):
    denoiser, params = model
    # Half of the vocabulary stops a row, so that several of the rows do stop early.
    options = dataclasses.replace(
        OPTIONS, guidance=1.5, stop_ids=tuple(range(3, 150)), has_trajectory=False
    )
    generated = functools.partial(
        loop.generate, denoiser, params, samplers.parse(spec), options=options
    )
    prompts = batch_of_seven()
    result = generated(prompts, row_keys(7, np.arange(7)))
    is_filler = prompts.is_blank & (result.tokens == denoiser.eos_id)
    assert is_filler.any(axis=1).sum() >= 2
    assert len(set(np.asarray(result.num_steps[:6]))) > 1
    row, width = 2, 40
    alone = take_rows(batch_of_seven(width), [row])
    single = generated(alone, row_keys(7, np.array([row])))
    assert single.num_steps[0] == result.num_steps[row]
    for name in ("tokens", "commit_step"):
        np.testing.assert_array_equal(
            getattr(single, name)[0][:WIDTH], getattr(result, name)[row]
        )


@every_sampler
def test_while_loop_equals_a_python_loop(run, model, spec):
    prompts, result = run(spec)
    denoiser, params = model
    sampler, prompts, options = prepare(
        denoiser, samplers.parse(spec), prompts, OPTIONS
    )
    keys = row_keys(7, np.arange(7))
    begin = functools.partial(start_row, denoiser, options)
    frames, rows = jax.vmap(begin)(sampler, prompts)
    jobs = Job(sampler, keys, frames)
    step = jax.jit(functools.partial(loop.iteration, denoiser, params, options, jobs))
    cache = ()
    num_iterations = 0
    while not rows.is_done.all():
        rows, cache = step(rows, cache)
        num_iterations += 1
    assert num_iterations == result.num_steps.max()
    np.testing.assert_array_equal(rows.tokens, result.tokens)
    np.testing.assert_array_equal(rows.step, result.num_steps)
    np.testing.assert_array_equal(rows.commit_step, result.commit_step)


@every_sampler
def test_one_while_with_the_denoiser_inside_and_lowers_for_tpu(model, spec):
    denoiser, params = model
    sampler, prompts, options = prepare(
        denoiser, samplers.parse(spec), batch_of_seven(), OPTIONS
    )
    keys = row_keys(7, np.arange(7))
    traced = jax.jit(loop.sample, static_argnums=0).trace(
        denoiser, params, sampler, prompts, keys, options
    )
    found = list(equations(traced.jaxpr.jaxpr))
    names = [equation.primitive.name for _, equation in found]
    assert names.count("while") == 1
    products = [path for path, e in found if e.primitive.name == "dot_general"]
    assert len(products) >= 9
    assert all("while" in path for path in products)
    lowered = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "stablehlo.while" in lowered


@every_sampler
def test_values_do_not_retrace(model, spec):
    denoiser, params = model
    sampler = samplers.parse(spec)
    traces = []

    @dataclasses.dataclass(frozen=True)
    class Counting:
        mask_id = denoiser.mask_id
        model_axis = denoiser.model_axis
        eos_id = denoiser.eos_id
        max_length = denoiser.max_length
        is_block_causal = denoiser.is_block_causal
        init_cache = staticmethod(denoiser.init_cache)
        sources = staticmethod(denoiser.sources)
        head = staticmethod(denoiser.head)

        def denoise(self, *arguments):
            traces.append(arguments)
            return denoiser.denoise(*arguments)

    counting = Counting()
    options = Options(gen_length=4, max_steps=6)

    def run(sampler, prompt_length, seed):
        prompts = prompts_of([prompt_length], 4, width=8)
        keys = row_keys(seed, np.array([seed]))
        loop.generate(counting, params, sampler, prompts, keys, options)

    run(sampler, 2, 0)
    first = len(traces)
    assert first > 0
    run(sampler, 3, 1)
    for field in dataclasses.fields(sampler):
        value = getattr(sampler, field.name)
        if not field.metadata.get("pytree_node", True) or value is None:
            continue
        for other in (1, 0.1, np.float64(0.3), np.float32(0.7), jnp.float32(0.2)):
            if dataclasses.is_dataclass(value):
                schedule = {
                    f.name: int(other) + 1
                    for f in dataclasses.fields(value)
                    if f.metadata.get("pytree_node", True) and f.type == "int"
                }
                run(
                    dataclasses.replace(
                        sampler, schedule=dataclasses.replace(value, **schedule)
                    ),
                    2,
                    0,
                )
            elif field.type == "int" or field.type is int:
                run(dataclasses.replace(sampler, **{field.name: int(other) + 1}), 2, 0)
            else:
                run(dataclasses.replace(sampler, **{field.name: other}), 2, 0)
    assert len(traces) == first


def test_entropy_bound_at_its_limits(model):
    denoiser, params = model
    prompts = prompts_of([3, 5], 16)
    options = Options(gen_length=16, has_trajectory=True)
    keys = row_keys(0, np.arange(2))
    one = samplers.parse("entropy_bound(gamma=0)")
    result = loop.generate(denoiser, params, one, prompts, keys, options)
    assert (result.num_steps == 16).all()
    assert (result.trajectory.commit.sum(axis=-1) == 1).all()
    everything = samplers.EntropyBound(gamma=np.inf)
    result = loop.generate(denoiser, params, everything, prompts, keys, options)
    assert (result.num_steps == 1).all()


@pytest.mark.parametrize("spec", [s for s in TABLE if re.match(r"saber(\(|$)", s)])
def test_saber_gains_a_token_a_step_and_keeps_what_is_fresh(run, spec):
    _, result = run(spec)
    trajectory = result.trajectory
    num_remasked = 0
    for row in range(6):
        for step in range(result.num_steps[row]):
            commit, remask = trajectory.commit[row, step], trajectory.remask[row, step]
            assert commit.sum() - remask.sum() >= 1
            assert not (commit & remask).any()
            num_remasked += remask.sum()
    assert (num_remasked > 0) == samplers.parse(spec).backtracking


# Not random, whose draws differ by dtype, nor what compares drops of confidence: they
# are differences of what float32 forwards leave four digits of.
DECIDED_BY_ONE_FORWARD = [
    spec
    for spec in TABLE
    if not re.match(r"random|saber(?!\(backtracking=False|_released)", spec)
]


@pytest.mark.parametrize("spec", DECIDED_BY_ONE_FORWARD)
def test_float32_decides_as_float64_where_the_model_is_certain(certain, spec):
    """Near a logit of 30 confidences differ by less than float32 tells from 1."""
    denoiser, params = certain
    prompts = batch_of_seven()

    def run(params):
        keys = row_keys(7, np.arange(7))
        result = loop.generate(
            denoiser, params, samplers.parse(spec), prompts, keys, OPTIONS
        )
        return jax.device_get(result)

    wide = run(params)
    assert wide.is_complete.all()
    blank = prompts.is_blank
    confidence = wide.confidence[blank]
    assert np.median(confidence) > 0.999
    with jax.enable_x64(False):
        narrow = run(jax.tree.map(lambda x: x.astype(jnp.float32), params))
    assert narrow.confidence.dtype == np.float32
    np.testing.assert_array_equal(narrow.tokens, wide.tokens)
    np.testing.assert_array_equal(narrow.num_steps, wide.num_steps)
    np.testing.assert_array_equal(narrow.commit_step, wide.commit_step)
    np.testing.assert_allclose(narrow.confidence, wide.confidence, rtol=1e-4)


@pytest.fixture(scope="module")
def sudoku_rows(float64):
    task = sudoku.Sudoku()
    model, codec = load(task, zoo.path("sudoku"), "float64")
    rows = task.encode(codec, task.examples("test", 3))
    return *models.as_denoiser(model), pad(rows, 96)


# One of each class.
SUDOKU_TABLE = [
    # It takes seconds each: those that compare confidences in different ways always.
    spec
    if re.match(r"low_confidence|entropy_bound|saber", spec)
    else pytest.param(spec, marks=pytest.mark.slow)
    for spec in ALL_SPECS
]


@pytest.mark.parametrize("spec", SUDOKU_TABLE)
def test_the_shipped_sudoku_model_fills_rows_alone_as_in_a_batch(sudoku_rows, spec):
    denoiser, params, prompts = sudoku_rows
    sampler = samplers.parse(spec)
    if isinstance(getattr(sampler, "schedule", None), schedules.Fixed):
        sampler = dataclasses.replace(sampler, schedule=schedules.Fixed(k=6))
    options = Options(64, 32, has_trajectory=True)

    def run(rows, params=params):
        keys = row_keys(3, np.asarray(rows))
        batch = take_rows(prompts, rows)
        result = loop.generate(denoiser, params, sampler, batch, keys, options)
        return jax.device_get(result)

    together, alone = run([0, 1, 2]), run([1])
    assert together.is_complete.all()
    np.testing.assert_array_equal(alone.tokens[0], together.tokens[1])
    np.testing.assert_array_equal(alone.commit_step[0], together.commit_step[1])
    assert alone.num_steps[0] == together.num_steps[1]
