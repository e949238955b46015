"""The report on Saber (arXiv:2510.18165): measured on a task, set in words by rules.

No sentence on a claim is written beforehand: which one stands in the report follows
from where the measured interval lies (`verdict`).
"""

import os
import pathlib
from collections.abc import Iterator, Sequence

from dlm_jax import figures, statistics
from dlm_jax.saber_measure import DEPTHS, Judged, Measured
from dlm_jax.tables import markdown

# Published with LLaDA-8B-Instruct. The two means are over code benchmarks, the rest is
# HumanEval: Pass@1 of Saber less that of the other, and forwards of one-token decoding
# (256) over Saber's (72). "251.4 % faster" is read as 3.514 times as fast.
_GAIN_OVER_OTHERS = 0.019
_GAIN_OVER_BASELINE = 0.451 - 0.433
_FORWARDS_GAIN = 256 / 72
_SPEED_UP = 3.514
_ABLATIONS = (
    ("saber(backtracking=False)", "without backtracking", 0.451 - 0.427),
    ("saber(acceleration=False)", "without acceleration", 0.451 - 0.439),
    ("saber(threshold=0.9)", "with a fixed threshold", 0.451 - 0.401),
)
_PUBLISHED_LENGTH = 256
# A loss of confidence that is more than noise, and a share of tokens that is small.
_DEPTH, _FEW = 0.01, 0.01
# Of the exact test, below which a difference counts.
_LEVEL = 0.05


def verdict(low: float, high: float, nothing: float, claimed: float) -> str:
    """What an interval says of a claimed effect.

    Args:
      low: the interval's lower end.
      high: its upper end.
      nothing: the value where there is no effect; below `claimed`.
      claimed: the published value.
    """
    if low > nothing:
        if high >= claimed:
            return "reproduced"
        return "reproduced in direction, smaller than published"
    return "not reproduced" if high < claimed else "unclear at this scale"


