"""What the loop makes of a sampler's decision: what it obeys, and what it refuses."""

import dataclasses
import math
from typing import ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TableDenoiser, infilling_of, prompts_of, stack

from dlm_jax import samplers
from dlm_jax.core import loop
from dlm_jax.core.canvas import Decision, Missing, Prediction
from dlm_jax.core.keys import row_keys
from dlm_jax.core.options import Options
from dlm_jax.core.sampler import Sampler
from dlm_jax.errors import InputError

VOCAB, MASK, EOS = 12, 11, 1
DENOISER = TableDenoiser(mask_id=MASK, eos_id=EOS)
KEYS = row_keys(0, np.arange(1))


def table(length, seed=0):
    return jax.random.normal(jax.random.key(seed), (length, VOCAB)) * 2


def run(sampler, prompts, options, params=None, keys=KEYS):
    if params is None:
        params = table(prompts.tokens.shape[1])
    result = loop.generate(
        DENOISER, jnp.asarray(params), sampler, prompts, keys, options
    )
    return jax.device_get(result)


class Everything(Sampler):
    """Commits every position there is, prompt, padding and later blocks included."""

    def step(self, key, state, canvas, prediction):
        return state, Decision(jnp.ones_like(canvas.is_mask))


class Reviser(Sampler):
    """Writes a block at once; takes all decided tokens back in step 2, with blocks."""

    may_rewrite: ClassVar[bool] = True
    may_remask: ClassVar[bool] = True

    def step(self, key, state, canvas, prediction):
        is_revising = canvas.step == 2
        commit = canvas.is_eligible | (is_revising & canvas.is_editable)
        return state, Decision(
            commit,
            remask=jnp.broadcast_to(
                is_revising & (jnp.arange(commit.shape[0]) % 2 == 0), commit.shape
            ),
        )

    def max_steps(self, num_blanks):
        return 3 * num_blanks


def test_commits_keep_to_open_positions_of_the_row():
    prompts = prompts_of([3], 6, width=12, vocab_size=9)
    options = Options(gen_length=6, block_length=2, has_trajectory=True)
    result = run(Everything(), prompts, options)
    assert result.num_steps[0] == 3 and result.is_complete[0]
    np.testing.assert_array_equal(result.tokens[0, :3], prompts.tokens[0, :3])
    assert (result.commit_step[0] == [-1] * 3 + [0, 0, 1, 1, 2, 2] + [-1] * 3).all()
    assert not result.trajectory.commit[0][:, [0, 1, 2, 9, 10, 11]].any()


def test_a_prompt_is_not_written_though_it_is_predicted():
    class Everywhere(Everything):
        """Asks for every position, and commits all of them."""

        def region(self, canvas):
            return jnp.arange(canvas.tokens.shape[0], dtype=jnp.int32)

    prompts = prompts_of([3], 6, width=12, vocab_size=9)
    options = Options(gen_length=6, block_length=2, has_trajectory=True)
    result = run(Everywhere(), prompts, options)
    np.testing.assert_array_equal(result.tokens[0, :3], prompts.tokens[0, :3])
    assert (result.commit_step[0] == [-1] * 3 + [2, 2, 2, 2, 2, 2] + [-1] * 3).all()
    commit = result.trajectory.commit[0]
    # Earlier blocks are open, so that they may be written again; later ones are not.
    np.testing.assert_array_equal(commit[0].nonzero()[0], [3, 4])
    np.testing.assert_array_equal(commit[1].nonzero()[0], [3, 4, 5, 6])


def test_a_reviser_with_the_default_region_writes_no_mask():
    """It has no prediction for earlier blocks, so their tokens stay."""
    prompts = prompts_of([1], 8, vocab_size=9)
    options = Options(gen_length=8, block_length=2, has_trajectory=True)
    result = run(Reviser(), prompts, options)
    assert result.is_complete[0]
    assert (result.tokens[0, 1:] != MASK).all()
    remask = result.trajectory.remask[0]
    # Blocks 0 and 1 are done; in step 2 the even column of block 2 is taken back.
    np.testing.assert_array_equal(np.argwhere(remask), [[2, 6]])
    assert result.num_steps[0] == 5


def test_is_known_is_the_region():
    class Checks(samplers.LeftToRight):
        def step(self, key, state, canvas, prediction):
            known = jnp.zeros_like(canvas.is_mask).at[self.region(canvas)].set(True)
            is_right = jnp.all(known == prediction.is_known)
            is_right &= jnp.all(prediction.is_known | (prediction.log_prob == -jnp.inf))
            # A wrong answer shows as a row that takes no step.
            commit = canvas.is_eligible & is_right
            return state, Decision(commit)

    prompts = stack(
        [prompts_of([1], 5, vocab_size=9), infilling_of(4, 6, vocab_size=9)]
    )
    keys = row_keys(0, np.arange(2))
    result = run(Checks(), prompts, Options(6, block_length=2), keys=keys)
    assert result.is_complete.all()


