r"""Times the compiled loop against a plain eager PyTorch loop, pair by pair.

    python -m experiments.benchmark
    python -m experiments.benchmark --checkpoint=DIR --sampler=low_confidence \
        --sampler='entropy_bound(gamma=0.1)' --batch_sizes=8 --output=benchmark.jsonl
    python -m experiments.benchmark --preset=llada_8b --dtype=bfloat16 \
        --reference=none --prompt_length=256 --gen_lengths=256 --batch_sizes=8

Both loops have the same weights, rows and blocks, and run in turn. dlm_jax has a queue
in front of its slots; PyTorch takes batches of as many rows, on a GPU if it sees one.
--torch_compile=default races the same PyTorch loop with its model compiled, too, in a
row of its own; it is left out where torch.compile does not work, as without a C++
compiler. Other references: --reference=batches is dlm_jax without its queue, which
shows what the queue is worth; --reference=host is dlm_jax's compiled step, called from
Python; --reference=none is nothing. With torch and host, dlm_jax gets the first device
only; otherwise all of them.

Prints rows per second of both loops, the speed-up of each pair of runs and the median,
and the number of rows with identical tokens and NFE; each sampler's gain over the first
one, in seconds and in NFE; and what a step costs beside the model's forward, with its
share of the matrix-product peak measured here. Rows are examples of the config's task
and split. With --gen_lengths or a preset (random weights) they are random tokens, whose
answers and NFE mean nothing. --profile writes traces for XProf, one run per sampler and
shape in a directory of its own, and prints which is which.

With --cache every sampler runs with every cache plan, in rows of their own:

    python -m experiments.benchmark --block_length=16 --cache=none --cache=dual

Forwards of whole rows and of windows are then counted apart, and timed apart too: of
all rows without a cache, of a window of every row, and of the rows that are refreshed
together (--num_refreshed). The eager loop knows the plans prefix and dual.
"""

import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np
from absl import flags
from flax import nnx
from ml_collections import ConfigDict
from tqdm import tqdm

from dlm_jax import caches, checkpoints, files, samplers, tasks, zoo
from dlm_jax.core.cache import CachePlan
from dlm_jax.core.canvas import Prompts
from dlm_jax.core.checks import prepare
from dlm_jax.core.keys import check_seed, row_keys
from dlm_jax.core.options import Options
from dlm_jax.devices.runner import DataParallel
from dlm_jax.errors import InputError
from dlm_jax.models import as_denoiser, registry
from dlm_jax.models.family import Module
from dlm_jax.models.llada import LLaDAConfig
from dlm_jax.sandbox import processors
from dlm_jax.tasks.base import load
from dlm_jax.text import prompts as text_prompts
from dlm_jax.text.prompts import pad
from experiments import _app
from experiments.timing import (
    ceilings,
    costs,
    race_tables,
    races,
    steps,
    torch_loops,
)

_CONFIG = _app.define_config(_app.CONFIGS / "benchmark.py", "Defaults.")
_CHECKPOINT = _app.define_path("checkpoint", None, "Hugging Face or Orbax directory.")
_PRESET = flags.DEFINE_enum(
    "preset",
    None,
    registry.preset_names(),
    "Random weights of this shape, no checkpoint.",
)
_DTYPE = flags.DEFINE_enum(
    "dtype", None, ["bfloat16", "float32"], "Default: as stored; float32 of a preset."
)
_REFERENCE = flags.DEFINE_enum(
    "reference",
    "torch",
    ["torch", "host", "batches", "none"],
    "What dlm_jax is raced against, in batches: eager PyTorch, dlm_jax's step driven "
    "from Python, dlm_jax without its queue; or nothing.",
)
_TORCH_COMPILE = flags.DEFINE_enum(
    "torch_compile",
    None,
    ["default", "reduce-overhead", "max-autotune"],
    "Also race PyTorch with its model compiled by torch.compile in this mode.",
)
_OUTPUT = _app.define_path("output", None, "JSONL file to write; must not exist.")
_PROFILE = _app.define_path(
    "profile", None, "Directory for a trace of each sampler and shape; must not exist."
)
_GEN_LENGTHS = flags.DEFINE_multi_integer(
    "gen_lengths", [], "Tokens that continue random prompts; may be repeated."
)
_OVERRIDES = [
    flags.DEFINE_multi_string("sampler", None, "As saber(n=2, mu=8); may be repeated."),
    flags.DEFINE_multi_string(
        "cache", None, "As none or dual(refresh_every=8); may be repeated."
    ),
    flags.DEFINE_integer(
        "num_refreshed", None, "Rows refreshed together; default: the backend's own."
    ),
    flags.DEFINE_multi_integer("batch_sizes", None, "May be repeated."),
    flags.DEFINE_integer("prompt_length", None, "Of random prompts."),
    flags.DEFINE_integer("block_length", None, "Blanks of a block; default: all."),
    flags.DEFINE_integer("rows_per_slot", None, "Rows per run and row of a batch."),
    flags.DEFINE_integer("num_pairs", None, "Runs of each loop."),
    _app.define_precision(),
    flags.DEFINE_integer("seed", None, "Of the random keys, weights and prompts."),
]


