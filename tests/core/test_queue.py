"""More rows than slots: what a row gives does not depend on whom it waited for."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    DATA,
    TableDenoiser,
    mixed_prompts,
    prompts_of,
    stack,
    take_rows,
)

from dlm_jax import checkpoints, models, samplers, zoo
from dlm_jax.core import loop
from dlm_jax.core.keys import row_keys
from dlm_jax.core.options import Options
from dlm_jax.devices import runner as parallel
from dlm_jax.errors import InputError
from dlm_jax.tasks import sudoku
from dlm_jax.tasks.base import load
from dlm_jax.text.prompts import pad

GEN_LENGTH = 12
SPECS = ("entropy_bound(gamma=1.0)", "saber", "random(schedule=fixed(k=2))")


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("num_slots", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_rows_are_as_without_a_queue_and_no_slot_stays_idle(spec, num_slots):
    with jax.enable_x64(True):
        model = checkpoints.load(DATA / "checkpoints" / "tiny_kv2_seed3", "float64")
        denoiser, params = models.as_denoiser(model)
        # Not in the order in which they get slots.
        prompts = take_rows(mixed_prompts(GEN_LENGTH), [6, 2, 0, 5, 7, 1, 3, 4])
        options = Options(GEN_LENGTH, 4, temperature=0.6, has_trajectory=True)

        def run(options):
            keys = row_keys(3, np.arange(8))
            sampler = samplers.parse(spec)
            result = loop.generate(denoiser, params, sampler, prompts, keys, options)
            return jax.device_get(result)

        all_at_once = run(options)
        queued = run(dataclasses.replace(options, num_slots=num_slots))
    for name in ("tokens", "num_steps", "commit_step", "is_complete", "has_nan"):
        np.testing.assert_array_equal(getattr(queued, name), getattr(all_at_once, name))
    np.testing.assert_allclose(queued.confidence, all_at_once.confidence, rtol=1e-9)
    for name in ("canvas", "commit", "remask"):
        np.testing.assert_array_equal(
            getattr(queued.trajectory, name), getattr(all_at_once.trajectory, name)
        )
    nfe = queued.num_steps
    np.testing.assert_array_equal(all_at_once.last_iteration, nfe)
    # The bound of any schedule that leaves no slot idle while a row waits.
    assert queued.last_iteration.max() <= nfe.sum() / num_slots + nfe.max()
    assert (queued.last_iteration >= nfe).all()
    if num_slots == 1:
        # The fullest rows come first, equal ones in their order.
        order = np.argsort(-prompts.is_blank.sum(axis=1), kind="stable")
        ends = np.cumsum(nfe[order])[:-1]
        np.testing.assert_array_equal(queued.last_iteration[order][:-1], ends)


@pytest.mark.parametrize("spec", SPECS)
def test_rows_that_are_handed_over_early_are_those_of_one_call(spec):
    model = checkpoints.load(DATA / "checkpoints" / "tiny_kv2_seed3")
    runner = parallel.DataParallel(*models.as_denoiser(model))
    keys = row_keys(3, np.arange(8))
    options = Options(GEN_LENGTH, 4, temperature=0.6, num_slots=3, has_trajectory=True)
    arguments = samplers.parse(spec), mixed_prompts(GEN_LENGTH), keys, options
    expected = runner(*arguments)
    places, parts = zip(*runner.stream(*arguments, period=0.0), strict=True)
    # The loop stopped at every iteration, so only rows of one came together.
    ends = [np.unique(expected.last_iteration[some]).tolist() for some in places]
    assert ends == [[end] for end in np.unique(expected.last_iteration)]
    order = np.concatenate(places)
    assert sorted(order) == [*range(8)] and len(places) > 3
    found = jax.tree.map(lambda *some: np.concatenate(some), *parts)
    jax.tree.map(
        np.testing.assert_array_equal,
        found,
        jax.tree.map(lambda x: x[order], expected),
    )


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("spec", ["entropy_bound", "saber"])
def test_512_rows_in_32_slots(spec):
    with jax.enable_x64(True):
        task = sudoku.Sudoku()
        model, codec = load(task, zoo.path("sudoku"), "float64")
        denoiser, params = models.as_denoiser(model)
        puzzles = task.encode(codec, task.examples("test", 384))
        width = max(row.tokens.size for row in puzzles)
        lengths = np.random.default_rng(0).integers(2, width - 40, 128)
        kinds = {"vocab_size": len(codec.tokenizer), "width": width}
        prompts = stack(
            [pad(puzzles, width)]
            + [prompts_of([n], 24 + n % 17, **kinds) for n in lengths]
        )
        prompts = take_rows(prompts, np.random.default_rng(1).permutation(512))
        options = Options(64, block_length=16)
        keys = row_keys(0, np.arange(512))

        def run(num_slots, chosen):
            return jax.device_get(
                loop.generate(
                    denoiser,
                    params,
                    samplers.parse(spec),
                    take_rows(prompts, chosen),
                    keys[chosen],
                    dataclasses.replace(options, num_slots=num_slots),
                )
            )

        everything = np.arange(512)

        def run_batches():
            for chosen in everything.reshape(-1, 32):
                run(32, chosen)

        alone, queued = run(1, everything), run(32, everything)
        run_batches()  # Compiles, as the line above did for the queue.
        seconds = []
        for call in (lambda: run(32, everything), run_batches):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
    np.testing.assert_array_equal(queued.num_steps, alone.num_steps)
    np.testing.assert_array_equal(queued.tokens, alone.tokens)
    nfe = queued.num_steps
    iterations, bound = queued.last_iteration.max(), nfe.sum() / 32 + nfe.max()
    assert iterations <= bound
    print(f"{spec}: {iterations} iterations, at most {bound:.1f}; NFE {nfe.mean():.2f}")
    gain = seconds[1] / seconds[0]
    print(f"{seconds[0]:.1f} s, in batches {seconds[1]:.1f} s: {gain:.2f} times")


def test_thresholds_of_their_own_go_with_the_rows():
    denoiser = TableDenoiser(mask_id=11, eos_id=10)
    params = 3 * jax.random.normal(jax.random.key(1), (12, 12))
    prompts = prompts_of([2] * 5, 10, vocab_size=9)
    thresholds = np.array([0.99, 0.0, 0.5, 0.99, 0.3])

    def run(**options):
        return loop.generate(
            denoiser,
            params,
            samplers.Threshold(threshold=thresholds),
            prompts,
            row_keys(0, np.arange(5)),
            Options(10, **options),
        )

    nfe = run(num_slots=2).num_steps
    np.testing.assert_array_equal(nfe, run().num_steps)
    assert nfe[1] == 1 < nfe[4] <= nfe[2] < nfe[0] == nfe[3]


@pytest.mark.parametrize(
    ("num_keys", "options", "message"),
    [
        (2, Options(4, num_slots=0), r"num_slots \(0\) must be at least 1"),
        (3, Options(4), r"keys \(\(3,\)\) must be one per row: \(2,\)"),
    ],
)
def test_bad_arguments_are_named(num_keys, options, message):
    with pytest.raises(InputError, match=message):
        loop.generate(
            TableDenoiser(mask_id=11),
            jnp.zeros((8, 12)),
            samplers.parse("random"),
            prompts_of([2, 3], 4, vocab_size=9),
            row_keys(0, np.arange(num_keys)),
            options,
        )
