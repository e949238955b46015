r"""EB-Sampler against its published claim: measures, and writes the report.

    python -m experiments.report_eb [--quick]

makes experiments/studies/eb_sampler/eb_sampler.md with its figures: accuracy against
forwards on three tasks, EB-Sampler beside one-token decoding on the same examples, and
the split of its error on mazes, where the truth is known. --quick measures fewer
examples and writes to other files. The same command continues a run that was stopped.
Samplers and examples are in experiments/studies/eb_sampler/config.py.
"""

import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import jax
from tqdm import tqdm

from dlm_jax.devices.runner import DataParallel
from dlm_jax.evaluation import figures, provenance
from dlm_jax.evaluation import run as evaluation
from dlm_jax.evaluation.records import check_finite, environments
from dlm_jax.models import as_denoiser
from dlm_jax.tasks.base import Task, load
from experiments import _app, _papers
from experiments.studies.eb_sampler import maze_split
from experiments.studies.eb_sampler import report as report_eb
from experiments.studies.eb_sampler.claims import Claim

_REPORT = _papers.define_report(
    "report_eb", "eb_sampler", "Config file with samplers, examples and requirements."
)


def main(argv: Sequence[str]) -> None:
    """Measures what the directory does not hold yet, and writes the report."""
    del argv
    config, report = _REPORT()
    claim = Claim(config.min_ratio, config.margin, config.floor)
    sections, splits, machines = [], {}, []
    # All that can be missing is looked up before the first hour is spent.
    report_eb.check(config.curves, config.baseline, config.compared)
    figures.load_pyplot()
    for task, checkpoint in zip(report.tasks, report.checkpoints, strict=True):
        workdir = report.workdir / task.name
        section, own_splits = _measure(task, checkpoint, config, claim, workdir)
        machines += environments(workdir)
        sections.append(section)
        splits |= own_splits
    report_eb.write(
        report.output,
        shlex.join(["python", "-m", "experiments.report_eb", *sys.argv[1:]]),
        list(dict.fromkeys(map(provenance.describe, machines))),
        f"The first {config.num_examples} examples of the split {config.split} at "
        f"temperature {config.temperature:g}.",
        sections,
        splits,
        claim,
    )
    print(f"Wrote {report.output}")


def _measure(
    task: Task,
    checkpoint: pathlib.Path,
    config: Any,
    claim: Claim,
    workdir: pathlib.Path,
) -> tuple[report_eb.Section, dict]:
    """One task: its curves, and where its truth is known the split of the error."""
    name = task.name
    model, codec = load(task, checkpoint)
    digest = provenance.digest(checkpoint)
    about = {"checkpoint": digest, "dtype": str(model.head.dtype)}
    denoiser, params = as_denoiser(model)
    curves = {line: tuple(specs) for line, specs in config.curves.items()}
    specs = [spec for line in curves.values() for spec in line]
    total = len(specs) * config.num_examples
    with tqdm(total=total, desc=name, unit="row", disable=None) as progress:
        records = evaluation.run(
            DataParallel(denoiser, params),
            codec,
            task,
            evaluation.Plan.of(config),
            evaluation.lanes(specs, (config.seed,), is_mixed=True),
            config.num_examples,
            workdir,
            about=about,
            on_records=lambda records: progress.update(len(records)),
        )
    check_finite(records)
    splits = {}
    if name == "maze":
        splits = maze_split.measure(
            denoiser,
            params,
            codec,
            config.error_split_specs,
            split=config.split,
            num_examples=config.error_split_examples,
            example_seed=config.example_seed,
            batch_size=config.batch_size,
            directory=workdir / "error_split",
            digest=digest,
        )
    section = report_eb.section(
        name,
        sum(leaf.size for leaf in jax.tree.leaves(params)),
        curves,
        evaluation.summaries(records),
        config.baseline,
        config.compared,
        claim,
    )
    return section, splits


if __name__ == "__main__":
    _app.run(main)