# Rows and options for a batch size and a gen_length, which examples know themselves.
_Workload = Callable[[int, int], tuple[Prompts, Options]]


def main(argv: Sequence[str]) -> None:
    """Measures, prints and writes what the flags ask for."""
    del argv
    # A program that is read back from the cache would cost no compile time.
    jax.config.update("jax_enable_compilation_cache", False)
    config = _app.merged(_CONFIG, _OVERRIDES)
    _check(config)
    rules = samplers.parse_all(config.sampler)
    plans = _plans(config)
    if _REFERENCE.value == "torch":
        torch_loops.leave_room()

    # The model and the rows.
    start = time.perf_counter()
    model, gen_lengths, workload = _subject(config)
    jax.block_until_ready(nnx.state(model))
    loading = time.perf_counter() - start
    dtype = model.head.dtype
    shapes = [(b, g) for g in gen_lengths for b in config.batch_sizes]
    work = [workload(*shape) for shape in shapes]
    denoiser, params = as_denoiser(model)
    asked = [
        (rule, prompts, dataclasses.replace(options, cache=plan))
        for rule, plan, (prompts, options) in itertools.product(
            rules.values(), plans.values(), work
        )
    ]
    for call in asked:
        prepare(denoiser, *call)

    # What it is raced against, and the devices.
    references: dict[str, races.FillOf] = {}
    num_threads = handing = None
    if _REFERENCE.value == "torch":
        torch_loops.check(asked)
        references, num_threads, handing = torch_loops.make(model, _TORCH_COMPILE.value)
    devices = jax.local_devices()
    if _REFERENCE.value in ("torch", "host"):
        devices = devices[:1]
    # From here on `model` and `params` are empty: a device holds the weights once.
    parallel = DataParallel(denoiser, params, devices, frees_params=True)
    if _REFERENCE.value == "host":
        references["steps from Python"] = functools.partial(races.host_driven, parallel)
    elif _REFERENCE.value == "batches":
        references["batches"] = functools.partial(races.without_queue, parallel)
    common = {
        "num_cores": processors.usable(),
        "num_devices": parallel.num_groups,
        "precision": work[0][1].precision,
        "reference_threads": num_threads,
    }

    # Races, one per batch size and length.
    reached = ceilings.measure(dtype, _app.precision(config))
    num_methods = len(rules) * len(plans)
    num_runs = len(shapes) * num_methods * config.num_pairs * (1 + len(references))
    records = []
    with tqdm(total=num_runs, unit="run", disable=None) as progress:
        for (batch_size, _), (prompts, options) in zip(shapes, work, strict=True):
            progress.set_description(f"batch {batch_size}")
            num_slots = parallel.num_slots(batch_size)
            options = dataclasses.replace(options, num_slots=num_slots)
            found = costs.measure(
                parallel,
                rules,
                plans,
                prompts,
                options,
                # The count of operations is written for this shape.
                config=cast(LLaDAConfig, model.config),
                itemsize=dtype.itemsize,
                reached=reached,
                num_pairs=config.num_pairs,
                seed=config.seed,
                references=references,
                on_run=progress.update,
                **common,
            )
            records += found
            if _PROFILE.value:
                keys = row_keys(config.seed, np.arange(len(prompts.tokens)))
                calls = {
                    (spec, x): (rules[spec], prompts, keys, own)
                    for spec, (x, plan) in itertools.product(rules, plans.items())
                    for own in [dataclasses.replace(options, cache=plan)]
                }
                length = prompts.tokens.shape[1]
                name = f"{_PROFILE.value}/batch{batch_size}_length{length}"
                _profile(parallel, calls, found, name)
    if _OUTPUT.value:
        files.write_jsonl(_OUTPUT.value, records)
    _print(records, loading, handing, reached)


def _plans(config: ConfigDict) -> dict[str, CachePlan]:
    """The cache plans by their specs.

    Raises:
      InputError: for a spec that is not one or stands twice, or a cache of blocks
        without a length of them.
    """
    plans = [caches.parse(spec) for spec in config.get("cache") or ("none",)]
    found = {caches.to_spec(plan): plan for plan in plans}
    if len(found) < len(plans):
        raise InputError(f"cache ({', '.join(map(caches.to_spec, plans))}) must differ")
    for spec, plan in found.items():
        if plan.has_window and config.block_length is None:
            raise InputError(
                f"cache ({spec}) must be used with block_length: without blocks a "
                "window is the whole answer"
            )
    return found


