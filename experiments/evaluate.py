r"""Asks a model a task's examples with one or more samplers, and judges the answers.

    python -m experiments.evaluate --task=sudoku --workdir=runs/evaluate/sudoku
    python -m experiments.evaluate --task=humaneval --checkpoint=LLaDA-8B-Instruct \
        --split=test --num_examples=164 --sampler=saber --workdir=runs/humaneval

WORKDIR gets manifest.json and records.jsonl, a line per example. Started again with the
same arguments it goes on where it was stopped; more samplers, seeds or examples may be
added. NFE is the number of forwards that an example took part in. If several commits
made the records, they are named below the tables.
"""

from collections.abc import Sequence
from typing import Any

from absl import flags
from tqdm import tqdm

from dlm_jax import (
    evaluation,
    evaluation_files,
    provenance,
    samplers,
    tables,
    tasks,
    zoo,
)
from experiments import _app

_CONFIG = _app.define_config("configs/evaluate.py", "Defaults.")
_TASK = flags.DEFINE_string("task", "sudoku", "sudoku, maze, countdown, program, ...")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Hugging Face or Orbax directory; default: the shipped model."
)
_DTYPE = flags.DEFINE_enum(
    "dtype", None, ["bfloat16", "float32"], "Default: as stored."
)
_SHARING = _app.define_sharing()
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of the records; default: runs/evaluate/TASK."
)
_OVERRIDES = [
    flags.DEFINE_multi_string("sampler", None, "As saber(n=2, mu=8); may be repeated."),
    flags.DEFINE_multi_integer("seeds", None, "Of the random keys; may be repeated."),
    flags.DEFINE_string("split", None, "Of the task's examples."),
    flags.DEFINE_integer("num_examples", None, "The first ones of the split."),
    flags.DEFINE_integer("example_seed", None, "Of examples that are drawn."),
    flags.DEFINE_float("temperature", None, "0 takes the most probable token."),
    flags.DEFINE_integer("batch_size", None, "Examples in flight at once."),
    flags.DEFINE_integer("queue_length", None, "Examples of one call."),
]


def main(argv: Sequence[str]) -> None:
    """Evaluates, and prints the tables of what was asked for."""
    del argv
    config = _CONFIG.value
    config.update({f.name: f.value for f in _OVERRIDES if f.value is not None})
    task = tasks.get(_TASK.value)
    workdir = _WORKDIR.value or f"runs/evaluate/{task.name}"
    todo = evaluation.lanes(config.sampler, config.seeds, is_mixed=False)
    checkpoint = _CHECKPOINT.value or zoo.path(task.name)
    model, codec = evaluation.load(task, checkpoint, _DTYPE.value, _SHARING.value)
    about = {
        "checkpoint": provenance.digest(checkpoint),
        "dtype": str(model.dtype),
    }

    done: dict[tuple[str, int], list[bool]] = {}
    total = len(todo) * config.num_examples
    with tqdm(total=total, unit="example", disable=None) as progress:

        def show(records: list[dict[str, Any]]) -> None:
            # A lane is of one sampler and one seed.
            spec, seed = records[0]["sampler"], records[0]["seed"]
            own = done.setdefault((spec, seed), [])
            own += [record["is_correct"] for record in records]
            progress.set_description(samplers.short_spec(spec))
            progress.set_postfix(seed=seed, right=f"{sum(own) / len(own):.1%}")
            progress.update(len(records))

        records = evaluation.run(
            *(model.parallel, codec, task, evaluation.Plan.of(config), todo),
            *(config.num_examples, workdir),
            about=about,
            on_records=show,
        )
    results = evaluation.summaries(records)
    print(tables.accuracy(results))
    if len(results) > 1:
        print(f"\n{tables.paired(results)}")
    commits = evaluation_files.commits(workdir)
    if len(commits) > 1:
        names = ", ".join(map(provenance.short_commit, commits))
        print(f"\nThe records of {workdir} are of {len(commits)} commits: {names}.")


if __name__ == "__main__":
    _app.run(main)
