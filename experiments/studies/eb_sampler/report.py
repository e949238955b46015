"""The report on EB-Sampler (arXiv:2505.24857): figures, tables and the verdict."""

import dataclasses
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from dlm_jax import samplers
from dlm_jax.errors import InputError
from dlm_jax.evaluation import figures, sweeps
from dlm_jax.evaluation.run import Summary
from dlm_jax.evaluation.tables import between, markdown, points
from dlm_jax.samplers.entropy_bound import EntropyBound
from experiments.studies.eb_sampler import maze_split
from experiments.studies.eb_sampler.claims import Claim, Pairing, overall, pair, verdict
from experiments.studies.eb_sampler.error_split import Split


def check(
    curves: Mapping[str, Sequence[str]],
    baseline: str,
    compared: Sequence[tuple[str, str]],
) -> None:
    """Raises InputError for what cannot be compared.

    That is no spec at all, one that is in no curve, or curves without a bound or
    without another sampler.
    """
    if not compared:
        raise InputError("compared must name at least one sampler")
    kinds = {_is_bound(line[0]) for line in curves.values()}
    if len(kinds) < 2:
        raise InputError("curves must have entropy_bound and another sampler")
    known = {samplers.canonical_spec(spec) for line in curves.values() for spec in line}
    for spec in (baseline, *itertools.chain.from_iterable(compared)):
        if samplers.canonical_spec(spec) not in known:
            raise InputError(f"{spec} is compared, so it must be in one of curves")


def pair_table(pairings: Sequence[Pairing]) -> str:
    """Markdown: what each sampler gains and loses against the baseline."""
    rows = [
        [
            "sampler",
            "accuracy",
            "difference, points",
            "95 % interval",
            "McNemar p",
            "NFE ratio",
            "tokens / forward",
            "accuracy kept, fast enough",
            "difference to one token in its order",
            "95 % interval",
        ]
    ]
    for p in pairings:
        rows.append(
            [
                f"`{p.sampler}`",
                f"{p.accuracy:.1%}",
                points(p.comparison.difference),
                between(p.comparison.interval),
                f"{p.comparison.p_value:.2g}",
                f"{p.ratio:.2f}",
                f"{p.tokens_per_forward:.2f}",
                "yes" if p.is_within else "no",
                points(p.own_order.difference),
                between(p.own_order.interval),
            ]
        )
    return markdown(rows)


@dataclasses.dataclass(frozen=True)
class Section:
    """One task of the report.

    Attributes:
      task: its name.
      num_parameters: of the model.
      points: of each curve, see `sweeps.points`.
      base: the one-token baseline's results.
      pairings: with it.
    """

    task: str
    num_parameters: int
    points: Mapping[str, Sequence[Mapping[str, Any]]]
    base: Summary
    pairings: Sequence[Pairing]


def section(
    task: str,
    num_parameters: int,
    curves: Mapping[str, Sequence[str]],
    results: Sequence[Summary],
    baseline: str,
    compared: Sequence[tuple[str, str]],
    claim: Claim,
) -> Section:
    """The part of a task's results that the report needs."""
    base = next(r for r in results if r.sampler == samplers.canonical_spec(baseline))
    pairings = pair(results, baseline, compared, claim)
    return Section(task, num_parameters, sweeps.points(curves, results), base, pairings)


def front_sentence(section: Section) -> str:
    """The best area under a bound's front beside the best of the other curves."""
    areas = sweeps.areas(section.points)
    is_bound = {
        name: _is_bound(line[0]["sampler"]) for name, line in section.points.items()
    }
    best = [
        max((n for n in is_bound if is_bound[n] == kind), key=areas.__getitem__)
        for kind in (True, False)
    ]
    return (
        f"The largest area under a front of EB-Sampler is {areas[best[0]]:.3f} "
        f"({best[0]}), of a fixed k {areas[best[1]]:.3f} ({best[1]})."
    )


def _is_bound(spec: str) -> bool:
    return isinstance(samplers.parse(spec), EntropyBound)


