"""Measures Saber's claims on the shipped models, and writes the report on them.

    python -m experiments.report_saber
    python -m experiments.report_saber --quick

Writes the report to --output, with its figures beside it; the records stay under
WORKDIR/TASK. --quick measures fewer examples and writes to other files. The same
command continues a run that was stopped. Samplers and examples are in
experiments/studies/saber/config.py.
"""

import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from dlm_jax.evaluation import figures, provenance
from dlm_jax.evaluation import run as evaluation
from dlm_jax.evaluation.records import environments
from dlm_jax.models import as_denoiser
from dlm_jax.tasks.base import load
from experiments import _app, _papers
from experiments.studies.saber import measure
from experiments.studies.saber import report as saber_report

_REPORT = _papers.define_report(
    "report_saber", "saber", "Config file with samplers and examples."
)


def main(argv: Sequence[str]) -> None:
    """Measures every task, then writes the report."""
    del argv
    config, report = _REPORT()
    # All that can be missing is looked up before the first hour is spent.
    figures.load_pyplot()
    measured, about, machines = [], [], []
    for task, path in zip(report.tasks, report.checkpoints, strict=True):
        workdir = report.workdir / task.name
        digest = provenance.digest(path)
        measured.append(_measure(config, task, path, digest, workdir))
        about.append(
            f"{task.name}: split `{config.split}`, {measured[-1].num_examples} "
            f"examples, checkpoint {digest[:12]}, "
            f"{measured[-1].num_parameters / 1e6:.1f} M parameters"
        )
        machines += environments(workdir)
    about += dict.fromkeys(
        f"{provenance.describe(machine)}, {config.batch_size} rows in flight"
        for machine in machines
    )
    command = shlex.join(["python", "-m", "experiments.report_saber", *sys.argv[1:]])
    saber_report.write(report.output, measured, command=command, about=about)
    print(f"Wrote {report.output}")


def _measure(
    config: Any, task: Any, path: pathlib.Path, digest: str, workdir: pathlib.Path
) -> measure.Measured:
    """Loads the model of a task, and measures it."""
    model, codec = load(task, path)
    plan = evaluation.Plan.of(config)
    setting = measure.Setting(
        baseline=config.samplers[0],
        compared=tuple(config.samplers),
        others=tuple(config.others),
        ablations=tuple(config.ablations),
        sweep=tuple(config.sweep),
        num_examples=config.num_examples,
        num_watched=config.num_watched,
        num_cases=config.num_cases,
        seed=config.seed,
        plan=plan,
    )
    num_specs = sum(len(lane.specs) for lane in measure.lanes(setting))
    total = num_specs * config.num_examples
    with tqdm(total=total, desc=task.name, disable=None) as progress:
        return measure.measure(
            *as_denoiser(model),
            codec,
            task,
            setting,
            workdir,
            about={"checkpoint": digest, "dtype": str(model.head.dtype)},
            on_records=lambda records: progress.update(len(records)),
        )


if __name__ == "__main__":
    _app.run(main)
