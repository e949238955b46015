"""The report on Saber (arXiv:2510.18165): figures, tables, cases, and its claims."""

import os
import pathlib
from collections.abc import Iterator, Sequence

from dlm_jax.evaluation import figures
from dlm_jax.evaluation.tables import change, markdown
from experiments.studies.saber.claims import claims
from experiments.studies.saber.measure import DEPTHS, Judged, Measured, alike, find


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
    _draw(measured, rising, drifting)
    lines = [
        "# Saber",
        "",
        f"    {command}",
        "",
        "Saber (arXiv:2510.18165), greedy. Intervals are 95 %: Wilson's for "
        "accuracies; for differences of two samplers the smallest one that holds both "
        "the percentile bootstrap's over examples and Tango's score interval; the "
        "bootstrap's for everything else. p is McNemar's exact test on the same "
        "examples, not corrected for the number of comparisons.",
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
        "at their commit, with its 95 % interval over generations. A masked diffusion "
        "model is trained on masked tokens only. Saber reads its probability of tokens "
        "that are not masked, which no training has calibrated.",
        "",
    ]
    for m in measured:
        lines += [*_premises(m), ""]
    for m in measured:
        lines += [*_section(m), ""]
    lines += ["## The published claims", "", *claims(measured[0])]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _draw(
    measured: Sequence[Measured], rising: pathlib.Path, drifting: pathlib.Path
) -> None:
    """Draws confidence along the generation, and along the age of a commit."""
    figures.bands(
        rising,
        [
            {"y": y, "label": label, "low": f"{y}_low", "high": f"{y}_high"}
            for y, label in (
                ("mean", "probability, mean of\nundecided blanks"),
                ("best", "probability of\nthe surest blank"),
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
                "label": "change of probability,\n10 to 90 % of tokens",
                "low": "q10",
                "high": "q90",
            },
            {
                "y": "fell",
                "label": "share of tokens\nthat fell",
                "low": "fell_low",
                "high": "fell_high",
            },
        ],
        {m.task: m.drift for m in measured},
        x="age",
        x_label="steps since the commit",
        title="confidence in committed tokens, one token a step",
    )


def _premises(m: Measured) -> Iterator[str]:
    """What the two figures show of one task."""
    first, last = m.rise[0], m.rise[-1]
    lowest = min(m.rise, key=lambda point: point["mean"])
    slope, (low, high) = m.slope
    growth, (least, most) = m.growth
    moves = "rises" if low > 0 else "falls" if high < 0 else "neither rises nor falls"
    yield (
        f"**{m.task}**: a blank that stays undecided in a step gains {growth:+.4f} of "
        f"probability ({least:+.4f} to {most:+.4f}). The mean over the undecided "
        f"blanks {moves} along a generation (slope {slope:+.3f}, {low:+.3f} to "
        f"{high:+.3f}, from all blanks undecided to none). It is {first['mean']:.3f} "
        f"at {first['decided']:.0%} decided, {last['mean']:.3f} at "
        f"{last['decided']:.0%}, and lowest at {lowest['decided']:.0%}: "
        f"{lowest['mean']:.3f}. The surest blanks are decided first, which by itself "
        "lowers the mean of the others. "
        "Share of committed tokens whose confidence was lower later:"
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
        "The range after a speed-up is over single calls, in which samplers took "
        "turns. Compile time is not included. All have the same number of rows in "
        "flight. " + _noise(m.compared)
    )
    main = find(m.compared, "saber")
    if main is not None:
        nfe = main.summary.nfe.mean()
        rivals = [
            j
            for j in m.compared
            if not j.spec.startswith("saber") and j.summary.nfe.mean() <= nfe
        ]
        if rivals:
            best = max(rivals, key=lambda j: j.summary.is_correct.mean())
            yield ""
            accuracy = best.summary.is_correct.mean()
            yield (
                "Of the other rules that take no more forwards than Saber, "
                f"`{best.spec}` has the highest accuracy: {accuracy:.1%} "
                f"in {best.summary.nfe.mean():.2f} forwards, Saber "
                f"{main.summary.is_correct.mean():.1%} in {nfe:.2f}."
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
        f"{m.num_fixed} examples are correct only with backtracking, {m.num_broken} "
        "only without it."
    )
    for title, text in m.cases:
        yield f"\n{title}:\n\n```text\n{text.rstrip()}\n```"


def _table(judged: Sequence[Judged], has_time: bool) -> str:
    head = [
        "sampler",
        "correct",
        "accuracy",
        "95 % interval",
        "difference, points",
        "only this / only other",
        "p",
        "NFE",
        "NFE gain",
    ]
    rows = [head + (["ms / example", "speed-up", "compile, s"] if has_time else [])]
    for j in judged:
        result, low_high = j.summary, j.interval
        against = j.against
        rows.append(
            [
                f"`{j.spec}`",
                f"{int(result.is_correct.sum())} of {result.is_correct.size}",
                f"{result.is_correct.mean():.1%}",
                f"{low_high[0]:.1%} to {low_high[1]:.1%}",
                change(against.difference, against.interval) if against else "",
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


def _noise(judged: Sequence[Judged]) -> str:
    """How much speed-ups differ between samplers that take the same forwards."""
    found = alike(judged)
    if not found:
        return ""
    low, high = f"{min(found):.2f}", f"{max(found):.2f}"
    return (
        "Rules with exactly the forwards of the first have speed-ups "
        + (f"of {low}" if low == high else f"from {low} to {high}")
        + ": this is the noise of the machine and the cost of the rules."
    )
