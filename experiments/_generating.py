"""Rows of `experiments.generate`: one process's share, filled and kept on disk."""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TextIO

from ml_collections import ConfigDict

from dlm_jax import caches, samplers, tasks
from dlm_jax.core.options import Options
from dlm_jax.core.sampler import Sampler
from dlm_jax.devices import hosts
from dlm_jax.errors import InputError
from dlm_jax.evaluation import provenance
from dlm_jax.evaluation.growing import Growing
from dlm_jax.evaluation.records import Key
from dlm_jax.model import load_weights
from dlm_jax.outline import Outline
from dlm_jax.tasks.base import Example
from dlm_jax.text.codec import Messages
from dlm_jax.text.output import Output
from dlm_jax.text.prompts import Encoded
from dlm_jax.text.settings import Settings
from experiments import _app, _report
from experiments._progress import Progress


class Asked(NamedTuple):
    """What the flags ask for, checked without the checkpoint.

    Attributes:
      config: the config's values, where no flag set others.
      host: this process.
      output: the file that this process writes; None if it writes none.
      rules: the samplers, by spec.
      prompts: all of them; empty if a task's examples are asked.
      places: of the prompts, where each was read; empty of those that are flags.
      examples: of the task; empty with prompts.
      how_read: the form of the prompts' file, for the user.
      is_infill: prompts are infilled, not continued.
      chat: of continued prompts; None as the tokenizer has it.
      dtype: of the weights; as stored, if None.
      devices_per_model: see `runner.load`.
    """

    config: ConfigDict
    host: hosts.Host
    output: pathlib.Path | None
    rules: dict[str, Sampler]
    prompts: list[str | Messages]
    places: list[str]
    examples: list[Example]
    how_read: str
    is_infill: bool
    chat: bool | None
    dtype: str | None
    devices_per_model: int | None


class Work(NamedTuple):
    """The rows of this process, and how to fill them.

    All processes have the same shapes, whatever their share.

    Attributes:
      prompts: of the rows.
      rows: with blanks.
      ids: of the prompts, among those of all processes.
      options: how to fill the rows.
      common: fields of every record.
    """

    prompts: list[str | Messages]
    rows: list[Encoded]
    ids: list[int]
    options: Options
    common: dict[str, Any]

    def keys(self, spec: str) -> list[Key]:
        """The records of a sampler."""
        sampler, common = samplers.canonical_spec(spec), self.common
        return [Key(sampler, common["cache"], common["seed"], i) for i in self.ids]


def share(
    asked: Asked,
    outline: Outline,
    prompts: Sequence[str | Messages],
    rows: Sequence[Encoded],
    options: Options,
) -> Work:
    """This process's share of the rows.

    Args:
      asked: what the flags ask for.
      outline: of the checkpoint.
      prompts: of all processes.
      rows: of them, with blanks.
      options: how to fill them.

    Raises:
      InputError: if there are fewer prompts than processes.
    """
    host = asked.host
    if len(prompts) < host.count:
        raise InputError(
            f"prompts ({len(prompts)}) must be at least one for each process "
            f"({host.count})"
        )
    chosen = options.precision
    num_skipped = len(asked.prompts) - len(prompts) if asked.prompts else 0
    is_plain = asked.chat is False and outline.codec.has_chat_template
    common = {
        "checkpoint": str(outline.checkpoint),
        "gen_length": options.gen_length,
        "block_length": options.block_length,
        "cache": caches.to_spec(options.cache),
        **{name: asked.config[name] for name in _app.DRAWING},
        # Left out where it is as it was before there was a choice.
        **({"precision": chosen} if chosen != "highest" else {}),
        **({"num_skipped": num_skipped} if num_skipped else {}),
        **({"chat": False} if is_plain else {}),
        # Of all processes, for `experiments.merge` to see whether something is missing
        # or answers other prompts.
        "num_prompts": len(prompts),
        "prompts_digest": hosts.digest(prompts),
    }
    ids = host.share(range(len(prompts)))
    return Work(host.share(prompts), host.share(rows), ids, options, common)


def fill(
    asked: Asked, outline: Outline, work: Work, own: Settings, grown: Growing
) -> None:
    """Fills the rows with each sampler, but for those of an earlier run.

    Args:
      asked: what the flags ask for.
      outline: of the checkpoint, whose weights are read here.
      work: the rows; `common` gets the dtype of the weights.
      own: seed and batch size.
      grown: gets the rows as they finish.

    Raises:
      InputError: if an earlier run had other settings, or rows cannot be written.
      OutOfMemory: naming the batch size, when the memory is full.
    """
    is_chat = outline.codec.has_chat_template if asked.chat is None else asked.chat
    identity = {
        **work.common,
        "task": asked.config.task if asked.examples else None,
        "infill": asked.is_infill,
        "chat": is_chat and not (asked.is_infill or asked.examples),
        "sampler": sorted(map(samplers.canonical_spec, asked.rules)),
    }
    del identity["checkpoint"]
    grown.check(identity | ({"dtype": asked.dtype} if asked.dtype else {}))
    if asked.output:
        # Of the bytes: the same path may hold another one by now.
        identity["checkpoint"] = provenance.digest(outline.checkpoint)
        grown.check({"checkpoint": identity["checkpoint"]})
    model = load_weights(outline, asked.dtype, asked.devices_per_model)
    work.common["dtype"] = str(model.dtype)
    sizes = {"batch_size": asked.config.batch_size}
    grown.resume(identity | {"dtype": str(model.dtype)}, sizes)
    total = len(asked.rules) * len(work.rows)
    with Progress(total, "answer") as progress:
        for spec, rule in asked.rules.items():
            progress.describe(spec)
            keys = work.keys(spec)
            if known := grown.find(keys):
                progress.add_known([row["nfe"] for row in known])

            def stream(is_asked: Sequence[bool], rule: Sampler = rule) -> Iterator:
                rows, ids = work.rows, work.ids
                return model.stream_done(rows, rule, work.options, own, ids, is_asked)

            def record(place: int, output: Output, spec: str = spec) -> dict[str, Any]:
                index, prompt = work.ids[place], work.prompts[place]
                return _report.record(
                    index, prompt, spec, output, **sizes, **work.common
                )

            grown.fill(
                keys,
                stream,
                record,
                lambda new: progress.add([row["nfe"] for row in new]),
            )


def show(
    asked: Asked,
    work: Work,
    records: Sequence[Mapping[str, Any]],
    conditions: Sequence[str],
    file: TextIO,
) -> None:
    """Prints the texts or the examples' answers, and a table.

    Args:
      asked: what the flags ask for.
      work: the rows.
      records: of all rows, sampler by sampler, as the log has them.
      conditions: of the runs that made them, see `Growing.conditions`.
      file: to print to.
    """
    num_rows = len(work.rows)
    runs = {
        spec: records[i * num_rows : (i + 1) * num_rows]
        for i, spec in enumerate(asked.rules)
    }
    lines = _report.texts(dict(zip(work.ids, work.prompts, strict=True)), records)
    num_correct: dict[str, int] = {}
    if asked.examples:
        task = tasks.get(asked.config.task)
        examples = asked.host.share(asked.examples)
        shown = asked.config.num_shown
        lines, num_correct = _report.answers(task, examples, runs, shown)
    print(*lines, *_report.summary(runs, num_correct, conditions), sep="\n", file=file)
