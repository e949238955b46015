"""The parts of `experiments.on_gpu`: each measures one thing of a model's shape."""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from flax import nnx

from dlm_jax import caches, samplers
from dlm_jax.core.canvas import Prompts
from dlm_jax.core.keys import row_keys
from dlm_jax.core.options import Options
from dlm_jax.devices.runner import DataParallel
from dlm_jax.errors import InputError
from dlm_jax.models import as_denoiser, registry
from dlm_jax.models.llada import LLaDAConfig
from dlm_jax.parity import traces
from experiments._replaying import replayed
from experiments.timing import (
    ceilings,
    costs,
    heads,
    race_tables,
    races,
    roofline,
    steps,
    torch_loops,
)

# So many tokens are committed in each step, so that the number of forwards is known.
_EIGHT_A_STEP = "low_confidence(schedule=fixed(k=8))"
_THREE_A_STEP = "low_confidence(schedule=fixed(k=3))"
_NUM_REFRESHED = (1, 2, 4, 8)
# Models of the recorded runs.
TRACED = ("kv2", "kv4", "sdar")
_TRACES = pathlib.Path(__file__).parents[2] / "tests/data/traces"


class Lengths(NamedTuple):
    """Tokens of the prompt, of the answer, and of its blocks."""

    prompt_length: int
    gen_length: int
    block_length: int


LENGTHS = {"llada_8b": Lengths(256, 256, 32), "tiny": Lengths(16, 16, 8)}


class Bench(NamedTuple):
    """What all parts share.

    Attributes:
      parallel: the model, on the first device.
      config: the model's.
      itemsize: bytes of a parameter.
      loops: PyTorch's, by name; none where there is no PyTorch.
      reached: by the device.
      lengths: of a row.
      num_pairs: runs of each loop.
    """

    parallel: DataParallel
    config: LLaDAConfig
    itemsize: int
    loops: Mapping[str, races.FillOf]
    reached: ceilings.Ceilings
    lengths: Lengths
    num_pairs: int

    def rows(self, batch_size: int, cache: str = "none") -> tuple[Prompts, Options]:
        """Rows of random tokens, a slot for each, and how to fill them."""
        prompt_length, gen_length, block_length = self.lengths
        prompts = steps.synthetic(
            num_rows=batch_size,
            prompt_length=prompt_length,
            gen_length=gen_length,
            vocab_size=self.config.vocab_size,
            seed=0,
        )
        plan = caches.parse(cache)
        return prompts, Options(
            gen_length, block_length, cache=plan, num_slots=batch_size
        )


def setup(preset: str, dtype: str, num_pairs: int) -> tuple[Bench, dict[str, Any]]:
    """Makes the weights, hands them to PyTorch, and measures the device.

    Args:
      preset: one of LENGTHS.
      dtype: of the weights.
      num_pairs: runs of each loop.

    Returns:
      What all parts share, and how long it took, with the device's ceilings.
    """
    start = time.perf_counter()
    model = registry.random_preset(preset, dtype)
    jax.block_until_ready(nnx.state(model))
    loading = time.perf_counter() - start
    try:
        torch_loops.check(())
        loops, _, handing = torch_loops.make(model, "default")
    except InputError as error:
        print(f"PyTorch is left out: {error}", flush=True)
        loops, handing = {}, None
    # The count of operations is written for this shape.
    config, stored = cast(LLaDAConfig, model.config), model.head.dtype
    # From here on the module is empty: the device holds dlm_jax's weights once.
    devices = jax.local_devices()[:1]
    parallel = DataParallel(*as_denoiser(model), devices, frees_params=True)
    bench = Bench(
        parallel=parallel,
        config=config,
        itemsize=stored.itemsize,
        loops=loops,
        reached=ceilings.measure(stored),
        lengths=LENGTHS[preset],
        num_pairs=num_pairs,
    )
    return bench, {
        "loading_seconds": loading,
        "handing_seconds": handing,
        **bench.reached._asdict(),
    }


def _steps(reference: str, batch_size: int, bench: Bench) -> list[dict[str, Any]]:
    """Steps of full forwards, beside PyTorch's of a name if it is there."""
    loops = {x: y for x, y in bench.loops.items() if x == reference}
    if reference == torch_loops.COMPILED and not loops:
        raise InputError("there is no torch.compile that works here")
    prompts, options = bench.rows(batch_size)
    # A step costs the same in either. One row has more of them, for what is done once.
    rule = _THREE_A_STEP if batch_size == 1 else _EIGHT_A_STEP
    return costs.measure(
        bench.parallel,
        samplers.parse_all([rule]),
        {"none": options.cache},
        prompts,
        options,
        config=bench.config,
        itemsize=bench.itemsize,
        reached=bench.reached,
        num_pairs=bench.num_pairs,
        references=loops,
    )


def _windows(batch_size: int, bench: Bench) -> list[dict[str, Any]]:
    """A cached block step, and reading the weights of the blocks."""
    timer = steps.cached_timer(bench.parallel, *bench.rows(batch_size, "dual"))
    seconds = [timer() for _ in range(bench.num_pairs)]
    read = bench.itemsize * roofline.block_parameters(bench.config)
    read /= bench.reached.bandwidth
    found: dict[str, Any] = {"batch_size": batch_size, "weights_ms": 1e3 * read}
    for name in seconds[0]:
        own = [one[name] for one in seconds]
        found[f"{name}_seconds"] = own
        found[f"{name}_ms"] = 1e3 * float(np.median(own))
    return [{**found, "window_per_weights": found["window_ms"] / 1e3 / read}]


