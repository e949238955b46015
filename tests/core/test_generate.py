"""The loop's own business: blocks, stops, suppression, bounds, NaN, values per row."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import TableDenoiser, equations, infilling_of, prompts_of, stack
from table_loop import DENOISER, EOS, MASK, VOCAB, run, table

from dlm_jax import samplers
from dlm_jax.core import loop
from dlm_jax.core.canvas import Prompts, View
from dlm_jax.core.checks import prepare
from dlm_jax.core.keys import row_keys
from dlm_jax.core.options import Options
from dlm_jax.errors import InputError
from dlm_jax.models import as_denoiser
from dlm_jax.models.llada import LLaDA, tiny


def test_blocks_are_filled_in_order_and_count_blanks():
    prompts = stack(
        [prompts_of([3], 8, vocab_size=9), infilling_of(7, 10, width=11, vocab_size=9)]
    )
    options = Options(gen_length=8, block_length=2)
    result = run("low_confidence", prompts, options)
    for row in range(2):
        steps = result.commit_step[row][prompts.is_blank[row]]
        blocks = [sorted(steps[i : i + 2]) for i in range(0, len(steps), 2)]
        assert blocks == sorted(blocks)
        assert sorted(steps) == list(range(len(steps)))
    best = np.argmax(table(11)[:, :MASK], axis=1)
    tokens = np.where(prompts.is_blank, best, prompts.tokens)
    np.testing.assert_array_equal(
        result.tokens[prompts.is_valid], tokens[prompts.is_valid]
    )


def test_semi_autoregressive_order_within_a_block_is_the_samplers():
    prompts = prompts_of([2], 6, vocab_size=9)
    params = table(8)
    result = run("low_confidence", prompts, Options(gen_length=6), params)
    confidence = jnp.exp(jax.nn.log_softmax(params))[:, :MASK].max(axis=1)[2:]
    order = np.argsort(-np.asarray(confidence))
    np.testing.assert_array_equal(np.argsort(result.commit_step[0][2:]), order)
    np.testing.assert_allclose(result.confidence[0][2:], confidence, rtol=1e-5)


def test_stop_fills_the_tail_and_saves_steps():
    prompts = prompts_of([2, 4], 6, vocab_size=9)
    params = np.array(table(10))
    params[:, EOS] = -50
    params[5, EOS] = 50
    options = Options(gen_length=6, stop_ids=(EOS,))
    result = run("left_to_right", prompts, options, jnp.asarray(params))
    # Row 0 generates columns 2..7 and row 1 columns 4..9; both stop at column 5.
    np.testing.assert_array_equal(result.num_steps, [4, 2])
    assert (result.tokens[0, 5:8] == EOS).all()
    assert (result.tokens[1, 5:10] == EOS).all()
    assert result.is_complete.all()
    assert (result.commit_step[0, 6:] == -1).all()
    assert (result.confidence[0, 6:] == 0).all()
    assert (result.tokens[0, 2:5] != EOS).all()


def test_a_stop_waits_for_what_is_undecided_before_it():
    """Seen at every step: the tail is filled when the last mask before it is gone."""
    prompts = prompts_of([1], 5, vocab_size=9)
    params = np.zeros((6, VOCAB))
    params[:, EOS] = -50
    params[4, EOS] = 50
    params[5, 7] = 40  # Committed second, behind the stop, while masks stand before it.
    params[1:4, 6] = [3, 2, 1]
    options = Options(gen_length=5, stop_ids=(EOS,), has_trajectory=True)
    result = run("low_confidence", prompts, options, jnp.asarray(params))
    canvas = result.trajectory.canvas[0]
    np.testing.assert_array_equal(canvas[1, 1:], [MASK, MASK, MASK, EOS, MASK])
    np.testing.assert_array_equal(canvas[2, 1:], [MASK, MASK, MASK, EOS, 7])
    np.testing.assert_array_equal(canvas[4, 1:], [6, 6, MASK, EOS, 7])
    np.testing.assert_array_equal(canvas[5, 1:], [6, 6, 6, EOS, EOS])
    assert result.num_steps[0] == 5
    np.testing.assert_array_equal(result.commit_step[0], [-1, 2, 3, 4, 0, -1])


def test_stop_ids_in_a_prompt_do_not_stop_it():
    prompts = prompts_of([3], 4, vocab_size=9)
    prompts.tokens[0, :3] = EOS
    params = jnp.zeros((7, VOCAB)).at[:, 5].set(3.0)
    result = run("left_to_right", prompts, Options(4, stop_ids=(EOS, 4)), params)
    assert (result.tokens[0, 3:] == 5).all() and result.num_steps[0] == 4


def test_stops_are_per_row():
    """An infilling that shares a call with a continuation is not cut off."""
    prompts = stack([prompts_of([2], 6, vocab_size=9)] * 2)
    prompts = dataclasses.replace(prompts, can_stop=np.array([True, False]))
    params = np.zeros((8, VOCAB))
    params[:, 5] = 3
    params[4, 4] = 9  # The second of two stop ids.
    params = jnp.asarray(params)
    options = Options(6, stop_ids=(EOS, 4))
    result = run("left_to_right", prompts, options, params)
    np.testing.assert_array_equal(result.num_steps, [3, 6])
    np.testing.assert_array_equal(result.tokens[0, 2:], [5, 5, 4, EOS, EOS, EOS])
    np.testing.assert_array_equal(result.tokens[1, 2:], [5, 5, 4, 5, 5, 5])
    wrong = dataclasses.replace(prompts, can_stop=np.array([True]))
    with pytest.raises(
        InputError, match=r"can_stop \(of shape \(1,\)\) must be one per"
    ):
        run("left_to_right", wrong, options, params)


def test_no_stop_while_something_before_it_is_undecided():
    prompts = prompts_of([1], 5, vocab_size=9)
    params = np.array(table(6))
    params[:, EOS] = -50
    params[4, EOS] = 50
    options = Options(gen_length=5, stop_ids=(EOS,))
    result = run("low_confidence", prompts, options, jnp.asarray(params))
    assert result.commit_step[0, 4] == 0
    assert (result.tokens[0, 1:4] != EOS).all()
    assert result.tokens[0, 5] == EOS


def test_suppressed_tokens_never_appear():
    prompts = prompts_of([2], 6, vocab_size=9)
    params = table(8)
    plain = run("low_confidence", prompts, Options(gen_length=6), params)
    banned = tuple({int(token) for token in plain.tokens[0, 2:]})
    options = Options(gen_length=6, suppressed_ids=banned)
    result = run("low_confidence", prompts, options, params)
    assert not np.isin(result.tokens[0, 2:], banned).any()
    options = dataclasses.replace(options, temperature=1.0)
    result = run("low_confidence", prompts, options, params)
    assert not np.isin(result.tokens[0, 2:], banned).any()


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_deferred_tokens_come_last(temperature):
    prompts = prompts_of([1], 6, vocab_size=9)
    params = np.array(table(7))
    params[[2, 5], EOS] = 60
    options = Options(gen_length=6, deferred_ids=(EOS,), temperature=temperature)
    result = run("low_confidence", prompts, options, jnp.asarray(params))
    assert (result.tokens[0, [2, 5]] == EOS).all()
    assert set(result.commit_step[0, [2, 5]]) == {4, 5}
    assert (result.confidence[0, [2, 5]] == 0).all()


def test_bound_on_steps_flags_unfinished_rows():
    prompts = stack(
        [prompts_of([2], 3, width=8, vocab_size=9), prompts_of([2], 6, vocab_size=9)]
    )
    result = run("left_to_right", prompts, Options(gen_length=6, max_steps=4))
    np.testing.assert_array_equal(result.is_complete, [True, False])
    np.testing.assert_array_equal(result.num_steps, [3, 4])
    assert (result.tokens[1, 6:] == MASK).all()
    assert not result.has_nan.any()


@pytest.mark.parametrize("spec", ["low_confidence", "entropy_bound", "saber"])
def test_nan_ends_its_row_only(spec):
    prompts = stack(
        [prompts_of([2], 3, width=8, vocab_size=9), prompts_of([2], 6, vocab_size=9)]
    )
    params = table(8)
    clean = run(spec, prompts, Options(gen_length=6), params)
    result = run(spec, prompts, Options(gen_length=6), params.at[6].set(jnp.nan))
    np.testing.assert_array_equal(result.has_nan, [False, True])
    np.testing.assert_array_equal(result.is_complete, [True, False])
    np.testing.assert_array_equal(result.tokens[0], clean.tokens[0])
    assert result.num_steps[1] == 1
    assert (result.tokens[1, 2:] == MASK).all()


def test_a_value_per_row_is_a_sweep_in_one_batch():
    one = prompts_of([2], 6, vocab_size=9)
    thresholds = np.array([0.0, 0.3, 0.99])
    swept = samplers.Threshold(threshold=thresholds)
    keys = row_keys(0, np.arange(3))
    params, options = table(8), Options(gen_length=6)
    batch = stack([one] * 3)
    result = loop.generate(DENOISER, params, swept, batch, keys, options)
    assert result.num_steps[0] == 1
    assert result.num_steps[2] == 6
    for row, threshold in enumerate(thresholds):
        single = run(f"threshold(threshold={threshold})", one, options, params)
        assert single.num_steps[0] == result.num_steps[row]
        np.testing.assert_array_equal(single.tokens[0], result.tokens[row])


def test_guidance_combines_with_and_without_the_prompt():
    class PromptReader(TableDenoiser):
        """Logits favour the token in column 0, which guidance hides."""

        def denoise(self, params, view, region, cache):
            first = jax.nn.one_hot(view.tokens[:, :1], VOCAB)
            return params[region] + first, cache

    prompts = Prompts(
        np.array([[5, 0, 0]]), np.array([[False, True, True]]), np.ones((1, 3), bool)
    )
    params = jnp.zeros((3, VOCAB)).at[:, 7].set(1.5)
    denoiser = PromptReader(mask_id=MASK)
    weak = run("low_confidence", prompts, Options(gen_length=2), params, denoiser)
    assert (weak.tokens[0, 1:] == 7).all()
    options = Options(gen_length=2, guidance=1.0)
    strong = run("low_confidence", prompts, options, params, denoiser)
    assert (strong.tokens[0, 1:] == 5).all()
    # un + (s + 1) (cond - un) with s = 1; the hidden prompt favours the mask itself.
    logits = np.zeros(VOCAB)
    logits[[5, 7, MASK]] = 2, 1.5, -1
    expected = np.exp(2) / np.exp(logits).sum()
    np.testing.assert_allclose(strong.confidence[0, 1:], expected, rtol=1e-5)


def test_guidance_hides_what_stands_behind_the_blanks_too():
    """An infilling's prompt lies on both sides of its blanks."""

    class SuffixReader(TableDenoiser):
        """Logits favour the token in the last column, and less that in the first."""

        def denoise(self, params, view, region, cache):
            first, last = (jax.nn.one_hot(view.tokens[:, [i]], VOCAB) for i in (0, -1))
            return params[region] + first + 2 * last, cache

    is_blank = np.array([[False, True, True, False]])
    prompts = Prompts(np.array([[5, 0, 0, 6]]), is_blank, np.ones((1, 4), bool))
    options = Options(gen_length=2, guidance=1.0)
    params = jnp.zeros((4, VOCAB)).at[:, 7].set(1.5)
    reader = SuffixReader(mask_id=MASK)
    result = run("low_confidence", prompts, options, params, reader)
    assert (result.tokens[0, 1:3] == 6).all()
    # un + 2 (cond - un): twice what the prompt adds, less what masks in its place do.
    logits = np.zeros(VOCAB)
    logits[[5, 6, 7, MASK]] = 2, 4, 1.5, -3
    expected = np.exp(4) / np.exp(logits).sum()
    np.testing.assert_allclose(result.confidence[0, 1:3], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "option", "expected"),
    [
        (jnp.float32, {}, "HIGHEST"),
        (jnp.float32, {"precision": "default"}, None),
        (jnp.bfloat16, {}, None),
    ],
)
def test_products_of_float32_models_have_full_precision(dtype, option, expected):
    """On a GPU or a TPU the default would be TF32 or bfloat16 passes."""
    model = LLaDA(tiny(), rngs=nnx.Rngs(0), dtype=dtype)
    denoiser, params = as_denoiser(model)
    sampler, prompts, options = prepare(
        denoiser,
        samplers.parse("saber"),
        prompts_of([3], 4),
        Options(4, guidance=1.0, **option),
    )
    keys = row_keys(0, np.arange(1))
    traced = jax.jit(loop.sample, static_argnums=0).trace(
        denoiser, params, sampler, prompts, keys, options
    )
    products = [
        equation.params["precision"]
        for _, equation in equations(traced.jaxpr.jaxpr)
        if equation.primitive.name == "dot_general"
    ]
    assert len(products) >= 9
    for precision in products:
        names = [None if p is None else p.name for p in precision or (None, None)]
        is_default = all(name in (None, "DEFAULT") for name in names)
        assert is_default if expected is None else names == [expected] * 2


