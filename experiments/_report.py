"""What `experiments.generate` writes and prints: records, texts, answers, a summary."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from dlm_jax import samplers
from dlm_jax.evaluation import stats, tables
from dlm_jax.evaluation.calls import verdict_on
from dlm_jax.evaluation.run import summaries
from dlm_jax.tasks import Task
from dlm_jax.tasks.base import Example
from dlm_jax.text.codec import Messages
from dlm_jax.text.output import Output

_WIDTH, _GAP = 100, 3


def record(
    index: int, prompt: str | Messages, spec: str, output: Output, **common: Any
) -> dict[str, Any]:
    """The JSON object of a prompt and a sampler.

    Args:
      index: of the prompt.
      prompt: as it was given; a conversation's field is `messages`.
      spec: of the sampler.
      output: what the prompt became.
      **common: the last fields; of them, `batch_size` goes with the seconds.
    """
    return {
        "index": index,
        **_named(prompt),
        "sampler": samplers.canonical_spec(spec),
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
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    num_shown: int,
) -> tuple[list[str], dict[str, int]]:
    """Printed lines of the first examples; the correct answers of each sampler."""
    lines, num_correct = [], dict.fromkeys(runs, 0)
    for i, example in enumerate(examples):
        blocks = [_block(example.name, task.pretty(example.text), "")]
        for spec, records in runs.items():
            answer, nfe = records[i]["text"], records[i]["nfe"]
            verdict = verdict_on(task, example, answer, nfe, records[i]["has_nan"])
            num_correct[spec] += verdict.is_correct
            mark = "correct" if verdict.is_correct else f"WRONG: {verdict.reason}"
            remark = f"NFE {nfe}, {mark}"
            blocks.append(_block(spec, task.pretty(answer), remark))
        if i < num_shown:
            lines += [*beside(blocks), ""]
    return lines, num_correct


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
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    num_correct: Mapping[str, int],
    conditions: Sequence[str],
) -> Iterator[str]:
    """A table with a row for each sampler, and a line on what its speeds depend on.

    TPF and TPS are those of `evaluate`, see `evaluation.run.Summary`. If rows ran with
    several batch sizes, which a run that goes on may change, a column names them: such
    times cannot be compared, and there is no TPS.

    Args:
      runs: records of each sampler, as the log has them.
      num_correct: of each; empty leaves that column out.
      conditions: of the runs that made the records.
    """
    results = summaries(
        [
            # Tokens end before the stop; there are masks among those of other rows,
            # which count as none.
            {**record, "num_tokens": len(record["tokens"]), "is_correct": False}
            for records in runs.values()
            for record in records
        ],
        conditions,
    )
    sizes = {
        spec: sorted({record["batch_size"] for record in records})
        for spec, records in runs.items()
    }
    has_sizes = len({size for own in sizes.values() for size in own}) > 1
    rows = [["sampler", "correct", "95 % interval"] if num_correct else ["sampler"]]
    rows[0] += ["mean NFE", "TPF", "TPS", "seconds", "compile seconds"]
    rows[0] += ["batch size"] if has_sizes else []
    for (spec, records), result in zip(runs.items(), results, strict=True):
        rows.append([spec])
        if num_correct:
            n = len(records)
            is_correct = np.arange(n)[None] < num_correct[spec]
            low, high = stats.accuracy_interval(is_correct)
            rows[-1] += [f"{num_correct[spec]} of {n}", f"{low:.1%} - {high:.1%}"]
        rows[-1] += [f"{result.nfe.mean():.1f}", *tables.speeds(result)]
        rows[-1] += [f"{result.seconds:.2f}", f"{result.compile_seconds:.2f}"]
        rows[-1] += [", ".join(map(str, sizes[spec]))] if has_sizes else []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        aligned = (c.rjust(w) for c, w in zip(cells, widths[1:], strict=True))
        yield "  ".join([name.ljust(widths[0]), *aligned])
    yield from tables.conditions(results).splitlines()
