"""Samplers on a task's examples: every answer judged and written down, resumable.

Work is cut into calls of a fixed number of rows. A call's records are appended at once
when it is done; a run that was killed drops what is incomplete and repeats only that,
with the very rows, keys and batches it would have had. Samplers take turns, call by
call: a machine's speed drifts, and neighbours are compared.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float

from dlm_jax import batching, files, provenance, samplers
from dlm_jax.errors import InputError
from dlm_jax.parallel import Loaded, Parallel
from dlm_jax.parallel import load as load_parallel
from dlm_jax.tasks.task import Example, Task, load_codec
from dlm_jax.text import Codec
from dlm_jax.types import Sampler


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
      seed: of the random keys.
    """

    specs: tuple[str, ...]
    seed: int


def lanes(specs: Sequence[str], seeds: Sequence[int], is_mixed: bool) -> list[Lane]:
    """The samplers in lanes.

    Args:
      specs: of the samplers.
      seeds: each sampler runs with each.
      is_mixed: samplers of one compiled program share calls, so that a sweep over a
        threshold is one bigger batch. What time a sampler takes is then not known.

    Raises:
      InputError: for a spec that is not one, or a sampler or seed that stands twice.
    """
    if len(set(seeds)) < len(seeds):
        raise InputError(f"seeds ({', '.join(map(str, seeds))}) must differ")
    by_program: dict[Any, list[str]] = {}
    for spec, sampler in samplers.parse_all(specs).items():
        program = jax.tree.structure(sampler) if is_mixed else spec
        by_program.setdefault(program, []).append(samplers.to_spec(sampler))
    return [Lane(tuple(group), s) for group in by_program.values() for s in seeds]


def load(
    task: Task,
    checkpoint: str | pathlib.Path,
    dtype: jax.typing.DTypeLike | None = None,
    num_sharing: int | None = None,
) -> tuple[Loaded, Codec]:
    """Loads a model that is to be asked a task onto all local devices; its tokenizer.

    Args:
      task: what it is to be asked.
      checkpoint: Hugging Face or Orbax directory.
      dtype: of the parameters.
      num_sharing: devices that share the weights, see `parallel.load`.

    Raises:
      InputError: as `parallel.load`, or as `load_codec`.
    """
    model = load_parallel(checkpoint, dtype, num_sharing)
    return model, load_codec(task, checkpoint, model.config)


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
        added to what it holds. Nothing is written before the first call is done.
      about: of the checkpoint; must be the same when a directory is continued.
      on_records: called with the records of every call, those that were there first.

    Returns:
      The records of todo, lane by lane: `sampler`, `seed`, `index`, `name`,
      `is_correct`, `reason`, `nfe`, `num_tokens` (at blanks, up to EOS), `is_complete`,
      `text`; `seconds` and `compile_seconds`, the row's share of its call's; `place` in
      the call, and the call's rows.

    Raises:
      InputError: if the directory holds another evaluation, or an argument does not
        fit.
    """
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
    examples = task.examples(plan.split, num_examples, plan.example_seed)
    rows = task.encode(codec, examples)
    options = task.options(codec, plan.temperature)
    directory = pathlib.Path(directory)
    identity = {
        "task": task.name,
        **dataclasses.asdict(plan),
        "gen_length": options.gen_length,
        "block_length": options.block_length,
        **about,
    }
    manifest = _Manifest(directory, identity)
    log = _Log(directory / "records.jsonl")
    rules = {spec: samplers.parse(spec) for lane in todo for spec in lane.specs}

    def ask(lane: Lane, call: Sequence[_Key]) -> list[dict[str, Any]]:
        """The records of a call that is not in the log yet."""
        chosen = [rows[index] for _, _, index in call]
        filled = batching.fill(
            parallel,
            _stacked([rules[spec] for spec, _, _ in call]),
            chosen,
            options,
            lane.seed,
            plan.batch_size,
            plan.queue_length,
            ids=[index for _, _, index in call],
        )
        asked = [examples[index] for _, _, index in call]
        return _judge(task, codec, call, asked, chosen, filled)

    keys = [_keys(lane, num_examples) for lane in todo]
    for own in keys:
        if known := log.find(own):
            on_records(known)
    calls = [_calls(log.missing(own), plan.queue_length) for own in keys]
    for turn in zip_longest(*calls):
        for lane, call in zip(todo, turn, strict=True):
            if call is None:
                continue
            records = ask(lane, call)
            manifest.begin(todo, num_examples)
            log.append(records)
            on_records(records)
    return [record for own in keys for record in log.find(own)]


def _judge(
    task: Task,
    codec: Codec,
    call: Sequence["_Key"],
    examples: Sequence[Example],
    rows: Sequence[batching.Encoded],
    filled: batching.Run,
) -> list[dict[str, Any]]:
    """The records of a call."""
    answers = filled.answers
    texts = [codec.decode(row, a.tokens) for row, a in zip(rows, answers, strict=True)]
    # Judging may wait for a process that runs the answer.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        verdicts = list(pool.map(task.verdict, examples, texts))
    return [
        {
            "sampler": call[i][0],
            "seed": call[i][1],
            "index": call[i][2],
            "name": examples[i].name,
            "is_correct": bool(verdicts[i].is_correct),
            "reason": verdicts[i].reason,
            "nfe": answers[i].num_steps,
            "num_tokens": int(codec.generated(rows[i], answers[i].tokens).size),
            "is_complete": answers[i].is_complete,
            "text": texts[i],
            "seconds": filled.seconds / len(call),
            "compile_seconds": filled.compile_seconds / len(call),
            "place": [i, len(call)],
        }
        for i in range(len(call))
    ]


_Key = tuple[str, int, int]


def _keys(lane: Lane, num_examples: int) -> list[_Key]:
    """The lane's rows as (spec, seed, example)."""
    return [(s, lane.seed, i) for i in range(num_examples) for s in lane.specs]


