"""predict() in narrow dtypes, near certainty, and where logits are not finite."""

import jax.numpy as jnp
import numpy as np
import pytest
from statistics_of import inputs, of_logits, predicted, reference


def _bfloat16(values):
    return np.asarray(jnp.asarray(values, jnp.float32).astype(jnp.bfloat16), np.float64)


@pytest.mark.parametrize("vocab_slice", [1024, 16384])
def test_logits_are_rounded_then_probabilities(vocab_slice):
    hidden, head, held = inputs(1500)
    # Multiples of 1 / 32: the logits are exact in float32, and not in bfloat16.
    hidden, head = np.round(hidden * 32) / 32, np.round(head * 32) / 32
    logits = hidden[0].astype(np.float64) @ head.astype(np.float64).T
    assert np.mean(_bfloat16(logits) != logits) > 0.5
    expected = reference(_bfloat16(logits), held, 7)
    unrounded = reference(logits, held, 7)
    assert (abs(expected["entropy"] / unrounded["entropy"] - 1) > 1e-4).any()
    actual = predicted(
        hidden,
        head,
        held,
        mask_id=7,
        logits_dtype=jnp.bfloat16,
        probability_dtype=jnp.bfloat16,
        vocab_slice=vocab_slice,
    )
    np.testing.assert_array_equal(actual["token"], expected["token"])
    # The entropy is that of the rounded logits, and not rounded itself.
    np.testing.assert_allclose(actual["entropy"], expected["entropy"], rtol=1e-5)
    for name in ("log_prob", "best_log_prob", "runner_up_log_prob", "held_log_prob"):
        probability = np.exp(actual[name])
        np.testing.assert_allclose(probability, _bfloat16(probability), rtol=1e-5)
        # Half a unit in the last of eight bits, from the float64 value.
        np.testing.assert_allclose(probability, np.exp(expected[name]), rtol=2**-8)


def test_wide_probabilities_of_bfloat16_logits_are_fast_dllms():
    """Released Fast-dLLM: logits in bfloat16, their softmax in float64."""
    torch = pytest.importorskip("torch")
    hidden, head, held = inputs(1500, scale=6.0)
    hidden, head = (jnp.asarray(x, jnp.bfloat16) for x in (hidden, head))
    exact = np.asarray(hidden[0], float) @ np.asarray(head, float).T
    logits = torch.tensor(exact, dtype=torch.float32).bfloat16()
    logits[..., 7] = -torch.inf  # No candidate; what is left of it does not matter.
    confidence, token = logits.double().softmax(-1).max(-1)
    actual = predicted(
        hidden, head, held, mask_id=7, suppressed_ids=(7,), logits_dtype=jnp.bfloat16
    )
    np.testing.assert_array_equal(actual["token"], token)
    np.testing.assert_allclose(np.exp(actual["log_prob"]), confidence, rtol=2e-6)
    # Rounding the probabilities too gives other ones.
    rounded = predicted(
        hidden,
        head,
        held,
        mask_id=7,
        suppressed_ids=(7,),
        logits_dtype=jnp.bfloat16,
        probability_dtype=jnp.bfloat16,
    )
    assert (abs(np.exp(rounded["log_prob"]) / confidence.numpy() - 1) > 1e-4).any()


def test_guidance_in_bfloat16_rounds_as_pytorch_does():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    both = torch.tensor(rng.normal(size=(2, 40, 500)) * 8).bfloat16()
    conditional, unconditional = both
    expected = unconditional + (1.5 + 1) * (conditional - unconditional)
    assert (expected.double() != 2.5 * conditional - 1.5 * unconditional).any()
    # Logits by an identity as the head: exact in any precision.
    hidden = jnp.asarray(both[:, None].float().numpy())
    actual = predicted(
        hidden,
        np.eye(500, dtype=np.float32),
        expected[None, ..., 5:].argmax(-1),
        mask_id=0,
        needs=("held_log_prob",),
        guidance=jnp.float32(1.5),
        logits_dtype=jnp.bfloat16,
    )
    log_probs = expected.double().log_softmax(-1)
    held = log_probs.gather(-1, expected[..., 5:].argmax(-1, keepdim=True))
    np.testing.assert_allclose(actual["held_log_prob"][0], held[:, 0], rtol=1e-5)
    np.testing.assert_array_equal(actual["token"][0], expected[:, 1:].argmax(-1) + 1)