def test_row_keys_depend_on_the_id_alone():
    both = jax.random.key_data(row_keys(3, np.array([4, 9])))
    one = jax.random.key_data(row_keys(3, np.array([9])))
    np.testing.assert_array_equal(both[1], one[0])
    assert (both[0] != both[1]).any()


def test_adjust_sees_every_slice_of_the_row():
    class Favour(samplers.LowConfidence):
        """Adds to the logit of one token, a different one in each row."""

        token: int = 0

        def adjust(self, state, canvas, region, token_ids, logits):
            assert logits.shape == (region.shape[0], token_ids.shape[0])
            return logits + 100.0 * (token_ids == self.token)

    prompts = prompts_of([2, 4], 6, vocab_size=9)
    result = loop.generate(
        DENOISER,
        table(10),
        Favour(token=np.array([3, 7])),
        prompts,
        row_keys(0, np.arange(2)),
        Options(gen_length=6),
    )
    assert (result.tokens[0, 2:8] == 3).all()
    assert (result.tokens[1, 4:10] == 7).all()


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_view_can_show_more_than_the_canvas(guidance):
    class Middle(TableDenoiser):
        """Favours the token that stands in the last column of the view."""

        def denoise(self, params, view, region, cache):
            assert view.tokens.shape[1] == 2 * params.shape[0]
            last = jax.nn.one_hot(view.tokens[:, -1:], VOCAB) * 50
            return params[region] + last, cache

    class Twice(samplers.LowConfidence):
        """Shows the canvas, and behind it a copy that ends in token 6."""

        def view(self, canvas):
            view = super().view(canvas)
            tokens = jnp.concatenate([view.tokens, view.tokens.at[-1].set(6)])
            visibility = jnp.tile(view.visibility, (1, 2))
            return View(tokens, jnp.tile(view.positions, 2), visibility)

    prompts = prompts_of([2], 6, vocab_size=9)
    result = loop.generate(
        Middle(mask_id=MASK),
        table(8),
        Twice(),
        prompts,
        row_keys(0, np.arange(1)),
        Options(gen_length=6, guidance=guidance),
    )
    assert (result.tokens[0, 2:] == 6).all()


