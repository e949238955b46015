"""Forwards of a window with cached keys and values equal forwards of the whole row."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from forwards import block_causal, enlarged, hidden_of

from dlm_jax.models import llada, registry, sdar, stack

LENGTH, BLOCK = 22, 4
CONFIGS = {
    "sdar": sdar.sdar_tiny(),
    "sdar of one key head": dataclasses.replace(sdar.sdar_tiny(), n_kv_heads=1),
    "llada": llada.tiny(),
}


pytestmark = pytest.mark.usefixtures("float64")


def random_model(name, **way):
    model = enlarged(registry.init(CONFIGS[name], seed=1, dtype=jnp.float64), 6)
    model.way = stack.Way(**way)
    return model


def random_tokens(model, num_rows=2, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(model.config.vocab_size, size=(num_rows, LENGTH)))


def visible(model, columns):
    """What the columns [b, w] of a window see of the row: bool [b, w, LENGTH]."""
    if not model.is_block_causal:
        return jnp.ones((*columns.shape[:1], 1, LENGTH), bool)
    blocks = jnp.arange(LENGTH) // BLOCK
    return blocks[None, None, :] <= columns[:, :, None] // BLOCK


def whole(model, tokens, cache=None):
    columns = jnp.broadcast_to(jnp.arange(LENGTH), tokens.shape)
    return hidden_of(model, tokens, visible(model, columns), cache=cache)


def window(model, tokens, cache, columns, **inputs):
    columns = jnp.asarray(columns)
    shown = jnp.take_along_axis(tokens, jnp.minimum(columns, LENGTH - 1), axis=1)
    seen = visible(model, columns)
    return hidden_of(model, shown, seen, cache=cache, columns=columns, **inputs)


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


def assert_same_cache(found, expected):
    jax.tree.map(assert_close, found, expected)


@pytest.mark.parametrize("name", CONFIGS)
def test_unrolled_blocks_compute_what_a_scan_does(name):
    scanned, unrolled = (random_model(name, is_unrolled=x) for x in (False, True))
    tokens = random_tokens(scanned)
    expected, _ = whole(scanned, tokens)
    assert np.std(expected) > 0.1
    assert_close(whole(unrolled, tokens)[0], expected)


@pytest.mark.parametrize("name", CONFIGS)
def test_products_apart_compute_what_one_does(name):
    """For a GPU's compiler, which would join their weights; gradients too."""
    joint, apart = (random_model(name, is_apart=x) for x in (False, True))
    tokens = random_tokens(joint)

    @nnx.jit
    def loss(model):
        return jnp.square(whole(model, tokens)[0]).mean()

    assert_close(whole(apart, tokens)[0], whole(joint, tokens)[0])
    found, expected = (nnx.state(nnx.grad(loss)(x)) for x in (apart, joint))
    jax.tree.map(assert_close, nnx.to_pure_dict(found), nnx.to_pure_dict(expected))
    barriers = [
        jax.make_jaxpr(lambda m: whole(m, tokens)[0])(x).pretty_print().count("barrier")
        for x in (apart, joint)
    ]
    assert barriers == [2, 0]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_pinned_cache_holds_the_same(name):
    """A TPU's compiler is told in which order the cache lies."""
    free, pinned = (random_model(name, is_pinned=x) for x in (False, True))
    tokens = random_tokens(free)

    def two_forwards(model):
        _, cache = whole(model, tokens, model.init_cache(2, LENGTH))
        columns = jnp.array([[4, 5, 6, 7], [8, 9, 10, 11]])
        return window(model, tokens, cache, columns)

    found, expected = (jax.tree.leaves(two_forwards(x)) for x in (pinned, free))
    for x, y in zip(found, expected, strict=True):
        assert_close(x, y)
    constraints = [
        nnx.jit(two_forwards).lower(x).as_text().count("@LayoutConstraint(")
        for x in (free, pinned)
    ]
    assert constraints == [0, 2 * 2 * free.config.n_layers]