@pytest.mark.parametrize("vocab_slice", [1024, 16384])
def test_statistics_are_exact_where_the_model_is_certain(vocab_slice):
    """Errors relative to the doubt 1 - p, of which float32's p keeps nothing."""
    vocab_size = 2500
    logits = np.full((45, vocab_size), -40.0, np.float32)
    logits[:, 1030] = 30
    logits[:, 7] = 30 - np.linspace(8, 22, 45)
    logits[:, 2400] = logits[:, 7] - 1
    actual = predicted(
        logits[None, None].astype(np.float32),
        np.eye(vocab_size, dtype=np.float32),
        np.full((1, 45), 7),
        mask_id=3,
        vocab_slice=vocab_slice,
    )
    expected = reference(logits, np.full(45, 7), 3)
    for name in ("log_prob", "best_log_prob", "runner_up_log_prob", "entropy"):
        np.testing.assert_allclose(actual[name][0], expected[name], rtol=1e-5)
    np.testing.assert_allclose(
        actual["held_log_prob"][0], expected["held_log_prob"], 1e-5
    )
    # All different, in the right order, though most p are 1 in float32.
    assert (np.diff(actual["log_prob"][0]) > 0).all()
    assert (np.diff(actual["entropy"][0]) < 0).all()
    assert len(np.unique(np.float32(np.exp(actual["log_prob"][0])))) < 30


def test_as_many_confidences_as_pytorch_near_a_logit_of_30():
    """The largest error of 1 - p, and how many confidences float32 tells apart."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(400, 300)).astype(np.float32)
    logits[:, 5] = 30 + rng.uniform(-12, 2, 400).astype(np.float32)
    theirs = torch.tensor(logits).log_softmax(-1).max(-1).values
    exact = torch.tensor(logits, dtype=torch.float64).log_softmax(-1).max(-1).values
    actual = predicted(
        logits[None, None], np.eye(300, dtype=np.float32), np.zeros((1, 400)), mask_id=3
    )["log_prob"][0]

    def error(log_prob):
        return np.abs(np.expm1(log_prob) - np.expm1(exact.numpy())).max()

    assert error(actual) < 1e-7 < error(theirs.double().numpy())
    assert len(np.unique(actual)) >= len(np.unique(theirs))
    assert len(np.unique(actual)) > 390


def test_bfloat16_makes_ties():
    """256 and 257 are one bfloat16 number: the lower index wins."""
    logits = [256.0, 257.0, 0.0]
    assert of_logits(logits, mask_id=2)["token"] == 1
    actual = of_logits(logits, mask_id=2, logits_dtype=jnp.bfloat16)
    assert actual["token"] == 0
    assert actual["log_prob"] == pytest.approx(np.log(0.5), rel=1e-5)


@pytest.mark.parametrize("vocab_slice", [1024, 2048])
@pytest.mark.parametrize("level", [-80.0, 0.0, 3e4])
def test_entropy_of_certain_and_uniform_distributions(vocab_slice, level):
    vocab_size = 2500
    uniform = of_logits(np.full(vocab_size, level), mask_id=0, vocab_slice=vocab_slice)
    assert uniform["entropy"] == pytest.approx(np.log(vocab_size), rel=1e-5)
    assert uniform["token"] == 1
    for place in (1, 1023, 1024, 2499):
        logits = np.full(vocab_size, level)
        logits[place] += 2e4
        certain = of_logits(logits, mask_id=0, vocab_slice=vocab_slice)
        assert certain["token"] == place
        assert certain["entropy"] == 0
        assert certain["log_prob"] == 0


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_minus_infinity_is_an_impossible_token(temperature):
    temperature = None if temperature is None else jnp.float32(temperature)
    logits = np.full(2500, -np.inf)
    logits[[1030, 2400]] = [1.0, 2.0]
    for vocab_slice in (1024, 16384):
        actual = of_logits(
            logits,
            mask_id=0,
            held=np.zeros((1, 1)),
            vocab_slice=vocab_slice,
            temperature=temperature,
        )
        expected = reference(logits, np.array(0), 0)
        assert actual["token"] in (1030, 2400)
        assert actual["held_log_prob"] == -np.inf
        for name in ("best_log_prob", "runner_up_log_prob", "entropy"):
            assert actual[name] == pytest.approx(expected[name], rel=1e-5)


@pytest.mark.parametrize("temperature", [None, 0.5])
@pytest.mark.parametrize("place", [0, 1024, 2499])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_nan_or_overflow_shows_in_every_statistic(temperature, place, value):
    """Whichever slice it is in: the loop looks at log_prob only."""
    temperature = None if temperature is None else jnp.float32(temperature)
    logits = np.zeros(2500)
    logits[place] = value
    actual = of_logits(logits, mask_id=0, vocab_slice=1024, temperature=temperature)
    for name in ("log_prob", "best_log_prob", "entropy"):
        assert np.isnan(actual[name]), name


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_no_candidate_at_all_is_nan_and_not_token_0(temperature):
    temperature = None if temperature is None else jnp.float32(temperature)
    only_mask = np.full(2500, -np.inf)
    only_mask[1500] = 0
    for logits in (np.full(2500, -np.inf), only_mask):
        actual = of_logits(
            logits, mask_id=1500, vocab_slice=1024, temperature=temperature
        )
        assert np.isnan(actual["log_prob"])
