"""Samplers on a task's examples: every answer judged and written down, resumable.

Work is cut into calls of a fixed number of rows. Records are appended while a call
runs: a run that was killed repeats what was in flight or had not been handed over and
judged yet. Samplers take turns, call by call: a machine's speed drifts, and neighbours
are compared.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
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
from dlm_jax.core.sampler import Sampler
from dlm_jax.devices import batches
from dlm_jax.devices.runner import Parallel
from dlm_jax.errors import InputError
from dlm_jax.evaluation.records import Key, Log, Manifest
from dlm_jax.sandbox import processors
from dlm_jax.tasks.base import Example, Task, Verdict
from dlm_jax.text.codec import Codec
from dlm_jax.text.output import Output
from dlm_jax.text.prompts import Encoded, fit_blocks, pad


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is evaluated, and how; a directory holds the records of one plan.

    Attributes:
      split: of the task's examples.
      example_seed: of the examples.
      temperature: 0 takes the most probable token.
      batch_size: rows in flight at once, over all devices.
      queue_length: rows of a call.
    """

    split: str = "test"
    example_seed: int = 0
    temperature: float = 0.0
    batch_size: int = 32
    queue_length: int = 256

    @classmethod
    def of(cls, config: Any) -> "Plan":
        """The plan in a mapping, such as a ConfigDict, that may hold more."""
        return cls(**{f.name: config[f.name] for f in dataclasses.fields(cls)})


