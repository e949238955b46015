"""Runs and compares samplers for the report on Saber (arXiv:2510.18165)."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from dlm_jax import samplers
from dlm_jax.core.denoiser import Denoiser
from dlm_jax.devices.runner import DataParallel
from dlm_jax.errors import InputError
from dlm_jax.evaluation import run as evaluation
from dlm_jax.evaluation import stats
from dlm_jax.evaluation.records import check_finite
from dlm_jax.evaluation.run import Summary
from dlm_jax.tasks.base import Task
from dlm_jax.text.codec import Codec
from experiments.studies.saber import analysis, cases

# Losses of confidence that are counted; 0 means more than rounding.
DEPTHS = (0.0, 0.01, 0.1, 0.5)
# A loss that is more than noise.
DEPTH = 0.01


@dataclasses.dataclass(frozen=True)
class Setting:
    """The samplers that are compared, and the number of examples.

    Attributes:
      baseline: the spec that others are compared with, and that is watched.
      compared: specs of the main table.
      others: of them, the rules over whose mean a gain is claimed.
      ablations: specs that are compared with saber.
      sweep: specs of one program; they share calls.
      num_examples: per sampler.
      num_watched: of them, how many are watched step by step.
      num_cases: answers that are printed of either kind.
      seed: of the random keys.
      plan: batches, lengths and temperature.
    """

    baseline: str
    compared: tuple[str, ...]
    others: tuple[str, ...]
    ablations: tuple[str, ...]
    sweep: tuple[str, ...]
    num_examples: int
    num_watched: int
    num_cases: int
    seed: int
    plan: evaluation.Plan


@dataclasses.dataclass(frozen=True)
class Judged:
    """A sampler compared with another one on the same examples.

    Attributes:
      spec: its short spec.
      summary: of its records.
      interval: of its accuracy, 95 %.
      against: its accuracy minus the other's; of the other itself there is none.
      nfe_gain: the other's mean NFE over its own.
      nfe_interval: of that, 95 %, paired bootstrap over examples.
      speed_up: the other's seconds over its own, in calls that both made in one run,
        and the least and greatest of any; NaN where it shared calls.
      num_calls: that were timed.
    """

    spec: str
    summary: Summary
    interval: tuple[float, float]
    against: stats.Comparison | None
    nfe_gain: float
    nfe_interval: tuple[float, float]
    speed_up: tuple[float, float, float]
    num_calls: int


@dataclasses.dataclass(frozen=True)
class Measured:
    """All results of one task.

    Attributes:
      task: its name.
      num_parameters: of the model.
      gen_length: most blanks of an example.
      num_examples: of each sampler.
      compared: samplers, compared with the baseline.
      ablations: compared with saber.
      sweep: compared with the baseline.
      others: the rules over whose mean a gain is claimed.
      over_others: saber's accuracy minus that mean.
      num_fixed: examples that are correct only with backtracking.
      num_broken: examples that are correct only without it.
      cases: printed examples: title and text.
      rise: see `analysis.rise`.
      slope: see `analysis.slope`.
      growth: see `analysis.growth`.
      drift: see `analysis.drift`.
      falls: see `analysis.falls`, of correct and of wrong answers.
      gap: see `analysis.gap`, of losses above DEPTH.
    """

    task: str
    num_parameters: int
    gen_length: int
    num_examples: int
    compared: list[Judged]
    ablations: list[Judged]
    sweep: list[Judged]
    others: tuple[str, ...]
    over_others: tuple[float, tuple[float, float]]
    num_fixed: int
    num_broken: int
    cases: list[tuple[str, str]]
    rise: list[dict[str, Any]]
    slope: tuple[float, tuple[float, float]]
    growth: tuple[float, tuple[float, float]]
    drift: list[dict[str, Any]]
    falls: dict[str, dict[str, Any]]
    gap: tuple[float, tuple[float, float]] | None


def lanes(setting: Setting) -> list[evaluation.Lane]:
    """The samplers of a setting; those that are timed have calls of their own."""
    alone = list(dict.fromkeys(("saber", *setting.compared, *setting.ablations)))
    seen = {samplers.canonical_spec(spec) for spec in alone}
    rest = dict.fromkeys(samplers.canonical_spec(spec) for spec in setting.sweep)
    mixed = [spec for spec in rest if spec not in seen]
    seeds = (setting.seed,)
    return [
        *evaluation.lanes(alone, seeds, is_mixed=False),
        *evaluation.lanes(mixed, seeds, is_mixed=True),
    ]


def measure(
    denoiser: Denoiser,
    params: PyTree,
    codec: Codec,
    task: Task,
    setting: Setting,
    directory: str | os.PathLike,
    *,
    about: Mapping[str, Any],
    on_records: Callable[[list[dict[str, Any]]], object] = lambda records: None,
) -> Measured:
    """Runs all samplers, as far as the directory has no records, and compares them.

    Args:
      denoiser: the model.
      params: its parameters.
      codec: its tokenizer.
      task: what is asked.
      setting: how.
      directory: of the records, see `evaluation.run.run`.
      about: of the checkpoint.
      on_records: see `evaluation.run.run`.

    Raises:
      InputError: if an argument does not fit, or the directory holds something else.
    """
    if setting.num_watched < 1:
        raise InputError(f"num_watched ({setting.num_watched}) must be at least 1")
    # All answers.
    plan, num = setting.plan, setting.num_examples
    records = evaluation.run(
        DataParallel(denoiser, params),
        codec,
        task,
        plan,
        lanes(setting),
        num,
        directory,
        # Times are part of the result, so these must stay the same.
        about={**about, **plan.sizes},
        on_records=on_records,
    )
    check_finite(records)
    results = {s.sampler: s for s in evaluation.summaries(records)}

    # The baseline's confidence, step by step.
    watched = _watch(denoiser, params, codec, task, setting)
    base = results[samplers.canonical_spec(setting.baseline)]
    is_correct = base.is_correct[0, : setting.num_watched]

    # Accuracy, forwards and time of all samplers, and answers to show.
    judge = functools.partial(compare, records, results)
    without = "saber(backtracking=False)"
    fixed, broken = cases.only_one_correct(records, "saber", without)
    prompts = [x.text for x in task.examples(plan.split, num, plan.example_seed)]
    shown = cases.titled(task, prompts, "with", fixed[: setting.num_cases])
    shown += cases.titled(task, prompts, "without", broken[: setting.num_cases])
    return Measured(
        task=task.name,
        num_parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
        gen_length=task.options(codec, plan.temperature).gen_length,
        num_examples=num,
        compared=judge(setting.compared, setting.baseline),
        ablations=judge(("saber", *setting.ablations), "saber"),
        sweep=judge(setting.sweep, setting.baseline),
        others=setting.others,
        over_others=over_others(results, "saber", setting.others),
        num_fixed=len(fixed),
        num_broken=len(broken),
        cases=shown,
        rise=analysis.rise(watched),
        slope=analysis.slope(watched),
        growth=analysis.growth(watched),
        drift=analysis.drift(watched),
        falls={
            "correct": analysis.falls(watched, is_correct, DEPTHS),
            "wrong": analysis.falls(watched, ~is_correct, DEPTHS),
        },
        gap=analysis.gap(watched, is_correct, DEPTH),
    )


def _watch(
    denoiser: Denoiser, params: PyTree, codec: Codec, task: Task, setting: Setting
) -> analysis.Watched:
    """The baseline's runs on the first examples, step by step."""
    plan = setting.plan
    num = min(setting.num_watched, setting.num_examples)
    examples = task.examples(plan.split, setting.num_examples, plan.example_seed)
    return analysis.watch(
        denoiser,
        params,
        samplers.parse(setting.baseline),
        task.encode(codec, examples[:num]),
        task.options(codec, plan.temperature),
        seed=setting.seed,
        batch_size=plan.batch_size,
    )


