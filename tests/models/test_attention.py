"""Attention kernels against a loop over heads, and the choice between them."""

import dataclasses
import re

import jax
import jax._src.cudnn.fused_attention_stablehlo as fused_attention
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from forwards import enlarged
from helpers import infilling_of, prompts_of
from jax.experimental.pallas import tpu as pltpu

from dlm_jax import caches, samplers
from dlm_jax.core import loop
from dlm_jax.core.canvas import View
from dlm_jax.core.keys import row_keys
from dlm_jax.core.options import Options
from dlm_jax.models import as_denoiser, attention, registry
from dlm_jax.models.llada import LLaDA, tiny


def plain(query, key, value, visibility, sees_first=False):
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

    (found, found_gradients), (expected, gradients) = map(
        run, (attention.batched, plain)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for one, other in zip(found_gradients, gradients, strict=True):
        assert jnp.abs(other).max() > 0.1
        np.testing.assert_allclose(one, other, atol=2e-6)


# Shorter than a register; and five blocks of 128, for 512 does not divide it.
@pytest.mark.parametrize("length", [90, 640])
def test_flash_as_a_tpu_would_run_it(length):
    *arrays, visibility = draw(length, 128)
    with pltpu.force_tpu_interpret_mode():
        found = attention.flash(*arrays, visibility)
    expected = plain(*arrays, visibility)
    assert found.shape == expected.shape
    for row in (0, 2):
        np.testing.assert_allclose(found[row], expected[row], atol=2e-5)
    # Of the row that sees nothing, only that it is no NaN.
    assert jnp.isfinite(found).all()


def first_keys(length):
    """Of three rows, of which the middle one is padding alone."""
    return (jnp.arange(length) < jnp.array([[length - 3], [0], [1]]))[:, None]


@pytest.mark.gpu
@pytest.mark.parametrize("num_seen_by", [1, 512])
@pytest.mark.parametrize("sees_first", [False, True])
def test_cudnn(num_seen_by, sees_first):
    *arrays, visibility = draw(512, 128, num_seen_by, jnp.bfloat16)
    if sees_first:
        visibility = first_keys(512)
        # A window's queries.
        arrays[0] = arrays[0][:, : 512 if num_seen_by == 1 else 32]
    run = jax.jit(attention.cudnn, static_argnums=4)
    found = run(*arrays, visibility, sees_first).astype(jnp.float32)
    wide = (x.astype(jnp.float32) for x in arrays)
    expected = plain(*wide, visibility)
    for row in (0, 2):
        np.testing.assert_allclose(found[row], expected[row], atol=0.02)
    assert jnp.isfinite(found).all()


@pytest.fixture
def xla_for_cudnn(monkeypatch):
    """JAX's function by another backend's way, so that the call can be tried here."""
    attend = jax.nn.dot_product_attention

    def on_xla(*args, implementation, **kwargs):
        assert implementation == "cudnn"
        return attend(*args, implementation="xla", **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", on_xla)


@pytest.mark.usefixtures("xla_for_cudnn")
@pytest.mark.parametrize("num_queries", [6, 2])
def test_the_number_of_keys_is_as_good_as_the_mask(num_queries):
    query, key, value, _ = draw(6, 8)
    visibility = first_keys(6)
    arrays = query[:, :num_queries], key, value
    expected = plain(*arrays, visibility)
    for sees_first in (False, True):
        found = attention.cudnn(*arrays, visibility, sees_first)
        for row in (0, 2):
            np.testing.assert_allclose(found[row], expected[row], atol=1e-6)
        assert jnp.isfinite(found).all()
    # Counted, padding alone is never nothing, of which cuDNN makes no promise.
    np.testing.assert_allclose(found[1, 0], jnp.repeat(value[1, 0], 2, axis=0))


@pytest.mark.usefixtures("xla_for_cudnn")
def test_padding_in_training_may_lie_anywhere():
    model = enlarged(LLaDA(tiny(), rngs=nnx.Rngs(0)), 8)
    tokens = jnp.arange(12).reshape(2, 6)
    is_valid = jnp.ones((2, 6), bool).at[0, :3].set(False).at[1, 2].set(False)
    model.attention = plain
    expected = model(tokens, is_valid)
    model.attention = attention.cudnn
    np.testing.assert_allclose(model(tokens, is_valid), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("xla_for_cudnn")
@pytest.mark.parametrize(("guidance", "cache"), [(0.0, "dual"), (1.0, "none")])
def test_rows_are_the_same_by_the_number_of_keys(guidance, cache, monkeypatch):
    """Of three lengths, in two slots, of which one is empty at the end."""
    lengths = []
    attend = jax.nn.dot_product_attention

    def watched(*args, **kwargs):
        lengths.append("key_value_seq_lengths" in kwargs)
        return attend(*args, **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", watched)
    prompts = prompts_of([2, 5, 9], 8, vocab_size=60)
    options = Options(8, 4, cache=caches.parse(cache), guidance=guidance, num_slots=2)
    found = []
    for kernel in (attention.batched, attention.cudnn):
        # With attention that is far from uniform.
        model = enlarged(LLaDA(tiny(), rngs=nnx.Rngs(3)), 8)
        model.attention = kernel
        rule, keys = samplers.LowConfidence(), row_keys(0, np.arange(3))
        result = loop.generate(*as_denoiser(model), rule, prompts, keys, options)
        found.append((result.tokens, result.commit_step))
    assert lengths and all(lengths)
    assert np.unique(found[0][0]).size > 12
    jax.tree.map(np.testing.assert_array_equal, *found)


class HidesMasks(samplers.LowConfidence):
    """Shows decided tokens only: of an infilling the last ones, too."""

    def view(self, canvas):
        seen = canvas.is_valid & ~canvas.is_mask
        return dataclasses.replace(super().view(canvas), visibility=seen[None])


@pytest.mark.usefixtures("xla_for_cudnn")
def test_a_view_of_one_s_own_is_shown_by_its_mask():
    prompts = infilling_of(5, 9, vocab_size=60)
    found = []
    for kernel in (attention.batched, attention.cudnn):
        model = enlarged(LLaDA(tiny(), rngs=nnx.Rngs(3)), 8)
        model.attention = kernel
        arguments = HidesMasks(), prompts, row_keys(0, np.arange(1)), Options(5)
        found.append(loop.generate(*as_denoiser(model), *arguments).tokens)
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("preset", ["tiny", "sdar_tiny"])
def test_cudnn_reads_no_mask_where_all_queries_see_the_first_keys(preset, monkeypatch):
    """In a program for a GPU, which can be traced where there is none."""
    for name, value in (
        ("check_cudnn_version", 91000),
        ("check_compute_capability", True),
        ("is_cuda_compute_capability_equal", False),
    ):
        monkeypatch.setattr(fused_attention, name, lambda *_, value=value: value)
    model = registry.random_preset(preset, "bfloat16", 0)
    model.attention = attention.best_on("gpu")
    denoiser, params = as_denoiser(model)
    b, length = 3, 24
    positions = jnp.broadcast_to(jnp.arange(length), (b, length))
    view = View(
        jnp.zeros((b, length), jnp.int32),
        positions,
        jnp.ones((b, 1, length), bool),
        sees_first=True,
        block_length=4,
    )

    def kernels(view, cache):
        """The kinds of mask in the program, and shapes of masks."""
        traced = jax.jit(denoiser.denoise).trace(params, view, positions[:, :4], cache)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        masks = re.findall(rf"tensor<{b}x1x(\d+)x{length}xi1>", text)
        kinds = re.findall(r"mask_type\\22: \\22(\w+?)\\22", text)
        return set(kinds), {int(x) for x in masks}

    window = dataclasses.replace(view, columns=positions[:, 4:8])
    cache = denoiser.init_cache(params, b, length)
    if denoiser.is_block_causal:
        assert kernels(view, ()) == ({"NO_MASK"}, {length})
        assert kernels(window, cache) == ({"NO_MASK"}, {4})
    else:
        assert kernels(view, ()) == ({"PADDING"}, set())
        assert kernels(window, cache) == ({"PADDING"}, set())
        told = dataclasses.replace(view, sees_first=False)
        assert kernels(told, ()) == ({"NO_MASK"}, {length})


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