def test_a_position_without_a_prediction_is_not_eligible():
    class FirstOfBlock(samplers.LowConfidence):
        """Asks for one position of its block only."""

        def region(self, canvas):
            first = jnp.argmax(canvas.is_eligible)
            return first[None].astype(jnp.int32)

    class LastOfBlock(samplers.LeftToRight):
        """Asks for the last, where its order would take the first."""

        def region(self, canvas):
            last = (
                canvas.is_eligible.shape[0] - 1 - jnp.argmax(canvas.is_eligible[::-1])
            )
            return last[None].astype(jnp.int32)

    prompts = prompts_of([2], 6, vocab_size=9)
    result = run(LastOfBlock(), prompts, Options(6))
    np.testing.assert_array_equal(result.commit_step[0, 2:], np.arange(6)[::-1])
    result = run(FirstOfBlock(), prompts, Options(6))
    np.testing.assert_array_equal(result.commit_step[0, 2:], np.arange(6))
    best = table(8)[:, :MASK].argmax(axis=1)
    np.testing.assert_array_equal(result.tokens[0, 2:], best[2:])


def test_the_mask_token_is_never_written():
    class Masks(samplers.LeftToRight):
        def step(self, key, state, canvas, prediction):
            state, decision = super().step(key, state, canvas, prediction)
            tokens = jnp.where(canvas.step == 1, canvas.mask_id, prediction.token)
            return state, dataclasses.replace(decision, tokens=tokens)

        def max_steps(self, num_blanks):
            return num_blanks + 1

    result = run(Masks(), prompts_of([2], 4, vocab_size=9), Options(4))
    assert result.num_steps[0] == 5 and result.is_complete[0]
    np.testing.assert_array_equal(result.commit_step[0, 2:], [0, 2, 3, 4])


def test_what_was_undecided_before_the_step_can_not_be_taken_back():
    class TakesBackMasks(samplers.LeftToRight):
        def step(self, key, state, canvas, prediction):
            state, decision = super().step(key, state, canvas, prediction)
            return state, dataclasses.replace(decision, remask=~decision.commit)

    options = Options(4, has_trajectory=True, max_steps=4)
    result = run(TakesBackMasks(), prompts_of([2], 4, vocab_size=9), options)
    np.testing.assert_array_equal(result.trajectory.remask[0].sum(axis=1), [0, 1, 1, 1])
    # The last forward wrote position 1 and took back position 0, for good.
    np.testing.assert_array_equal(result.commit_step[0, 2:], [-1, 3, -1, -1])
    np.testing.assert_array_equal(np.flatnonzero(result.confidence[0]), [3])


USES = {
    "exp": jnp.exp,
    "minus": lambda x: -x,
    "sum": lambda x: 1 + x,
    "compare": lambda x: x > 0.5,
    "equal": lambda x: x == 0,
    "not equal": lambda x: x != 0,
    "equal from the left": lambda x: jnp.zeros(()) == x,
    "modulo": lambda x: x % 2,
    "floor of a quotient": lambda x: 2 // x,
    "exclusive or": lambda x: x ^ True,
    "round": round,
    "divmod": lambda x: divmod(x, 2),
    "floor": math.floor,
    "in": lambda x: 1 in x,
    "index": lambda x: x[0],
    "attribute": lambda x: x.shape,
    "max": lambda x: jnp.max(x),
    "where": lambda x: jnp.where(True, x, 0),
    "argsort": jnp.argsort,
    "numpy": np.asarray,
}


@pytest.mark.parametrize("use", USES)
def test_a_statistic_that_is_not_in_needs_is_named(use):
    class Greedy(Sampler):
        def step(self, key, state, canvas, prediction):
            USES[use](prediction.entropy)
            return state, Decision(canvas.is_eligible)

    with pytest.raises(InputError, match=r"prediction.entropy .* `needs` must list"):
        run(Greedy(), prompts_of([2], 4, vocab_size=9), Options(4))