def _masks(batch_size: int, bench: Bench) -> list[dict[str, Any]]:
    """A forward that is given a mask, beside one that is given the number of keys."""
    lengths = bench.lengths
    shape = steps.Shape(
        batch_size, lengths.prompt_length + lengths.gen_length, lengths.block_length
    )
    number, mask = (
        steps.forward_timer(bench.parallel, shape, sees_first=x) for x in (True, False)
    )
    pairs = [(number(), mask()) for _ in range(bench.num_pairs)]
    return [
        {
            "batch_size": batch_size,
            "number_seconds": [one for one, _ in pairs],
            "mask_seconds": [other for _, other in pairs],
            "mask_per_number": float(np.median([y / x for x, y in pairs])),
        }
    ]


def _generations(batch_size: int, bench: Bench) -> list[dict[str, Any]]:
    """Whole generations: no cache beside the dual one, that beside PyTorch's."""
    rules = samplers.parse_all([_THREE_A_STEP])
    prompts, options = bench.rows(batch_size)
    eager = {x: y for x, y in bench.loops.items() if x == torch_loops.EAGER}
    plans = {spec: caches.parse(spec) for spec in ("none", "dual")}
    # Without a cache PyTorch's loop would not fit at batch 32, so it has none anywhere.
    pairs = [(plans, {}), ({"dual": plans["dual"]}, eager)]
    found = []
    for own, references in pairs if eager else pairs[:1]:
        results = races.race(
            bench.parallel,
            rules,
            prompts,
            options,
            forward=float,  # Timed in other parts.
            # A run without a cache takes half a minute there.
            num_pairs=min(bench.num_pairs, 2) if batch_size > 8 else bench.num_pairs,
            plans=own,
            references=references,
        )
        found += race_tables.records(results)
    return found


def _predict(bench: Bench) -> list[dict[str, Any]]:
    """Head and statistics of one row's block."""
    timers = heads.timers(bench.parallel, 1, bench.lengths.block_length)
    rounds = [
        {x: timer() for x, timer in timers.items()} for _ in range(bench.num_pairs)
    ]
    found: dict[str, Any] = {
        f"{name}_ms": 1e3 * float(np.median([one[name] for one in rounds]))
        for name in timers
    }
    for name, other in (("predict", "plain"), ("drawn", "predict")):
        ratios = [one[name] / one[other] for one in rounds]
        found[f"{name}_per_{other}"] = float(np.median(ratios))
    return [found | {"rounds": rounds}]


def _refreshed(batch_size: int, bench: Bench) -> list[dict[str, Any]]:
    """Generations with the dual cache, by how many rows are refreshed together."""
    (rule,) = samplers.parse_all([_THREE_A_STEP]).values()
    prompts, options = bench.rows(batch_size, "dual")
    keys = row_keys(0, np.arange(batch_size))
    calls = {
        num: (rule, prompts, keys, dataclasses.replace(options, num_refreshed=num))
        for num in _NUM_REFRESHED
    }
    seconds: dict[int, list[float]] = {num: [] for num in calls}
    for pair in range(1 + bench.num_pairs):
        for num, call in calls.items():
            start = time.perf_counter()
            bench.parallel(*call)
            if pair:  # The first run compiles.
                seconds[num].append(time.perf_counter() - start)
    return [
        {
            "batch_size": batch_size,
            "num_refreshed": num,
            "seconds": own,
            "median_seconds": float(np.median(own)),
        }
        for num, own in seconds.items()
    ]


def _traces(group: str, bench: None) -> list[dict[str, Any]]:
    """Recorded runs of a model, replayed here; how many match comes first."""
    del bench
    recorded = [x for x in traces.load_directory(_TRACES) if f"__{group}_" in x.name]
    found = [
        {
            "trace": one.trace.name,
            "recorded_nfe": one.trace.nfe,
            "nfe": one.nfe,
            "is_match": one.is_match,
            "result": one.result,
        }
        for one in replayed(recorded, _TRACES.parent, "float32")
    ]
    num = sum(one["is_match"] for one in found)
    return [{"num_matches": num, "num": len(found), "share": num / len(found)}, *found]


class Part(NamedTuple):
    """A part.

    Attributes:
      minutes: its limit.
      run: gives its records.
      needs_model: it is given a Bench; if not, None.
    """

    minutes: float
    run: Callable[[Any], list[dict[str, Any]]]
    needs_model: bool = True


# The most important first.
PARTS = {
    "steps_1": Part(1.5, functools.partial(_steps, torch_loops.EAGER, 1)),
    "steps_8": Part(2, functools.partial(_steps, torch_loops.EAGER, 8)),
    "windows_1": Part(1, functools.partial(_windows, 1)),
    "windows_8": Part(1, functools.partial(_windows, 8)),
    "generations_1": Part(1.5, functools.partial(_generations, 1)),
    "generations_8": Part(2.5, functools.partial(_generations, 8)),
    "generations_32": Part(3.5, functools.partial(_generations, 32)),
    "predict": Part(1, _predict),
    **{
        f"traces_{group}": Part(
            1.5, functools.partial(_traces, group), needs_model=False
        )
        for group in TRACED
    },
    "masks_8": Part(1, functools.partial(_masks, 8)),
    # May take minutes to compile, or fail: not beside the other loops.
    "compiled_1": Part(2.5, functools.partial(_steps, torch_loops.COMPILED, 1)),
    "compiled_8": Part(2.5, functools.partial(_steps, torch_loops.COMPILED, 8)),
    "refreshed_8": Part(2, functools.partial(_refreshed, 8)),
    "refreshed_32": Part(3, functools.partial(_refreshed, 32)),
}
