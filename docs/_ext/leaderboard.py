"""The directive `leaderboard`: measured results of samplers, as a table.

    ```{leaderboard} saber saber(n=1)
    ```

The numbers come from experiments/studies/leaderboard/leaderboard.csv whenever the site
is built, so that no page holds a copy of them. The first line of every task is one
token at a time.
"""

import pathlib
import re
from typing import Any

import numpy as np
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from dlm_jax import samplers
from dlm_jax.evaluation.stats import accuracy_interval
from experiments.studies.leaderboard import board

FILE = pathlib.Path(board.__file__).with_name("leaderboard.csv")
BASELINE = "low_confidence"
HEADINGS = (
    *("task", "sampler", "correct", "accuracy", "95 % interval", "mean forwards"),
    "tokens per forward",
)


def cells(specs: list[str]) -> list[tuple[str, ...]]:
    """The rows of the table for some samplers, the baseline first in each task.

    Args:
      specs: the samplers, in any spelling.

    Raises:
      LookupError: for a sampler that the leaderboard does not have.
    """
    entries = {(entry.task, entry.sampler): entry for entry in board.read(FILE)}
    names = dict.fromkeys(map(samplers.canonical_spec, (BASELINE, *specs)))
    rows = []
    for task in sorted({task for task, _ in entries}):
        for name in names:
            if (task, name) not in entries:
                raise LookupError(f"the leaderboard has no {name} on {task}")
            entry = entries[task, name]
            num = entry.setting.num_examples
            low, high = accuracy_interval(np.arange(num)[None] < entry.correct)
            rows.append(
                (
                    task,
                    samplers.short_spec(name),
                    f"{entry.correct} of {num}",
                    f"{entry.correct / num:.1%}",
                    f"{low:.1%} to {high:.1%}",
                    f"{entry.nfe:.2f}",
                    f"{board.tokens_per_forward(entry):.2f}",
                )
            )
    return rows


class Leaderboard(SphinxDirective):
    """Writes the table; its argument is a list of specs."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Builds the table's nodes."""
        # Specs are separated by spaces, their fields by commas.
        specs = re.findall(r"\w+(?:\(.*?\)+)?", self.arguments[0])
        table = nodes.table(classes=["docutils"])
        group = nodes.tgroup(cols=len(HEADINGS))
        group += [nodes.colspec(colwidth=1) for _ in HEADINGS]
        group += nodes.thead("", _row(HEADINGS))
        group += nodes.tbody("", *(_row(row, code_column=1) for row in cells(specs)))
        table += group
        return [table]


def _row(texts: tuple[str, ...], code_column: int | None = None) -> nodes.row:
    row = nodes.row()
    for column, text in enumerate(texts):
        kind = nodes.literal if column == code_column else nodes.inline
        row += nodes.entry("", nodes.paragraph("", "", kind(text, text)))
    return row


def setup(app: Any) -> dict[str, bool]:
    """Registers the directive."""
    app.add_directive("leaderboard", Leaderboard)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
