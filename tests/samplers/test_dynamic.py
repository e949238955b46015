"""SDAR's rules worked out by hand: above a threshold, but at least a quota."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TableDenoiser, prompts_of

from dlm_jax import samplers
from dlm_jax.core import loop
from dlm_jax.core.canvas import Canvas, Prediction
from dlm_jax.core.keys import row_keys
from dlm_jax.core.options import Options
from dlm_jax.errors import InputError
from dlm_jax.samplers import select

# Positions 0 and 1 are decided, 2 to 7 are open: a block of 8. 8 lies behind it.
LENGTH, BLOCK = 9, 8
PROBABILITY = [0.99, 0.99, 0.95, 0.5, 0.7, 0.2, 0.7, 0.9, 0.99]


def commits(sampler, probability=PROBABILITY, block_step=0, log_prob=None):
    """Where one step commits."""
    if log_prob is None:
        log_prob = np.log(probability)
    positions = jnp.arange(LENGTH)
    is_mask = positions >= 2
    is_open = positions < BLOCK
    canvas = Canvas(
        tokens=jnp.where(is_mask, 99, 3),
        is_mask=is_mask,
        is_editable=jnp.ones(LENGTH, bool),
        is_open=is_open,
        is_eligible=is_open & is_mask,
        is_valid=jnp.ones(LENGTH, bool),
        blanks=positions,
        block=jnp.int32(0),
        block_start=jnp.int32(0),
        block_column=jnp.int32(0),
        block_step=jnp.int32(block_step),
        block_masks=jnp.int32(6),
        is_final=jnp.bool_(False),
        num_blocks=jnp.int32(2),
        step=jnp.int32(block_step),
        num_forwards=jnp.int32(block_step),
        block_length=BLOCK,
        mask_id=99,
    )
    prediction = Prediction(
        token=jnp.full(LENGTH, 5),
        log_prob=jnp.asarray(log_prob, jnp.float32),
        is_known=jnp.ones(LENGTH, bool),
    )
    _, decision = sampler.step(jax.random.key(0), (), canvas, prediction)
    return np.flatnonzero(decision.commit & canvas.is_eligible).tolist()


@pytest.mark.parametrize(
    ("threshold", "steps", "expected"),
    [
        # Quota 2, and 2, 4, 6, 7 are above: all of them.
        (0.6, 4, [2, 4, 6, 7]),
        # Two are above, as many as the quota.
        (0.8, 4, [2, 7]),
        # One is above, so the two best.
        (0.93, 4, [2, 7]),
        # Quota 4, two are above: the four best.
        (0.8, 2, [2, 4, 6, 7]),
        # Quota 3, two are above. Of the equal ones the leftmost.
        (0.8, 3, [2, 4, 7]),
        # Quota 8, but six are open.
        (0.8, 1, [2, 3, 4, 5, 6, 7]),
        # Quota 1, nothing is above 1.
        (1.0, 8, [2]),
        (0.0, 8, [2, 3, 4, 5, 6, 7]),
    ],
)
def test_all_above_the_threshold_but_at_least_the_quota(threshold, steps, expected):
    spec = f"dynamic(threshold={threshold}, schedule=quota(steps={steps}))"
    assert commits(samplers.parse(spec)) == expected


def test_a_probability_that_equals_the_threshold_is_not_above_it():
    probability = [0.99, 0.99, 0.875, 0.75, 0.8125, 0.75, 0.5, 0.25, 0.99]
    # The doubt of position 3, as float32 has it.
    doubt = select.doubt(jnp.float32(np.log(0.75)))
    for threshold, expected in ((1 - doubt, [2, 4]), (0.7499, [2, 3, 4, 5])):
        sampler = samplers.Dynamic(threshold=threshold, schedule=samplers.Fixed(k=1))
        assert commits(sampler, probability) == expected


def test_near_certain_candidates_are_told_apart():
    """To float32 all of these probabilities are 1, and so is the threshold."""
    log_prob = -np.array([1, 1, 3e-9, 1e-9, 2e-9, 5e-9, 4e-9, 6e-9, 1e-12], np.float32)
    assert (np.exp(log_prob[2:]) == 1).all()
    sampler = samplers.parse("dynamic(threshold=1.0, schedule=quota(steps=4))")
    assert commits(sampler, log_prob=log_prob) == [3, 4]
    sampler = samplers.parse("dynamic(threshold=0.999, schedule=quota(steps=4))")
    assert commits(sampler, log_prob=log_prob) == [2, 3, 4, 5, 6, 7]
    # `threshold` too: none reaches 1 but a certain one, and the best is committed.
    threshold = samplers.Threshold(threshold=1.0)
    assert commits(threshold, log_prob=log_prob) == [3]
    log_prob[5] = 0
    assert commits(threshold, log_prob=log_prob) == [5]
    threshold = samplers.Threshold(threshold=0.0)
    assert commits(threshold, log_prob=log_prob) == [2, 3, 4, 5, 6, 7]
    assert commits(samplers.Threshold(threshold=0.7)) == [2, 4, 6, 7]


@pytest.mark.parametrize(
    ("block_step", "expected"), [(0, [2, 4, 7]), (1, [2, 4, 7]), (2, [2, 7])]
)
def test_the_first_steps_of_an_uneven_quota_take_one_more(block_step, expected):
    """Three steps for a block of 8: 3, 3 and 2."""
    for spec in ("low_confidence(schedule={})", "dynamic(threshold=0.99, schedule={})"):
        sampler = samplers.parse(spec.format("quota(steps=3)"))
        assert commits(sampler, block_step=block_step) == expected
    sequential = samplers.parse("left_to_right(schedule=quota(steps=3))")
    assert commits(sequential, block_step=block_step) == [2, 3, 4][: len(expected)]


# --- In the loop --------------------------------------------------------------------

MASK = 11
DENOISER = TableDenoiser(mask_id=MASK)


def run(spec, **options):
    prompts = prompts_of([3, 5], 16, width=21, vocab_size=9)
    params = jax.random.normal(jax.random.key(0), (21, 12)) * 3
    options = Options(16, block_length=8, **options)
    keys = row_keys(0, np.arange(2))
    sampler = samplers.parse(spec)
    return loop.generate(DENOISER, params, sampler, prompts, keys, options)


def test_a_threshold_of_one_is_the_static_rule():
    dynamic = run("dynamic(threshold=1.0, schedule=quota(steps=3))")
    static = run("low_confidence(schedule=quota(steps=3))")
    assert dynamic.num_steps.tolist() == static.num_steps.tolist() == [6, 6]
    np.testing.assert_array_equal(dynamic.tokens, static.tokens)
    np.testing.assert_array_equal(dynamic.commit_step, static.commit_step)


def test_the_quota_bounds_the_forwards_of_a_block():
    found = run("dynamic(threshold=0.6, schedule=quota(steps=4))", has_trajectory=True)
    assert found.is_complete.all()
    counts = np.asarray(found.trajectory.commit.sum(axis=2))
    for row in range(2):
        first_step = 0
        for start in (0, 8):
            columns = slice([3, 5][row] + start, [3, 5][row] + start + 8)
            steps = int(found.commit_step[row, columns].max()) + 1 - first_step
            assert 1 < steps <= 4
            block = counts[row, first_step : first_step + steps]
            assert (block[:-1] >= 2).all() and block.sum() == 8
            first_step += steps
    # Fewer than the quota alone would take.
    assert (found.num_steps < 8).all()
    assert run("dynamic(threshold=0.0)").num_steps.tolist() == [2, 2]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("dynamic(threshold=1.5)", r"dynamic: threshold \(1.5\) must be at most 1"),
        ("dynamic(schedule=quota(steps=0))", r"quota: steps \(0\) must be at least 1"),
        ("dynamic(schedule=4)", r"schedule \(4\) must be one of fixed, quota, linear"),
    ],
)
def test_numbers_without_a_meaning_are_refused(spec, message):
    with pytest.raises(InputError, match=message):
        samplers.parse(spec)


def test_the_schedule_checks_lengths():
    with pytest.raises(InputError, match=r"steps \(3\) must be a multiple"):
        run("dynamic(schedule=linear(steps=3))")