@dataclasses.dataclass(frozen=True)
class Lane:
    """Samplers whose rows share calls: of one type, with thresholds of their own.

    Attributes:
      specs: canonical ones, see `samplers.to_spec`.
      cache: spec of the cache plan, see `caches.to_spec`.
      seed: of the random keys.
    """

    specs: tuple[str, ...]
    cache: str
    seed: int


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
      InputError: for a spec, seed or plan that is not one, or one that stands twice.
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
        task.encode(codec, examples), task.options(codec, plan.temperature), denoiser
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
            **dataclasses.asdict(plan),
            "gen_length": options.gen_length,
            "block_length": options.block_length,
        },
        asked={
            "samplers": sorted({spec for lane in todo for spec in lane.specs}),
            "caches": sorted({lane.cache for lane in todo}),
            "seeds": sorted({lane.seed for lane in todo}),
            "num_examples": num_examples,
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
        added to what it holds. Nothing is written before the first rows are done.
      about: of the checkpoint; must be the same when a directory is continued.
      on_records: called with new records of a lane as they come.
      on_known: called before with those that were there; on_records by default.

    Returns:
      The records of todo, lane by lane: `sampler`, `cache`, `seed`, `index`, `name`,
      `is_correct`, `reason`, `nfe` and of it `num_whole` of the whole row, `num_tokens`
      (written, up to EOS), `is_complete`, `has_nan`, `text`; `seconds` and
      `compile_seconds`, the row's shares, see `Output`;
      `place` in the call, and the call's rows; `run`, its place in the manifest's runs.

    Raises:
      InputError: if the directory holds another evaluation, another process writes to
        it, or an argument does not fit.
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
        caller = _Caller(
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
    caller: "_Caller",
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
    for turn in zip_longest(*(_calls(own, caller.plan.queue_length) for own in keys)):
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


@dataclasses.dataclass(frozen=True)
class _Caller:
    """What the calls of an evaluation share.

    Attributes:
      parallel: the model.
      codec: its tokenizer.
      task: what judges outputs.
      plan: batch size and queue length are read.
      examples: all of them.
      rows: the examples, encoded.
      options: how to generate.
      manifest: of the directory.
      log: of the directory.
      on_records: called with new records.
    """

    parallel: Parallel
    codec: Codec
    task: Task
    plan: Plan
    examples: Sequence[Example]
    rows: Sequence[Encoded]
    options: Options
    manifest: Manifest
    log: Log
    on_records: Callable[[list[dict[str, Any]]], object]

    def ask(self, lane: Lane, call: Sequence[Key]) -> None:
        """Fills the rows of a call that have no record, and logs what they gave."""
        is_open = [key not in self.log for key in call]
        if not any(is_open):
            return
        # The others keep their place without a blank, which takes no forward: the call
        # has the shapes, and so the program, that it would have had at once.
        rows = [
            self.rows[key.index] if is_asked else _without_blanks(self.rows[key.index])
            for is_asked, key in zip(is_open, call, strict=True)
        ]
        specs = {key.sampler for key in call}
        rules = {spec: samplers.parse(spec) for spec in specs}
        for done in batches.stream(
            parallel=self.parallel,
            sampler=_stacked([rules[key.sampler] for key in call]),
            rows=rows,
            options=dataclasses.replace(self.options, cache=caches.parse(lane.cache)),
            seed=lane.seed,
            batch_size=self.plan.batch_size,
            queue_length=self.plan.queue_length,
            ids=[key.index for key in call],
        ):
            outputs = done.outputs(self.codec, rows)
            self.keep(call, {i: out for i, out in outputs.items() if is_open[i]})

    def keep(self, call: Sequence[Key], outputs: Mapping[int, Output]) -> None:
        """Judges and logs outputs, by their places in a call."""
        if not outputs:
            return
        examples = [self.examples[call[place].index] for place in outputs]
        judged = _judge(self.task, examples, list(outputs.values()))
        number = self.manifest.begin()
        new = [
            call[place]._asdict()
            | fields
            | {"place": [place, len(call)], "run": number}
            for place, fields in zip(outputs, judged, strict=True)
        ]
        self.log.append(new)
        self.on_records(new)


def _judge(
    task: Task, examples: Sequence[Example], outputs: Sequence[Output]
) -> list[dict[str, Any]]:
    """What records say of outputs."""
    # Judging may wait for a process that runs the answer. More of them than processors
    # would take each other's time.
    with ThreadPoolExecutor(processors.usable()) as pool:
        verdicts = list(pool.map(partial(verdict_on, task), examples, outputs))
    return [
        {
            "name": example.name,
            "is_correct": bool(verdict.is_correct),
            "reason": verdict.reason,
            "nfe": output.nfe,
            "num_whole": output.num_whole,
            "num_tokens": output.num_tokens,
            "is_complete": output.is_complete,
            "has_nan": output.has_nan,
            "text": output.text,
            "seconds": output.seconds,
            "compile_seconds": output.compile_seconds,
        }
        for example, output, verdict in zip(examples, outputs, verdicts, strict=True)
    ]


def verdict_on(task: Task, example: Example, output: Output) -> Verdict:
    """A task's verdict; a row that a NaN ended is wrong, whatever it holds.

    Args:
      task: what judges.
      example: of the task.
      output: what was written.
    """
    if output.has_nan:
        return Verdict(False, f"the model gave NaN at forward {output.nfe}")
    return task.verdict(example, output.text)


def _without_blanks(row: Encoded) -> Encoded:
    return dataclasses.replace(row, is_blank=np.zeros_like(row.is_blank))


def _keys(lane: Lane, num_examples: int) -> list[Key]:
    """The lane's rows, example by example."""
    return [
        Key(spec, lane.cache, lane.seed, index)
        for index in range(num_examples)
        for spec in lane.specs
    ]


def _calls(keys: Sequence[Key], queue_length: int) -> Iterator[Sequence[Key]]:
    for start in range(0, len(keys), queue_length):
        yield keys[start : start + queue_length]


def _stacked(rules: Sequence[Sampler]) -> Sampler:
    """One sampler whose numbers are arrays with a value per row."""
    return jax.tree.map(lambda *values: np.stack(values), *rules)


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
    """

    sampler: str
    cache: str
    is_correct: Bool[np.ndarray, "s n"]
    nfe: Float[np.ndarray, "s n"]
    num_whole: Float[np.ndarray, "s n"]
    num_tokens: Float[np.ndarray, "s n"]
    seconds: float
    compile_seconds: float

    @property
    def label(self) -> str:
        """The sampler as tables name it, with its cache if it has one."""
        name = samplers.short_spec(self.sampler)
        return name if self.cache == "none" else f"{name}, cache {self.cache}"

    @property
    def tokens_per_forward(self) -> float:
        """Tokens of answers, without EOS and what follows it, that a forward writes."""
        return float(self.num_tokens.sum() / max(self.nfe.sum(), 1))


def summaries(records: Sequence[Mapping[str, Any]]) -> list[Summary]:
    """Records by sampler and cache, in the order of their first ones.

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
            )
        )
    return results
