"""Markdown tables of results."""

from collections.abc import Sequence

import numpy as np

from dlm_jax.evaluation import stats
from dlm_jax.evaluation.run import Summary


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


def points(difference: float) -> str:
    """A difference of accuracies in percentage points, without a negative zero."""
    return f"{round(100 * difference, 1) + 0.0:+.1f}"


def between(interval: tuple[float, float]) -> str:
    """An interval of such differences."""
    return " to ".join(map(points, interval))


def change(difference: float, interval: tuple[float, float]) -> str:
    """A difference of accuracies in percentage points, and its interval."""
    return f"{points(difference)} ({between(interval)})"


def accuracy(results: Sequence[Summary]) -> str:
    """Accuracy, forwards and speed of samplers on a task.

    `tokens` are those written at blanks, without EOS and what follows it, of rows that
    are complete: TPF is their sum over the sum of forwards, TPS their sum over `time`,
    which is that of the calls without compilation. There is no TPS where rows were
    filled under several conditions. `whole-row forwards` are those of the NFE that did
    not use the cache; the column is there if a cache is.
    """
    has_cache = any(result.cache != "none" for result in results)
    rows = [
        [
            "sampler",
            "correct",
            "of",
            "accuracy",
            "95 % interval",
            "NFE",
            "NFE quantiles 10-50-90 %",
            *(["whole-row forwards"] if has_cache else []),
            "tokens / forward (TPF)",
            "tokens / s (TPS)",
            "time, s",
            "compile, s",
        ]
    ]
    for result in results:
        low, high = stats.accuracy_interval(result.is_correct)
        quantiles = np.quantile(result.nfe, [0.1, 0.5, 0.9])
        rows.append(
            [
                result.label,
                str(int(result.is_correct.sum())),
                str(result.is_correct.size),
                f"{result.is_correct.mean():.1%}",
                f"{low:.1%} - {high:.1%}",
                f"{result.nfe.mean():.2f}",
                " - ".join(f"{q:.0f}" for q in quantiles),
                *([f"{result.num_whole.mean():.2f}"] if has_cache else []),
                *speeds(result),
                f"{result.seconds:.1f}",
                f"{result.compile_seconds:.1f}",
            ]
        )
    return markdown(rows)


def speeds(result: Summary) -> tuple[str, str]:
    """The cells of TPF and TPS."""
    speed = result.tokens_per_second
    second = "-" if speed is None else f"{speed:.0f}"
    return f"{result.tokens_per_forward:.2f}", second


def conditions(results: Sequence[Summary]) -> str:
    """Lines on what TPS of a table depends on; empty if nothing is known of it."""
    lines = []
    known = [result for result in results if len(result.conditions) == 1]
    for name in dict.fromkeys(result.conditions[0] for result in known):
        own = [result for result in known if result.conditions[0] == name]
        who = "" if len(own) == len(results) else f" of {_labels(own)}"
        # The cache is part of the labels; those that name none have none.
        caches = ", ".join(dict.fromkeys(result.cache for result in own))
        lines.append(f"TPS{who}: {name}, cache {caches}.")
    for result in results:
        if len(result.conditions) > 1:
            runs = "; ".join(result.conditions)
            lines.append(f"No TPS for {_labels([result])}: its runs differ: {runs}.")
    return "\n".join(lines)


def _labels(results: Sequence[Summary]) -> str:
    return ", ".join(f"`{result.label}`" for result in results)


def paired(results: Sequence[Summary]) -> str:
    """Compares each sampler with the first one, on the same examples.

    Differences are of accuracy, in percentage points. With one seed the interval is
    that of `stats.compare`; `gained` and `lost` count the examples that only one of the
    two has correct, and p is McNemar's, exact. With several seeds the interval is
    `stats.difference_interval`, and these three columns are empty. The NFE ratio is the
    first sampler's mean NFE over the other's.
    """
    first, *others = results
    rows = [
        [
            "compared with the first",
            "difference, points",
            "95 % interval",
            "gained",
            "lost",
            "McNemar p",
            "NFE ratio",
            "95 % interval",
        ]
    ]
    for own in others:
        if len(own.is_correct) == 1:
            found = stats.compare(own.is_correct[0], first.is_correct[0])
            difference, interval = found.difference, found.interval
            counts = [str(found.num_first_only), str(found.num_second_only)]
            counts.append(f"{found.p_value:.2g}")
        else:
            pair = own.is_correct, first.is_correct
            difference = pair[0].mean() - pair[1].mean()
            interval = stats.difference_interval(*pair)
            counts = ["", "", ""]
        nfe = first.nfe.mean(axis=0), own.nfe.mean(axis=0)
        low, high = stats.ratio_interval(*nfe)
        rows.append(
            [
                own.label,
                points(difference),
                between(interval),
                *counts,
                f"{nfe[0].mean() / nfe[1].mean():.2f}",
                f"{low:.2f} to {high:.2f}",
            ]
        )
    return markdown(rows)
