"""Saber's step worked out by hand (arXiv:2510.18165, section 3), with numbers near 1.

There float32 has few different confidences: every one below is 1 to it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DATA, prompts_of

from dlm_jax import checkpoints, models
from dlm_jax.core import loop
from dlm_jax.core.canvas import Canvas, Prediction
from dlm_jax.core.keys import row_keys
from dlm_jax.core.options import Options
from dlm_jax.samplers import select
from dlm_jax.samplers.saber import Saber, SaberState

KEY = jax.random.key(0)
MASK = 9
# Positions 0 and 1 are decided, 2 to 5 are not; 6 lies in the next block.
IS_MASK = np.array([False, False, True, True, True, True, True])


def canvas_of(is_mask=IS_MASK):
    is_mask = jnp.asarray(is_mask)
    is_open = jnp.arange(7) < 6
    return Canvas(
        tokens=jnp.where(is_mask, MASK, 3),
        is_mask=is_mask,
        is_editable=jnp.ones(7, bool),
        is_open=is_open,
        is_eligible=is_open & is_mask,
        is_valid=jnp.ones(7, bool),
        blanks=jnp.arange(7),
        block=jnp.int32(0),
        block_start=jnp.int32(0),
        block_column=jnp.int32(0),
        block_step=jnp.int32(1),
        block_masks=jnp.int32(6),
        is_final=jnp.bool_(False),
        num_blocks=jnp.int32(2),
        step=jnp.int32(1),
        num_forwards=jnp.int32(1),
        block_length=6,
        mask_id=MASK,
    )


def step(sampler, state, doubt, held_doubt, canvas=None, is_known=None):
    """One step where candidates and held tokens have these doubts, 1 - probability."""
    prediction = Prediction(
        token=jnp.full(7, 5),
        log_prob=jnp.log1p(-jnp.asarray(doubt, jnp.float32)),
        is_known=jnp.ones(7, bool) if is_known is None else jnp.asarray(is_known),
        held_log_prob=jnp.log1p(-jnp.asarray(held_doubt, jnp.float32)),
    )
    state, decision = sampler.step(KEY, state, canvas or canvas_of(), prediction)
    commit, remask = np.flatnonzero(decision.commit), np.flatnonzero(decision.remask)
    return state, commit.tolist(), remask.tolist()


def state_of(committed, previous):
    fill = [0.5] * 5
    return SaberState(jnp.array(committed + fill), jnp.array(previous + fill))


DOUBT = [1, 1, 1e-9, 2.9e-9, 3.1e-9, 0.2, 1e-12]


def test_the_draft_is_what_exceeds_the_mean_confidence_at_commit():
    # Mean doubt at commit 3e-9: positions 2 and 3 are surer, 4 is not. Of the two
    # decided, 0 lost 4e-9 and 1 lost 1e-9: one goes back, max(1, floor(2 / 8)).
    state = state_of(committed=[2e-9, 4e-9], previous=[1e-9, 2e-9])
    held = [5e-9, 3e-9, 1, 1, 1, 1, 1]
    state, commit, remask = step(Saber(), state, DOUBT, held)
    assert (commit, remask) == ([2, 3], [0])
    # Remembered: the doubt at commit, and of what is held now.
    np.testing.assert_allclose(state.committed[:4], [2e-9, 4e-9, 1e-9, 2.9e-9], 1e-6)
    np.testing.assert_allclose(state.previous[:4], [5e-9, 3e-9, 1e-9, 2.9e-9], 1e-6)


def test_the_largest_drop_goes_back_not_the_least_confident():
    state = state_of(committed=[2e-9, 4e-9], previous=[1e-9, 8e-9])
    _, commit, remask = step(Saber(), state, DOUBT, [5e-9, 9e-9, 1, 1, 1, 1, 1])
    assert (commit, remask) == ([2, 3], [0])
    # A rise is no drop, but the smallest rise is the largest of the two.
    _, _, remask = step(Saber(), state, DOUBT, [0.1e-9, 7.9e-9, 1, 1, 1, 1, 1])
    assert remask == [1]


def test_what_a_step_does_not_tell_is_neither_taken_back_nor_forgotten():
    """With a cache, a step knows only its window; here not position 0."""
    state = state_of(committed=[2e-9, 4e-9], previous=[1e-9, 2e-9])
    is_known = [False] + [True] * 6
    held = [1, 3e-9, 1, 1, 1, 1, 1]
    state, commit, remask = step(Saber(), state, DOUBT, held, is_known=is_known)
    # Position 0 seems to have lost everything, but only 1 was looked at.
    assert (commit, remask) == ([2, 3], [1])
    np.testing.assert_allclose(state.previous[:2], [1e-9, 3e-9], 1e-6)


def test_what_equals_tau_does_not_exceed_it():
    # The same number at both commits and at position 4, to the last bit.
    at_tau = float(select.doubt(jnp.log1p(-jnp.float32(0.25))))
    state = state_of(committed=[at_tau, at_tau], previous=[0, 0])
    _, commit, _ = step(Saber(), state, [1, 1, 0.1, 0.2, 0.25, 0.5, 0.1], [0] * 7)
    assert commit == [2, 3]


def test_the_n_best_where_the_draft_has_fewer():
    # Mean doubt 1.5e-9: position 2 alone is surer, so the two best are taken.
    state = state_of(committed=[1e-9, 2e-9], previous=[0, 0])
    held = [0, 1e-9, 1, 1, 1, 1, 1]
    _, commit, remask = step(Saber(), state, DOUBT, held)
    assert (commit, remask) == ([2, 3], [1])
    _, commit, _ = step(Saber(n=3), state, DOUBT, held)
    assert commit == [2, 3, 4]
    # One commit takes nothing back: a step decides more than it takes back.
    _, commit, remask = step(Saber(n=1), state, DOUBT, held)
    assert (commit, remask) == ([2], [])


def test_before_the_first_commit_tau_is_the_highest_confidence():
    # Nothing exceeds it, so the n best are taken; nothing is there to be taken back.
    state = state_of(committed=[1e-9, 2e-9], previous=[0, 0])
    nothing = canvas_of(np.ones(7, bool))
    doubt = [0.3, 0.4, *DOUBT[2:]]
    _, commit, remask = step(Saber(), state, doubt, [1] * 7, nothing)
    assert (commit, remask) == ([2, 3], [])


def test_the_highest_confidence_bounds_tau_from_above():
    # Mean doubt 1e-12, surer than any candidate: the bound is the best candidate's.
    state = state_of(committed=[1e-12, 1e-12], previous=[0, 0])
    _, commit, _ = step(Saber(), state, DOUBT, [0, 0, 1, 1, 1, 1, 1])
    assert commit == [2, 3]


@pytest.mark.parametrize("is_taken_back", [True, False])
def test_what_was_taken_back_is_not_in_the_mean(is_taken_back):
    # Position 1 was committed with a doubt of 0.5; with it all but 5 are surer.
    state = state_of(committed=[2e-9, 0.5], previous=[0, 0])
    is_mask = IS_MASK.copy()
    is_mask[1] = is_taken_back
    doubt = [1, 0.9, *DOUBT[2:]]
    canvas = canvas_of(is_mask)
    _, commit, _ = step(Saber(n=1), state, doubt, [0, 0, 1, 1, 1, 1, 1], canvas)
    assert commit == ([2] if is_taken_back else [2, 3, 4, 5])


def test_mu_is_how_many_are_committed_for_each_that_goes_back():
    is_mask = np.array([False, False, False, True, True, True, True])
    state = SaberState(jnp.full(7, 0.5), jnp.zeros(7))
    held = [3e-9, 1e-9, 2e-9, 1, 1, 1, 1]
    doubt = [1, 1, 1, 1e-9, 2e-9, 3e-9, 1]
    canvas = canvas_of(is_mask)
    # Three are committed: floor(3 / 1.5) = 2 go back, of floor(3 / 1) = 3 only 2.
    for mu, expected in ((8, [0]), (1.5, [0, 2]), (1, [0, 2])):
        _, commit, remask = step(Saber(mu=mu), state, doubt, held, canvas)
        assert (commit, remask) == ([3, 4, 5], expected)


def test_ablations():
    state = state_of(committed=[2e-9, 4e-9], previous=[1e-9, 2e-9])
    held = [5e-9, 3e-9, 1, 1, 1, 1, 1]
    assert step(Saber(backtracking=False), state, DOUBT, held)[1:] == ([2, 3], [])
    slow = Saber(acceleration=False, n=1)
    assert step(slow, state, DOUBT, held)[1:] == ([2], [])
    fixed = Saber(threshold=0.5)
    assert step(fixed, state, DOUBT, held)[1:] == ([2, 3, 4, 5], [0])


def test_without_backtracking_only_the_active_block_is_predicted():
    canvas = dataclasses.replace(canvas_of(), blanks=jnp.arange(1, 13))
    whole, block = Saber(), Saber(backtracking=False)
    assert whole.region(canvas).tolist() == list(range(1, 13))
    assert block.region(canvas).tolist() == list(range(1, 7))
    canvas = dataclasses.replace(canvas, block_start=jnp.int32(6))
    assert block.region(canvas).tolist() == list(range(7, 13))
    assert (whole.needs, block.needs) == (("held_log_prob",), ())


def test_a_smaller_region_changes_no_token():
    """Against the same rule with predictions of all blanks, in float64."""

    class Everywhere(Saber):
        def region(self, canvas):
            return canvas.blanks

    path = DATA / "checkpoints" / "tiny_kv2_seed3"
    with jax.enable_x64(True):
        denoiser, params = models.as_denoiser(checkpoints.load(path, "float64"))
        prompts = prompts_of([3, 5], 12)
        block, everywhere = (
            loop.generate(
                denoiser,
                params,
                rule(n=1, backtracking=False),
                prompts,
                row_keys(0, np.arange(2)),
                Options(12, 6, temperature=0.5),
            )
            for rule in (Saber, Everywhere)
        )
    for name in ("tokens", "num_steps", "commit_step"):
        np.testing.assert_array_equal(getattr(block, name), getattr(everywhere, name))
    np.testing.assert_allclose(block.confidence, everywhere.confidence, rtol=1e-12)
    # More than one step a block, or nothing would have been decided.
    assert (block.num_steps > 2).all()


def test_nothing_of_an_earlier_step_enters_where_a_position_is_not_decided():
    """Undecided positions, of whatever history, are never taken back."""
    state = SaberState(jnp.zeros(7), jnp.zeros(7))
    canvas = dataclasses.replace(canvas_of(), is_open=jnp.arange(7) < 6)
    _, commit, remask = step(Saber(n=4), state, [0.9] * 7, [0.1, 0.2] + [1] * 5, canvas)
    assert commit == [2, 3, 4, 5] and remask == [1]
