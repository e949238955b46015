"""predict() against plain float64 numpy on full logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statistics_of import ALL, assert_close, inputs, of_logits, predicted, reference

from dlm_jax.core import predict
from dlm_jax.core.keys import row_keys
from dlm_jax.core.predict import LOGITS_BYTES


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
        # More slices than have code of their own; the last one whole or not.
        (9216, [1024]),
        (9300, [1024]),
    ],
)
def test_statistics_equal_full_logits_at_every_slice(vocab_size, slices):
    hidden, head, held = inputs(vocab_size)
    mask_id = vocab_size // 2
    logits = hidden[0].astype(np.float64) @ head.astype(np.float64).T
    expected = reference(logits, held, mask_id)
    for vocab_slice in slices:
        actual = predicted(hidden, head, held, mask_id=mask_id, vocab_slice=vocab_slice)
        assert_close(actual, expected)


@pytest.mark.parametrize("temperature", [None, 0.7])
def test_unrolled_slices_give_what_scanned_ones_give(temperature, monkeypatch):
    """CPUs scan; others unroll where the slices are few."""
    inputs_, options = inputs(3000, g=2), {"mask_id": 7, "vocab_slice": 1024, "seed": 5}
    options["guidance"] = jnp.float32(0.5)
    if temperature is not None:
        options["temperature"] = jnp.float32(temperature)
    scanned = predicted(*inputs_, **options)
    monkeypatch.setattr(predict, "scan_slices", predict.unroll_slices)
    jax.clear_caches()
    unrolled = predicted(*inputs_, **options)
    jax.clear_caches()
    assert_close(unrolled, scanned, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("num_slices", "looping"),
    [(1, ()), (2, ("cpu",)), (8, ("cpu",)), (9, ("cpu", "cuda", "tpu"))],
)
def test_few_slices_are_unrolled_but_on_a_cpu(num_slices, looping):
    """In a loop a GPU would copy each slice out of the head."""
    vocab_size = 1024 * num_slices
    hidden, head, held = inputs(vocab_size)
    keys = row_keys(0, np.arange(2))

    @jax.jit
    def function(hidden, head, held):
        budget = -(-4 * held.size * vocab_size // num_slices)
        return predict.predict(
            hidden,
            head,
            held,
            ALL,
            mask_id=7,
            keys=keys,
            positions=held,
            logits_bytes=budget,
        )

    traced = function.trace(hidden, head, jnp.asarray(held))
    for platform in ("cpu", "cuda", "tpu"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.while" in text) == (platform in looping)
        # Each has its matrix product, or two do: the first and that of the loop.
        products = 2 if platform in looping else num_slices
        assert text.count("stablehlo.dot_general") == products


@pytest.mark.parametrize(
    ("vocab_size", "num_positions", "itemsize", "logits_bytes", "expected"),
    [
        # LLaDA-8B: 8 rows x 32 positions in one piece, by default; a row more is not.
        (126464, 8 * 32, 4, LOGITS_BYTES, 126464),
        (126464, 9 * 32, 4, LOGITS_BYTES, 63488),
        (126464, 8 * 32, 8, LOGITS_BYTES, 63488),
        # What fits to the byte, and what is a byte too much.
        (5000, 3, 4, 60000, 5000),
        (5000, 3, 4, 59999, 3072),
        # Never less than a tile.
        (5000, 3, 4, 1, 1024),
        (700, 3, 4, 1, 1024),
    ],
)
def test_slices_fit_the_budget(
    vocab_size, num_positions, itemsize, logits_bytes, expected
):
    size = predict.slice_size(vocab_size, num_positions, itemsize, logits_bytes)
    assert size == expected


def test_float64_is_kept():
    hidden, head, held = inputs(2500)
    logits = hidden[0].astype(np.float64) @ head.astype(np.float64).T
    with jax.enable_x64(True):
        actual = predicted(
            hidden.astype(np.float64),
            head.astype(np.float64),
            held,
            mask_id=7,
            vocab_slice=1024,
        )
    assert_close(actual, reference(logits, held, 7), rtol=1e-12, atol=1e-12)


def test_low_precision_models_get_float32_statistics():
    hidden, head, held = inputs(2500)
    hidden, head = (jnp.asarray(x, jnp.bfloat16) for x in (hidden, head))
    logits = np.asarray(hidden[0], float) @ np.asarray(head, float).T
    actual = predicted(hidden, head, held, mask_id=7, vocab_slice=1024)
    assert_close(actual, reference(logits, held, 7))


def test_only_what_is_needed_is_computed():
    hidden, head, held = inputs(50)
    everything = predicted(hidden, head, held, mask_id=7)
    for needs in ((), *((name,) for name in ALL)):
        actual = predicted(hidden, head, held, mask_id=7, needs=needs)
        assert set(actual) == {"token", "log_prob", *needs}
        for name, value in actual.items():
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
    expected = reference(logits, np.array(held), mask_id)
    for vocab_slice in (1024, 16384):
        actual = of_logits(
            logits,
            held=np.full((1, 1), held),
            mask_id=mask_id,
            vocab_slice=vocab_slice,
        )
        assert_close(actual, expected)


@pytest.mark.parametrize("temperature", [None, 5.0])
def test_mask_is_no_candidate_but_in_the_normaliser(temperature):
    temperature = None if temperature is None else jnp.float32(temperature)
    logits = np.log([0.1, 0.6, 0.3])
    for seed in range(20):
        actual = of_logits(logits, mask_id=1, temperature=temperature, seed=seed)
        assert actual["token"] in (0, 2)
        assert actual["log_prob"] == pytest.approx(logits[actual["token"]], rel=1e-5)
        assert actual["best_log_prob"] == pytest.approx(np.log(0.3), rel=1e-5)
        assert actual["runner_up_log_prob"] == pytest.approx(np.log(0.1), rel=1e-5)
    assert temperature is None or len({int(seeded(logits, s)) for s in range(20)}) == 2


def seeded(logits, seed):
    return of_logits(logits, mask_id=1, temperature=jnp.float32(5), seed=seed)["token"]


@pytest.mark.parametrize("vocab_slice", [1024, 16384])
def test_suppressed_tokens_do_not_exist(vocab_slice):
    hidden, head, held = inputs(1500)
    logits = hidden[0].astype(np.float64) @ head.astype(np.float64).T
    # The best tokens of some positions, from both slices, and one that is held.
    suppressed = tuple({int(held[0, 0]), *logits.argmax(-1).ravel().tolist()[:4]})
    expected = reference(logits, held, 7, suppressed=suppressed)
    assert not np.isin(expected["token"], suppressed).any()
    actual = predicted(
        hidden,
        head,
        held,
        mask_id=7,
        suppressed_ids=suppressed,
        vocab_slice=vocab_slice,
    )
    assert actual["held_log_prob"][0, 0] == -np.inf
    assert_close(actual, expected)


@pytest.mark.parametrize("vocab_slice", [1024, 16384])
def test_deferred_tokens_are_candidates_of_confidence_0(vocab_slice):
    hidden, head, held = inputs(1500)
    logits = hidden[0].astype(np.float64) @ head.astype(np.float64).T
    best = logits.argmax(-1)
    second = np.argsort(-logits, axis=-1)[..., 1]
    deferred = tuple({int(best[0, 0]), int(best[1, 1]), int(second[0, 1])})
    assert (np.isin(second, deferred) & ~np.isin(best, deferred)).any()
    actual = predicted(
        hidden, head, held, mask_id=7, deferred_ids=deferred, vocab_slice=vocab_slice
    )
    is_deferred = np.isin(best, deferred)
    np.testing.assert_array_equal(actual["token"], best)
    assert (actual["log_prob"][is_deferred] == -np.inf).all()
    assert is_deferred.any() and not is_deferred.all()
    expected = reference(logits, held, 7, deferred=deferred)
    # What is left beside a deferred token says nothing of the candidate.
    expected["entropy"] = np.where(is_deferred, np.inf, expected["entropy"])
    assert_close(actual, expected)


def test_deferred_token_drawn_at_a_temperature_has_confidence_0():
    logits = np.log([0.2, 0.5, 0.3, 1e-6])
    tokens = []
    for seed in range(20):
        actual = of_logits(
            logits,
            mask_id=3,
            deferred_ids=(1,),
            temperature=jnp.float32(1),
            seed=seed,
        )
        expected = {0: np.log(0.4), 1: -np.inf, 2: np.log(0.6)}[int(actual["token"])]
        assert actual["log_prob"] == pytest.approx(expected, rel=1e-4)
        tokens.append(int(actual["token"]))
    assert {0, 1, 2} == set(tokens)


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0])
def test_guidance_combines_the_two_halves(scale):
    hidden, head, held = inputs(1500, g=2)
    conditional, unconditional = hidden.astype(np.float64) @ head.astype(np.float64).T
    logits = unconditional + (scale + 1) * (conditional - unconditional)
    actual = predicted(
        hidden,
        head,
        held,
        mask_id=7,
        guidance=jnp.float32(scale),
        vocab_slice=1024,
    )
    assert_close(actual, reference(logits, held, 7), rtol=1e-4, atol=1e-4)


def test_adjust_sees_every_slice_once_with_its_token_ids():
    hidden, head, held = inputs(2500)
    bonus = np.sin(np.arange(2500))
    logits = hidden[0].astype(np.float64) @ head.astype(np.float64).T + bonus
    actual = predicted(
        hidden,
        head,
        held,
        mask_id=7,
        adjust=lambda token_ids, logits: logits + jnp.sin(token_ids * 1.0),
        vocab_slice=1024,
    )
    assert_close(actual, reference(logits, held, 7), rtol=5e-4, atol=5e-4)