def test_every_backend_has_a_way(monkeypatch):
    assert stack.way_on("cpu") == stack.Way()
    assert stack.way_on("gpu") == stack.Way(is_unrolled=True, is_apart=True)
    assert stack.way_on("tpu") == stack.Way(is_by_head=True, is_pinned=True)
    model = registry.init(CONFIGS["llada"], seed=0)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert model.chosen_way == stack.way_on("gpu")
    model.way = stack.Way()
    assert model.chosen_way == stack.Way()


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_by_head_compute_what_matrices_do(name):
    """The order in which a TPU reads them; with a cache and without."""
    model = random_model(name)
    tokens = random_tokens(model)
    expected, expected_cache = whole(model, tokens, model.init_cache(2, LENGTH))
    model.way = stack.Way(is_by_head=True)
    assert_close(whole(model, tokens)[0], expected)
    found, cache = whole(model, tokens, model.init_cache(2, LENGTH))
    assert_close(found, expected)
    assert_same_cache(cache, expected_cache)


def test_weights_by_head_are_the_columns_of_a_head():
    weights = {"q_proj": jnp.arange(48.0).reshape(2, 3, 8), "ff_out": jnp.ones(3)}
    changed = stack.by_head(weights, 4)
    assert changed["q_proj"].shape == (2, 2, 4, 3)
    np.testing.assert_array_equal(
        changed["q_proj"][1, 1], weights["q_proj"][1, :, 4:].T
    )
    assert changed["ff_out"] is weights["ff_out"]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("is_unrolled", [False, True])
def test_a_forward_that_fills_a_cache_is_the_forward(name, is_unrolled):
    model = random_model(name, is_unrolled=is_unrolled)
    tokens = random_tokens(model)
    expected, none = whole(model, tokens)
    assert none is None
    empty = model.init_cache(2, LENGTH)
    found, cache = whole(model, tokens, empty)
    assert_close(found, expected)
    config = model.config
    shape = (2, LENGTH, config.n_kv_heads, config.head_dim)
    assert len(cache.keys) == len(cache.values) == config.n_layers
    for old, new in zip(jax.tree.leaves(empty), jax.tree.leaves(cache), strict=True):
        assert old.shape == new.shape == shape and old.dtype == new.dtype == np.float64
        assert (old == 0).all() and (jnp.std(new, axis=(0, 1)) > 0).all()


@pytest.mark.parametrize("name", [name for name in CONFIGS if "sdar" in name])
@pytest.mark.parametrize("num_prefilled", [0, 1, 3])
def test_blocks_one_after_the_other_are_the_whole_row(name, num_prefilled):
    """A prefill, then one window for each block; the last one is not full."""
    model = random_model(name)
    tokens = random_tokens(model)
    expected, _ = whole(model, tokens)
    _, expected_cache = whole(model, tokens, model.init_cache(2, LENGTH))
    cache = model.init_cache(2, LENGTH)
    parts = []
    first = num_prefilled * BLOCK
    if first:
        columns = jnp.broadcast_to(jnp.arange(first), (2, first))
        found, cache = window(model, tokens, cache, columns)
        parts.append(found)
    for start in range(first, LENGTH, BLOCK):
        columns = jnp.broadcast_to(jnp.arange(start, start + BLOCK), (2, BLOCK))
        found, cache = window(model, tokens, cache, columns)
        parts.append(found)
    assert_close(jnp.concatenate(parts, axis=1)[:, :LENGTH], expected)
    # What was not a column is nowhere in the cache.
    assert_same_cache(cache, expected_cache)


