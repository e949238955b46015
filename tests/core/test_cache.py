"""Caches in the loop, against plain Python loops on a model that sees stale tokens."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cache_model import (
    BLOCK,
    CODES,
    EOS,
    GEN,
    MASK,
    VOCAB,
    Eager,
    Guided,
    Memory,
    assert_is,
    batch,
    block_diffusion,
    fast_dllm,
    generate,
    params_of,
)
from helpers import infilling_of, prompts_of, stack

from dlm_jax import caches, models, samplers
from dlm_jax.core import loop
from dlm_jax.core.cache import CachePlan, Kind
from dlm_jax.core.keys import row_keys
from dlm_jax.core.options import Options
from dlm_jax.errors import InputError
from dlm_jax.models import llada, registry, sdar

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize(
    ("spec", "num_refreshed"),
    [
        ("none", 1),
        ("prefix", 1),
        ("prefix", 6),
        ("dual", 2),
        ("dual(refresh_every=2)", 1),
        ("dual(refresh_every=2)", 6),
        ("prefix(refresh_every=1)", 1),
    ],
)
def test_approximate_caches_equal_a_plain_loop(spec, num_refreshed):
    """Six rows in three slots, whatever is computed beside what."""
    params, prompts, model = params_of(26), batch(), Memory()
    plan = caches.parse(spec)
    every = int(getattr(plan, "refresh_every", 0))
    result = generate(
        model,
        params,
        prompts,
        cache=plan,
        num_slots=3,
        num_refreshed=num_refreshed,
    )
    assert result.is_complete.all()
    for row in range(5):
        eager = Eager(model, params, prompts, row)
        fast_dllm(eager, spec.partition("(")[0], 0.4, every)
        assert_is(result, row, eager)
    assert result.num_steps[5] == 0


def test_plans_differ_on_this_model():
    """Or the test above could not fail."""
    params, prompts = params_of(26), batch()
    tokens = {
        spec: np.asarray(
            generate(Memory(), params, prompts, cache=caches.parse(spec)).tokens
        ).tobytes()
        for spec in ("none", "prefix", "dual", "dual(refresh_every=2)")
    }
    assert len(set(tokens.values())) == 4


class Wide(samplers.Threshold):
    """Asks for all blanks, and decides as its base does."""

    def region(self, canvas):
        return canvas.blanks


@pytest.mark.parametrize("plan", ["dual", "dual(refresh_every=2)", "prefix"])
def test_asking_for_more_than_a_window_changes_nothing(plan):
    params, prompts = params_of(26), batch()
    wide, narrow = (
        generate(Memory(), params, prompts, rule, cache=caches.parse(plan), num_slots=3)
        for rule in (Wide(threshold=0.4), samplers.Threshold(threshold=0.4))
    )
    np.testing.assert_array_equal(wide.tokens, narrow.tokens)
    np.testing.assert_array_equal(wide.trajectory.kind, narrow.trajectory.kind)
    assert (wide.num_whole < wide.num_steps)[:5].any()


@pytest.mark.parametrize(("num_slots", "num_refreshed"), [(1, 1), (3, 1), (6, 6)])
def test_the_exact_cache_equals_a_plain_loop_and_full_forwards(
    num_slots, num_refreshed
):
    params, prompts = params_of(26), batch()
    model = Memory(is_block_causal=True)
    options = {"num_slots": num_slots, "num_refreshed": num_refreshed}
    cached = generate(model, params, prompts, cache=caches.Block(), **options)
    full = generate(model, params, prompts, **options)
    assert cached.is_complete.all()
    np.testing.assert_array_equal(cached.tokens, full.tokens)
    np.testing.assert_array_equal(
        cached.num_steps - cached.num_whole - cached.num_stores, full.num_steps
    )
    for row in range(5):
        eager = Eager(model, params, prompts, row)
        block_diffusion(eager, 0.4)
        assert_is(cached, row, eager)
        # Blocks of this model count columns, and those without a blank take no forward.
        blocks = np.unique(eager.blanks // BLOCK)
        first = np.flatnonzero(full.trajectory.commit[row].any(axis=1))
        assert full.num_steps[row] == len(first) >= len(blocks)


def test_blocks_that_are_given_take_no_forward():
    prompts = infilling_of(3, 16, vocab_size=9)
    is_blank = np.isin(np.arange(16), [1, 2, 13])[None]
    prompts = dataclasses.replace(prompts, is_blank=is_blank)
    full = generate(Memory(is_block_causal=True), params_of(16), prompts)
    writes = full.trajectory.commit[0, : full.num_steps[0]].any(axis=1)
    assert full.is_complete[0] and writes.all() and 2 <= full.num_steps[0] <= 3


def test_the_exact_cache_draws_what_full_forwards_draw():
    """Forwards that decide nothing use up no randomness."""
    params, prompts = params_of(26), batch()
    model = Memory(is_block_causal=True)
    cached, full = (
        generate(model, params, prompts, "random", cache=plan, temperature=0.7)
        for plan in (caches.Block(), caches.parse("none"))
    )
    # Stores, and a prefill where whole blocks are given.
    assert (cached.num_steps[:4] > full.num_steps[:4]).all()
    np.testing.assert_array_equal(cached.tokens, full.tokens)


@pytest.mark.parametrize("spec", ["none", "prefix", "dual"])
def test_a_position_is_predicted_by_the_column_before_it(spec):
    """As in Dream. The first of a block has its source outside the dual window."""
    params, prompts, model = params_of(26), batch(), Memory(shift=1)
    result = generate(model, params, prompts, cache=caches.parse(spec), num_slots=2)
    assert result.is_complete.all()
    for row in range(5):
        eager = Eager(model, params, prompts, row)
        fast_dllm(eager, spec, 0.4, 0)
        assert_is(result, row, eager)


def test_a_stop_ends_a_row_at_once_or_with_its_block():
    """What follows the stop in its block stays where early_stop is off."""
    own = np.full((12, VOCAB), -9.0)
    own[:, 3] = 0
    own[5] = [5.0 if token == 8 else 0.0 for token in range(VOCAB)]
    params = own, np.zeros((12, CODES, VOCAB))
    prompts = prompts_of([4], 8, vocab_size=9)
    common = {"sampler": "left_to_right", "stop_ids": (8,)}
    for model, plan, num in (
        (Memory(), CachePlan(), (2, 4)),
        (Memory(), caches.Dual(), (2, 4)),
        # Two steps; and a prefill, four steps and a store.
        (Memory(is_block_causal=True), caches.Block(), (3, 6)),
    ):
        at_once, later = (
            loop.generate(
                model,
                params,
                samplers.parse(common["sampler"]),
                prompts,
                row_keys(0, np.arange(1)),
                Options(8, 4, stop_ids=(8,), cache=plan, early_stop=early),
            )
            for early in (True, False)
        )
        assert (at_once.num_steps[0], later.num_steps[0]) == num
        assert at_once.tokens[0, 4:].tolist() == [3, 8, *[EOS] * 6]
        assert later.tokens[0, 4:].tolist() == [3, 8, 3, 3, *[EOS] * 4]
        assert later.is_complete[0]


@pytest.mark.parametrize("spec", ["prefix", "dual(refresh_every=2)", "block"])
def test_under_guidance_each_view_has_its_own_cache(spec):
    """Against a plain loop with two caches; rows share slots, refreshes are few."""
    params, prompts = params_of(26, seed=1), batch()
    model = Memory(is_block_causal=spec == "block")
    plan = {"cache": caches.parse(spec), "num_slots": 3, "num_refreshed": 2}
    result = generate(model, params, prompts, guidance=0.8, **plan)
    assert (result.tokens != generate(model, params, prompts, **plan).tokens).any()
    for row in range(5):
        eager = Guided(model, params, prompts, row, scale=0.8)
        if spec == "block":
            block_diffusion(eager, 0.4)
        else:
            fast_dllm(eager, spec.partition("(")[0], 0.4, 2 * ("(" in spec))
        assert_is(result, row, eager)


@pytest.mark.parametrize(("early_stop", "num_steps"), [(True, 10), (False, 11)])
def test_a_stop_at_the_last_blank_ends_the_row_at_once(early_stop, num_steps):
    """A prefill, four steps, a store, four steps; and a store if that is waited for."""
    own = np.full((12, VOCAB), -9.0)
    own[:, 3] = 0
    own[11, 8] = 5
    result = generate(
        Memory(is_block_causal=True),
        (own, np.zeros((12, CODES, VOCAB))),
        prompts_of([4], 8, vocab_size=9),
        "left_to_right",
        cache=caches.Block(),
        stop_ids=(8,),
        early_stop=early_stop,
    )
    assert result.tokens[0, 4:].tolist() == [3] * 7 + [8]
    assert result.num_steps[0] == num_steps and result.is_complete[0]


class TakesBack(samplers.LowConfidence):
    """In the first step of the second block, takes back the first blank."""

    needs = ()
    may_remask = True

    def region(self, canvas):
        return canvas.blanks

    def step(self, key, state, canvas, prediction):
        state, decision = super().step(key, state, canvas, prediction)
        is_time = (canvas.block == 1) & (canvas.block_step == 0)
        first = jnp.arange(canvas.length) == canvas.blanks[0]
        return state, dataclasses.replace(decision, remask=first & is_time)


@pytest.mark.parametrize("spec", ["prefix", "dual"])
def test_a_mask_outside_the_window_is_refreshed(spec):
    """Or nobody would ever fill it."""
    prompts = prompts_of([3], GEN, width=26, vocab_size=9)
    plan = caches.parse(spec)
    result = generate(
        Memory(), params_of(26), prompts, TakesBack(), cache=plan, max_steps=20
    )
    assert result.is_complete.all()
    trajectory = result.trajectory
    (step,) = np.flatnonzero(trajectory.remask[0].any(axis=1))
    filled = trajectory.commit[0, :, 3]
    (_, again) = np.flatnonzero(filled)
    # Steps go on while there is something in the window to commit.
    assert (trajectory.kind[0, step + 1 : again] == Kind.STEP).all()
    assert again > step + 1
    assert trajectory.kind[0, again] == Kind.REFRESH


def test_staleness_is_the_error_of_the_log_probabilities():
    params, prompts, model = params_of(26), batch(), Memory()
    result = generate(
        model, params, prompts, cache=caches.Dual(), has_staleness=True, num_slots=2
    )
    trajectory = jax.device_get(result.trajectory)
    is_whole = trajectory.kind == Kind.REFRESH
    np.testing.assert_allclose(trajectory.staleness[is_whole], 0, atol=1e-12)
    largest = 0.0
    for row in range(5):
        eager = Eager(model, params, prompts, row)
        for k in range(int(result.num_steps[row])):
            eager.tokens = trajectory.canvas[row, k]
            eager.compute(Kind.REFRESH, range(eager.length))
            is_open = trajectory.log_prob[row, k] > -np.inf
            places = np.flatnonzero(is_open & (eager.tokens == MASK))[:BLOCK]
            errors = []
            for i in places:
                logits = eager.logits(i)
                exact = logits - np.log(np.exp(logits).sum())
                # Which token the cached forward had is known where it was written.
                if trajectory.commit[row, k, i]:
                    token = trajectory.canvas[row, k + 1, i]
                    errors.append(abs(exact[token] - trajectory.log_prob[row, k, i]))
            assert trajectory.staleness[row, k] >= max(errors) - 1e-9
            largest = max(largest, *errors)
    assert largest > 0.1


def test_staleness_leaves_deferred_candidates_out():
    """They have probability 0 in every statistic."""
    result = generate(
        Memory(),
        params_of(26),
        batch(),
        cache=caches.Dual(),
        has_staleness=True,
        deferred_ids=(3,),
    )
    assert (result.trajectory.log_prob == -np.inf).any()
    assert np.isfinite(result.trajectory.staleness).all()
    assert result.trajectory.staleness.max() > 0.1


class ForEveryModel(caches.Block):
    """Says less of itself than it could."""

    needs_block_causal = False


@pytest.mark.parametrize(
    ("config", "plan"),
    [
        (sdar.sdar_tiny(), caches.Block()),
        (sdar.sdar_tiny(), caches.Dual()),
        (sdar.sdar_tiny(), ForEveryModel()),
        (llada.tiny(), caches.Dual()),
        (llada.tiny(), caches.Prefix()),
    ],
)
def test_a_row_of_nans_does_not_reach_the_next_in_its_slot(config, plan):
    """An exact cache's first forward of a short prompt writes one block only."""
    model = registry.init(config, seed=1)
    is_sdar = isinstance(config, sdar.SDARConfig)
    table = model.embed_tokens if is_sdar else model.wte
    table[...] = table[...].at[5].set(jnp.nan)
    denoiser, params = models.as_denoiser(model)
    broken = prompts_of([6], GEN, width=24)
    broken.tokens[0, :6] = [5, 6, 7, 8, 9, 10]
    good = prompts_of([2], GEN, width=24, vocab_size=9)
    good.tokens[0, :2] = [6, 7]

    def run(prompts, ids):
        return loop.generate(
            denoiser,
            params,
            samplers.parse("threshold"),
            prompts,
            row_keys(0, np.asarray(ids)),
            Options(GEN, BLOCK, cache=plan, num_slots=1, guidance=0.5),
        )

    alone, queued = run(good, [1]), run(stack([broken, good]), [0, 1])
    assert queued.has_nan.tolist() == [True, False]
    np.testing.assert_array_equal(queued.tokens[1], alone.tokens[0])
    assert queued.is_complete[1]


