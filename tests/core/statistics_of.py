"""predict() as NumPy arrays, and the same in float64 from full logits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

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
        "logits_bytes",
        "adjust",
    ),
)
def _jitted(hidden, head, held, keys, needs=ALL, **options):
    positions = jnp.broadcast_to(jnp.arange(held.shape[1]), held.shape)
    return predict(hidden, head, held, needs, keys=keys, positions=positions, **options)


def predicted(hidden, head, held=None, *, mask_id, seed=0, vocab_slice=None, **options):
    """Runs predict under jit; fields come back as float64 numpy arrays.

    Args:
      vocab_slice: entries of the vocabulary per slice; all in one piece by default.
    """
    b, r = hidden.shape[1:3]
    if vocab_slice is not None:
        itemsize = max(hidden.dtype.itemsize, 4)
        num_positions = hidden.shape[0] * b * r
        options["logits_bytes"] = vocab_slice * num_positions * itemsize
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


def of_logits(logits, **options):
    """predict() where all positions have these logits, exactly: hidden is 1."""
    logits = np.asarray(logits, np.float32)
    values = predicted(np.ones((1, 1, 1, 1), np.float32), logits[:, None], **options)
    return {name: value[0, 0] for name, value in values.items()}


def reference(logits, held, mask_id, suppressed=(), deferred=()):
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


def assert_close(actual, expected, rtol=2e-5, atol=2e-5):
    assert set(actual) == set(expected)
    np.testing.assert_array_equal(actual["token"], expected["token"])
    for name in expected:
        np.testing.assert_allclose(
            actual[name], expected[name], rtol, atol, err_msg=name
        )


def inputs(vocab_size, d=8, scale=1.5, g=1, seed=0):
    rng = np.random.default_rng([seed, vocab_size])
    hidden = rng.normal(size=(g, B, R, d)).astype(np.float32) * scale
    head = rng.normal(size=(vocab_size, d)).astype(np.float32)
    held = rng.integers(0, vocab_size, (B, R))
    return hidden, head, held
