"""Samplers on a task's examples: every answer judged and written down, resumable.

Work is cut into calls of a fixed number of rows. Records are appended while a call
runs: a run that was killed repeats only rows that were in flight or not judged yet.
Samplers take turns, call by call: a machine's speed drifts, and neighbours are
compared.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

from dlm_jax import caches, files, samplers
from dlm_jax.core.checks import prepare
from dlm_jax.core.denoiser import Denoiser
from dlm_jax.core.keys import check_seed
from dlm_jax.core.options import Options
from dlm_jax.devices.parallel import Parallel
from dlm_jax.errors import InputError
from dlm_jax.evaluation.calls import Caller, Lane, Plan
from dlm_jax.evaluation.records import Key, Log, Manifest
from dlm_jax.tasks.base import Example, Task
from dlm_jax.text.codec import Codec
from dlm_jax.text.prompts import Encoded, fit_blocks, pad


def lanes(
    specs: Sequence[str],
    seeds: Sequence[int],
    is_mixed: bool,
    plans: Sequence[str] = ("none",),
) -> list[Lane]:
    """The samplers in lanes.

    Args:
      specs: of the samplers.
      seeds: each sampler runs with each.
      is_mixed: samplers of one compiled program share calls, so that a sweep over a
        threshold is one bigger batch. What time a sampler takes is then not known.
      plans: specs of cache plans; each sampler runs with each.

    Raises:
      InputError: for a spec, seed or plan that is not one, or one that is given twice.
    """
    for seed in seeds:
        check_seed(seed, "seeds")
    if len(set(seeds)) < len(seeds):
        raise InputError(f"seeds ({', '.join(map(str, seeds))}) must differ")
    by_program: dict[Any, list[str]] = {}
    for spec, sampler in samplers.parse_all(specs).items():
        program = jax.tree.structure(sampler) if is_mixed else spec
        by_program.setdefault(program, []).append(samplers.to_spec(sampler))
    known = [caches.to_spec(caches.parse(plan)) for plan in plans]
    if len(set(known)) < len(known):
        raise InputError(f"cache ({', '.join(known)}) must differ")
    return [
        Lane(tuple(group), cache, seed)
        for group in by_program.values()
        for cache in known
        for seed in seeds
    ]


class Ready(NamedTuple):
    """An evaluation whose arguments fit.

    Attributes:
      examples: that are asked.
      rows: the same, encoded.
      options: how to fill them.
      identity: what the manifest says of it, but for the checkpoint.
      asked: what the manifest says of this run.
    """

    examples: list[Example]
    rows: list[Encoded]
    options: Options
    identity: dict[str, Any]
    asked: dict[str, Any]


def check(
    denoiser: Denoiser,
    codec: Codec,
    task: Task,
    plan: Plan,
    todo: Sequence[Lane],
    num_examples: int,
) -> Ready:
    """Checks the arguments of `run`; needs no weights.

    Args:
      denoiser: the model, with or without parameters.
      codec: its tokenizer.
      task: what is asked.
      plan: how.
      todo: the samplers, caches and seeds.
      num_examples: the first ones of the split.

    Raises:
      InputError: naming the argument that does not fit.
    """
    _check_sizes(plan, num_examples)
    examples = task.examples(plan.split, num_examples, plan.example_seed)
    rows, options = fit_blocks(
        task.encode(codec, examples),
        plan.options(task, codec, denoiser.eos_id),
        denoiser,
    )
    one = pad(rows[:1], rows[0].tokens.size)
    for cache in {lane.cache for lane in todo}:
        own = dataclasses.replace(options, cache=caches.parse(cache))
        for spec in {spec for lane in todo for spec in lane.specs}:
            prepare(denoiser, samplers.parse(spec), one, own)
    return Ready(
        examples=examples,
        rows=rows,
        options=options,
        identity={
            "task": task.name,
            **plan.identity,
            **task.identity(plan.split),
            "gen_length": options.gen_length,
            "block_length": options.block_length,
        },
        asked={
            "samplers": sorted({spec for lane in todo for spec in lane.specs}),
            "caches": sorted({lane.cache for lane in todo}),
            "seeds": sorted({lane.seed for lane in todo}),
            "num_examples": num_examples,
            **plan.sizes,
        },
    )


def run(
    parallel: Parallel,
    codec: Codec,
    task: Task,
    plan: Plan,
    todo: Sequence[Lane],
    num_examples: int,
    directory: str | os.PathLike,
    *,
    about: Mapping[str, Any],
    on_records: Callable[[list[dict[str, Any]]], object] = lambda records: None,
    on_known: Callable[[list[dict[str, Any]]], object] | None = None,
) -> list[dict[str, Any]]:
    """Evaluates what a directory does not hold yet.

    Args:
      parallel: the model.
      codec: its tokenizer.
      task: what is asked.
      plan: how.
      todo: the samplers and seeds.
      num_examples: the first ones of the split.
      directory: gets `records.jsonl` and `manifest.json`, which says what they are of
        and lists the runs that made them; more samplers, seeds and examples may be
        added to what it holds, with another batch size and queue length too. Nothing
        is written before the first rows are done.
      about: of the checkpoint; must be the same when a directory is continued.
      on_records: called with new records of a lane as they come.
      on_known: called before with those that were there; on_records by default.

    Returns:
      The records of todo, lane by lane: `sampler`, `cache`, `seed`, `index`, `name`,
      `is_correct`, `reason`, `nfe` and of it `num_whole` of the whole row, `num_tokens`
      (written, up to EOS), `is_complete`, `has_nan`, `text`; `seconds` and
      `compile_seconds`, the row's shares, see `Output`;
      `place` in the call, and the call's rows; `run`, its place in the manifest's runs;
      `batch_size`, on which times depend.

    Raises:
      InputError: if the directory holds another evaluation, another process writes to
        it, an argument does not fit, or the disk is full.
      OutOfMemory: naming the batch size, when the memory is full; records are kept.
    """
    directory = pathlib.Path(directory)
    with files.locked(directory, is_directory=True, name="workdir"):
        ready = check(
            denoiser=parallel.denoiser,
            codec=codec,
            task=task,
            plan=plan,
            todo=todo,
            num_examples=num_examples,
        )
        identity = {**ready.identity, **about}
        caller = Caller(
            parallel=parallel,
            codec=codec,
            task=task,
            plan=plan,
            examples=ready.examples,
            rows=ready.rows,
            options=ready.options,
            manifest=Manifest(directory, identity, ready.asked),
            log=Log(directory),
            on_records=on_records,
        )
        return _run(caller, todo, num_examples, on_known or on_records)


def _run(
    caller: Caller,
    todo: Sequence[Lane],
    num_examples: int,
    on_known: Callable[[list[dict[str, Any]]], object],
) -> list[dict[str, Any]]:
    """Asks what has no record; see `run`."""
    # Report what the directory holds.
    keys = [_keys(lane, num_examples) for lane in todo]
    for own in keys:
        if known := caller.log.find(own):
            on_known(known)

    # Lanes take turns, call by call.
    lengths = [row.tokens.size for row in caller.rows]
    calls = [_calls(own, caller.plan.queue_length, lengths) for own in keys]
    for turn in zip_longest(*calls):
        for lane, call in zip(todo, turn, strict=True):
            if call is not None:
                caller.ask(lane, call)
    return [record for own in keys for record in caller.log.find(own)]


def _check_sizes(plan: Plan, num_examples: int) -> None:
    """Raises InputError for a number of rows that does not fit."""
    for name, value in (
        ("num_examples", num_examples),
        ("batch_size", plan.batch_size),
    ):
        if value < 1:
            raise InputError(f"{name} ({value}) must be at least 1")
    if plan.queue_length < plan.batch_size:
        raise InputError(
            f"queue_length ({plan.queue_length}) must be at least batch_size "
            f"({plan.batch_size})"
        )


def _keys(lane: Lane, num_examples: int) -> list[Key]:
    """The lane's rows, example by example."""
    return [
        Key(spec, lane.cache, lane.seed, index)
        for index in range(num_examples)
        for spec in lane.specs
    ]


