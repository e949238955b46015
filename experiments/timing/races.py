"""Races: the compiled loop against others, timed in pairs on the same prompts.

A machine's speed drifts by more than the differences to be measured. So the ways run
in turn, A B A B, and a speed-up is the median of the ratios of neighbouring runs.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import jax
import numpy as np
from jaxtyping import Float, Int, Key, PyTree

from dlm_jax.core import loop, row
from dlm_jax.core.cache import CachePlan
from dlm_jax.core.canvas import ABSENT, Generation, Prompts
from dlm_jax.core.checks import prepare
from dlm_jax.core.keys import row_keys
from dlm_jax.core.options import Options
from dlm_jax.core.row import Row
from dlm_jax.core.sampler import Sampler
from dlm_jax.core.slots import Job
from dlm_jax.devices.parallel import Parallel
from dlm_jax.devices.runner import DataParallel, without_axis
from dlm_jax.errors import InputError

# Fills rows by their random keys: tokens [n, l], and the forwards each row took part
# in, [n].
Fill = Callable[[Sampler, Prompts, Key[jax.Array, "n"]], tuple[np.ndarray, np.ndarray]]
# What fills rows in another way, for the options of a race with one of its caches.
FillOf = Callable[[Options], Fill]
# A sampler and a cache plan, by their specs.
Method = tuple[str, str]
_NO_CACHE: Mapping[str, CachePlan] = MappingProxyType({"none": CachePlan()})


@dataclasses.dataclass(frozen=True)
class Result:
    """One sampler with one cache against one reference; n rows in all, p pairs.

    Attributes:
      sampler: its spec.
      cache: spec of the cache plan.
      reference: name of the reference; None without one.
      length: tokens of a row, padding included.
      batch_size: rows in flight at once.
      compile_seconds: before the first run, not part of any time below.
      seconds: of dlm_jax, for all rows, at each pair.
      reference_seconds: of the reference; None without one.
      forward_seconds: of a forward of all rows alone, measured around each run of
        dlm_jax.
      cached_seconds: likewise of the cache's forwards, by name; none without one.
      num_steps: NFE of each row.
      num_whole: those that computed the whole row.
      num_forwards: of the whole batch, until the last row is done.
      num_tokens: that were generated in all; EOS and prompts are not counted.
      num_equal: rows with the tokens and the NFE of the reference; None without one.
    """

    sampler: str
    cache: str
    reference: str | None
    length: int
    batch_size: int
    compile_seconds: float
    seconds: Float[np.ndarray, "p"]
    reference_seconds: Float[np.ndarray, "p"] | None
    forward_seconds: Float[np.ndarray, "p"]
    cached_seconds: Mapping[str, Float[np.ndarray, "p"]]
    num_steps: Int[np.ndarray, "n"]
    num_whole: Int[np.ndarray, "n"]
    num_forwards: int
    num_tokens: int
    num_equal: int | None


def in_batches(fill: Fill, batch_size: int) -> Fill:
    """Fills rows batch by batch; each batch waits for its last row.

    Args:
      fill: what fills a batch.
      batch_size: rows of a batch.
    """

    def fill_all(
        sampler: Sampler, prompts: Prompts, keys: Key[jax.Array, "n"]
    ) -> tuple[np.ndarray, np.ndarray]:
        starts = range(0, len(prompts.tokens), batch_size)
        rows = prompts, keys
        parts = [
            fill(sampler, *jax.tree.map(lambda x, i=i: x[i : i + batch_size], rows))
            for i in starts
        ]
        tokens, num_steps = zip(*parts, strict=True)
        return np.concatenate(tokens), np.concatenate(num_steps)

    return fill_all


def without_queue(parallel: Parallel, options: Options) -> Fill:
    """dlm_jax's loop with a slot for every row.

    Args:
      parallel: the loop.
      options: as those of the race.
    """
    alone = dataclasses.replace(options, num_slots=ABSENT)

    def fill(
        sampler: Sampler, prompts: Prompts, keys: Key[jax.Array, "n"]
    ) -> tuple[np.ndarray, np.ndarray]:
        generation = parallel(sampler, prompts, keys, alone)
        return np.asarray(generation.tokens), np.asarray(generation.num_steps)

    return fill


def host_driven(parallel: DataParallel, options: Options) -> Fill:
    """dlm_jax's compiled step, called from Python until no row is left.

    The host waits for every step, to see which rows are done.

    Args:
      parallel: the model, run on the first device.
      options: as those of the race; all rows of a batch start at once.
    """
    denoiser, shard = parallel.denoiser, parallel.first_shard()

    @jax.jit
    def begin(
        shard: PyTree,
        sampler: Sampler,
        prompts: Prompts,
        keys: Key[jax.Array, "n"],
        options: Options,
    ) -> tuple[Job, Row, PyTree]:
        params = without_axis(shard)
        start = functools.partial(row.start, denoiser, options)
        frames, rows = jax.vmap(start)(sampler, prompts)
        all_at_once = dataclasses.replace(options, num_slots=ABSENT)
        _, queue = loop.begin(denoiser, params, sampler, prompts, keys, all_at_once)
        return Job(sampler, keys, frames), rows, queue.cache

    @functools.partial(jax.jit, donate_argnums=4)
    def step(
        shard: PyTree,
        options: Options,
        jobs: Job,
        rows: Row,
        cache: PyTree,
        turn: Int[jax.Array, ""],
    ) -> tuple[Row, PyTree]:
        params = without_axis(shard)
        return loop.iteration(denoiser, params, options, jobs, rows, cache, turn)

    def fill(
        sampler: Sampler, prompts: Prompts, keys: Key[jax.Array, "n"]
    ) -> tuple[np.ndarray, np.ndarray]:
        sampler, prompts, own = prepare(denoiser, sampler, prompts, options)
        jobs, rows, cache = begin(shard, sampler, prompts, keys, own)
        turn = 0
        while not np.all(rows.is_done):
            rows, cache = step(shard, own, jobs, rows, cache, np.int32(turn))
            turn += 1
        return np.asarray(rows.tokens), np.asarray(rows.num_forwards)

    return fill


# Past 80 lines, of which 49 are arguments and what they mean. Its stages share most of
# them, and each way to run a sampler is a closure over the race's rows and options.
def race(
    parallel: Parallel,
    samplers: Mapping[str, Sampler],
    prompts: Prompts,
    options: Options,
    *,
    forward: Callable[[], float],
    num_pairs: int,
    seed: int = 0,
    plans: Mapping[str, CachePlan] = _NO_CACHE,
    cached: Callable[[str], Mapping[str, float]] = lambda cache: {},
    references: Mapping[str, FillOf] = MappingProxyType({}),
    on_run: Callable[[], object] = lambda: None,
) -> list[Result]:
    """Times every sampler with every cache, dlm_jax and the references in turn.

    All fill the same rows. A round runs all samplers and caches, so that ratios between
    them are of neighbours too. Each way has one untimed run first.

    Args:
      parallel: the loop of dlm_jax.
      samplers: by spec.
      prompts: all rows; those beyond options.num_slots wait in the queue.
      options: gen_length must hold the blanks of every row.
      forward: times a forward, in seconds; called before and after every run of
        dlm_jax, because a machine's speed drifts between runs.
      num_pairs: rounds.
      seed: of the random keys.
      plans: cache plans by spec; they take the place of options.cache.
      cached: times the forwards of a plan by its spec, in seconds by name; called where
        `forward` is.
      references: other ways to fill rows, by name, for the options with a plan; they
        get batches of as many rows as dlm_jax has in flight.
      on_run: called after every run of all rows.

    Returns:
      A result for each reference, or one without, of each sampler and cache.

    Raises:
      InputError: naming the argument that does not fit.
    """
    if num_pairs < 1:
        raise InputError(f"num_pairs ({num_pairs}) must be at least 1")
    # The ways to run a sampler: dlm_jax, then the references.
    num_rows = len(prompts.tokens)
    num_slots = options.num_slots or num_rows
    batch_size = min(num_slots * parallel.num_groups, num_rows)
    keys = row_keys(seed, np.arange(num_rows))
    methods = [(spec, cache) for spec in samplers for cache in plans]
    own = {x: dataclasses.replace(options, cache=plan) for x, plan in plans.items()}
    generations: dict[Method, Generation] = {}

    def run(method: Method) -> tuple[np.ndarray, np.ndarray]:
        spec, cache = method
        generation = parallel(samplers[spec], prompts, keys, own[cache])
        generations[method] = generation
        return np.asarray(generation.tokens), np.asarray(generation.num_steps)

    def refer(
        fills: Mapping[str, Fill], method: Method
    ) -> tuple[np.ndarray, np.ndarray]:
        spec, cache = method
        return in_batches(fills[cache], batch_size)(samplers[spec], prompts, keys)

    ways = [run]
    for fill_of in references.values():
        fills = {cache: fill_of(own[cache]) for cache in plans}
        ways.append(functools.partial(refer, fills))

    # An untimed run of each, then the timed ones in turn.
    compile_seconds, outputs = {}, {}
    for method in methods:
        spec, cache = method
        compile_seconds[method] = parallel.compile(
            samplers[spec], prompts, keys, own[cache]
        )
        outputs[method] = [way(method) for way in ways]

    def time_forwards(method: Method) -> dict[str, float]:
        return {_FORWARD: forward(), **cached(method[1])}

    seconds, forwards = _alternate(methods, ways, time_forwards, num_pairs, on_run)

    def num_tokens(tokens: np.ndarray) -> int:
        is_token = prompts.is_blank & (tokens != parallel.denoiser.eos_id)
        return int(is_token.sum())

    # Without a reference a sampler still has a result, of the loop alone.
    numbered = list(enumerate(references, start=1)) or [(0, None)]
    return [
        Result(
            sampler=method[0],
            cache=method[1],
            reference=name,
            length=prompts.tokens.shape[1],
            batch_size=batch_size,
            compile_seconds=compile_seconds[method],
            seconds=seconds[method][0],
            reference_seconds=seconds[method][i] if i else None,
            forward_seconds=forwards[method][_FORWARD],
            cached_seconds={x: y for x, y in forwards[method].items() if x != _FORWARD},
            num_steps=outputs[method][0][1],
            num_whole=np.asarray(generations[method].num_whole),
            num_forwards=int(np.max(generations[method].last_iteration)),
            num_tokens=num_tokens(outputs[method][0][0]),
            num_equal=_num_equal(outputs[method][0], outputs[method][i]) if i else None,
        )
        for method in methods
        for i, name in numbered
    ]


# Of all rows, without a cache.
_FORWARD = "forward"


def _alternate(
    methods: Sequence[Method],
    ways: Sequence[Callable[[Method], object]],
    time_forwards: Callable[[Method], Mapping[str, float]],
    num_pairs: int,
    on_run: Callable[[], object],
) -> tuple[dict[Method, np.ndarray], dict[Method, dict[str, np.ndarray]]]:
    """Times all ways in turn; forwards before and after each run of the first.

    Returns:
      By method: seconds of each way and pair, [ways, p], and of forwards by name, [p].
    """
    seconds = {method: np.zeros((len(ways), num_pairs)) for method in methods}
    forwards: dict[Method, list[Mapping[str, float]]] = {x: [] for x in methods}

    def seconds_of(way: Callable[[Method], object], method: Method) -> float:
        start = time.perf_counter()
        way(method)
        taken = time.perf_counter() - start
        on_run()
        return taken

    for pair in range(num_pairs):
        for method in methods:
            before = time_forwards(method)
            seconds[method][0, pair] = seconds_of(ways[0], method)
            after = time_forwards(method)
            forwards[method].append({x: (before[x] + after[x]) / 2 for x in before})
            for number, way in enumerate(ways[1:], start=1):
                seconds[method][number, pair] = seconds_of(way, method)
    return seconds, {
        method: {name: np.array([pair[name] for pair in pairs]) for name in pairs[0]}
        for method, pairs in forwards.items()
    }


def _num_equal(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> int:
    """Rows with the same tokens and the same NFE."""
    is_equal = (first[0] == second[0]).all(axis=1) & (first[1] == second[1])
    return int(is_equal.sum())
