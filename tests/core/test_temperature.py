"""Draws at a temperature: the right distribution, and nothing else changes them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import equations

from dlm_jax import samplers
from dlm_jax.core.canvas import Prompts
from dlm_jax.core.checks import prepare
from dlm_jax.core.keys import row_keys
from dlm_jax.core.loop import generate, sample
from dlm_jax.core.noise import NOISE_TILE
from dlm_jax.core.options import Options

# Three tiles of noise, the last one partly used.
VOCAB_SIZE = 2 * NOISE_TILE + 452
MASK_ID = 1500
FIRST_BLANK, NUM_BLANKS, BLOCK_LENGTH = 2, 8, 4
NUM_ROWS = 2500
NUM_DRAWS = NUM_ROWS * NUM_BLANKS


@dataclasses.dataclass(frozen=True)
class FixedLogits:
    """A denoiser whose logits are params, [vocab], wherever it is asked.

    Its hidden is 1 and its head [vocab, 1], so that no arithmetic comes in between.
    """

    mask_id: int = MASK_ID
    eos_id: int = 0
    max_length: int = 64
    model_axis: None = None
    is_block_causal: bool = False

    def init_cache(self, params, batch_size, length):
        return ()

    def sources(self, region):
        return region

    def denoise(self, params, view, region, cache):
        return jnp.ones((*region.shape, 1)), cache

    def head(self, params):
        return params[:, None]


def _logits():
    """Some likely tokens in every tile, many rare ones, and a likely mask token."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=VOCAB_SIZE).astype(np.float32)
    logits[[3, 700, 1023, 1024, 1700, 2047, 2048, 2200, VOCAB_SIZE - 1]] += 5
    logits[MASK_ID] = 7
    return logits


# Two programs that differ in slice, padding and batch; every test uses one of them,
# because compiling costs more than drawing.
PLAIN = {"vocab_slice": 1024, "length": 10, "batch_size": 500}
PADDED = {"vocab_slice": 2048, "length": 16, "batch_size": 125}


def _draw(ids, temperature, *, vocab_slice, length, batch_size, is_blank=None):
    """Tokens, commit steps and confidences of the blanks of rows with these ids."""
    columns = np.arange(length)
    end = FIRST_BLANK + NUM_BLANKS
    if is_blank is None:
        is_blank = (columns >= FIRST_BLANK) & (columns < end)
    prompts = Prompts(
        *(
            np.broadcast_to(row, (batch_size, length))
            for row in (np.full(length, 9), is_blank, columns < end)
        )
    )
    # Four of eight blanks in each of two steps: the step enters the noise, too.
    sampler = samplers.parse(f"left_to_right(schedule=fixed(k={BLOCK_LENGTH}))")
    options = Options(
        gen_length=NUM_BLANKS,
        block_length=BLOCK_LENGTH,
        temperature=temperature,
        logits_bytes=vocab_slice * batch_size * BLOCK_LENGTH * 4,
    )
    params = jnp.asarray(_logits())
    results = [
        generate(FixedLogits(), params, sampler, prompts, row_keys(7, chunk), options)
        for chunk in np.reshape(ids, (-1, batch_size))
    ]
    return tuple(
        np.concatenate([np.asarray(getattr(x, name)) for x in results])[:, is_blank]
        for name in ("tokens", "commit_step", "confidence")
    )


def _bins(probabilities, num_draws):
    """A bin per token, or per run of neighbouring tokens, of expected count >= 5.

    Runs of neighbours lie within a tile or two, so that a tile drawn too often shows.
    """
    expected, bins, mass, index = probabilities * num_draws, [], 0.0, 0
    for count in expected:
        bins.append(index)
        mass += count
        if mass >= 5:
            mass, index = 0.0, index + 1
    # What is left after the last full bin joins it.
    return np.minimum(np.array(bins), index - 1)


def _p_value(tokens, temperature):
    logits = _logits().astype(np.float64) / temperature
    logits[MASK_ID] = -np.inf
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    fine = _bins(probabilities, tokens.size)
    assert fine.max() > 100
    # Many bins see a wrong token, few bins by probability see a wrong temperature.
    order = np.argsort(-probabilities)
    coarse = np.empty_like(fine)
    coarse[order] = np.cumsum(probabilities[order]) * 10 // 1.0001
    p_values = []
    for bins in (fine, coarse):
        observed = np.bincount(bins[tokens.ravel()], minlength=bins.max() + 1)
        expected = np.bincount(bins, weights=probabilities) * tokens.size
        is_used = expected > 0  # A likely token may leap over a coarse bin.
        assert not observed[~is_used].any() and expected[is_used].min() >= 5
        p_values.append(
            scipy.stats.chisquare(observed[is_used], expected[is_used]).pvalue
        )
    return min(p_values)