def test_rows_may_be_in_different_blocks_and_later_columns_do_not_matter():
    model = random_model("sdar")
    tokens = random_tokens(model)
    _, cache = whole(model, tokens, model.init_cache(2, LENGTH))
    # Behind each row's block, the cache holds something else.
    starts = jnp.asarray([[4], [16]])
    is_later = jnp.arange(LENGTH)[None] >= starts
    spoilt = jax.tree.map(lambda x: jnp.where(is_later[..., None, None], 9.0, x), cache)
    columns = starts + jnp.arange(BLOCK)
    found, after = window(model, tokens, spoilt, columns)
    expected, _ = whole(model, tokens)
    expected = jnp.take_along_axis(expected, columns[..., None], axis=1)
    assert_close(found, expected)
    is_kept = jnp.arange(LENGTH)[None] < starts + BLOCK
    for new, full in zip(jax.tree.leaves(after), jax.tree.leaves(cache), strict=True):
        kept = is_kept[..., None, None]
        assert_close(jnp.where(kept, new, 9.0), jnp.where(kept, full, 9.0))
    # Of earlier columns they do.
    early = jax.tree.map(lambda x: x.at[:, 0].add(1.0), spoilt)
    other, _ = window(model, tokens, early, columns)
    assert (jnp.abs(other - expected).max(axis=(1, 2)) > 1e-3).all()


def test_a_store_overwrites_what_a_step_on_masks_left():
    model = random_model("sdar")
    tokens = random_tokens(model)
    masked = tokens.at[:, 8:12].set(model.config.mask_token_id)
    _, cache = whole(model, tokens, model.init_cache(2, LENGTH))
    columns = jnp.broadcast_to(jnp.arange(8, 12), (2, 4))
    step, stepped = window(model, masked, cache, columns)
    expected, _ = whole(model, masked)
    assert_close(step, expected[:, 8:12])
    _, stored = window(model, tokens, stepped, columns)
    assert_same_cache(stored, cache)
    assert jnp.abs(stepped.keys[0] - cache.keys[0])[:, 8:12].max() > 1e-3


@pytest.mark.parametrize("num_columns", [1, 5, LENGTH])
def test_a_window_of_unchanged_tokens_is_the_whole_row(num_columns):
    """LLaDA: all columns see each other, in windows of any columns."""
    model = random_model("llada")
    tokens = random_tokens(model)
    expected, _ = whole(model, tokens)
    _, cache = whole(model, tokens, model.init_cache(2, LENGTH))
    rng = np.random.default_rng(2)
    columns = np.stack([rng.permutation(LENGTH)[:num_columns] for _ in range(2)])
    found, after = window(model, tokens, cache, columns)
    assert_close(found, jnp.take_along_axis(expected, columns[..., None], axis=1))
    assert_same_cache(after, cache)
    # A window of one region of it.
    region = jnp.zeros((2, 1), int)
    part, _ = window(model, tokens, cache, columns, region=region)
    assert_close(part, found[:, :1])
    # Other tokens in the window do reach its outputs and the cache.
    other = jnp.where(jnp.arange(LENGTH) == columns[:, :1], tokens + 1, tokens)
    changed, after = window(model, other % 300, cache, columns)
    assert (jnp.abs(changed[:, 0] - found[:, 0]).max(axis=-1) > 1e-3).all()
    written = jnp.abs(after.values[0] - cache.values[0]).max(axis=(2, 3)) > 1e-6
    np.testing.assert_array_equal(written, jnp.arange(LENGTH) == columns[:, :1])


@pytest.mark.parametrize("name", ["sdar", "llada"])
def test_columns_past_the_end_are_not_written(name):
    model = random_model(name)
    tokens = random_tokens(model)
    _, cache = whole(model, tokens, model.init_cache(2, LENGTH))
    columns = jnp.broadcast_to(jnp.arange(LENGTH, LENGTH + 3), (2, 3))
    _, after = window(model, tokens + 1, cache, columns)
    jax.tree.map(np.testing.assert_array_equal, after, cache)


def test_block_causal_is_what_families_say():
    assert sdar.SDAR.is_block_causal and not llada.LLaDA.is_block_causal
    columns = jnp.broadcast_to(jnp.arange(LENGTH), (1, LENGTH))
    expected = block_causal(LENGTH, BLOCK)
    seen = visible(random_model("sdar"), columns)
    np.testing.assert_array_equal(seen[0], expected)
