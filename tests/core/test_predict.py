"""predict() against plain float64 numpy on full logits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm_jax.core.keys import row_keys
from dlm_jax.core.predict import predict

ALL = ("best_log_prob", "runner_up_log_prob", "entropy", "held_log_prob")
B, R = 2, 3


@functools.partial(
    jax.jit,
    static_argnames=(
        "needs",
        "mask_id",
        "suppressed_ids",
        "deferred_ids",
        "logits_dtype",
        "probability_dtype",
        "vocab_slice",
        "adjust",
    ),
)
def _jitted(hidden, head, held, keys, needs=ALL, **options):
    positions = jnp.broadcast_to(jnp.arange(held.shape[1]), held.shape)
    return predict(hidden, head, held, needs, keys=keys, positions=positions, **options)


def _predict(hidden, head, held=None, *, mask_id, seed=0, **options):
    """Runs predict under jit; fields come back as float64 numpy arrays."""
    b, r = hidden.shape[1:3]
    held = np.zeros((b, r), np.int32) if held is None else held
    prediction = _jitted(
        jnp.asarray(hidden),
        jnp.asarray(head),
        jnp.asarray(held, jnp.int32),
        row_keys(seed, np.arange(b)),
        mask_id=mask_id,
        **options,
    )
    return {
        field.name: np.asarray(value, np.int32 if field.name == "token" else float)
        for field in dataclasses.fields(prediction)
        if (value := getattr(prediction, field.name)) is not None
    }


def _of_logits(logits, **options):
    """predict() where all positions have these logits, exactly: hidden is 1."""
    logits = np.asarray(logits, np.float32)
    values = _predict(np.ones((1, 1, 1, 1), np.float32), logits[:, None], **options)
    return {name: value[0, 0] for name, value in values.items()}


def _reference(logits, held, mask_id, suppressed=(), deferred=()):
    """All statistics of full logits [..., v], in float64."""
    logits = np.array(logits, np.float64)
    logits[..., list(suppressed)] = -np.inf
    counted = logits.copy()
    counted[..., list(deferred)] = -np.inf
    top = counted.max(axis=-1, keepdims=True)
    log_prob = counted - top - np.log(np.exp(counted - top).sum(-1, keepdims=True))
    candidates = logits.copy()
    candidates[..., mask_id] = -np.inf
    token = candidates.argmax(axis=-1)
    probability = np.exp(log_prob)
    plogp = probability * np.where(probability > 0, log_prob, 0)

    def at(index):
        return np.take_along_axis(log_prob, index[..., None], axis=-1)[..., 0]

    others = np.where(counted > -np.inf, candidates, -np.inf)
    np.put_along_axis(others, token[..., None], -np.inf, axis=-1)
    return {
        "token": token,
        "log_prob": at(token),
        "best_log_prob": at(token),
        "runner_up_log_prob": at(others.argmax(axis=-1)),
        "entropy": -plogp.sum(axis=-1),
        "held_log_prob": at(held),
    }


def _assert_close(ours, expected, rtol=2e-5, atol=2e-5):
    assert set(ours) == set(expected)
    np.testing.assert_array_equal(ours["token"], expected["token"])
    for name in expected:
        np.testing.assert_allclose(ours[name], expected[name], rtol, atol, err_msg=name)


def _inputs(vocab_size, d=8, scale=1.5, g=1, seed=0):
    rng = np.random.default_rng([seed, vocab_size])
    hidden = rng.normal(size=(g, B, R, d)).astype(np.float32) * scale
    head = rng.normal(size=(vocab_size, d)).astype(np.float32)
    held = rng.integers(0, vocab_size, (B, R))
    return hidden, head, held


@pytest.mark.parametrize(
    ("vocab_size", "slices"),
    [
        (3, [1024]),
        (1023, [1024]),
        (1024, [1024]),
        (1025, [1024]),
        (2048, [1024]),
        (3000, [1024, 2048, 16384]),
        (5120, [2048]),
    ],
)
def test_statistics_equal_full_logits_at_every_slice(vocab_size, slices):
    hidden, head, held = _inputs(vocab_size)
    mask_id = vocab_size // 2
    logits = hidden[0].astype(np.float64) @ head.astype(np.float64).T
    expected = _reference(logits, held, mask_id)
    for vocab_slice in slices:
        ours = _predict(hidden, head, held, mask_id=mask_id, vocab_slice=vocab_slice)
        _assert_close(ours, expected)


def test_float64_is_kept():
    hidden, head, held = _inputs(2500)
    logits = hidden[0].astype(np.float64) @ head.astype(np.float64).T
    with jax.enable_x64(True):
        ours = _predict(
            hidden.astype(np.float64),
            head.astype(np.float64),
            held,
            mask_id=7,
            vocab_slice=1024,
        )
    _assert_close(ours, _reference(logits, held, 7), rtol=1e-12, atol=1e-12)


def test_low_precision_models_get_float32_statistics():
    hidden, head, held = _inputs(2500)
    hidden, head = (jnp.asarray(x, jnp.bfloat16) for x in (hidden, head))
    logits = np.asarray(hidden[0], float) @ np.asarray(head, float).T
    ours = _predict(hidden, head, held, mask_id=7, vocab_slice=1024)
    _assert_close(ours, _reference(logits, held, 7))


def test_only_what_is_needed_is_computed():
    hidden, head, held = _inputs(50)
    everything = _predict(hidden, head, held, mask_id=7)
    for needs in ((), *((name,) for name in ALL)):
        ours = _predict(hidden, head, held, mask_id=7, needs=needs)
        assert set(ours) == {"token", "log_prob", *needs}
        for name, value in ours.items():
            np.testing.assert_allclose(value, everything[name], rtol=1e-6, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_ties_go_to_the_lowest_index_across_slices(data):
    """Small integers as logits: ties within and between slices, and exact sums."""
    vocab_size = 2060
    places = st.sampled_from([0, 1, 5, 1023, 1024, 1025, 2046, 2047, 2048, 2059])
    high = data.draw(st.dictionaries(places, st.integers(0, 3), min_size=1))
    held = data.draw(places)
    mask_id = data.draw(st.sampled_from([0, 1024]))  # Static: few, to compile little.
    logits = np.full(vocab_size, -1.0)
    logits[list(high)] = list(high.values())
    expected = _reference(logits, np.array(held), mask_id)
    for vocab_slice in (1024, 16384):
        ours = _of_logits(
            logits,
            held=np.full((1, 1), held),
            mask_id=mask_id,
            vocab_slice=vocab_slice,
        )
        _assert_close(ours, expected)


@pytest.mark.parametrize("temperature", [None, 5.0])
def test_mask_is_no_candidate_but_in_the_normaliser(temperature):
    temperature = None if temperature is None else jnp.float32(temperature)
    logits = np.log([0.1, 0.6, 0.3])
    for seed in range(20):
        ours = _of_logits(logits, mask_id=1, temperature=temperature, seed=seed)
        assert ours["token"] in (0, 2)
        assert ours["log_prob"] == pytest.approx(logits[ours["token"]], rel=1e-5)
        assert ours["best_log_prob"] == pytest.approx(np.log(0.3), rel=1e-5)
        assert ours["runner_up_log_prob"] == pytest.approx(np.log(0.1), rel=1e-5)
    assert temperature is None or len({int(_seeded(logits, s)) for s in range(20)}) == 2


def _seeded(logits, seed):
    return _of_logits(logits, mask_id=1, temperature=jnp.float32(5), seed=seed)["token"]


@pytest.mark.parametrize("vocab_slice", [1024, 16384])
def test_suppressed_tokens_do_not_exist(vocab_slice):
    hidden, head, held = _inputs(1500)
    logits = hidden[0].astype(np.float64) @ head.astype(np.float64).T
    # The best tokens of some positions, from both slices, and one that is held.
    suppressed = tuple({int(held[0, 0]), *logits.argmax(-1).ravel().tolist()[:4]})
    expected = _reference(logits, held, 7, suppressed=suppressed)
    assert not np.isin(expected["token"], suppressed).any()
    ours = _predict(
        hidden,
        head,
        held,
        mask_id=7,
        suppressed_ids=suppressed,
        vocab_slice=vocab_slice,
    )
    assert ours["held_log_prob"][0, 0] == -np.inf
    _assert_close(ours, expected)


@pytest.mark.parametrize("vocab_slice", [1024, 16384])
def test_deferred_tokens_are_candidates_of_confidence_0(vocab_slice):
    hidden, head, held = _inputs(1500)
    logits = hidden[0].astype(np.float64) @ head.astype(np.float64).T
    best = logits.argmax(-1)
    second = np.argsort(-logits, axis=-1)[..., 1]
    deferred = tuple({int(best[0, 0]), int(best[1, 1]), int(second[0, 1])})
    assert (np.isin(second, deferred) & ~np.isin(best, deferred)).any()
    ours = _predict(
        hidden, head, held, mask_id=7, deferred_ids=deferred, vocab_slice=vocab_slice
    )
    is_deferred = np.isin(best, deferred)
    np.testing.assert_array_equal(ours["token"], best)
    assert (ours["log_prob"][is_deferred] == -np.inf).all()
    assert is_deferred.any() and not is_deferred.all()
    expected = _reference(logits, held, 7, deferred=deferred)
    # What is left beside a deferred token says nothing of the candidate.
    expected["entropy"] = np.where(is_deferred, np.inf, expected["entropy"])
    _assert_close(ours, expected)


def test_deferred_token_drawn_at_a_temperature_has_confidence_0():
    logits = np.log([0.2, 0.5, 0.3, 1e-6])
    tokens = []
    for seed in range(20):
        ours = _of_logits(
            logits,
            mask_id=3,
            deferred_ids=(1,),
            temperature=jnp.float32(1),
            seed=seed,
        )
        expected = {0: np.log(0.4), 1: -np.inf, 2: np.log(0.6)}[int(ours["token"])]
        assert ours["log_prob"] == pytest.approx(expected, rel=1e-4)
        tokens.append(int(ours["token"]))
    assert {0, 1, 2} == set(tokens)


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0])
def test_guidance_combines_the_two_halves(scale):
    hidden, head, held = _inputs(1500, g=2)
    conditional, unconditional = hidden.astype(np.float64) @ head.astype(np.float64).T
    logits = unconditional + (scale + 1) * (conditional - unconditional)
    ours = _predict(
        hidden,
        head,
        held,
        mask_id=7,
        guidance=jnp.float32(scale),
        vocab_slice=1024,
    )
    _assert_close(ours, _reference(logits, held, 7), rtol=1e-4, atol=1e-4)


def test_adjust_sees_every_slice_once_with_its_token_ids():
    hidden, head, held = _inputs(2500)
    bonus = np.sin(np.arange(2500))
    logits = hidden[0].astype(np.float64) @ head.astype(np.float64).T + bonus
    ours = _predict(
        hidden,
        head,
        held,
        mask_id=7,
        adjust=lambda token_ids, logits: logits + jnp.sin(token_ids * 1.0),
        vocab_slice=1024,
    )
    _assert_close(ours, _reference(logits, held, 7), rtol=5e-4, atol=5e-4)


def _bfloat16(values):
    return np.asarray(jnp.asarray(values, jnp.float32).astype(jnp.bfloat16), np.float64)


@pytest.mark.parametrize("vocab_slice", [1024, 16384])
def test_logits_are_rounded_then_probabilities(vocab_slice):
    hidden, head, held = _inputs(1500)
    # Multiples of 1 / 32: the logits are exact in float32, and not in bfloat16.
    hidden, head = np.round(hidden * 32) / 32, np.round(head * 32) / 32
    logits = hidden[0].astype(np.float64) @ head.astype(np.float64).T
    assert np.mean(_bfloat16(logits) != logits) > 0.5
    expected = _reference(_bfloat16(logits), held, 7)
    unrounded = _reference(logits, held, 7)
    assert (abs(expected["entropy"] / unrounded["entropy"] - 1) > 1e-4).any()
    ours = _predict(
        hidden,
        head,
        held,
        mask_id=7,
        logits_dtype=jnp.bfloat16,
        probability_dtype=jnp.bfloat16,
        vocab_slice=vocab_slice,
    )
    np.testing.assert_array_equal(ours["token"], expected["token"])
    # The entropy is that of the rounded logits, and not rounded itself.
    np.testing.assert_allclose(ours["entropy"], expected["entropy"], rtol=1e-5)
    for name in ("log_prob", "best_log_prob", "runner_up_log_prob", "held_log_prob"):
        probability = np.exp(ours[name])
        np.testing.assert_allclose(probability, _bfloat16(probability), rtol=1e-5)
        # Half a unit in the last of eight bits, from the float64 value.
        np.testing.assert_allclose(probability, np.exp(expected[name]), rtol=2**-8)


def test_wide_probabilities_of_bfloat16_logits_are_fast_dllms():
    """Released Fast-dLLM: logits in bfloat16, their softmax in float64."""
    torch = pytest.importorskip("torch")
    hidden, head, held = _inputs(1500, scale=6.0)
    hidden, head = (jnp.asarray(x, jnp.bfloat16) for x in (hidden, head))
    exact = np.asarray(hidden[0], float) @ np.asarray(head, float).T
    logits = torch.tensor(exact, dtype=torch.float32).bfloat16()
    logits[..., 7] = -torch.inf  # No candidate; what is left of it does not matter.
    confidence, token = logits.double().softmax(-1).max(-1)
    ours = _predict(
        hidden, head, held, mask_id=7, suppressed_ids=(7,), logits_dtype=jnp.bfloat16
    )
    np.testing.assert_array_equal(ours["token"], token)
    np.testing.assert_allclose(np.exp(ours["log_prob"]), confidence, rtol=2e-6)
    # Rounding the probabilities too gives other ones.
    rounded = _predict(
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
    ours = _predict(
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
    np.testing.assert_allclose(ours["held_log_prob"][0], held[:, 0], rtol=1e-5)
    np.testing.assert_array_equal(ours["token"][0], expected[:, 1:].argmax(-1) + 1)


@pytest.mark.parametrize("vocab_slice", [1024, 16384])
def test_statistics_are_exact_where_the_model_is_certain(vocab_slice):
    """Errors relative to the doubt 1 - p, of which float32's p keeps nothing."""
    vocab_size = 2500
    logits = np.full((45, vocab_size), -40.0, np.float32)
    logits[:, 1030] = 30
    logits[:, 7] = 30 - np.linspace(8, 22, 45)
    logits[:, 2400] = logits[:, 7] - 1
    ours = _predict(
        logits[None, None].astype(np.float32),
        np.eye(vocab_size, dtype=np.float32),
        np.full((1, 45), 7),
        mask_id=3,
        vocab_slice=vocab_slice,
    )
    expected = _reference(logits, np.full(45, 7), 3)
    for name in ("log_prob", "best_log_prob", "runner_up_log_prob", "entropy"):
        np.testing.assert_allclose(ours[name][0], expected[name], rtol=1e-5)
    np.testing.assert_allclose(
        ours["held_log_prob"][0], expected["held_log_prob"], 1e-5
    )
    # All different, in the right order, though most p are 1 in float32.
    assert (np.diff(ours["log_prob"][0]) > 0).all()
    assert (np.diff(ours["entropy"][0]) < 0).all()
    assert len(np.unique(np.float32(np.exp(ours["log_prob"][0])))) < 30


