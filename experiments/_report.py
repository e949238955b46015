"""What `experiments.generate` writes and prints: records, texts, answers, a summary."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from dlm_jax import samplers
from dlm_jax.evaluation import stats
from dlm_jax.evaluation.calls import verdict_on
from dlm_jax.tasks import Task
from dlm_jax.tasks.base import Example
from dlm_jax.text.codec import Messages
from dlm_jax.text.output import Output

_WIDTH, _GAP = 100, 3


def records(
    prompts: Sequence[str | Messages],
    runs: Mapping[str, Sequence[Output]],
    ids: Sequence[int],
    **common: Any,
) -> Iterator[dict[str, Any]]:
    """One JSON object for each prompt and sampler; the common fields end each.

    Args:
      prompts: as they were given; a conversation's field is `messages`.
      runs: what they became, by the sampler's spec.
      ids: of the prompts.
      **common: fields of every record.
    """
    for spec, outputs in runs.items():
        sampler = samplers.canonical_spec(spec)
        for index, prompt, output in zip(ids, prompts, outputs, strict=True):
            yield {
                "index": index,
                **_named(prompt),
                "sampler": sampler,
                "text": output.text,
                "tokens": output.tokens.tolist(),
                "nfe": output.nfe,
                "num_whole": output.num_whole,
                "is_complete": output.is_complete,
                "has_nan": output.has_nan,
                "seconds": round(output.seconds, 6),
                **common,
            }


def _named(prompt: str | Messages) -> dict[str, Any]:
    """A prompt under the name that it has in a file of prompts."""
    return {"prompt" if isinstance(prompt, str) else "messages": prompt}


def _shown(prompt: str | Messages) -> str:
    """A prompt as it is printed; a conversation has a line for each message."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{x['role']}: {x['content']}" for x in prompt)


def texts(
    prompts: Mapping[int, str | Messages], records: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """Every prompt by its id, and under it what each sampler made of it."""
    by_prompt: dict[int, list[Mapping[str, Any]]] = {}
    for record in records:
        by_prompt.setdefault(record["index"], []).append(record)
    for i, prompt in prompts.items():
        yield f"[{i}] {_shown(prompt)}"
        for record in by_prompt[i]:
            end = "" if record["is_complete"] else ", NOT COMPLETE"
            end = f", NaN{end}" if record["has_nan"] else end
            yield f"--- {record['sampler']}: NFE {record['nfe']}{end}"
            yield record["text"]
        yield ""


def answers(
    task: Task,
    examples: Sequence[Example],
    runs: Mapping[str, Sequence[Output]],
    num_shown: int,
) -> tuple[list[str], dict[str, int]]:
    """The first examples beside their answers; and how many each sampler has right."""
    lines, num_right = [], dict.fromkeys(runs, 0)
    for i, example in enumerate(examples):
        blocks = [_block(example.name, task.pretty(example.text), "")]
        for spec, outputs in runs.items():
            answer = outputs[i].text
            verdict = verdict_on(task, example, outputs[i])
            num_right[spec] += verdict.is_correct
            mark = "right" if verdict.is_correct else f"WRONG: {verdict.reason}"
            remark = f"NFE {outputs[i].nfe}, {mark}"
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


def summary(
    runs: Mapping[str, Sequence[Output]], num_right: Mapping[str, int]
) -> Iterator[str]:
    """A table with a row for each sampler; empty num_right leaves that column out."""
    rows = [["sampler", "right", "95 % interval"] if num_right else ["sampler"]]
    rows[0] += ["mean NFE", "seconds", "compile seconds"]
    for spec, outputs in runs.items():
        rows.append([spec])
        if num_right:
            n = len(outputs)
            is_correct = np.arange(n)[None] < num_right[spec]
            low, high = stats.accuracy_interval(is_correct)
            rows[-1] += [f"{num_right[spec]} of {n}", f"{low:.1%} - {high:.1%}"]
        nfe = np.mean([output.nfe for output in outputs])
        seconds, compiling = (
            sum(getattr(output, name) for output in outputs)
            for name in ("seconds", "compile_seconds")
        )
        rows[-1] += [f"{nfe:.1f}", f"{seconds:.2f}", f"{compiling:.2f}"]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        aligned = (c.rjust(w) for c, w in zip(cells, widths[1:], strict=True))
        yield "  ".join([name.ljust(widths[0]), *aligned])