def test_a_rule_that_is_written_wrong_is_told_so():
    class Misspelled(samplers.LeftToRight):
        needs = ("entropi",)

    class OneName(samplers.LeftToRight):
        needs = "entropy"

    class NoState(Sampler):
        def step(self, key, state, canvas, prediction):
            return canvas.is_eligible

    class NoDecision(Sampler):
        def step(self, key, state, canvas, prediction):
            return state, canvas.is_eligible

    prompts = prompts_of([2], 4, vocab_size=9)
    for sampler, message in (
        (
            Misspelled(),
            r"Misspelled: needs \(\('entropi',\)\) must be a tuple of 'best_",
        ),
        (OneName(), r"OneName: needs \('entropy'\) must be a tuple of"),
        (NoState(), r"NoState.step must return its state and a Decision"),
        (NoDecision(), r"NoDecision.step must return its state and a Decision"),
    ):
        with pytest.raises(InputError, match=message):
            run(sampler, prompts, Options(4))
    with pytest.raises(InputError, match="Typed: needs must be written without a type"):

        class Typed(Sampler):
            needs: tuple = ("entropy",)


WRONG_DECISIONS = {
    "a scalar": (
        lambda canvas: Decision(canvas.is_eligible.any()),
        r"decision.commit \(bool \[\]\) must be bool \[6\], one entry for each",
    ),
    "positions": (
        lambda canvas: Decision(jnp.arange(2, dtype=jnp.int32)),
        r"decision.commit \(int32 \[2\]\) must be bool \[6\]",
    ),
    "scores": (
        lambda canvas: Decision(canvas.is_eligible.astype(jnp.float32)),
        r"decision.commit \(float32 \[6\]\) must be bool \[6\]",
    ),
    "nothing": (
        lambda canvas: Decision(None),
        r"decision.commit \(None\) must be bool",
    ),
    "a list": (lambda canvas: Decision([True] * 6), r"decision.commit \(\[True, "),
    "a scalar to take back": (
        lambda canvas: Decision(canvas.is_eligible, remask=jnp.bool_(False)),
        r"decision.remask \(bool \[\]\) must be bool \[6\]",
    ),
    "one token": (
        lambda canvas: Decision(canvas.is_eligible, tokens=jnp.int32(3)),
        r"decision.tokens \(int32 \[\]\) must be int32 \[6\]",
    ),
    "an end for each position": (
        lambda canvas: Decision(canvas.is_eligible, is_finished=canvas.is_mask),
        r"decision.is_finished \(bool \[6\]\) must be bool \[\], of the row",
    ),
    "an end that is no array": (
        lambda canvas: Decision(canvas.is_eligible, is_finished=True),
        r"decision.is_finished \(True\) must be bool \[\], of the row",
    ),
    "an end without a bound on steps": (
        lambda canvas: Decision(canvas.is_eligible, is_finished=jnp.bool_(True)),
        r"decision.is_finished must be None without a method extra_steps",
    ),
    "tokens that are no integers": (
        lambda canvas: Decision(canvas.is_eligible, tokens=jnp.ones(6)),
        r"decision.tokens \(float32 \[6\]\) must be int32 \[6\]",
    ),
}


@pytest.mark.parametrize("name", WRONG_DECISIONS)
def test_a_decision_of_a_wrong_form_is_refused(name):
    """A scalar would be broadcast: one boolean for all positions."""
    decide, message = WRONG_DECISIONS[name]

    class Wrong(Sampler):
        def step(self, key, state, canvas, prediction):
            return state, decide(canvas)

    with pytest.raises(InputError, match=rf"^Wrong\.step: {message}") as error:
        run(Wrong(), prompts_of([2], 4, vocab_size=9), Options(4))
    assert "\n" not in str(error.value)


def test_missing_statistics_are_part_of_the_structure():
    missing = Missing("entropy")
    prediction = Prediction(jnp.zeros(2, int), jnp.zeros(2), entropy=missing)
    assert len(jax.tree.leaves(prediction)) == 2
    assert jax.tree.map(lambda x: x, prediction).entropy == missing
    assert missing == Missing("entropy") and missing != Missing("held_log_prob")


ALL_AT_ONCE = (
    "entropy_bound(gamma=inf)",
    "entropy_bound(gamma=inf, error_proxy='margin')",
    "threshold(threshold=0.0)",
    "dynamic(threshold=0.0)",
    "factor(factor=inf)",
    "factor_released(factor=99.0)",
    "low_confidence(schedule=fixed(k=6))",
    "entropy(schedule=dream(steps=1))",
    "margin(schedule=cosine(steps=1))",
    "saber(n=6)",
    "saber(threshold=0.0)",
    "saber_released(n=6)",
)


