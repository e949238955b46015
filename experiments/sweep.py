r"""Sweeps thresholds and draws accuracy against forwards, with fronts and areas.

    python -m experiments.sweep --task=sudoku --workdir=runs/sweep/sudoku

WORKDIR gets sweep.csv, sweep.png, sweep.md and the records, a line per example.
Samplers of one program share its calls, with a threshold per row. Started again with
the same arguments it goes on where it was stopped; the curves are configs/sweep.py's.
"""

import pathlib
from collections.abc import Sequence

from absl import flags
from tqdm import tqdm

from dlm_jax import evaluation, figures, provenance, sweeps, tasks, zoo
from experiments import _app

_CONFIG = _app.define_config("configs/sweep.py", "The curves.")
_TASK = flags.DEFINE_string("task", "sudoku", "sudoku, maze, countdown, program, ...")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Hugging Face or Orbax directory; default: the shipped model."
)
_DTYPE = flags.DEFINE_enum(
    "dtype", None, ["bfloat16", "float32"], "Default: as stored."
)
_SHARING = _app.define_sharing()
_WORKDIR = flags.DEFINE_string("workdir", None, "Default: runs/sweep/TASK.")
_OVERRIDES = [
    flags.DEFINE_string("split", None, "Of the task's examples."),
    flags.DEFINE_integer("num_examples", None, "The first ones of the split."),
    flags.DEFINE_float("temperature", None, "0 takes the most probable token."),
    flags.DEFINE_integer("batch_size", None, "Rows in flight at once."),
    flags.DEFINE_integer("queue_length", None, "Rows of one call."),
]


def main(argv: Sequence[str]) -> None:
    """Evaluates all points that are missing, then draws what the directory holds."""
    del argv
    figures.load_pyplot()
    config = _CONFIG.value
    config.update({f.name: f.value for f in _OVERRIDES if f.value is not None})
    task = tasks.get(_TASK.value)
    workdir = pathlib.Path(_WORKDIR.value or f"runs/sweep/{task.name}")
    curves = {name: tuple(specs) for name, specs in config.curves.items()}
    specs = [spec for line in curves.values() for spec in line]
    todo = evaluation.lanes(specs, (config.seed,), is_mixed=True)
    checkpoint = _CHECKPOINT.value or zoo.path(task.name)
    model, codec = evaluation.load(task, checkpoint, _DTYPE.value, _SHARING.value)
    about = {
        "checkpoint": provenance.digest(checkpoint),
        "dtype": str(model.dtype),
    }
    total = len(specs) * config.num_examples
    with tqdm(total=total, unit="row", disable=None) as progress:
        records = evaluation.run(
            *(model.parallel, codec, task),
            evaluation.Plan.of(config),
            *(todo, config.num_examples, workdir),
            about=about,
            on_records=lambda records: progress.update(len(records)),
        )
    made = sweeps.points(curves, evaluation.summaries(records))
    sweeps.write_csv(workdir / "sweep.csv", made)
    (workdir / "sweep.md").write_text(sweeps.table(made) + "\n")
    figures.curves(
        workdir / "sweep.png",
        made,
        x="nfe",
        y="accuracy",
        x_label="mean number of forwards (NFE)",
        y_label="accuracy",
        title=f"{task.name}, {config.num_examples} examples, 95 % intervals",
        is_log=True,
        front=sweeps.front(made),
    )
    print(sweeps.table(made))
    print(f"Wrote {workdir / 'sweep.csv'} and {workdir / 'sweep.png'}")


if __name__ == "__main__":
    _app.run(main)
