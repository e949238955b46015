r"""Sweeps thresholds and draws accuracy against forwards, with fronts and areas.

    python -m experiments.sweep --task=sudoku --workdir=runs/sweep/sudoku

WORKDIR gets sweep.csv, sweep.png, sweep.md and the records, a line per example.
Samplers of one program share its calls, with a threshold per row. Started again with
the same arguments it goes on where it was stopped; --batch_size and --queue_length may
differ. The curves are configs/sweep.py's, or those of --sampler, which may be your own:

    python -m experiments.sweep --task=sudoku --workdir=runs/sweep/mine \
        --sampler='my_rules:Confident(threshold=0.7)' \
        --sampler='my_rules:Confident(threshold=0.9)'
"""

from collections.abc import Sequence

from absl import flags

from dlm_jax.evaluation import figures, sweeps, tables
from dlm_jax.evaluation import run as evaluation
from dlm_jax.evaluation.records import check_finite, conditions
from experiments import _app, _evaluating
from experiments._progress import Progress

_SAMPLER = flags.DEFINE_multi_string(
    "sampler",
    None,
    "A point, as saber(n=2, mu=8); may be repeated: those of one name are a curve. "
    "Default: the config's curves.",
)
_READ = _evaluating.define_evaluation(
    "sweep",
    "The curves.",
    (flags.DEFINE_string("cache", None, "A cache plan, as dual(refresh_every=8)."),),
)


def main(argv: Sequence[str]) -> None:
    """Evaluates all points that are missing, then draws what the directory holds."""
    del argv
    figures.load_pyplot()
    asked = _READ()
    config, workdir = asked.config, asked.workdir
    if _SAMPLER.value:
        curves = sweeps.by_name(_SAMPLER.value)
    else:
        curves = {name: tuple(specs) for name, specs in config.curves.items()}
    specs = [spec for line in curves.values() for spec in line]
    cache = config.get("cache") or "none"
    todo = evaluation.lanes(specs, (config.seed,), is_mixed=True, plans=(cache,))
    with asked.locked(), _app.kept_rows():
        model, about = asked.load(todo)
        total = len(specs) * config.num_examples
        with Progress(total, "answer") as progress:
            records = evaluation.run(
                parallel=model.parallel,
                codec=model.codec,
                task=asked.task,
                plan=evaluation.Plan.of(config),
                todo=todo,
                num_examples=config.num_examples,
                directory=workdir,
                about=about,
                on_records=lambda new: progress.add([x["nfe"] for x in new]),
                on_known=lambda old: progress.add_known([x["nfe"] for x in old]),
            )
        results = evaluation.summaries(records, conditions(workdir))
        made = sweeps.points(curves, results)
        text = f"{sweeps.table(made)}\n\n{tables.conditions(results)}"
        sweeps.write_csv(workdir / "sweep.csv", made)
        (workdir / "sweep.md").write_text(f"{text}\n")
        figures.curves(
            workdir / "sweep.png",
            made,
            x="nfe",
            y="accuracy",
            x_label="mean number of forwards (NFE)",
            y_label="accuracy",
            title=f"{asked.task.name}, {config.num_examples} examples, cache "
            f"{cache}, 95 % intervals",
            is_log=True,
            front=sweeps.front(made),
        )
    print(text)
    print(f"Wrote {workdir / 'sweep.csv'} and {workdir / 'sweep.png'}")
    check_finite(records)


if __name__ == "__main__":
    _app.run(main)