@pytest.mark.parametrize(("temperature", "num_deferred"), [(0.0, 1), (0.5, 2)])
@pytest.mark.parametrize("spec", ALL_AT_ONCE)
def test_a_deferred_token_waits_for_all_others(spec, temperature, num_deferred):
    """Under rules that would commit everything in one step; EB once took it first."""
    prompts = prompts_of([1], 6, vocab_size=9)
    params = np.array(table(7))
    deferred = [2, 5][:num_deferred]
    params[:, EOS] = -60
    params[deferred, EOS] = 60
    params[deferred, 4] = 50  # Without EOS, what is left is certain.
    options = Options(
        6, deferred_ids=(EOS,), temperature=temperature, has_trajectory=True
    )
    result = run(samplers.parse(spec), prompts, options, params)
    assert result.is_complete[0]
    assert (result.tokens[0, deferred] == EOS).all()
    others = np.setdiff1d(np.arange(1, 7), deferred)
    # The first commit of each: some rules take tokens back later.
    steps = result.trajectory.commit[0].argmax(axis=0)
    assert steps[others].max() < steps[deferred].min()
    assert (result.confidence[0, deferred] == 0).all()


@pytest.mark.parametrize("spec", ALL_AT_ONCE)
def test_a_deferred_token_waits_for_its_own_block_only(spec):
    prompts = prompts_of([1], 6, vocab_size=9)
    params = np.array(table(7))
    params[:, EOS] = -60
    params[2, EOS] = 60
    options = Options(6, block_length=3, deferred_ids=(EOS,), has_trajectory=True)
    # Schedules divide their steps among the two blocks.
    sampler = samplers.parse(spec.replace("steps=1", "steps=2"))
    result = run(sampler, prompts, options, params)
    steps = result.trajectory.commit[0].argmax(axis=0)
    assert max(steps[1], steps[3]) < steps[2] < steps[4:].min()


def test_schedules_have_steps_for_what_waited():
    """Dream's commits all that may be at its last step; deferred ones come after."""
    prompts = prompts_of([1], 2, vocab_size=9)
    params = np.array(table(3))
    params[1, EOS] = 60
    options = Options(2, deferred_ids=(EOS,))
    sampler = samplers.parse("entropy(schedule=dream(steps=5))")
    result = run(sampler, prompts, options, params)
    assert result.is_complete[0] and result.num_steps[0] == 6


@flax.struct.dataclass
class Count:
    steps: jax.Array


class WritesItsCount(samplers.LeftToRight):
    """Writes the number of its own step, which its state counts."""

    def init(self, canvas):
        return Count(jnp.int32(2))

    def step(self, key, state, canvas, prediction):
        _, decision = super().step(key, (), canvas, prediction)
        tokens = jnp.full_like(prediction.token, state.steps)
        decision = dataclasses.replace(decision, tokens=tokens)
        return Count(state.steps + 1), decision


@pytest.mark.parametrize("num_slots", [1, 2, 3])
def test_a_new_row_starts_with_a_new_state(num_slots):
    """Rows of different lengths, so that slots are refilled one by one."""
    blanks = [5, 2, 7, 3, 1, 6]
    prompts = stack([prompts_of([2], num, width=9, vocab_size=9) for num in blanks])
    keys = row_keys(0, np.arange(6))
    result = run(WritesItsCount(), prompts, Options(7, num_slots=num_slots), keys=keys)
    assert len(set(result.last_iteration)) > 3
    for row, num in enumerate(blanks):
        written = result.tokens[row, 2 : 2 + num]
        np.testing.assert_array_equal(written, np.arange(2, 2 + num))


def test_the_draw_and_the_rule_have_keys_of_their_own():
    """A rule that draws a token as the loop does gets another one."""
    from dlm_jax.core.noise import gumbel_noise

    class Draws(samplers.LeftToRight):
        def step(self, key, state, canvas, prediction):
            state, decision = super().step(key, state, canvas, prediction)
            positions = jnp.arange(canvas.tokens.shape[0])[None]
            noise = gumbel_noise(key[None], positions, 0, MASK, jnp.dtype("float32"))[0]
            tokens = jnp.argmax(noise, axis=-1).astype(jnp.int32)
            return state, dataclasses.replace(decision, tokens=tokens)

    prompts = prompts_of([1], 60, vocab_size=9)
    params = jnp.zeros((61, VOCAB))
    options = Options(60, temperature=1.0)
    own = run(Draws(), prompts, options, params).tokens[0, 1:]
    drawn = run(samplers.LeftToRight(), prompts, options, params).tokens[0, 1:]
    assert len(np.unique(own)) > 5 and len(np.unique(drawn)) > 5
    assert (own == drawn).mean() < 0.3