def compare(
    records: Sequence[Mapping[str, Any]],
    results: Mapping[str, Summary],
    specs: Sequence[str],
    baseline: str,
) -> list[Judged]:
    """Compares samplers with one of them, example by example and call by call.

    Args:
      records: of all samplers, one seed each, see `evaluation.run.run`.
      results: their summaries by canonical spec.
      specs: of the samplers, in any spelling.
      baseline: with which each is compared.
    """
    base = results[samplers.canonical_spec(baseline)]
    base_calls = _seconds(records, base.sampler)
    made = []
    for spec in specs:
        own = results[samplers.canonical_spec(spec)]
        calls = _seconds(records, own.sampler)
        common = [key for key in calls if key in base_calls]
        ratios = [base_calls[key] / calls[key] for key in common]
        total = sum(base_calls[key] for key in common)
        made.append(
            Judged(
                spec=samplers.short_spec(spec),
                summary=own,
                interval=stats.accuracy_interval(own.is_correct),
                against=None
                if own is base
                else stats.compare(own.is_correct[0], base.is_correct[0]),
                nfe_gain=float(base.nfe.mean() / own.nfe.mean()),
                nfe_interval=stats.ratio_interval(base.nfe[0], own.nfe[0]),
                speed_up=(
                    total / sum(calls[key] for key in common),
                    min(ratios),
                    max(ratios),
                )
                if ratios
                else (np.nan, np.nan, np.nan),
                num_calls=len(ratios),
            )
        )
    return made


def alike(judged: Sequence[Judged]) -> list[float]:
    """Speed-ups of rules with exactly the forwards of the first.

    Their distance from 1 is the noise of the machine and the cost of the rules.
    """
    base = judged[0].summary
    return [
        j.speed_up[0]
        for j in judged[1:]
        if j.num_calls and (j.summary.nfe == base.nfe).all()
    ]


def find(judged: Sequence[Judged], spec: str) -> Judged | None:
    """The result of a spec, in any spelling; None if there is none."""
    name = samplers.short_spec(spec)
    return next((j for j in judged if j.spec == name), None)


def _seconds(records: Sequence[Mapping[str, Any]], spec: str) -> dict[tuple, float]:
    """Seconds of each call that only this sampler's rows were in.

    By its examples and its run: a later run may have another batch size, or another
    machine. A call that a kill cut in two is left out: what was in flight ran twice.
    """
    calls: dict[tuple, list[Mapping[str, Any]]] = {}
    for record in records:
        if record["sampler"] == spec:
            place, size = record["place"]
            calls.setdefault((record["index"] - place, size), []).append(record)
    return {
        (*key, own[0]["run"]): sum(record["seconds"] for record in own)
        for key, own in calls.items()
        if len(own) == key[1] and len({record["run"] for record in own}) == 1
    }


def over_others(
    results: Mapping[str, Summary], spec: str, others: Sequence[str]
) -> tuple[float, tuple[float, float]]:
    """A sampler's accuracy minus the mean accuracy of others, and its 95 % interval.

    Each of the others counts as a run of its own, see `stats.difference_interval`.
    """
    second = np.stack(
        [results[samplers.canonical_spec(o)].is_correct[0] for o in others]
    )
    own = results[samplers.canonical_spec(spec)].is_correct[0]
    first = np.broadcast_to(own, second.shape)
    difference = float(first.mean() - second.mean())
    return difference, stats.difference_interval(first, second)
