"""A race whose records also say what a step costs beside its forwards."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from dlm_jax.core.cache import CachePlan
from dlm_jax.core.canvas import Prompts
from dlm_jax.core.keys import row_keys
from dlm_jax.core.options import Options
from dlm_jax.core.sampler import Sampler
from dlm_jax.devices.runner import DataParallel
from experiments.timing import race_tables, races, roofline, steps
from experiments.timing.ceilings import Ceilings


def measure(
    parallel: DataParallel,
    rules: Mapping[str, Sampler],
    plans: Mapping[str, CachePlan],
    prompts: Prompts,
    options: Options,
    *,
    config: roofline.Dense,
    itemsize: int,
    reached: Ceilings,
    num_pairs: int,
    seed: int = 0,
    references: Mapping[str, races.FillOf] = MappingProxyType({}),
    on_run: Callable[[], object] = lambda: None,
    **common: Any,
) -> list[dict[str, Any]]:
    """Records of `races.race`, with what `steps.records` adds.

    Args:
      parallel: the model.
      rules: samplers by spec.
      plans: cache plans by spec.
      prompts: all rows.
      options: of the race, with num_slots.
      config: the model's.
      itemsize: bytes of a parameter.
      reached: by the device.
      num_pairs: see `races.race`, as the arguments that follow.
      seed: of the random keys.
      references: other loops by name.
      on_run: called after every run of all rows.
      common: fields that end each record of the race.

    Raises:
      InputError: as `races.race`.
    """
    shape = steps.Shape(
        options.num_slots or len(prompts.tokens),
        prompts.tokens.shape[1],
        options.gen_length,
    )
    own = {x: dataclasses.replace(options, cache=plan) for x, plan in plans.items()}
    timers = {
        x: steps.cached_timer(parallel, prompts, y)
        for x, y in own.items()
        if y.cache.has_window
    }
    results = races.race(
        parallel,
        rules,
        prompts,
        options,
        num_pairs=num_pairs,
        seed=seed,
        plans=plans,
        cached=lambda cache: timers[cache]() if cache in timers else {},
        references=references,
        forward=steps.forward_timer(parallel, shape, options.precision),
        on_run=on_run,
    )
    keys = row_keys(seed, np.arange(len(prompts.tokens)))
    regions, memory = {}, {}
    for method in itertools.product(rules, plans):
        rule, mine = rules[method[0]], own[method[1]]
        regions[method] = steps.region_size(parallel.denoiser, rule, prompts, mine)
        memory[method] = parallel.memory(rule, prompts, keys, mine)
    costs = steps.records(
        results,
        config,
        shape,
        regions=regions,
        reached=reached,
        memory=memory,
        itemsize=itemsize,
    )
    raced = race_tables.records(results, **common)
    return [{**r, **c} for r, c in zip(raced, costs, strict=True)]
