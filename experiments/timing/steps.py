"""The cost of a step of the loop beside the model's forward.

A loop whose sampler, head and bookkeeping cost nothing would take as long as its
forwards alone; those are timed here, in a loop of their own at the same shape. With a
cache there are two: of all rows' windows, and of the rows that are refreshed together.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from dlm_jax.core import forward as forwards
from dlm_jax.core import row
from dlm_jax.core.cache import Kind
from dlm_jax.core.canvas import Prediction, Prompts, View
from dlm_jax.core.checks import prepare
from dlm_jax.core.denoiser import Denoiser, full_precision
from dlm_jax.core.keys import check_seed
from dlm_jax.core.options import Options
from dlm_jax.core.sampler import Sampler
from dlm_jax.devices.runner import DataParallel, without_axis
from experiments.timing import race_tables, roofline
from experiments.timing.ceilings import Ceilings
from experiments.timing.races import Method, Result

# A single call is too short to be timed; what is timed takes at least this long.
_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class Shape:
    """The shape of a forward that is timed.

    Attributes:
      batch_size: rows in flight.
      length: tokens of a row.
      region: positions that need a prediction.
    """

    batch_size: int
    length: int
    region: int


def synthetic(
    num_rows: int, prompt_length: int, gen_length: int, vocab_size: int, seed: int
) -> Prompts:
    """Rows of random tokens that are continued, for models without text.

    Args:
      num_rows: how many.
      prompt_length: known tokens of each.
      gen_length: blanks of each.
      vocab_size: known tokens are from 0 to vocab_size - 1.
      seed: of the tokens.
    """
    length = prompt_length + gen_length
    check_seed(seed)
    tokens = np.random.default_rng(seed).integers(vocab_size, size=(num_rows, length))
    is_blank = np.broadcast_to(np.arange(length) >= prompt_length, tokens.shape)
    return Prompts(tokens.astype(np.int32), is_blank.copy(), np.ones_like(is_blank))


def distinct_tokens(
    num_rows: int, length: int, vocab_size: int
) -> Int[np.ndarray, "b l"]:
    """Random tokens, all different as far as the vocabulary goes.

    Of equal tokens a GPU is faster, as of constants: an H100 was by 8 to 18 %, with an
    older version.
    """
    places = np.random.default_rng(0).permutation(num_rows * length)
    return (places % vocab_size).astype(np.int32).reshape(num_rows, length)


def forward_timer(
    parallel: DataParallel,
    shape: Shape,
    precision: str = "highest",
    sees_first: bool = True,
) -> Callable[[], float]:
    """A function that gives the seconds of a forward, without head and sampler.

    Each call runs many forwards, see `repeated`, one after the other.

    Args:
      parallel: the model, timed on the first device.
      shape: of the batch.
      precision: of its products, see `Options`.
      sees_first: see `View`; by default as of samplers with the default view.
    """
    denoiser, shard = parallel.denoiser, parallel.first_shard()
    b, length = shape.batch_size, shape.length
    positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (b, length))
    head = jax.eval_shape(lambda x: denoiser.head(without_axis(x)), shard)
    tokens = jnp.asarray(distinct_tokens(b, length, head.shape[0]))

    # All that the loop's forward is given is an argument: of constants the compiler
    # would make a cheaper program, without a mask for instance.
    def run(shard: PyTree, num: Array, view: View, region: Array) -> Int[Array, "b l"]:
        params = without_axis(shard)

        def forward(_: Array, tokens: Array) -> Array:
            shown = dataclasses.replace(view, tokens=tokens)
            # As the loop's forward has.
            with full_precision(denoiser, params, precision):
                hidden, _ = denoiser.denoise(params, shown, region, ())
            # Adds nothing, but depends on the forward and is needed by the next.
            return tokens + jnp.any(jnp.isnan(hidden)).astype(jnp.int32)

        return jax.lax.fori_loop(0, num, forward, view.tokens)

    seen = jnp.ones((b, 1, length), bool)
    view = View(tokens, positions, seen, sees_first=sees_first)
    fixed = (view, positions[:, -shape.region :])
    compiled = jax.jit(run).lower(shard, jnp.int32(1), *fixed).compile()

    return repeated(lambda num: compiled(shard, num, *fixed))


def repeated(call: Callable[[Array], PyTree]) -> Callable[[], float]:
    """A function that gives the seconds of one turn of a loop.

    Each call runs as many turns as fill half a second.

    Args:
      call: runs a compiled loop of so many turns, int32 [].
    """

    def seconds_each(num: int) -> float:
        start = time.perf_counter()
        jax.block_until_ready(call(jnp.int32(num)))
        return (time.perf_counter() - start) / num

    seconds_each(1)
    num = max(2, int(np.ceil(_SECONDS / seconds_each(1))))
    return functools.partial(seconds_each, num)


# Past 80 lines: the program, what it is given and the clock around it are closures over
# the same shapes, and are read together to see that nothing else is timed.
def cached_timer(
    parallel: DataParallel, prompts: Prompts, options: Options
) -> Callable[[], dict[str, float]]:
    """A function that gives the seconds of a cache's forwards, by name.

    "refresh" is of options.num_refreshed rows that are computed whole, "window" of a
    step of all rows, of the columns that the plan names at the rows' start. Both are
    what the loop runs, without head and sampler.

    Args:
      parallel: the model, timed on the first device.
      prompts: at least as many rows as slots.
      options: with the cache plan and num_slots.

    Raises:
      InputError: naming the argument that does not fit.
    """
    denoiser, shard = parallel.denoiser, parallel.first_shard()
    b = min(options.num_slots or len(prompts.tokens), len(prompts.tokens))
    prompts = jax.tree.map(lambda x: x[:b], prompts)
    # What the model is shown, and what is wanted of it, do not depend on the rule.
    rule, prompts, options = prepare(denoiser, Sampler(), prompts, options)
    length = prompts.tokens.shape[1]
    head = jax.eval_shape(lambda x: denoiser.head(without_axis(x)), shard)
    tokens = jnp.asarray(distinct_tokens(b, length, head.shape[0]))

    def start(prompts: Prompts, options: Options, tokens: Array) -> tuple:
        canvas = row.first_canvas(denoiser, options, rule, prompts)
        view = dataclasses.replace(rule.view(canvas), tokens=tokens)
        view = dataclasses.replace(view, block_length=options.block_length)
        return canvas, view, rule.region(canvas)

    shown = jax.jit(jax.vmap(start, (0, None, 0)))(prompts, options, tokens)

    @functools.partial(jax.jit, donate_argnums=5)
    def run(
        shard: PyTree,
        options: Options,
        num: Array,
        kind: Int[Array, "b"],
        shown: tuple,
        cache: PyTree,
    ) -> PyTree:
        params = without_axis(shard)
        canvas, view, region = shown
        is_done = jnp.zeros(b, bool)

        def is_nan(part: forwards.Part) -> Prediction:
            """Stands for the head, which is not timed."""
            is_bad = jnp.any(jnp.isnan(part.hidden), axis=(0, 2, 3))
            return Prediction(is_bad.astype(jnp.int32), is_bad.astype(jnp.float32))

        def forward(turn: Array, carry: tuple) -> tuple:
            tokens, cache = carry
            own = dataclasses.replace(view, tokens=tokens)
            # As the loop's forward has.
            with full_precision(denoiser, params, options.precision):
                given = forwards.run(
                    denoiser,
                    params,
                    options,
                    is_nan,
                    kind=kind,
                    canvas=canvas,
                    view=own,
                    region=region,
                    is_done=is_done,
                    cache=cache,
                    turn=turn,
                )
            # Adds nothing, but depends on the forward and is needed by the next.
            is_bad = jnp.any(given.prediction.token)
            return tokens + is_bad.astype(jnp.int32), given.cache

        return jax.lax.fori_loop(0, num, forward, (view.tokens, cache))[1]

    @jax.jit
    def empty(shard: PyTree) -> PyTree:
        return denoiser.init_cache(without_axis(shard), b, length)

    kinds = {
        name: jnp.full(b, kind, jnp.int32)
        for name, kind in (("refresh", Kind.REFRESH), ("window", Kind.STEP))
    }
    lowered = run.lower(
        shard, options, jnp.int32(1), kinds["window"], shown, empty(shard)
    )
    compiled = lowered.compile()

    def time_all() -> dict[str, float]:
        # A cache is held while it is needed only: a loop has its own.
        cache, seconds = jax.block_until_ready(empty(shard)), {}

        def seconds_each(num: int, kind: Array) -> float:
            nonlocal cache
            begin = time.perf_counter()
            cache = compiled(shard, options, jnp.int32(num), kind, shown, cache)
            jax.block_until_ready(cache)
            return (time.perf_counter() - begin) / num

        for name, kind in kinds.items():
            # Rows take turns, so that the first refreshes fill the cache.
            each = seconds_each(b if name == "refresh" else 1, kind)
            num = max(2, int(np.ceil(_SECONDS / each)))
            seconds[name] = seconds_each(num, kind)
        return seconds

    time_all()
    return time_all


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What goes through the model and its head in one step, of a row.

    Attributes:
      region: positions that need a prediction.
      window: columns that a step with a cache recomputes; None without a cache.
    """

    region: int
    window: int | None


