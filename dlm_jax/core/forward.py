"""The forwards of one iteration: which rows go through the model, whole or in part."""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from dlm_jax.core.cache import CachePlan, Kind
from dlm_jax.core.canvas import Canvas, View
from dlm_jax.core.denoiser import Denoiser
from dlm_jax.core.options import Options


@flax.struct.dataclass
class Forward:
    """What the model gave for b rows; g is 2 under guidance, with and without prompt.

    Attributes:
      hidden: [g, b, r, d]; what the head reads for the region.
      is_known: bool [b, r]; the output was computed.
      is_served: bool [b]; the row took part. The others wait.
      kind: int32 [b]; what each row needed, see `run`.
      cache: with the keys and values that were written.
    """

    hidden: Float[Array, "g b r d"]
    is_known: Bool[Array, "b r"]
    is_served: Bool[Array, "b"]
    kind: Int[Array, "b"]
    cache: PyTree


def run(
    denoiser: Denoiser,
    params: PyTree,
    options: Options,
    kind: Int[Array, "b"],
    canvas: Canvas,
    view: View,
    region: Int[Array, "b r"],
    is_done: Bool[Array, "b"],
    cache: PyTree,
    turn: Int[Array, ""] | int,
) -> Forward:
    """Computes every row's window, and a few whole rows where that is due.

    Args:
      denoiser: the model.
      params: its parameters.
      options: `cache` and `num_refreshed` are read.
      kind: what each row needs next, a `Kind`.
      canvas: of the rows.
      view: of g * b rows, those without prompt last.
      region: positions that need a prediction, l where there are fewer.
      is_done: rows that need nothing.
      cache: of g * b rows; () without one.
      turn: the loop's iteration. Rows take turns at being the first that is served.
    """
    b = kind.shape[0]
    num_views = view.tokens.shape[0] // b
    sources = denoiser.sources(region)
    tile = functools.partial(_tile, num_views)
    apart = functools.partial(_apart, num_views)

    if not options.cache.has_window:
        hidden, _ = denoiser.denoise(params, view, tile(sources), ())
        everywhere = jnp.ones(region.shape, bool)
        return Forward(apart(hidden), everywhere, ~is_done, kind, cache)

    # The windows of all rows, stale ones too. What this writes for a stale row is
    # overwritten before it is read: its next forward computes the whole row.
    columns, places, is_in_window = _windows(options.cache, canvas, view, sources)
    windows = dataclasses.replace(view, columns=tile(columns))

    def step(cache: PyTree) -> tuple[Array, PyTree]:
        return denoiser.denoise(params, windows, tile(places), cache)

    shape = jax.eval_shape(step, cache)[0]

    def skip(cache: PyTree) -> tuple[Array, PyTree]:
        return jnp.zeros(shape.shape, shape.dtype), cache

    # A row whose window would not let it go on gets a REFRESH instead.
    is_stuck = _is_stuck(kind, canvas, region, is_in_window)
    kind = jnp.where(is_stuck, Kind.REFRESH, kind)
    is_whole = Kind.is_whole(kind) & ~is_done
    is_window = ~Kind.is_whole(kind) & ~is_done
    stepped, cache = jax.lax.cond(jnp.any(is_window), step, skip, cache)

    # The whole rows that are served in this iteration, gathered and scattered back.
    ids = _first(is_whole, min(options.num_refreshed, b), turn)
    is_refreshed = jnp.zeros(b, bool).at[ids].set(True, mode="drop")
    both = _of_all_views(num_views, b, ids)

    def refresh(cache: PyTree) -> tuple[Array, PyTree]:
        shown, wanted, old = jax.tree.map(
            lambda x: x.at[both].get(mode="clip"), (view, tile(sources), cache)
        )
        hidden, new = denoiser.denoise(params, shown, wanted, old)
        zeros, _ = skip(cache)
        return zeros.at[both].set(hidden, mode="drop"), jax.tree.map(
            lambda x, y: x.at[both].set(y, mode="drop"), cache, new
        )

    refreshed, cache = jax.lax.cond(jnp.any(is_whole), refresh, skip, cache)
    return Forward(
        hidden=jnp.where(is_refreshed[:, None, None], apart(refreshed), apart(stepped)),
        is_known=is_refreshed[:, None] | is_in_window,
        is_served=is_refreshed | is_window,
        kind=kind,
        cache=cache,
    )


def _tile(num_views: int, x: Shaped[Array, "b ..."]) -> Shaped[Array, "gb ..."]:
    """From b rows to all g views of them, those without prompt last."""
    return jnp.tile(x, (num_views, *[1] * (x.ndim - 1)))


def _apart(num_views: int, x: Shaped[Array, "gb ..."]) -> Shaped[Array, "g b ..."]:
    """The views of all rows with an axis of their own."""
    return x.reshape(num_views, x.shape[0] // num_views, *x.shape[1:])


def _of_all_views(num_views: int, b: int, ids: Int[Array, "n"]) -> Int[Array, "gn"]:
    """Where the views of some of b rows are; past the end for ids past the end."""
    return jnp.concatenate(
        [jnp.where(ids < b, ids + i * b, num_views * b) for i in range(num_views)]
    )


def _windows(
    plan: CachePlan, canvas: Canvas, view: View, sources: Int[Array, "b r"]
) -> tuple[Int[Array, "b w"], Int[Array, "b r"], Bool[Array, "b r"]]:
    """The columns of all windows, where sources are in them, and whether they are."""
    columns = jax.vmap(plan.window)(canvas)
    # A sampler may show more than the row. What a plan puts past the end of the row
    # must then be past the end of what is shown.
    columns = jnp.where(columns < canvas.length, columns, view.tokens.shape[1])
    is_source = sources[:, :, None] == columns[:, None, :]
    is_in_window = jnp.any(is_source, axis=-1)
    places = jnp.argmax(is_source, axis=-1).astype(jnp.int32)
    return columns, places, is_in_window


def _is_stuck(
    kind: Int[Array, "b"],
    canvas: Canvas,
    region: Int[Array, "b r"],
    is_in_window: Bool[Array, "b r"],
) -> Bool[Array, "b"]:
    """Rows whose next STEP would predict no position that may be committed.

    A sampler took back a token outside the window, or the column that predicts a
    position lies outside.
    """
    may_commit = jax.vmap(lambda x, i: x.at[i].get(mode="fill", fill_value=False))
    is_useful = may_commit(canvas.is_eligible, region) & is_in_window
    return (kind == Kind.STEP) & ~jnp.any(is_useful, axis=1)


def _first(
    is_waiting: Bool[Array, "b"], num: int, turn: Int[Array, ""] | int
) -> Int[Array, "num"]:
    """The first `num` waiting rows from row turn % b on; b where there are fewer."""
    b = is_waiting.shape[0]
    order = (jnp.arange(b, dtype=jnp.int32) + turn) % b
    is_next = is_waiting[order]
    place = jnp.where(is_next, jnp.cumsum(is_next) - 1, num)
    return jnp.full(num, b, jnp.int32).at[place].set(order, mode="drop")
