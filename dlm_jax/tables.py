"""Markdown tables of results."""

from collections.abc import Sequence

import numpy as np

from dlm_jax import statistics
from dlm_jax.evaluation import Summary
from dlm_jax.samplers import parse, short_spec


def markdown(rows: Sequence[Sequence[str]], num_text_columns: int = 1) -> str:
    """A table whose first row is the heading; columns after the text are numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i < num_text_columns else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = [
        "-" * width if i < num_text_columns else "-" * (width - 1) + ":"
        for i, width in enumerate(widths)
    ]
    return "\n".join([line(rows[0]), line(rule), *map(line, rows[1:])])


def accuracy(results: Sequence[Summary]) -> str:
    """Accuracy, forwards and speed of samplers on a task.

    `tokens` are those written at blanks, EOS and what follows it apart; speed counts
    the calls' time without compiling.
    """
    rows = [
        [
            *("sampler", "right", "of", "accuracy", "95 % interval", "NFE"),
            *("NFE 10-50-90 %", "tokens / forward", "tokens / s", "s", "compile s"),
        ]
    ]
    for result in results:
        low, high = statistics.accuracy_interval(result.is_correct)
        quantiles = np.quantile(result.nfe, [0.1, 0.5, 0.9])
        num_tokens = result.num_tokens.sum()
        rows.append(
            [
                short_spec(parse(result.sampler)),
                str(int(result.is_correct.sum())),
                str(result.is_correct.size),
                f"{result.is_correct.mean():.1%}",
                f"{low:.1%} - {high:.1%}",
                f"{result.nfe.mean():.2f}",
                " - ".join(f"{q:.0f}" for q in quantiles),
                f"{num_tokens / max(result.nfe.sum(), 1):.2f}",
                f"{num_tokens / result.seconds:.0f}",
                f"{result.seconds:.1f}",
                f"{result.compile_seconds:.1f}",
            ]
        )
    return markdown(rows)