def test_as_many_confidences_as_pytorch_near_a_logit_of_30():
    """The largest error of 1 - p, and how many confidences float32 tells apart."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(400, 300)).astype(np.float32)
    logits[:, 5] = 30 + rng.uniform(-12, 2, 400).astype(np.float32)
    theirs = torch.tensor(logits).log_softmax(-1).max(-1).values
    exact = torch.tensor(logits, dtype=torch.float64).log_softmax(-1).max(-1).values
    ours = _predict(
        logits[None, None], np.eye(300, dtype=np.float32), np.zeros((1, 400)), mask_id=3
    )["log_prob"][0]

    def error(log_prob):
        return np.abs(np.expm1(log_prob) - np.expm1(exact.numpy())).max()

    assert error(ours) < 1e-7 < error(theirs.double().numpy())
    assert len(np.unique(ours)) >= len(np.unique(theirs))
    assert len(np.unique(ours)) > 390


def test_bfloat16_makes_ties():
    """256 and 257 are one bfloat16 number: the lower index wins."""
    logits = [256.0, 257.0, 0.0]
    assert _of_logits(logits, mask_id=2)["token"] == 1
    ours = _of_logits(logits, mask_id=2, logits_dtype=jnp.bfloat16)
    assert ours["token"] == 0
    assert ours["log_prob"] == pytest.approx(np.log(0.5), rel=1e-5)


@pytest.mark.parametrize("vocab_slice", [1024, 2048])
@pytest.mark.parametrize("level", [-80.0, 0.0, 3e4])
def test_entropy_of_certain_and_uniform_distributions(vocab_slice, level):
    vocab_size = 2500
    uniform = _of_logits(np.full(vocab_size, level), mask_id=0, vocab_slice=vocab_slice)
    assert uniform["entropy"] == pytest.approx(np.log(vocab_size), rel=1e-5)
    assert uniform["token"] == 1
    for place in (1, 1023, 1024, 2499):
        logits = np.full(vocab_size, level)
        logits[place] += 2e4
        certain = _of_logits(logits, mask_id=0, vocab_slice=vocab_slice)
        assert certain["token"] == place
        assert certain["entropy"] == 0
        assert certain["log_prob"] == 0


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_minus_infinity_is_an_impossible_token(temperature):
    temperature = None if temperature is None else jnp.float32(temperature)
    logits = np.full(2500, -np.inf)
    logits[[1030, 2400]] = [1.0, 2.0]
    for vocab_slice in (1024, 16384):
        ours = _of_logits(
            logits,
            mask_id=0,
            held=np.zeros((1, 1)),
            vocab_slice=vocab_slice,
            temperature=temperature,
        )
        expected = _reference(logits, np.array(0), 0)
        assert ours["token"] in (1030, 2400)
        assert ours["held_log_prob"] == -np.inf
        for name in ("best_log_prob", "runner_up_log_prob", "entropy"):
            assert ours[name] == pytest.approx(expected[name], rel=1e-5)


@pytest.mark.parametrize("temperature", [None, 0.5])
@pytest.mark.parametrize("place", [0, 1024, 2499])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_nan_or_overflow_shows_in_every_statistic(temperature, place, value):
    """Whichever slice it is in: the loop looks at log_prob only."""
    temperature = None if temperature is None else jnp.float32(temperature)
    logits = np.zeros(2500)
    logits[place] = value
    ours = _of_logits(logits, mask_id=0, vocab_slice=1024, temperature=temperature)
    for name in ("log_prob", "best_log_prob", "entropy"):
        assert np.isnan(ours[name]), name


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_no_candidate_at_all_is_nan_and_not_token_0(temperature):
    temperature = None if temperature is None else jnp.float32(temperature)
    only_mask = np.full(2500, -np.inf)
    only_mask[1500] = 0
    for logits in (np.full(2500, -np.inf), only_mask):
        ours = _of_logits(
            logits, mask_id=1500, vocab_slice=1024, temperature=temperature
        )
        assert np.isnan(ours["log_prob"])
