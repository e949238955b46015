"""Rules that edit decided tokens, and go on in a block that is full."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest
from cache_model import (
    BLOCK,
    GEN,
    MASK,
    Eager,
    Memory,
    assert_is,
    batch,
    generate,
    llada21,
    params_of,
)
from helpers import infilling_of, prompts_of, stack

from dlm_jax import caches
from dlm_jax.core.cache import Kind
from dlm_jax.core.canvas import Decision
from dlm_jax.core.checks import prepare
from dlm_jax.core.options import Options
from dlm_jax.core.sampler import Sampler
from dlm_jax.samplers import select

pytestmark = pytest.mark.usefixtures("float64")


class Edits(Sampler):
    """LLaDA2.1's rule."""

    threshold: float = 0.4
    editing_threshold: float = 0.3
    max_post_steps: int = 2
    may_rewrite: ClassVar[bool] = True

    def init(self, canvas):
        return jnp.int32(0)

    def step(self, key, num_full, canvas, prediction):
        probability = jnp.exp(prediction.log_prob)
        is_in_block = jnp.isin(jnp.arange(canvas.length), canvas.block_blanks)
        is_in_block &= canvas.is_open & prediction.is_known
        was_full = ~jnp.any(canvas.is_mask & canvas.is_open)
        num_full = jnp.where(canvas.block_step == 0, 0, num_full) + was_full
        commit = select.above(probability, canvas.is_eligible, self.threshold)
        edit = is_in_block & ~canvas.is_mask & (prediction.token != canvas.tokens)
        edit &= probability > self.editing_threshold
        is_settled = was_full & ~jnp.any(edit)
        is_finished = is_settled | (num_full >= self.max_post_steps)
        return num_full, Decision(commit | edit, is_finished=is_finished)

    def extra_steps(self, num_blocks):
        return int(np.max(self.max_post_steps)) * num_blocks


def between_given_blocks():
    """Blanks in the second and in the last of five blocks of columns."""
    prompts = infilling_of(4, 20, width=26, vocab_size=9)
    is_blank = np.isin(np.arange(26), [5, 6, 17, 19])[None]
    return dataclasses.replace(prompts, is_blank=is_blank)


@pytest.mark.parametrize("max_post_steps", [0, 1, 3])
@pytest.mark.parametrize("plan", ["none", "dual", "block", "none of blocks"])
def test_a_block_ends_when_its_rule_is_through_with_it(plan, max_post_steps):
    """Edits of decided tokens, seven rows in three slots, against a plain loop."""
    params, prompts = params_of(26, seed=3), stack([batch(), between_given_blocks()])
    model = Memory(is_block_causal="block" in plan)
    plan = plan.partition(" ")[0]
    result = generate(
        model,
        params,
        prompts,
        Edits(max_post_steps=max_post_steps),
        cache=caches.parse(plan),
        num_slots=3,
    )
    num_edits = 0
    for row in (0, 1, 2, 3, 4, 6):
        eager = Eager(model, params, prompts, row)
        llada21(eager, plan, 0.4, 0.3, max_post_steps)
        assert_is(result, row, eager)
        num_edits += eager.num_edits
    assert num_edits > 0 and result.is_complete.all()


@pytest.mark.parametrize(("is_block_causal", "num_blocks"), [(False, 3), (True, 7)])
def test_the_bound_on_steps_knows_blocks(is_block_causal, num_blocks):
    """26 columns are seven blocks of four; 12 blanks are three."""
    options = prepare(
        Memory(is_block_causal=is_block_causal),
        Edits(max_post_steps=5),
        prompts_of([1, 14], GEN, width=26, vocab_size=9),
        Options(GEN, BLOCK),
    )[2]
    assert options.max_steps == GEN + 5 * num_blocks


class Waits(Sampler):
    """Fills a block at once and keeps it for two more steps."""

    def step(self, key, state, canvas, prediction):
        is_finished = canvas.block_step == 2
        return state, Decision(canvas.is_eligible, is_finished=is_finished)

    def extra_steps(self, num_blocks):
        return 2 * num_blocks


def test_a_row_whose_edits_are_cut_off_is_not_complete():
    params, prompts = params_of(26), prompts_of([3], GEN, width=26, vocab_size=9)
    for max_steps, is_complete in ((8, False), (9, True)):
        found = generate(Memory(), params, prompts, Waits(), max_steps=max_steps)
        assert (found.tokens[0, 3:15] != MASK).all()
        assert found.is_complete[0] == is_complete


def test_a_block_that_was_finished_is_stored():
    """The rule is not asked again: its answer to a store would be no."""
    params, prompts = params_of(26), prompts_of([3], GEN, width=26, vocab_size=9)
    model = Memory(is_block_causal=True)
    result = generate(model, params, prompts, Waits(), cache=caches.Block())
    # The first block has three given columns; columns up to 14 are blank.
    kinds = [Kind.STEP] * 3 + [Kind.STORE]
    assert result.num_steps[0] == 16 and result.is_complete[0]
    assert result.trajectory.kind[0, :16].tolist() == kinds * 4


@pytest.mark.parametrize("plan", ["none", "dual", "prefix"])
def test_a_stop_waits_for_the_end_of_its_block(plan):
    """With early_stop off; or at once, whatever the rule would go on with."""
    params, prompts = params_of(26), prompts_of([3], GEN, width=26, vocab_size=9)
    common = {"sampler": Waits(), "cache": caches.parse(plan)}
    whole = generate(Memory(), params, prompts, **common)
    assert whole.num_steps[0] == 9 and whole.is_complete[0]
    np.testing.assert_array_equal(
        whole.trajectory.commit[0].any(axis=1)[:9], [True, False, False] * 3
    )
    # A token of the second block that is not in the first.
    tokens = np.asarray(whole.tokens[0, 3:])
    stop = next(x for x in tokens[BLOCK : 2 * BLOCK] if x not in tokens[:BLOCK])
    for early_stop, num_steps in ((False, 6), (True, 4)):
        found = generate(
            Memory(),
            params,
            prompts,
            **common,
            stop_ids=(int(stop),),
            early_stop=early_stop,
        )
        assert found.num_steps[0] == num_steps and found.is_complete[0]