def write(
    path: str | os.PathLike,
    measured: Sequence[Measured],
    *,
    command: str,
    about: Sequence[str],
) -> None:
    """Writes the report; its figures NAME_confidence.png, NAME_drift.png lie beside it.

    Args:
      path: NAME.md; its directory is made.
      measured: the tasks; on the first the published claims are tested.
      command: that made it.
      about: lines on models and machine.

    Raises:
      InputError: if matplotlib is not installed.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    rising, drifting = (
        path.with_name(f"{path.stem}_{name}.png") for name in ("confidence", "drift")
    )
    figures.bands(
        rising,
        [
            {"y": y, "label": label, "low": f"{y}_low", "high": f"{y}_high"}
            for y, label in (
                ("mean", "mean p, undecided blanks"),
                ("best", "p of the best blank"),
            )
        ],
        {m.task: m.rise for m in measured},
        x="decided",
        x_label="fraction of blanks decided",
        title="confidence of candidates, one token a step",
    )
    figures.bands(
        drifting,
        [
            {
                "y": "mean",
                "label": "p now - p at commit",
                "low": "q10",
                "high": "q90",
            },
            {"y": "fell", "label": "share that fell"},
        ],
        {m.task: m.drift for m in measured},
        x="age",
        x_label="steps since the commit",
        title="confidence in committed tokens, one token a step",
    )
    lines = [
        "# Saber",
        "",
        f"    {command}",
        "",
        "Saber (arXiv:2510.18165) on the shipped models, greedy. Intervals are 95 %: "
        "Wilson's for accuracies, percentile bootstrap over examples for differences. "
        "p is McNemar's exact test on the same examples, not corrected for the number "
        "of comparisons.",
        "",
        *(f"- {line}" for line in about),
        "",
        "## Does confidence rise, and does it fall again?",
        "",
        f"![confidence of candidates]({rising.name})",
        "",
        f"![confidence in committed tokens]({drifting.name})",
        "",
        "Above: means and 95 % intervals over generations. Below: mean and 10 to 90 % "
        "quantiles over tokens, and the share of tokens whose confidence is lower than "
        "at their commit. A model of masked diffusion is trained on masked tokens "
        "alone: what it says of one that it sees is what Saber reads, but nothing made "
        "it a probability.",
        "",
    ]
    for m in measured:
        lines += [*_premises(m), ""]
    for m in measured:
        lines += [*_section(m), ""]
    lines += ["## The published claims", "", *_claims(measured[0])]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _premises(m: Measured) -> Iterator[str]:
    """What the two figures show of one task."""
    first, last = m.rise[0], m.rise[-1]
    change = "rises" if last["mean_low"] > first["mean_high"] else "does not rise"
    if last["mean_high"] < first["mean_low"]:
        change = "falls"
    yield (
        f"**{m.task}**: the mean confidence of undecided blanks {change}, from "
        f"{first['mean']:.3f} ({first['mean_low']:.3f} to {first['mean_high']:.3f}) at "
        f"{first['decided']:.0%} decided to {last['mean']:.3f} "
        f"({last['mean_low']:.3f} to {last['mean_high']:.3f}) at "
        f"{last['decided']:.0%}. Committed tokens whose confidence was later lower:"
    )
    yield ""
    head = ["lower by more than", *("rounding" if not d else f"{d}" for d in DEPTHS)]
    rows = [head]
    for kind, falls in m.falls.items():
        if falls["num"]:
            for name, at in (("ever", "at any step"), ("at_end", "at the end")):
                shares = [f"{share:.2%}" for share in falls[name]]
                rows.append([f"{kind} answers ({falls['num']} tokens), {at}", *shares])
    yield markdown(rows)


def _section(m: Measured) -> Iterator[str]:
    """Tables and cases of one task."""
    base = m.compared[0]
    yield f"## {m.task}: {m.num_examples} examples"
    yield ""
    yield f"Differences and gains are against `{base.spec}`."
    yield ""
    yield _table(m.compared, has_time=True)
    yield ""
    yield (
        "The range behind a speed-up is that of single calls; compile time is apart. "
        "All samplers keep the same number of rows in flight."
    )
    yield ""
    yield "### Ablations, against `saber`"
    yield ""
    yield _table(m.ablations, has_time=True)
    yield ""
    yield f"### n and mu, against `{base.spec}`"
    yield ""
    yield _table(m.sweep, has_time=False)
    yield ""
    yield "### What backtracking fixes and breaks"
    yield ""
    yield (
        f"{m.num_fixed} examples are right only with backtracking, {m.num_broken} only "
        "without it."
    )
    for title, text in m.cases:
        yield f"\n{title}:\n\n```text\n{text.rstrip()}\n```"


def _table(judged: Sequence[Judged], has_time: bool) -> str:
    head = [
        *("sampler", "right", "accuracy", "95 % interval", "difference, points"),
        *("only it / only other", "p", "NFE", "NFE gain"),
    ]
    rows = [head + (["ms / example", "speed-up", "compile s"] if has_time else [])]
    for j in judged:
        result, low_high = j.summary, j.interval
        against = j.against
        rows.append(
            [
                f"`{j.spec}`",
                f"{int(result.is_correct.sum())} of {result.is_correct.size}",
                f"{result.is_correct.mean():.1%}",
                f"{low_high[0]:.1%} to {low_high[1]:.1%}",
                _points(against.difference, against.interval) if against else "",
                f"{against.num_first_only} / {against.num_second_only}"
                if against
                else "",
                f"{against.p_value:.2g}" if against else "",
                f"{result.nfe.mean():.2f}",
                f"{j.nfe_gain:.2f}",
            ]
        )
        if has_time:
            total, low, high = j.speed_up
            rows[-1] += [
                f"{1000 * result.seconds / result.is_correct.size:.1f}",
                f"{total:.2f}"
                + ("" if against is None else f" ({low:.2f} to {high:.2f})"),
                f"{result.compile_seconds:.1f}",
            ]
    return markdown(rows)


def _points(difference: float, interval: tuple[float, float]) -> str:
    low, high = (100 * end for end in interval)
    return f"{100 * difference:+.1f} ({low:+.1f} to {high:+.1f})"


def _claims(m: Measured) -> Iterator[str]:
    """One paragraph per claim, and why."""
    saber = next(j for j in m.ablations if j.spec == "saber")
    base, main = m.compared[0], _find(m.compared, "saber")
    yield (
        f"Published with LLaDA-8B-Instruct on code benchmarks, 256 tokens; here: "
        f"`{m.task}`, a model of {m.num_parameters / 1e6:.1f} M parameters, at most "
        f"{m.gen_length} blanks, {m.num_examples} examples. *Reproduced* means that "
        "the interval lies above no effect and reaches the published value, and for a "
        f"difference of two samplers that p is below {_LEVEL}."
    )
    yield ""
    if main is not None and main.against is not None:
        yield _accuracy_claim(
            f"Accuracy over `{base.spec}`",
            _GAIN_OVER_BASELINE,
            (main.against.difference, main.against.interval),
            main.against.p_value,
            base.summary.is_correct.mean(),
        )
        low, high = statistics.bootstrap_interval(main.summary.nfe[0])
        nfe = float(base.summary.nfe.mean())
        yield _gain_claim(
            "Fewer forwards",
            _FORWARDS_GAIN,
            main.nfe_gain,
            nfe / high,
            nfe / low,
            "95 % interval",
            f"A forward writes {_tokens_per_forward(main):.2f} tokens of the answer, "
            f"and there are {m.gen_length} blanks at most instead of "
            f"{_PUBLISHED_LENGTH}.",
        )
        total, low, high = main.speed_up
        kept = total / main.nfe_gain
        yield _gain_claim(
            "Speed-up",
            _SPEED_UP,
            total,
            low,
            high,
            "range of calls",
            f"The forwards fell {main.nfe_gain:.2f} times; the time fell "
            f"{kept:.0%} as much on this machine.",
        )
    yield _accuracy_claim(
        "Accuracy over the mean of the other rules",
        _GAIN_OVER_OTHERS,
        m.over_others,
        None,
        float(saber.summary.is_correct.mean()) - m.over_others[0],
    )
    for spec, name, claimed in _ABLATIONS:
        other = _find(m.ablations, spec)
        if other is not None and other.against is not None:
            low, high = other.against.interval
            yield _accuracy_claim(
                f"Accuracy over Saber {name}",
                claimed,
                (-other.against.difference, (-high, -low)),
                other.against.p_value,
                other.summary.is_correct.mean(),
            )
    yield ""
    yield _backtracking(m)


def _backtracking(m: Measured) -> str:
    """Whether there is anything that backtracking could find."""
    place = DEPTHS.index(_DEPTH)
    shares = {
        kind: falls["ever"][place] for kind, falls in m.falls.items() if falls["num"]
    }
    told = " and ".join(f"{share:.2%} in {kind}" for kind, share in shares.items())
    text = (
        "Of the tokens that one-token decoding commits, those that ever lose more "
        f"than {_DEPTH} of probability are {told} answers."
    )
    if max(shares.values()) < _FEW:
        return text + (
            " Backtracking takes at least one token back in every step that commits "
            "two; so few losses leave it to choose among differences near 0."
        )
    if len(shares) == 2 and shares["wrong"] > 2 * shares["right"]:
        return text + " A loss is then a sign of an error, as backtracking assumes."
    return text


def _find(judged: Sequence[Judged], spec: str) -> Judged | None:
    return next((j for j in judged if j.spec == spec), None)


def _tokens_per_forward(j: Judged) -> float:
    return float(j.summary.num_tokens.sum() / j.summary.nfe.sum())


def _accuracy_claim(
    name: str,
    claimed: float,
    measured: tuple[float, tuple[float, float]],
    p_value: float | None,
    other: float,
) -> str:
    """A sentence on Saber's accuracy minus `other`."""
    difference, (low, high) = measured
    remark = "" if p_value is None else f", p = {p_value:.2g}"
    if p_value is not None and p_value >= _LEVEL:
        # A few unequal examples can give an interval beside 0 that the exact test
        # does not confirm.
        low, high = min(low, 0.0), max(high, 0.0)
    found = verdict(low, high, 0, claimed)
    if high < 0:
        why = "Saber is worse here: the whole interval lies below 0."
    elif found.startswith("unclear"):
        why = (
            f"The interval is {100 * (high - low):.1f} points wide and holds both no "
            "gain and the published one."
        )
    elif found == "not reproduced":
        why = "The interval holds no gain, and excludes one as large as published."
    else:
        why = "The whole interval lies above 0."
    if found != "reproduced" and 1 - other < 2 * claimed:
        why += (
            f" What Saber is compared with has {other:.1%} right, so that at most "
            f"{100 * (1 - other):.1f} points could be gained."
        )
    return (
        f"- {name}: published {100 * claimed:+.1f} points, measured "
        f"{_points(difference, measured[1])}{remark}: **{found}**. {why}"
    )


def _gain_claim(
    name: str,
    claimed: float,
    value: float,
    low: float,
    high: float,
    kind: str,
    why: str,
) -> str:
    found = verdict(low, high, 1, claimed)
    return (
        f"- {name}: published {claimed:.1f} times, measured {value:.2f} ({kind} "
        f"{low:.2f} to {high:.2f}): **{found}**."
        + ("" if found == "reproduced" else f" {why}")
    )
