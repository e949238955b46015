r"""Merges the files that several processes wrote into one file.

    python -m experiments.merge --output=answers.jsonl

reads answers.jsonl.00000-of-00004 and so on, and writes answers.jsonl.
"""

from collections.abc import Sequence

from dlm_jax.devices import hosts
from dlm_jax.evaluation.records import check_finite
from experiments import _app

_OUTPUT = _app.define_path(
    "output",
    None,
    "File to write: the --output that the processes were given.",
    required=True,
)


def main(argv: Sequence[str]) -> None:
    """Merges, and says how much, and whether the model gave NaN for some."""
    del argv
    records = hosts.merge(_OUTPUT.value)
    print(f"Wrote {_OUTPUT.value}: {len(records)} records")
    check_finite(records)


if __name__ == "__main__":
    _app.run(main)