@pytest.mark.parametrize(
    "temperature", [0.7, pytest.param(1.5, marks=pytest.mark.slow)]
)
def test_20000_draws_follow_the_softmax_and_depend_on_nothing_else(temperature):
    ids = np.arange(NUM_ROWS)
    tokens, steps, _ = _draw(ids, temperature, **PLAIN)
    assert tokens.size == NUM_DRAWS == 20_000
    assert sorted(set(steps.ravel())) == [0, 1]
    assert not (tokens == MASK_ID).any()
    assert _p_value(tokens, temperature) > 1e-3
    # Neighbours in a row, of one step or two, are independent.
    is_likely = np.isin(tokens, np.argsort(_logits())[-10:])
    for offset in (1, BLOCK_LENGTH):
        pairs = np.stack(
            [is_likely[:, :-offset].ravel(), is_likely[:, offset:].ravel()]
        )
        table = np.bincount(pairs[0] * 2 + pairs[1], minlength=4).reshape(2, 2)
        assert scipy.stats.chi2_contingency(table).pvalue > 1e-3

    other = _draw(ids, temperature, **PADDED)[0]
    assert _p_value(other, temperature) > 1e-3
    np.testing.assert_array_equal(tokens, other)


def test_one_slice_more_padding_and_single_rows_draw_the_same():
    tokens = _draw(np.arange(125), 0.7, **PADDED)[0]
    alone = _draw(np.arange(3), 0.7, vocab_slice=16384, length=23, batch_size=1)[0]
    np.testing.assert_array_equal(alone, tokens[:3])


def _share_equal(one, other):
    return np.mean(one == other)


def test_a_draw_depends_on_key_step_and_position_alone():
    """Noise that is used twice would make draws equal that should be independent."""
    ids = np.arange(125)
    columns = np.arange(PADDED["length"])
    draw = functools.partial(_draw, temperature=1.5, **PADDED)
    tokens, steps, _ = draw(ids)
    # The same rows in other places of the batch.
    np.testing.assert_array_equal(draw(ids[::-1])[0][::-1], tokens)
    # By chance, two draws of a position are equal in a few per cent of the rows.
    assert _share_equal(tokens, draw(ids + 1000)[0]) < 0.1
    assert _share_equal(tokens[:, 0], tokens[:, 1]) < 0.1
    # A row whose blanks begin later draws its first block, columns 6 to 9, in step 0.
    late, late_steps, _ = draw(ids, is_blank=(columns >= 6) & (columns < 10))
    assert (late_steps == 0).all() and (steps[:, 4:] == 1).all()
    assert _share_equal(tokens[:, 4:], late) < 0.1
    # The same columns in the same step give the same draws, whatever else is blank.
    first, first_steps, _ = draw(ids, is_blank=(columns >= 2) & (columns < 5))
    assert (first_steps == 0).all()
    np.testing.assert_array_equal(first, tokens[:, :3])


def test_confidence_is_without_temperature():
    """Released samplers rank drawn tokens by softmax(logits), not by logits / T."""
    tokens, _, confidence = _draw(np.arange(125), 1.5, **PADDED)
    logits = _logits().astype(np.float64)
    expected = np.exp(logits[tokens] - np.log(np.exp(logits).sum()))
    np.testing.assert_allclose(confidence, expected, rtol=1e-5)


@pytest.mark.parametrize(("temperature", "has_noise"), [(0, False), (0.7, True)])
def test_no_noise_is_drawn_at_temperature_0(temperature, has_noise):
    prompts = Prompts(*(np.ones((2, 4), t) for t in (int, bool, bool)))
    sampler, prompts, options = prepare(
        FixedLogits(),
        samplers.parse("low_confidence"),
        prompts,
        Options(gen_length=4, temperature=temperature),
    )
    jaxpr = jax.make_jaxpr(lambda *arguments: sample(FixedLogits(), *arguments))(
        jnp.asarray(_logits()), sampler, prompts, row_keys(0, np.arange(2)), options
    )
    names = {equation.primitive.name for _, equation in equations(jaxpr.jaxpr)}
    assert "while" in names
    # Nothing else than noise reads the words of a key, or shifts bits.
    assert ("random_unwrap" in names) == has_noise
    assert ("shift_left" in names) == has_noise
