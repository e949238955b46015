"""The calls of an evaluation: rows that are filled together, judged and logged."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from dlm_jax import caches, samplers
from dlm_jax.core.options import Options
from dlm_jax.core.sampler import Sampler
from dlm_jax.devices import batches
from dlm_jax.devices.parallel import Parallel
from dlm_jax.evaluation.records import SIZES, Key, Log, Manifest
from dlm_jax.sandbox import processors
from dlm_jax.tasks.base import Example, Task, Verdict
from dlm_jax.text.codec import Codec
from dlm_jax.text.output import Output
from dlm_jax.text.prompts import Encoded
from dlm_jax.text.settings import Settings, options_of


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is evaluated, and how.

    A directory holds the records of one plan. Only the batch size and the queue's
    length may change when it is continued: results do not depend on them.

    Attributes:
      split: of the task's examples.
      example_seed: of the examples.
      temperature: 0 takes the most probable token.
      guidance: see `Options`.
      suppress_eos: EOS gets probability 0.
      defer_stops: stop tokens are committed last.
      early_stop: see `Options`.
      precision: see `Options`.
      batch_size: rows in flight at once, over all devices.
      queue_length: rows of a call.
    """

    split: str = "test"
    example_seed: int = 0
    temperature: float = 0.0
    guidance: float = 0.0
    suppress_eos: bool = False
    defer_stops: bool = False
    early_stop: bool = True
    precision: str = "highest"
    batch_size: int = 32
    queue_length: int = 256

    @classmethod
    def of(cls, config: Any) -> "Plan":
        """The plan in a mapping, such as a ConfigDict, that may hold more or less."""
        fields = dataclasses.fields(cls)
        return cls(**{f.name: config.get(f.name, f.default) for f in fields})

    @property
    def identity(self) -> dict[str, Any]:
        """What results depend on: what a directory's records have in common.

        Fields that older versions lack are left out where they have their defaults, so
        that what those began goes on.
        """
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in SIZES
            and (
                field.name in ("split", "example_seed", "temperature")
                or getattr(self, field.name) != field.default
            )
        }

    def options(self, task: Task, codec: Codec, eos_id: int) -> Options:
        """How rows are filled.

        Args:
          task: which has the lengths.
          codec: which knows the stop tokens.
          eos_id: what `suppress_eos` suppresses.
        """
        settings = Settings(
            block_length=task.block_length,
            temperature=self.temperature,
            guidance=self.guidance,
            suppress_eos=self.suppress_eos,
            defer_stops=self.defer_stops,
            early_stop=self.early_stop,
            precision=self.precision,
        )
        return options_of(settings, task.gen_length, eos_id, codec.stop_ids)

    @property
    def sizes(self) -> dict[str, int]:
        """What times depend on, and results do not."""
        return {name: getattr(self, name) for name in SIZES}


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


@dataclasses.dataclass(frozen=True)
class Caller:
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
        rows = [self.rows[key.index] for key in call]
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
            is_asked=is_open,
        ):
            self.keep(call, done.outputs(self.codec, rows))

    def keep(self, call: Sequence[Key], outputs: Mapping[int, Output]) -> None:
        """Judges and logs outputs, by their places in a call."""
        examples = [self.examples[call[place].index] for place in outputs]
        judged = _judge(self.task, examples, list(outputs.values()))
        number = self.manifest.begin()
        new = [
            call[place]._asdict()
            | fields
            | {"place": [place, len(call)], "run": number}
            | {"batch_size": self.plan.batch_size}
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
        verdicts = list(
            pool.map(
                lambda example, out: verdict_on(
                    task, example, out.text, out.nfe, out.has_nan
                ),
                examples,
                outputs,
            )
        )
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


def verdict_on(
    task: Task, example: Example, text: str, nfe: int, has_nan: bool
) -> Verdict:
    """A task's verdict; a row that a NaN ended is wrong, whatever it holds.

    Args:
      task: what judges.
      example: of the task.
      text: what was written.
      nfe: forwards of the row.
      has_nan: the last of them gave NaN.
    """
    if has_nan:
        return Verdict(False, f"the model gave NaN at forward {nfe}")
    return task.verdict(example, text)


def _stacked(rules: Sequence[Sampler]) -> Sampler:
    """One sampler whose numbers are arrays with a value per row."""
    return jax.tree.map(lambda *values: np.stack(values), *rules)
