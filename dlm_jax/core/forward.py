"""The forwards of one iteration: which rows go through the model, whole or in part."""

import dataclasses
import functools
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from dlm_jax.core.cache import CachePlan, Kind
from dlm_jax.core.canvas import Canvas, Prediction, View
from dlm_jax.core.denoiser import Denoiser
from dlm_jax.core.options import Options


@flax.struct.dataclass
class Part:
    """What the model gave for some positions of n rows that it computed together.

    Attributes:
      ids: int32 [n]; the rows, b where there are fewer; None is all of them, in order.
      region: int32 [n, q]; the positions, l where there are fewer.
      is_known: bool [n, q]; the output was computed.
      hidden: [g, n, q, d]; what the head reads. g is 2 under guidance, with and without
        prompt.
    """

    ids: Int[Array, "n"] | None
    region: Int[Array, "n q"]
    is_known: Bool[Array, "n q"]
    hidden: Float[Array, "g n q d"]


# The statistics of a part, [n, l] each.
Predict = Callable[[Part], Prediction]


@flax.struct.dataclass
class Forward:
    """What is known of b rows after their forwards.

    Attributes:
      prediction: fields [b, l].
      is_served: bool [b]; the row took part. The others wait.
      kind: int32 [b]; what each row needed, see `run`.
      cache: with the keys and values that were written.
    """

    prediction: Prediction
    is_served: Bool[Array, "b"]
    kind: Int[Array, "b"]
    cache: PyTree


def run(
    denoiser: Denoiser,
    params: PyTree,
    options: Options,
    predict: Predict,
    *,
    kind: Int[Array, "b"],
    canvas: Canvas,
    view: View,
    region: Int[Array, "b r"],
    is_done: Bool[Array, "b"],
    cache: PyTree,
    turn: Int[Array, ""] | int,
) -> Forward:
    """Computes every row's window, and a few whole rows where that is due.

    The head, which `predict` applies, is part of either: of a window it reads no more
    positions than the window has columns, however many the sampler asks for.

    Args:
      denoiser: the model.
      params: its parameters.
      options: `cache` and `num_refreshed` are read.
      predict: the statistics of what the model gives.
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
        part = Part(None, region, jnp.ones(region.shape, bool), apart(hidden))
        return Forward(predict(part), ~is_done, kind, cache)

    # The windows of all rows, stale ones too. What this writes for a stale row is
    # overwritten before it is read: its next forward computes the whole row.
    columns = _windows(options.cache, canvas, view)
    windows = dataclasses.replace(view, columns=tile(columns))
    seen, is_seen, places = _in_window(region, sources, columns, canvas.length)

    def step(cache: PyTree) -> tuple[Prediction, PyTree]:
        hidden, cache = denoiser.denoise(params, windows, tile(places), cache)
        return predict(Part(None, seen, is_seen, apart(hidden))), cache

    shapes = jax.eval_shape(step, cache)[0]

    def skip(cache: PyTree) -> tuple[Prediction, PyTree]:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), cache

    # A row whose window would not let it go on gets a REFRESH instead.
    is_stuck = _is_stuck(kind, canvas, seen, is_seen)
    kind = jnp.where(is_stuck, Kind.REFRESH, kind)
    is_whole = Kind.is_whole(kind) & ~is_done
    is_window = ~Kind.is_whole(kind) & ~is_done
    prediction, cache = jax.lax.cond(jnp.any(is_window), step, skip, cache)

    # The whole rows that are served in this iteration, gathered and scattered back.
    ids = _first(is_whole, min(options.num_refreshed, b), turn)
    is_refreshed = jnp.zeros(b, bool).at[ids].set(True, mode="drop")
    both = _of_all_views(num_views, b, ids)

    def refresh(cache: PyTree) -> tuple[Prediction, PyTree]:
        shown, wanted, old = jax.tree.map(
            lambda x: x.at[both].get(mode="clip"), (view, tile(sources), cache)
        )
        hidden, new = denoiser.denoise(params, shown, wanted, old)
        asked = region.at[ids].get(mode="clip")
        part = Part(ids, asked, jnp.ones(asked.shape, bool), apart(hidden))
        refreshed = jax.tree.map(
            lambda x, y: x.at[ids].set(y, mode="drop"), prediction, predict(part)
        )
        return refreshed, jax.tree.map(
            lambda x, y: x.at[both].set(y, mode="drop"), cache, new
        )

    def keep(cache: PyTree) -> tuple[Prediction, PyTree]:
        return prediction, cache

    prediction, cache = jax.lax.cond(jnp.any(is_whole), refresh, keep, cache)
    return Forward(prediction, is_refreshed | is_window, kind, cache)


def _in_window(
    region: Int[Array, "b r"],
    sources: Int[Array, "b r"],
    columns: Int[Array, "b w"],
    length: int,
) -> tuple[Int[Array, "b q"], Bool[Array, "b q"], Int[Array, "b q"]]:
    """The positions of a region that a window tells of; q is the smaller of r and w.

    Args:
      region: positions that need a prediction.
      sources: the columns that tell of them.
      columns: the window's.
      length: of a row.

    Returns:
      Positions, which of them are known, and the places in the window that tell.
    """
    is_source = sources[:, :, None] == columns[:, None, :]
    if region.shape[1] <= columns.shape[1]:
        places = jnp.argmax(is_source, axis=2).astype(jnp.int32)
        return region, jnp.any(is_source, axis=2), places
    # A column tells of one position.
    is_known = jnp.any(is_source, axis=1)
    told = jnp.take_along_axis(region, jnp.argmax(is_source, axis=1), axis=1)
    places = jnp.arange(columns.shape[1], dtype=jnp.int32)
    return (
        jnp.where(is_known, told, length),
        is_known,
        jnp.broadcast_to(places, columns.shape),
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


def _windows(plan: CachePlan, canvas: Canvas, view: View) -> Int[Array, "b w"]:
    """The columns of all windows."""
    columns = jax.vmap(plan.window)(canvas)
    # A sampler may show more than the row. What a plan puts past the end of the row
    # must then be past the end of what is shown.
    return jnp.where(columns < canvas.length, columns, view.tokens.shape[1])


def _is_stuck(
    kind: Int[Array, "b"],
    canvas: Canvas,
    seen: Int[Array, "b q"],
    is_seen: Bool[Array, "b q"],
) -> Bool[Array, "b"]:
    """Rows whose next STEP would predict no position that may be committed.

    A sampler took back a token outside the window, or the column that predicts a
    position lies outside. A row in which nothing is undecided is not stuck: its sampler
    edits.
    """
    may_commit = jax.vmap(lambda x, i: x.at[i].get(mode="fill", fill_value=False))
    is_useful = jnp.any(may_commit(canvas.is_eligible, seen) & is_seen, axis=1)
    has_eligible = jnp.any(canvas.is_eligible, axis=1)
    return (kind == Kind.STEP) & has_eligible & ~is_useful


def _first(
    is_waiting: Bool[Array, "b"], num: int, turn: Int[Array, ""] | int
) -> Int[Array, "num"]:
    """The first `num` waiting rows from row turn % b on; b where there are fewer."""
    b = is_waiting.shape[0]
    order = (jnp.arange(b, dtype=jnp.int32) + turn) % b
    is_next = is_waiting[order]
    place = jnp.where(is_next, jnp.cumsum(is_next) - 1, num)
    return jnp.full(num, b, jnp.int32).at[place].set(order, mode="drop")
