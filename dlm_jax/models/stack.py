"""Runs a model's blocks over their stacked weights, with or without a cache.

`jax.lax.scan` traces one block for all layers and compiles fastest. On a GPU it copied
every layer's weights out of their stack before the matrix products read them: with an
older version a forward of LLaDA-8B took 22.0 ms on an H100 at 512 tokens (jax 0.11.2).
Static slices of the same stack are not copied (from jax 0.11.1 on, docs/aot.md), so
there the blocks are unrolled: 13.5 ms in a prototype. No GPU has run this version.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.experimental import layout
from jaxtyping import Array, Float, Int

# Weights of one layer, by name.
Weights = dict[str, Array]
# (key, value) of a window -> keys and values of all that its queries may see.
Remember = Callable[[Array, Array], tuple[Array, Array]]
# (x, weights of the layer, remember) -> x
Block = Callable[[Array, Weights, Remember], Array]

# Weights whose products are heads, [layers, d, heads * head_dim].
TO_HEADS = ("q_proj", "k_proj", "v_proj")


@flax.struct.dataclass
class Cache:
    """Keys and values of every layer; g key heads of size k, m columns.

    One array per layer: as outputs of a scan they would be written whole at every step.

    Attributes:
      keys: a tuple of [b, m, g, k] for each layer, rotated.
      values: a tuple of [b, m, g, k] for each layer.
    """

    # Transformations put other things than arrays here.
    keys: Any
    values: Any


@dataclasses.dataclass(frozen=True)
class Way:
    """How blocks are computed. Results are the same; what is fast differs by backend.

    Attributes:
      is_unrolled: each block is traced; otherwise one is, and scanned over the layers.
        With a cache all are.
      is_by_head: see `by_head`.
      is_apart: see `layers.apart`.
      is_pinned: a cache that was written lies in memory in the order of its axes.
        Otherwise the TPU's compiler lays it heads first for Pallas' attention, and
        columns first for the next step. It then moves the whole cache twice in every
        step (docs/aot.md).
    """

    is_unrolled: bool = False
    is_by_head: bool = False
    is_apart: bool = False
    is_pinned: bool = False


_WAYS = {
    "gpu": Way(is_unrolled=True, is_apart=True),
    "tpu": Way(is_by_head=True, is_pinned=True),
}


def way_on(backend: str) -> Way:
    """A backend's own way; backend is "cpu", "gpu" or "tpu"."""
    return _WAYS.get(backend, Way())


def is_transposed(path: tuple[Any, ...], backend: str) -> bool:
    """Whether a parameter's last two axes should be exchanged in memory, see `by_head`.

    Args:
      path: of the parameter among all, as `jax.tree_util` gives it.
      backend: "cpu", "gpu" or "tpu".
    """
    names = {getattr(part, "key", None) for part in path}
    return way_on(backend).is_by_head and not names.isdisjoint(TO_HEADS)


def by_head(weights: Weights, head_dim: int) -> Weights:
    """The weights with those of `TO_HEADS` as [layers, heads, head_dim, d].

    The TPU's compiler multiplies by them in this order. From [d, heads * head_dim] it
    would transpose all of them before the loop (3.2 GB of temporaries at LLaDA-8B), and
    copy each layer's out of its stack in every step. `is_transposed` says which lie
    in memory in this order, so that nothing has to be moved.

    Args:
      weights: of all layers, stacked along axis 0.
      head_dim: size of a head.
    """
    split = {
        name: w.reshape(*w.shape[:2], -1, head_dim).transpose(0, 2, 3, 1)
        for name, w in weights.items()
        if name in TO_HEADS
    }
    return {**weights, **split}


def empty(
    num_layers: int, shape: tuple[int, int, int, int], dtype: jax.typing.DTypeLike
) -> Cache:
    """A cache of zeros, each array of a layer of its own shape [b, m, g, k]."""
    arrays = [jnp.zeros(shape, dtype) for _ in range(2 * num_layers)]
    return Cache(keys=tuple(arrays[:num_layers]), values=tuple(arrays[num_layers:]))


def run(
    block: Block,
    x: Float[Array, "b w d"],
    weights: Weights,
    *,
    cache: Cache | None = None,
    columns: Int[Array, "b w"] | None = None,
    way: Way | None = None,
) -> tuple[Float[Array, "b w d"], Cache | None]:
    """Runs all blocks.

    Args:
      block: one transformer block. It passes its keys and values to `remember` and
        attends to what that returns.
      x: embedded tokens of the window.
      weights: of all layers, stacked along axis 0.
      cache: keys and values of all columns; None runs without one.
      columns: of the window in the cache; those past its end are not written. All
        columns in order if None.
      way: `is_unrolled` and `is_pinned` are read; by default the backend's own.

    Returns:
      The output, and the cache with the window's keys and values.
    """
    way = way or way_on(jax.default_backend())
    if cache is None:
        return _run_without_cache(block, x, weights, way.is_unrolled), None

    kept: list[tuple[Array, Array]] = []
    for i, old in enumerate(zip(cache.keys, cache.values, strict=True)):

        def remember(key: Array, value: Array, old: Any = old) -> tuple[Array, Array]:
            kept.append((_write(old[0], columns, key), _write(old[1], columns, value)))
            return kept[-1]

        x = block(x, _layer(weights, i), remember)
    keys, values = zip(*kept, strict=True)
    cache = Cache(keys, values)
    return x, jax.tree.map(_pin, cache) if way.is_pinned else cache


def _run_without_cache(
    block: Block, x: Float[Array, "b w d"], weights: Weights, is_unrolled: bool
) -> Float[Array, "b w d"]:
    # A gradient computes each block again instead of keeping what is inside it, which
    # on a CPU is faster too: memory is slower than arithmetic.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(x: Array, w: Weights) -> tuple[Array, None]:
        return block(x, w, _forget), None

    if not is_unrolled:
        return jax.lax.scan(step, x, weights)[0]
    for i in range(next(iter(weights.values())).shape[0]):
        x, _ = step(x, _layer(weights, i))
    return x


def _layer(weights: Weights, i: int) -> Weights:
    """The weights of one layer, as static slices."""
    return jax.tree.map(lambda w: w[i], weights)


def _pin(x: Array) -> Array:
    """x, in memory in the order of its axes."""
    return layout.with_layout_constraint(x, layout.Layout(tuple(range(x.ndim))))


def _forget(key: Array, value: Array) -> tuple[Array, Array]:
    return key, value


def _write(
    cached: Float[Array, "b m g k"],
    columns: Int[Array, "b w"] | None,
    new: Float[Array, "b w g k"],
) -> Float[Array, "b m g k"]:
    """The cached values with those of the window written over them."""
    if columns is None:
        return new.astype(cached.dtype)
    rows = jnp.arange(cached.shape[0])[:, None]
    return cached.at[rows, columns].set(new.astype(cached.dtype), mode="drop")