def _calls(
    keys: Sequence[Key], queue_length: int, lengths: Sequence[int]
) -> list[Sequence[Key]]:
    """The calls of a lane; that with the longest row, which takes most memory, first.

    Args:
      keys: of the lane's rows.
      queue_length: rows of a call.
      lengths: of the rows, example by example.
    """
    starts = range(0, len(keys), queue_length)
    calls = [keys[start : start + queue_length] for start in starts]
    return sorted(calls, key=lambda call: -max(lengths[key.index] for key in call))


@dataclasses.dataclass(frozen=True)
class Summary:
    """One sampler with one cache on n examples with s seeds.

    Attributes:
      sampler: its spec.
      cache: spec of the cache plan.
      is_correct: bool [s, n].
      nfe: [s, n].
      num_whole: [s, n]; of those, forwards of the whole row.
      num_tokens: [s, n]; written at blanks, up to EOS; 0 of rows that are not complete.
      seconds: of all its calls, compiling excluded.
      compile_seconds: of all its calls.
      conditions: of its runs, see `records.conditions`, each once; empty if unknown.
    """

    sampler: str
    cache: str
    is_correct: Bool[np.ndarray, "s n"]
    nfe: Float[np.ndarray, "s n"]
    num_whole: Float[np.ndarray, "s n"]
    num_tokens: Float[np.ndarray, "s n"]
    seconds: float
    compile_seconds: float
    conditions: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The sampler as tables name it, with its cache if it has one."""
        name = samplers.short_spec(self.sampler)
        return name if self.cache == "none" else f"{name}, cache {self.cache}"

    @property
    def tokens_per_forward(self) -> float:
        """TPF: valid tokens of all rows divided by forwards of all rows.

        Valid are tokens written at blanks before the first stop, of complete rows. A
        ratio of sums, no mean of the rows' ratios.
        """
        return float(self.num_tokens.sum() / max(self.nfe.sum(), 1))

    @property
    def tokens_per_second(self) -> float | None:
        """TPS: the same tokens per second of the calls, compiling excluded.

        None if the rows were filled under several conditions: it would be of none.
        """
        if len(self.conditions) > 1 or not self.seconds:
            return None
        return float(self.num_tokens.sum() / self.seconds)


def summaries(
    records: Sequence[Mapping[str, Any]], conditions: Sequence[str] = ()
) -> list[Summary]:
    """Records by sampler and cache, in the order of their first ones.

    Args:
      records: of a directory.
      conditions: of its runs, see `records.conditions`; none if speed does not matter.

    Raises:
      InputError: if a sampler has not the same examples for each seed.
    """
    by_sampler: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for record in records:
        key = record["sampler"], record.get("cache", "none")
        by_sampler.setdefault(key, []).append(record)
    results = []
    for (spec, cache), own in by_sampler.items():
        # Records of version 0.1 name no cache: all forwards were of the whole row.
        own = [
            {"num_whole": record["nfe"], "is_complete": True, **record}
            for record in own
        ]
        own = sorted(own, key=lambda r: (r["seed"], r["index"]))
        num_seeds = len({record["seed"] for record in own})
        shape = num_seeds, len({record["index"] for record in own})
        if shape[0] * shape[1] != len(own):
            raise InputError(f"{spec} must have the same examples for each seed")

        def column(name: str, own: Sequence = own, shape: tuple = shape) -> np.ndarray:
            return np.array([record[name] for record in own]).reshape(shape)

        results.append(
            Summary(
                sampler=spec,
                cache=cache,
                is_correct=column("is_correct"),
                nfe=column("nfe").astype(float),
                num_whole=column("num_whole").astype(float),
                num_tokens=np.where(
                    column("is_complete"), column("num_tokens"), 0
                ).astype(float),
                seconds=float(column("seconds").sum()),
                compile_seconds=float(column("compile_seconds").sum()),
                conditions=_conditions(own, conditions),
            )
        )
    return results


def _conditions(
    records: Sequence[Mapping[str, Any]], conditions: Sequence[str]
) -> tuple[str, ...]:
    """The conditions under which rows were filled that took a forward, each once."""
    if not conditions:
        return ()
    # Records of earlier versions may not say of which run they are.
    runs = [record.get("run", -1) for record in records if record["nfe"]]
    found = [conditions[run] for run in runs if 0 <= run < len(conditions)]
    return tuple(dict.fromkeys(found))