def sizes(
    denoiser: Denoiser, sampler: Sampler, prompts: Prompts, options: Options
) -> Sizes:
    """The static sizes of a sampler's step."""
    sampler, prompts, options = prepare(denoiser, sampler, prompts, options)

    def of_row(sampler: Sampler, prompts: Prompts) -> tuple[Array, Array | None]:
        canvas = row.first_canvas(denoiser, options, sampler, prompts)
        cache = options.cache
        window = cache.window(canvas) if cache.has_window else None
        return sampler.region(canvas), window

    region, window = jax.eval_shape(jax.vmap(of_row), sampler, prompts)
    return Sizes(region.shape[1], None if window is None else window.shape[1])


def region_size(
    denoiser: Denoiser, sampler: Sampler, prompts: Prompts, options: Options
) -> int:
    """Positions of a row that a sampler needs predictions of, in one step."""
    return sizes(denoiser, sampler, prompts, options).region


def records(
    results: Sequence[Result],
    config: roofline.Dense,
    shape: Shape,
    *,
    regions: Mapping[Method, int],
    reached: Ceilings,
    memory: Mapping[Method, int],
    itemsize: int = 4,
) -> list[dict[str, Any]]:
    """What a step of each sampler costs, beside what `race_tables.records` says of it.

    Of a step with a cache, which is of windows, whole rows or both, there is no single
    forward to compare it with: `beyond_forward` and `of_peak` are None.

    Args:
      results: of one race on one device, at this shape.
      config: the model.
      shape: of its forwards.
      regions: positions that the head is applied to, see `region_size`.
      reached: by the device.
      memory: bytes of each compiled loop.
      itemsize: bytes of a parameter.
    """
    found = []
    weights = itemsize * roofline.block_parameters(config) / reached.bandwidth
    for result in results:
        method = result.sampler, result.cache
        region = regions[method]
        flops = roofline.forward(config, shape.batch_size, shape.length, region).flops
        steps = result.seconds / result.num_forwards
        step = float(np.median(steps))
        # Of neighbours, for a machine's speed drifts.
        beyond = float(np.median(steps / result.forward_seconds)) - 1
        cached = {x: float(np.median(y)) for x, y in result.cached_seconds.items()}
        record = {
            "region": region,
            "forward_ms": 1e3 * float(np.median(result.forward_seconds)),
            "step_ms": 1e3 * step,
            "beyond_forward": None if cached else beyond,
            "flops_per_second": None if cached else flops / step,
            "of_peak": None if cached else flops / step / reached.peak,
            "weights_ms": 1e3 * weights,
            "megabytes": memory[method] / 1e6,
        }
        record |= {f"{name}_ms": 1e3 * seconds for name, seconds in cached.items()}
        if "window" in cached:
            record["window_per_weights"] = cached["window"] / weights
        found.append(record)
    return found


# Heading, key of a record, format; see `race_tables.table`.
COLUMNS = (
    *race_tables.BATCH,
    ("forward alone, ms", "forward_ms", ".2f"),
    ("window alone, ms", "window_ms", ".2f"),
    ("window / reading the block weights", "window_per_weights", ".2f"),
    ("refresh alone, ms", "refresh_ms", ".2f"),
    ("step, ms", "step_ms", ".2f"),
    ("step beyond the forward", "beyond_forward", ".1%"),
    ("share of the matmul peak", "of_peak", ".0%"),
    ("loop memory, MB", "megabytes", ".0f"),
    ("compile, s", "compile_seconds", ".1f"),
)
