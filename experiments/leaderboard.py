"""Adds samplers to the table of the shipped models; evaluates only what is missing.

    python -m experiments.leaderboard --sampler='entropy_bound(gamma=0.01)'
    python -m experiments.leaderboard                # all of the config

Writes leaderboard.csv and leaderboard.md into --out. The setting is frozen in
experiments/studies/leaderboard/config.py; a task that the table has in another setting
is refused. To add your own sampler, put it into the registry first
(docs/extend/sampler.md). To measure a sampler again after its code changed, remove its
lines from leaderboard.csv and its records, --workdir.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags
from tqdm import tqdm

import dlm_jax as dlm
from dlm_jax import tasks, zoo
from dlm_jax.core.keys import check_seed
from dlm_jax.errors import InputError
from dlm_jax.evaluation import provenance
from dlm_jax.evaluation import run as evaluation
from dlm_jax.evaluation.records import check_finite
from dlm_jax.tasks.base import check_codec
from experiments import _app
from experiments.studies.leaderboard import board

_STUDY = _app.STUDIES / "leaderboard"
_CONFIG = _app.define_config(
    _STUDY / "config.py", "Config file with the frozen setting."
)
_SAMPLER = flags.DEFINE_multi_string(
    "sampler", None, "Sampler spec to add; default: all of the config"
)
_TASK = flags.DEFINE_multi_string(
    "task", None, "Task to evaluate; default: all of the config"
)
_WORKDIR = _app.define_path("workdir", "runs/leaderboard", "Directory of the records.")
_OUT = _app.define_path("out", str(_STUDY), "Directory of the table.")
_COMMAND = "python -m experiments.leaderboard --sampler='SPEC'"


def main(argv: Sequence[str]) -> None:
    """Evaluates what is missing, task by task, and writes the table after each."""
    del argv
    config = _CONFIG.value
    out = pathlib.Path(_OUT.value)
    entries = board.read(out / "leaderboard.csv")
    names = _TASK.value or list(config.num_examples)
    specs = _SAMPLER.value or config.samplers
    # Everything is checked before anything is evaluated.
    for seed in ("seed", "example_seed"):
        check_seed(config[seed], seed)
    todo = []
    for name in names:
        if name not in config.num_examples:
            known = ", ".join(config.num_examples)
            raise InputError(f"task ({name}) must be one of {known}")
        task, path = tasks.get(name), zoo.path(name)
        setting = board.Setting(
            checkpoint=provenance.digest(path),
            num_examples=config.num_examples[name],
            split=config.split,
            example_seed=config.example_seed,
            seed=config.seed,
            temperature=config.temperature,
        )
        missing = board.missing(entries, name, specs, setting)
        todo.append((task, path, missing, setting))
    commit = provenance.environment()["commit"]
    for task, path, missing, setting in todo:
        if missing:
            results = _evaluate(config, task, path, missing, setting)
            entries += board.entries_of(task.name, results, commit, setting)
            board.write(out / "leaderboard.csv", entries)
    out.mkdir(parents=True, exist_ok=True)
    page = board.page(entries, _COMMAND)
    (out / "leaderboard.md").write_text(page, encoding="utf-8")
    print(page, end="")


def _evaluate(
    config: Any,
    task: Any,
    path: Any,
    specs: Sequence[str],
    setting: board.Setting,
) -> list[evaluation.Summary]:
    model = dlm.load(path)
    check_codec(task, model.codec)
    plan = evaluation.Plan.of(config)
    total = len(specs) * setting.num_examples
    with tqdm(total=total, desc=task.name, disable=None) as progress:
        records = evaluation.run(
            model.parallel,
            model.codec,
            task,
            plan,
            evaluation.lanes(specs, (setting.seed,), is_mixed=False),
            setting.num_examples,
            pathlib.Path(_WORKDIR.value) / task.name,
            about={"checkpoint": setting.checkpoint, "dtype": str(model.dtype)},
            on_records=lambda records: progress.update(len(records)),
        )
    check_finite(records)
    return evaluation.summaries(records)


if __name__ == "__main__":
    _app.run(main)
