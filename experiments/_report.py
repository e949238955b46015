"""What `experiments.generate` writes and prints: records, texts, answers, a summary."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from dlm_jax import samplers
from dlm_jax.devices.batches import Run
from dlm_jax.evaluation import stats
from dlm_jax.tasks import Task
from dlm_jax.tasks.base import Example
from dlm_jax.text.codec import Codec
from dlm_jax.text.prompts import Encoded

_WIDTH, _GAP = 100, 3


def records(
    codec: Codec,
    prompts: Sequence[str],
    rows: Sequence[Encoded],
    runs: Mapping[str, Run],
    ids: Sequence[int],
    **common: Any,
) -> Iterator[dict[str, Any]]:
    """One JSON object for each prompt and sampler; the common fields end each.

    Args:
      codec: the checkpoint's tokenizer.
      prompts: as they were given.
      rows: the prompts encoded.
      runs: what samplers made of them, by spec.
      ids: of the prompts.
      **common: fields of every record.
    """
    for spec, run in runs.items():
        sampler = samplers.canonical_spec(spec)
        for i, (row, answer) in enumerate(zip(rows, run.answers, strict=True)):
            yield {
                "index": ids[i],
                "prompt": prompts[i],
                "sampler": sampler,
                "text": codec.decode(row, answer.tokens),
                "tokens": codec.generated(row, answer.tokens).tolist(),
                "nfe": answer.num_steps,
                "is_complete": answer.is_complete,
                "seconds": round(answer.seconds, 6),
                **common,
            }


def texts(
    prompts: Mapping[int, str], records: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """Every prompt by its id, and under it what each sampler made of it."""
    for i, prompt in prompts.items():
        yield f"[{i}] {prompt}"
        for record in records:
            if record["index"] == i:
                end = "" if record["is_complete"] else ", NOT COMPLETE"
                yield f"--- {record['sampler']}: NFE {record['nfe']}{end}"
                yield record["text"]
        yield ""


def answers(
    task: Task,
    codec: Codec,
    examples: Sequence[Example],
    rows: Sequence[Encoded],
    runs: Mapping[str, Run],
    num_shown: int,
) -> tuple[list[str], dict[str, int]]:
    """The first examples beside their answers; and how many each sampler has right."""
    lines, num_right = [], dict.fromkeys(runs, 0)
    for i, example in enumerate(examples):
        blocks = [_block(example.name, task.pretty(example.prompt), "")]
        for spec, run in runs.items():
            answer = codec.decode(rows[i], run.answers[i].tokens)
            verdict = task.verdict(example, answer)
            num_right[spec] += verdict.is_correct
            mark = "right" if verdict.is_correct else f"WRONG: {verdict.reason}"
            remark = f"NFE {run.answers[i].num_steps}, {mark}"
            blocks.append(_block(spec, task.pretty(answer), remark))
        if i < num_shown:
            lines += [*beside(blocks), ""]
    return lines, num_right


def _block(title: str, text: str, remark: str) -> list[str]:
    lines = text.rstrip("\n").split("\n")
    width = max(20, *map(len, lines))
    title = title if len(title) <= width else title[: width - 2] + ".."
    return [title, *lines, *textwrap.wrap(remark, width)]


def beside(blocks: Sequence[Sequence[str]]) -> Iterator[str]:
    """Sets blocks of lines side by side, as many as the width of a page allows."""
    width = max(len(line) for block in blocks for line in block)
    num = max((_WIDTH + _GAP) // (width + _GAP), 1)
    for start in range(0, len(blocks), num):
        for cells in zip_longest(*blocks[start : start + num], fillvalue=""):
            yield (" " * _GAP).join(cell.ljust(width) for cell in cells).rstrip()


def summary(runs: Mapping[str, Run], num_right: Mapping[str, int]) -> Iterator[str]:
    """A table with a row for each sampler; empty num_right leaves that column out."""
    rows = [["sampler", "right", "95 % interval"] if num_right else ["sampler"]]
    rows[0] += ["mean NFE", "seconds", "compile seconds"]
    for spec, run in runs.items():
        rows.append([spec])
        if num_right:
            n = len(run.answers)
            is_correct = np.arange(n)[None] < num_right[spec]
            low, high = stats.accuracy_interval(is_correct)
            rows[-1] += [f"{num_right[spec]} of {n}", f"{low:.1%} - {high:.1%}"]
        nfe = np.mean([answer.num_steps for answer in run.answers])
        rows[-1] += [f"{nfe:.1f}", f"{run.seconds:.2f}", f"{run.compile_seconds:.2f}"]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        aligned = (c.rjust(w) for c, w in zip(cells, widths[1:], strict=True))
        yield "  ".join([name.ljust(widths[0]), *aligned])