def test_guidance_does_not_hide_what_a_view_appends():
    """Both forwards then give the same, and guidance changes nothing."""

    class Middle(TableDenoiser):
        """Favours the token that stands in the last column of the view."""

        def denoise(self, params, view, region, cache):
            return params[region] + jax.nn.one_hot(view.tokens[:, -1:], VOCAB), cache

    class Longer(samplers.LowConfidence):
        """Shows token 6 behind the canvas."""

        def view(self, canvas):
            view = super().view(canvas)
            tokens = jnp.append(view.tokens, 6)
            visibility = jnp.append(view.visibility, jnp.array([[True]]), axis=1)
            return View(tokens, jnp.append(view.positions, 0), visibility)

    def confidence(guidance):
        result = loop.generate(
            Middle(mask_id=MASK),
            table(8),
            Longer(),
            prompts_of([2], 6, vocab_size=9),
            row_keys(0, np.arange(1)),
            Options(gen_length=6, guidance=guidance),
        )
        return np.asarray(result.confidence)

    np.testing.assert_allclose(confidence(1.0), confidence(0.0), rtol=1e-5)


@pytest.mark.parametrize("spec", ["entropy", "entropy_bound(gamma=0.5)"])
def test_deferred_tokens_wait_under_entropy_too(spec):
    prompts = prompts_of([1], 6, vocab_size=9)
    params = np.array(table(7))
    params[[2, 5], EOS] = 60
    params[[2, 5], 4] = 50  # without EOS, what is left is certain
    options = Options(gen_length=6, deferred_ids=(EOS,))
    result = run(spec, prompts, options, jnp.asarray(params))
    others = result.commit_step[0, [1, 3, 4, 6]]
    assert (result.tokens[0, [2, 5]] == EOS).all()
    assert result.commit_step[0, [2, 5]].min() > others.max()


def test_saber_released_keeps_to_its_block():
    prompts = prompts_of([1], 6, vocab_size=9)
    options = Options(gen_length=6, block_length=1, has_trajectory=True)
    result = run("saber_released(n=4)", prompts, options)
    assert result.is_complete.all()
    np.testing.assert_array_equal(result.num_steps, [6])
    first = result.trajectory.canvas[0, 1]
    assert (first[2:] == MASK).all()
