"""Attention kernels against a loop over heads, and the choice between them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.pallas import tpu as pltpu

from dlm_jax.models import attention
from dlm_jax.models.llada import LLaDA, tiny


def plain(query, key, value, visibility):
    """With a loop over heads, and jax's own gradient."""
    group = query.shape[2] // key.shape[2]
    heads = []
    for head in range(query.shape[2]):
        scores = query[:, :, head] @ key[:, :, head // group].swapaxes(1, 2)
        scores = scores / query.shape[-1] ** 0.5
        weights = jax.nn.softmax(jnp.where(visibility, scores, -1e30), axis=-1)
        heads.append(weights @ value[:, :, head // group])
    return jnp.stack(heads, axis=2)


def draw(length, head_dim, num_seen_by=1, dtype=jnp.float32):
    """Queries of 4 heads on keys of 2; of row 1, which is padding, no key is seen."""
    keys = jax.random.split(jax.random.key(0), 4)
    query = jax.random.normal(keys[0], (3, length, 4, head_dim), dtype)
    key, value = (
        jax.random.normal(k, (3, length, 2, head_dim), dtype) for k in keys[1:3]
    )
    visibility = jax.random.bernoulli(keys[3], 0.6, (3, num_seen_by, length))
    visibility = visibility.at[..., 0].set(True).at[1].set(False)
    return query, key, value, visibility


@pytest.mark.parametrize("num_seen_by", [1, 5])
def test_batched_and_its_gradient(num_seen_by):
    *arrays, visibility = draw(5, 6, num_seen_by)
    weight = jax.random.normal(jax.random.key(1), arrays[0].shape)

    def run(attend):
        def total(*arrays):
            return (attend(*arrays, visibility) * weight).sum()

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(*arrays)

    (ours, our_gradients), (expected, gradients) = map(run, (attention.batched, plain))
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    for one, other in zip(our_gradients, gradients, strict=True):
        assert jnp.abs(other).max() > 0.1
        np.testing.assert_allclose(one, other, atol=2e-6)


# Shorter than a register; and five blocks of 128, for 512 does not divide it.
@pytest.mark.parametrize("length", [90, 640])
def test_flash_as_a_tpu_would_run_it(length):
    *arrays, visibility = draw(length, 128)
    with pltpu.force_tpu_interpret_mode():
        ours = attention.flash(*arrays, visibility)
    expected = plain(*arrays, visibility)
    assert ours.shape == expected.shape
    for row in (0, 2):
        np.testing.assert_allclose(ours[row], expected[row], atol=2e-5)
    # Of the row that sees nothing, only that it is no NaN.
    assert jnp.isfinite(ours).all()


@pytest.mark.gpu
@pytest.mark.parametrize("num_seen_by", [1, 512])
def test_cudnn(num_seen_by):
    *arrays, visibility = draw(512, 128, num_seen_by, jnp.bfloat16)
    ours = jax.jit(attention.cudnn)(*arrays, visibility).astype(jnp.float32)
    wide = (x.astype(jnp.float32) for x in arrays)
    expected = plain(*wide, visibility)
    for row in (0, 2):
        np.testing.assert_allclose(ours[row], expected[row], atol=0.02)
    assert jnp.isfinite(ours).all()


@pytest.mark.parametrize(
    ("backend", "dtype", "head_dim", "num_seen_by", "expected"),
    [
        ("cpu", "bfloat16", 128, 1, "batched"),
        ("gpu", "bfloat16", 128, 1, "cudnn"),
        ("gpu", "float16", 64, 128, "cudnn"),
        ("gpu", "float32", 128, 1, "batched"),
        ("gpu", "bfloat16", 36, 1, "batched"),
        ("gpu", "bfloat16", 256, 1, "batched"),
        ("tpu", "bfloat16", 128, 1, "flash"),
        ("tpu", "float32", 128, 1, "flash"),
        ("tpu", "bfloat16", 128, 128, "batched"),
        ("tpu", "bfloat16", 32, 1, "batched"),
    ],
)
def test_best_takes_what_fits(
    monkeypatch, backend, dtype, head_dim, num_seen_by, expected
):
    names = ("batched", "cudnn", "flash")
    for number, name in enumerate(names):
        monkeypatch.setattr(
            attention, name, lambda query, *_, n=number: jnp.full_like(query, n)
        )
    arrays = draw(128, head_dim, num_seen_by, dtype)
    # Asked for, and as JAX's own backend.
    assert names[int(attention.best_on(backend)(*arrays)[0, 0, 0, 0])] == expected
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert names[int(attention.best(*arrays)[0, 0, 0, 0])] == expected
    if num_seen_by == 1 and expected == "flash":
        # A window of few queries, on the same keys.
        query, *others = arrays
        few = attention.best(query[:, :127], *others)
        assert names[int(few[0, 0, 0, 0])] == "batched"


def test_a_model_attends_by_the_function_it_holds():
    model = LLaDA(tiny(), rngs=nnx.Rngs(0))
    tokens = jnp.arange(12).reshape(2, 6)
    expected = model(tokens)
    model.attention = plain
    np.testing.assert_allclose(model(tokens), expected, atol=1e-5)
    model.attention = lambda query, *_: jnp.zeros_like(query)
    assert jnp.abs(model(tokens) - expected).max() > 1e-3