def write(
    path: pathlib.Path,
    command: str,
    machines: Sequence[str],
    setting: str,
    sections: Sequence[Section],
    splits: Mapping[str, Split],
    claim: Claim,
) -> None:
    """Writes the report, and its figures beside it, named after it.

    Args:
      path: the Markdown file.
      command: that makes it again.
      machines: a line on each that was measured on, see `provenance.describe`.
      setting: a sentence on examples and temperature.
      sections: of the tasks.
      splits: of mazes, by spec; empty leaves that part out.
      claim: the requirements.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = [
        "# EB-Sampler: accuracy against forwards",
        f"    {command}",
        f"{setting} Measured on {'; '.join(machines)}. NFE is the number of forwards "
        "that an example took part in. Intervals are 95 %; for differences the "
        "smallest one that holds both the percentile bootstrap's over examples and "
        "Tango's score interval.",
        # What the tables of all tasks have in common.
        "Area: the mean accuracy for a budget of forwards drawn uniformly in its "
        "logarithm; the accuracy is 0 where no tested point is that cheap. In the "
        "figures some lines hide others.",
        "Tokens are those before EOS. Where one-token decoding writes less than one "
        "per forward, the other forwards fill the blanks behind the answer, and the "
        "NFE ratio includes what a sampler saves of those. "
        "`accuracy kept, fast enough`: accuracy not below the interval of one-token "
        f"decoding, with at least {claim.min_ratio:g} times fewer forwards. "
        "`difference to one token in its order`: compared with one token a step in the "
        "order of the sampler's own proxy, so only the loss from committing several "
        "tokens at once.",
    ]
    for own in sections:
        parts += _task_part(path, own)
    if splits:
        parts += _split_part(path, splits)
    verdicts = {
        own.task: verdict(own.pairings, float(own.base.is_correct.mean()), claim)
        for own in sections
    }
    sizes = ", ".join(f"{s.task} {s.num_parameters / 1e6:.1f}" for s in sections)
    parts += [
        "## Against the published claim",
        "Published (arXiv:2505.24857): 2 to 3 times fewer forwards than one token at a "
        "time, without loss of accuracy, for LLaDA-8B and Dream-7B on code and "
        "mathematics, and the same on mazes and Sudoku. Required here: "
        f"at least {claim.min_ratio:g} times fewer forwards, and a joint 95 % interval "
        f"(Bonferroni, over the {len(sections[0].pairings)} settings of a task) that "
        f"excludes a loss of {100 * claim.margin:g} points. A claim is not reproduced "
        "if every setting that is fast enough loses accuracy, or none is fast enough. "
        "Everything else is unclear.",
        overall(verdicts),
        "\n".join(
            f"- {task}: **{word}**: {why}" for task, (word, why) in verdicts.items()
        ),
    ]
    if max(s.num_parameters for s in sections) < 1e9:
        parts.append(
            f"The models here are small (millions of parameters: {sizes}) and were "
            "trained for their task alone: a result here is no evidence on models of "
            "billions of parameters, and an exact task punishes one wrong token more "
            "than most text."
        )
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _task_part(path: pathlib.Path, own: Section) -> list[str]:
    figure = path.with_name(f"{path.stem}_{own.task}.png")
    num = own.base.is_correct.shape[1]
    figures.curves(
        figure,
        own.points,
        x="nfe",
        y="accuracy",
        x_label="mean number of forwards (NFE)",
        y_label="accuracy",
        title=f"{own.task}, {num} examples, 95 % intervals",
        is_log=True,
    )
    return [
        f"## {own.task}",
        f"![Accuracy against forwards: {own.task}]({figure.name})",
        front_sentence(own),
        # Samplers share calls, and runs may be of several machines.
        sweeps.table(own.points, has_speeds=False),
        f"Compared with one-token `low_confidence` ({own.base.is_correct.mean():.1%} "
        f"correct, NFE {own.base.nfe.mean():.2f}, {own.base.tokens_per_forward:.2f} "
        f"tokens of an answer per forward) on the same {num} examples; differences in "
        "percentage points.",
        pair_table(own.pairings),
    ]


def _split_part(path: pathlib.Path, splits: Mapping[str, Split]) -> list[str]:
    figure = path.with_name(f"{path.stem}_errors.png")
    num = len(next(iter(splits.values())).num_steps)
    figures.curves(
        figure,
        maze_split.points(splits),
        x="nfe",
        y="nats",
        x_label="mean number of forwards (NFE)",
        y_label="error (nats per maze)",
        title=f"maze, {num} examples, 95 % intervals",
        is_log=True,
    )
    parts = [
        "## Where the error comes from",
        f"![Both errors against forwards]({figure.name})",
        "In mazes the distribution q of the data is known: all shortest paths are "
        "equally likely. The divergence of what a sampler draws (temperature 1) from q "
        "is then the sum of two measured parts: the model's error in the marginals of "
        "the positions it commits, and what is lost because positions committed "
        f"together depend on each other. Means in nats over {num} mazes, one path of "
        "each drawn from q and written in the sampler's order. The last column is the "
        "share of mazes with a step whose true joint dependence error exceeds gamma, "
        "which the bound would exclude if the model's entropies were the true ones.",
        maze_split.table(splits),
    ]
    matched = maze_split.matched_table(splits)
    if matched.count("\n") > 1:
        parts += [
            "EB-Sampler less the fixed k that is nearest in forwards, where one is "
            "within a factor of 1.5:",
            matched,
        ]
    found = maze_split.sentences(splits)
    return [*parts, " ".join(found)] if found else parts
