"""Comparisons with one-token decoding, and the verdict on EB-Sampler's claim.

The claim (arXiv:2505.24857): two to three times fewer forwards than one token at a
time, without loss of accuracy. The verdict follows from measured intervals, by the
rules of `verdict`.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from dlm_jax import samplers
from dlm_jax.evaluation import stats
from dlm_jax.evaluation.run import Summary
from dlm_jax.evaluation.tables import between, points

REPRODUCED, NOT_REPRODUCED, UNCLEAR = "reproduced", "not reproduced", "unclear"


@dataclasses.dataclass(frozen=True)
class Claim:
    """The requirements on a sampler that is compared with one token at a time.

    Attributes:
      min_ratio: fewer forwards, as a factor.
      margin: a loss of accuracy below this counts as none.
      floor: an accuracy of one-token decoding below this says nothing: there is nothing
        to lose.
    """

    min_ratio: float = 2.5
    margin: float = 0.02
    floor: float = 0.1


@dataclasses.dataclass(frozen=True)
class Pairing:
    """A sampler compared with the baseline on the same examples.

    Attributes:
      sampler: its spec.
      accuracy: of the sampler.
      comparison: sampler less baseline.
      interval: of the difference, so wide that those of all pairings of a task hold
        together with 95 % confidence (Bonferroni).
      ratio: mean NFE of the baseline by that of the sampler.
      tokens_per_forward: see `evaluation.run.Summary`.
      is_within: its accuracy is not below the baseline's 95 % interval, and the ratio
        is at least the claim's.
      own_order: sampler less one token a step in the sampler's own order: what
        committing several at once changes, where `comparison` holds what the order
        changes too.
    """

    sampler: str
    accuracy: float
    comparison: stats.Comparison
    interval: tuple[float, float]
    ratio: float
    tokens_per_forward: float
    is_within: bool
    own_order: stats.Comparison


def pair(
    results: Sequence[Summary],
    baseline: str,
    compared: Sequence[tuple[str, str]],
    claim: Claim,
) -> list[Pairing]:
    """Compares samplers with a baseline, example by example.

    Args:
      results: of all that is named below, on the same examples with one seed.
      baseline: its spec.
      compared: what is compared with it, each with the spec of one token a step in
        its own order.
      claim: the requirements.
    """
    by_spec = {result.sampler: result for result in results}
    base = by_spec[samplers.canonical_spec(baseline)]
    low, _ = stats.accuracy_interval(base.is_correct)
    confidence = 1 - 0.05 / len(compared)
    pairings = []
    for spec, single in compared:
        one = by_spec[samplers.canonical_spec(single)]
        own = by_spec[samplers.canonical_spec(spec)]
        pair_of = own.is_correct[0], base.is_correct[0]
        ratio = float(base.nfe.mean() / own.nfe.mean())
        accuracy = float(own.is_correct.mean())
        pairings.append(
            Pairing(
                sampler=spec,
                accuracy=accuracy,
                comparison=stats.compare(*pair_of),
                interval=stats.compare(*pair_of, confidence).interval,
                ratio=ratio,
                tokens_per_forward=own.tokens_per_forward,
                is_within=accuracy >= low and ratio >= claim.min_ratio,
                own_order=stats.compare(own.is_correct[0], one.is_correct[0]),
            )
        )
    return pairings


def verdict(
    pairings: Sequence[Pairing], base_accuracy: float, claim: Claim
) -> tuple[str, str]:
    """Whether a task shows the claim, and why.

    With the joint intervals of the pairings that are fast enough, it is reproduced if
    one of them excludes a loss of the margin; not reproduced if all show a loss, or
    there is none; and else unclear.

    Returns:
      REPRODUCED, NOT_REPRODUCED or UNCLEAR, and a sentence.
    """
    if base_accuracy < claim.floor:
        return UNCLEAR, (
            f"one-token decoding itself has only {base_accuracy:.1%} correct, so there "
            "is nothing to lose."
        )
    fast = [p for p in pairings if p.ratio >= claim.min_ratio]
    if not fast:
        best = max(pairings, key=lambda p: p.ratio)
        return NOT_REPRODUCED, (
            f"no setting reaches {claim.min_ratio:g} times fewer forwards; the "
            f"fastest, `{best.sampler}`, has {best.ratio:.2f}."
        )
    held = [p for p in fast if p.interval[0] > -claim.margin]
    if held:
        best = max(held, key=lambda p: p.ratio)
        sentence = (
            f"`{best.sampler}` takes {best.ratio:.2f} times fewer forwards (each "
            f"writes {best.tokens_per_forward:.2f} tokens of an answer) and changes "
            f"accuracy by {points(best.comparison.difference)} points (joint interval "
            f"{between(best.interval)}), which excludes a loss of "
            f"{100 * claim.margin:g}"
        )
        is_loss = best.interval[1] < 0
        return REPRODUCED, sentence + (
            "; a smaller loss is there all the same." if is_loss else "."
        )
    best = max(fast, key=lambda p: p.comparison.difference)
    if all(p.interval[1] < 0 for p in fast):
        return NOT_REPRODUCED, (
            f"every setting that is fast enough loses accuracy; the best of them, "
            f"`{best.sampler}`, {points(best.comparison.difference)} points (joint "
            f"interval {between(best.interval)})."
        )
    return UNCLEAR, (
        f"of the settings that are fast enough, the best, `{best.sampler}`, changes "
        f"accuracy by {points(best.comparison.difference)} points, but the joint "
        f"interval {between(best.interval)} neither excludes a loss of "
        f"{100 * claim.margin:g} points nor holds only losses."
    )


def overall(verdicts: Mapping[str, tuple[str, str]]) -> str:
    """One sentence over all tasks; a single word only if all tasks agree."""
    by_word: dict[str, list[str]] = {}
    for task, (word, _) in verdicts.items():
        by_word.setdefault(word, []).append(task)
    if len(by_word) == 1:
        (word,) = by_word
        return f"On all tasks here the published claim is **{word}**."
    parts = [f"**{word}** on {', '.join(tasks)}" for word, tasks in by_word.items()]
    return f"At this scale the published claim is {'; '.join(parts)}."
