"""Verdicts on Saber's published claims (arXiv:2510.18165).

The report's sentence on a claim is chosen by where the measured interval lies
(`verdict`).
"""

from collections.abc import Iterator, Sequence

from dlm_jax.evaluation.tables import change
from experiments.studies.saber.measure import (
    DEPTH,
    DEPTHS,
    Judged,
    Measured,
    alike,
    find,
)

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
# A share of tokens that is small.
_FEW = 0.01
# Of the exact test, below which a difference counts.
_LEVEL = 0.05


def verdict(low: float, high: float, nothing: float, claimed: float) -> str:
    """The verdict that an interval gives on a claimed effect.

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


def claims(m: Measured) -> Iterator[str]:
    """One paragraph per claim, and why."""
    saber = next(j for j in m.ablations if j.spec == "saber")
    base, main = m.compared[0], find(m.compared, "saber")
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
        yield _gain_claim(
            "Fewer forwards",
            _FORWARDS_GAIN,
            main.nfe_gain,
            main.nfe_interval,
            "95 % interval",
            f"Saber writes {main.summary.tokens_per_forward:.2f} tokens of the answer "
            f"per forward, `{base.spec}` {base.summary.tokens_per_forward:.2f} (its "
            "other forwards fill the blanks behind an answer), and rows have at most "
            f"{m.gen_length} blanks instead of {_PUBLISHED_LENGTH}.",
        )
        yield _speed_claim(main, alike(m.compared))
    found = [find(m.compared, spec) for spec in m.others]
    others = [float(j.summary.nfe.mean()) for j in found if j is not None]
    yield _accuracy_claim(
        f"Accuracy over the mean of {', '.join(f'`{spec}`' for spec in m.others)}",
        _GAIN_OVER_OTHERS,
        m.over_others,
        None,
        float(saber.summary.is_correct.mean()) - m.over_others[0],
    ) + _unequal(saber, "the others", others)
    for spec, name, claimed in _ABLATIONS:
        other = find(m.ablations, spec)
        if other is not None and other.against is not None:
            low, high = other.against.interval
            yield _accuracy_claim(
                f"Accuracy over Saber {name}",
                claimed,
                (-other.against.difference, (-high, -low)),
                other.against.p_value,
                other.summary.is_correct.mean(),
            ) + _unequal(saber, name, [float(other.summary.nfe.mean())])
    yield _premise_claim(m)
    yield ""
    yield _backtracking(m)


def _unequal(saber: Judged, name: str, others: Sequence[float]) -> str:
    """A remark on mean forwards of Saber and of what it is compared with."""
    own = float(saber.summary.nfe.mean())
    if not others or all(nfe == own for nfe in others):
        return ""
    told = ", ".join(f"{nfe:.2f}" for nfe in others)
    return f" The NFE differs: Saber {own:.2f}, {name} {told}."


def _premise_claim(m: Measured) -> str:
    """Whether candidates grow more confident as context grows."""
    growth, (low, high) = m.growth
    found = "reproduced" if low > 0 else "not reproduced" if high < 0 else "unclear"
    return (
        "- Candidates grow more confident as context grows (the premise of "
        "acceleration): the candidate of a blank that stays undecided in a step gains "
        f"{growth:+.4f} of probability ({low:+.4f} to {high:+.4f}): **{found}** with "
        "one token a step."
    )


def _speed_claim(main: Judged, controls: Sequence[float]) -> str:
    """A sentence on the speed-up; only noise makes the control rules faster."""
    total, low, high = main.speed_up
    if main.num_calls < 2:
        return (
            f"- Speed-up: published {_SPEED_UP:.1f} times, measured {total:.2f} in a "
            "single call: **unclear**, for one call has no range."
        )
    why = f"Forwards fell by a factor of {main.nfe_gain:.2f}, time by {total:.2f}."
    nothing = max([1.0, *controls])
    if nothing > 1:
        why += (
            " A rule with exactly the forwards of one token a step was up to "
            f"{nothing:.2f} times as fast in the same calls, so no speed-up up to that "
            "can be told from noise."
        )
    return _gain_claim(
        "Speed-up",
        _SPEED_UP,
        total,
        (low, high),
        f"range of {main.num_calls} calls",
        why,
        nothing,
    )


def _backtracking(m: Measured) -> str:
    """A paragraph on whether committed tokens lose confidence at all."""
    place = DEPTHS.index(DEPTH)
    shares = {
        kind: falls["ever"][place] for kind, falls in m.falls.items() if falls["num"]
    }
    told = " and ".join(f"{share:.2%} in {kind}" for kind, share in shares.items())
    text = (
        f"Of the tokens that one-token decoding commits, {told} answers ever lose more "
        f"than {DEPTH} of probability."
    )
    if max(shares.values()) < _FEW:
        return text + (
            " Backtracking takes at least one token back in every step that commits "
            "two. With so few losses it chooses among differences near 0."
        )
    if m.gap is None:
        return text
    difference, (low, high) = m.gap
    text += (
        " Per answer, their share in wrong answers less that in correct ones is "
        f"{change(difference, (low, high))} points: "
    )
    if low > 0:
        return text + "a loss is a sign of an error, as backtracking assumes."
    return text + (
        "losses are no sign of an error here (which tokens of an answer are wrong was "
        "not examined). What backtracking gains over Saber without it must then come "
        "from deciding fewer tokens a step, or from which of the committed tokens lose "
        "most."
    )


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
        why = (
            "The interval does not lie above 0, and excludes a gain as large as "
            "published."
        )
    else:
        why = "The whole interval lies above 0."
    if found != "reproduced" and 1 - other < 2 * claimed:
        why += (
            f" The other has {other:.1%} correct, so at most {100 * (1 - other):.1f} "
            "points can be gained."
        )
    return (
        f"- {name}: published {100 * claimed:+.1f} points, measured "
        f"{change(difference, measured[1])}{remark}: **{found}**. {why}"
    )


def _gain_claim(
    name: str,
    claimed: float,
    value: float,
    interval: tuple[float, float],
    kind: str,
    why: str,
    nothing: float = 1.0,
) -> str:
    low, high = interval
    found = verdict(low, high, nothing, claimed)
    return (
        f"- {name}: published {claimed:.1f} times, measured {value:.2f} ({kind} "
        f"{low:.2f} to {high:.2f}): **{found}**."
        + ("" if found == "reproduced" else f" {why}")
    )