class WritesFiveLast(samplers.LeftToRight):
    """Writes token 5 at the row's last blank."""

    def step(self, key, state, canvas, prediction):
        state, decision = super().step(key, state, canvas, prediction)
        is_last = jnp.arange(canvas.length) == canvas.blanks[-1]
        tokens = jnp.where(is_last, 5, prediction.token)
        return state, dataclasses.replace(decision, tokens=tokens)


def test_nans_of_the_last_store_do_not_reach_the_next_in_its_slot():
    """The row is complete, and no forward that decides has seen them."""
    model = registry.init(sdar.sdar_tiny(), seed=1)
    model.embed_tokens[...] = model.embed_tokens[...].at[5].set(jnp.nan)
    denoiser, params = models.as_denoiser(model)
    first = prompts_of([2], GEN, width=24, vocab_size=9)
    first.tokens[0, :2] = [7, 8]
    second = prompts_of([2], GEN - 1, width=24, vocab_size=9)
    second.tokens[0, :2] = [6, 7]

    def run(rule, prompts, ids):
        return loop.generate(
            denoiser,
            params,
            rule,
            prompts,
            row_keys(0, np.asarray(ids)),
            Options(GEN, BLOCK, cache=caches.Block(), num_slots=1),
        )

    rule = WritesFiveLast()
    alone, queued = run(rule, second, [1]), run(rule, stack([first, second]), [0, 1])
    assert queued.tokens[0, 13] == 5
    assert queued.is_complete.tolist() == [True, True]
    assert queued.has_nan.tolist() == [False, False]
    np.testing.assert_array_equal(queued.tokens[1], alone.tokens[0])


def test_what_a_model_cannot_have_is_refused():
    params, prompts = params_of(26), batch()
    with pytest.raises(InputError, match=r"cache \(Block\) must be used with a model"):
        generate(Memory(), params, prompts, cache=caches.Block())
    with pytest.raises(InputError, match="staleness needs a cache"):
        generate(Memory(), params, prompts, has_staleness=True)
    with pytest.raises(InputError, match=r"num_refreshed \(0\) must be at least 1"):
        generate(Memory(), params, prompts, cache=caches.Dual(), num_refreshed=0)
    with pytest.raises(InputError, match="refresh_every"):
        caches.parse("dual(refresh_every=-1)")
    with pytest.raises(InputError, match=r"cache \(triple\) must be one of none"):
        caches.parse("triple")