def _calls(keys: Sequence[_Key], queue_length: int) -> Iterator[Sequence[_Key]]:
    for start in range(0, len(keys), queue_length):
        yield keys[start : start + queue_length]


def _stacked(rules: Sequence[Sampler]) -> Sampler:
    """One sampler whose numbers are arrays with a value per row."""
    return jax.tree.map(lambda *values: np.stack(values), *rules)


class _Manifest:
    """What a directory's records are of, and the runs that made them."""

    def __init__(self, directory: pathlib.Path, identity: Mapping[str, Any]):
        """Compares what is to be evaluated with what the directory holds.

        Raises:
          InputError: naming what differs.
        """
        self._path = directory / "manifest.json"
        self._content: dict[str, Any] = {"identity": identity, "runs": []}
        self._has_begun = False
        if not self._path.exists():
            return
        self._content = json.loads(self._path.read_text())
        known = self._content["identity"]
        for name in identity | known:
            if identity.get(name) != known.get(name):
                raise InputError(
                    f"{name} ({identity.get(name)}) must be {known.get(name)}, as in "
                    f"the evaluation that {directory} holds"
                )

    def begin(self, todo: Sequence[Lane], num_examples: int) -> None:
        """Adds this run, once it is about to add its first records."""
        if self._has_begun:
            return
        self._has_begun = True
        self._content["runs"].append(
            {
                "samplers": sorted({spec for lane in todo for spec in lane.specs}),
                "seeds": sorted({lane.seed for lane in todo}),
                "num_examples": num_examples,
                "environment": provenance.environment(),
            }
        )
        with files.staged(self._path, may_exist=True) as partial:
            partial.write_text(json.dumps(self._content, indent=2) + "\n")


def environments(directory: str | os.PathLike) -> list[dict[str, Any]]:
    """Where a directory's records were made, see `provenance.environment`; each once.

    Raises:
      InputError: if it holds no evaluation.
    """
    path = pathlib.Path(directory) / "manifest.json"
    if not path.exists():
        raise InputError(f"{directory} holds no evaluation: no manifest.json in it")
    found = []
    for run in json.loads(path.read_text())["runs"]:
        if run["environment"] not in found:
            found.append(run["environment"])
    return found


class _Log:
    """Records, one a line, of whole calls only."""

    def __init__(self, path: pathlib.Path):
        """Reads what is there, and cuts off an incomplete last call."""
        self._path = path
        records, end = _whole_calls(path.read_bytes() if path.exists() else b"")
        self._records = {_key(record): record for record in records}
        if path.exists() and end < path.stat().st_size:
            with path.open("r+b") as file:
                file.truncate(end)

    def find(self, keys: Sequence[_Key]) -> list[dict[str, Any]]:
        """The records that are there, in the order of their keys."""
        return [self._records[key] for key in keys if key in self._records]

    def missing(self, keys: Sequence[_Key]) -> list[_Key]:
        """Those of the keys that have no record."""
        return [key for key in keys if key not in self._records]

    def append(self, records: list[dict[str, Any]]) -> None:
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        with self._path.open("ab") as file:
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())
        self._records |= {_key(record): record for record in records}


def _key(record: Mapping[str, Any]) -> _Key:
    return record["sampler"], record["seed"], record["index"]


def _whole_calls(content: bytes) -> tuple[list[dict[str, Any]], int]:
    """The records of whole calls at the beginning of a log, and where they end."""
    records, pending = [], []
    end = position = 0
    for line in content.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        position += len(line)
        pending.append(json.loads(line))
        place, size = pending[-1]["place"]
        if place + 1 == size:
            records += pending
            pending, end = [], position
    return records, end


def read_records(directory: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of a directory, in the order in which they were made.

    Raises:
      InputError: if it holds no evaluation.
    """
    path = pathlib.Path(directory) / "records.jsonl"
    if not path.exists():
        raise InputError(f"{directory} holds no evaluation: no records.jsonl in it")
    records, _ = _whole_calls(path.read_bytes())
    return records


@dataclasses.dataclass(frozen=True)
class Summary:
    """One sampler on n examples with s seeds.

    Attributes:
      sampler: its spec.
      is_correct: bool [s, n].
      nfe: [s, n].
      num_tokens: [s, n]; written at blanks, up to EOS.
      seconds: of all its calls, compiling excluded.
      compile_seconds: of all its calls.
    """

    sampler: str
    is_correct: Bool[np.ndarray, "s n"]
    nfe: Float[np.ndarray, "s n"]
    num_tokens: Float[np.ndarray, "s n"]
    seconds: float
    compile_seconds: float


def summaries(records: Sequence[Mapping[str, Any]]) -> list[Summary]:
    """Records by sampler, in the order of their first ones.

    Raises:
      InputError: if a sampler has not the same examples for each seed.
    """
    by_sampler: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        by_sampler.setdefault(record["sampler"], []).append(record)
    results = []
    for spec, own in by_sampler.items():
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
                is_correct=column("is_correct"),
                nfe=column("nfe").astype(float),
                num_tokens=column("num_tokens").astype(float),
                seconds=float(column("seconds").sum()),
                compile_seconds=float(column("compile_seconds").sum()),
            )
        )
    return results
