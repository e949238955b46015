r"""Evaluates one or more samplers on a task's examples.

    python -m experiments.evaluate --task=sudoku --workdir=runs/evaluate/sudoku
    python -m experiments.evaluate --task=humaneval --checkpoint=LLaDA-8B-Instruct \
        --split=test --num_examples=164 --sampler=saber --workdir=runs/humaneval
    python -m experiments.evaluate --checkpoint=LLaDA-8B-Instruct --data=GSM8K \
        --config=configs/published/llada_8b_instruct_gsm8k_256_8.py

Writes manifest.json and records.jsonl, a line per answer, into --workdir. The same
command continues a run that was stopped; samplers, seeds or examples may be added, and
--batch_size and --queue_length may differ. NFE is the number of forwards that an
example took part in. If several commits made the records, the output names them.
"""

from collections.abc import Sequence
from typing import Any

from absl import flags

from dlm_jax import samplers
from dlm_jax.evaluation import provenance, tables
from dlm_jax.evaluation import records as evaluation_files
from dlm_jax.evaluation import run as evaluation
from experiments import _app, _evaluating
from experiments._progress import Progress

_READ = _evaluating.define_evaluation(
    "evaluate",
    "Config file with the defaults of the other flags.",
    (
        flags.DEFINE_multi_string(
            "sampler", None, "Sampler spec, such as saber(n=2, mu=8)"
        ),
        flags.DEFINE_multi_string(
            "cache",
            None,
            "Cache plan, such as none or dual(refresh_every=8)",
        ),
        flags.DEFINE_multi_integer("seeds", None, "Seed of the random draws"),
    ),
)


def main(argv: Sequence[str]) -> None:
    """Evaluates, and prints the tables of what was asked for."""
    del argv
    asked = _READ()
    config = asked.config
    todo = evaluation.lanes(
        config.sampler,
        config.seeds,
        is_mixed=False,
        plans=config.get("cache") or ("none",),
    )
    with asked.locked(), _app.kept_rows():
        records = _records(asked, todo)
    conditions = evaluation_files.conditions(asked.workdir)
    results = evaluation.summaries(records, conditions)
    print(f"{tables.accuracy(results)}\n\n{tables.conditions(results)}")
    if len(results) > 1:
        print(f"\n{tables.paired(results)}")
    commits = evaluation_files.commits(asked.workdir)
    if len(commits) > 1:
        names = ", ".join(map(provenance.short_commit, commits))
        where = asked.workdir
        print(f"\nThe records of {where} come from {len(commits)} commits: {names}.")
    evaluation_files.check_finite(records)


def _records(
    asked: _evaluating.Asked, todo: list[evaluation.Lane]
) -> list[dict[str, Any]]:
    """Asks what the directory does not hold yet, and shows how far it is."""
    config = asked.config
    model, about = asked.load(todo)
    done: dict[tuple[str, str, int], list[bool]] = {}
    total = len(todo) * config.num_examples
    with Progress(total, "answer") as progress:

        def shown(records: list[dict[str, Any]]) -> dict[str, Any]:
            # A lane is of one sampler, one cache and one seed.
            key = evaluation_files.key(records[0])
            spec, cache, seed = key.sampler, key.cache, key.seed
            own = done.setdefault((spec, cache, seed), [])
            own += [record["is_correct"] for record in records]
            name = samplers.short_spec(spec)
            if cache != "none":
                name += f", cache {cache}"
            progress.describe(name)
            return {"seed": seed, "correct": f"{sum(own) / len(own):.1%}"}

        def nfe(records: list[dict[str, Any]]) -> list[int]:
            return [record["nfe"] for record in records]

        return evaluation.run(
            parallel=model.parallel,
            codec=model.codec,
            task=asked.task,
            plan=evaluation.Plan.of(config),
            todo=todo,
            num_examples=config.num_examples,
            directory=asked.workdir,
            about=about,
            on_records=lambda new: progress.add(nfe(new), **shown(new)),
            on_known=lambda old: progress.add_known(nfe(old), **shown(old)),
        )


if __name__ == "__main__":
    _app.run(main)