def _profile(
    parallel: DataParallel,
    calls: Mapping[races.Method, tuple],
    records: Sequence[dict],
    name: str,
) -> None:
    """Traces one call per method, and notes in its records where the trace is."""
    rules, plans = (list(dict.fromkeys(specs)) for specs in zip(*calls, strict=True))
    for (spec, cache), call in calls.items():
        trace = f"{name}_sampler{rules.index(spec) + 1}"
        if cache != "none":
            trace += f"_cache{plans.index(cache) + 1}"
        with jax.profiler.trace(trace):
            parallel(*call)
        for record in records:
            if (record["sampler"], record["cache"]) == (spec, cache):
                record["trace"] = trace


def _print(
    records: Sequence[dict],
    loading: float,
    handing: float | None,
    reached: ceilings.Ceilings,
) -> None:
    """Prints the tables, the time the weights took, and the device's ceilings.

    Args:
      records: what was measured.
      loading: seconds until dlm_jax had the weights.
      handing: seconds until PyTorch had them, too.
      reached: by the device.
    """
    own = race_tables.one_each(records)
    print(
        race_tables.tables(records), race_tables.table(own, steps.COLUMNS), sep="\n\n"
    )
    print(f"\nThe weights were loaded in {loading:.1f} s", end="")
    if handing is not None:
        print(f", and handed to PyTorch in {handing:.1f} s", end="")
    print(".", end=" ")
    print(f"Matrix products reach {reached.peak / 1e12:.3f} TFLOP/s here,", end=" ")
    print(f"copies {reached.bandwidth / 1e9:.1f} GB/s;", end=" ")
    print(
        f"at that, the weights of the blocks are read in {own[0]['weights_ms']:.2f} ms."
    )
    for record in own if _PROFILE.value else ():
        cache = "" if record["cache"] == "none" else f", cache {record['cache']}"
        print(f"{record['trace']} is the trace of {record['sampler']}{cache}.")


def _check(config: ConfigDict) -> None:
    """Refuses, before any work is done, what cannot be measured."""
    places = [pathlib.Path(x) for x in (_OUTPUT.value, _PROFILE.value) if x]
    for place in places:
        files.check_output(place)
    if len(places) == 2:
        output, profile = (place.resolve() for place in places)
        if output in (profile, *profile.parents):
            raise InputError(f"profile ({places[1]}) must not lie at or in the output")
    blocks = [] if config.block_length is None else [config.block_length]
    for name, values, least in (
        ("batch_sizes", config.batch_sizes, 1),
        ("gen_lengths", _GEN_LENGTHS.value, 1),
        ("block_length", blocks, 1),
        ("rows_per_slot", [config.rows_per_slot], 1),
        ("num_pairs", [config.num_pairs], 1),
        ("num_refreshed", [config.get("num_refreshed") or 1], 1),
        ("prompt_length", [config.prompt_length], 0),
    ):
        if min(values, default=least) < least:
            raise InputError(f"{name} ({min(values)}) must be at least {least}")
    check_seed(config.seed)
    # Examples fill whole blocks whatever their length.
    random = _GEN_LENGTHS.value or ([config.gen_length] if _PRESET.value else [])
    for gen_length, block_length in itertools.product(random, blocks):
        if gen_length % block_length:
            raise InputError(
                f"gen_lengths ({gen_length}) must be a multiple of block_length "
                f"({block_length})"
            )


def _subject(config: ConfigDict) -> tuple[Module, Sequence[int], _Workload]:
    """The model, the lengths to be generated, and what makes rows of them."""
    preset, checkpoint, dtype = _PRESET.value, _CHECKPOINT.value, _DTYPE.value
    if preset and checkpoint:
        raise InputError("preset and checkpoint cannot both be given")
    common: dict[str, Any] = {
        "block_length": config.block_length,
        "num_refreshed": config.get("num_refreshed"),
        "precision": _app.precision(config),
    }
    gen_lengths = _GEN_LENGTHS.value
    if not preset and not gen_lengths:
        task = tasks.get(config.zoo)
        model, codec = load(task, checkpoint or zoo.path(task.name), dtype)

        def examples(batch_size: int, _: int) -> tuple[Prompts, Options]:
            num_rows = config.rows_per_slot * batch_size
            rows = task.encode(codec, task.examples(config.split, num_rows))
            length = max(row.tokens.size for row in rows)
            gen_length = text_prompts.gen_length(rows, config.block_length)
            return pad(rows, length), Options(gen_length, **common)

        return model, [task.gen_length], examples
    if preset:
        model = registry.random_preset(preset, dtype, config.seed)
    else:
        model = checkpoints.load(checkpoint or zoo.path(config.zoo), dtype)

    def random(batch_size: int, gen_length: int) -> tuple[Prompts, Options]:
        prompts = steps.synthetic(
            num_rows=config.rows_per_slot * batch_size,
            prompt_length=config.prompt_length,
            gen_length=gen_length,
            vocab_size=model.config.vocab_size,
            seed=config.seed,
        )
        return prompts, Options(gen_length, **common)

    return model, gen_lengths or [config.gen_length], random


if __name__ == "__main__":
    _app.run(main)
