"""Flags shared by the scripts that write the reports on papers."""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from dlm_jax import tasks, zoo
from dlm_jax.core.keys import check_seed
from experiments import _app


class Report(NamedTuple):
    """What a report is to be made of, and where.

    Attributes:
      tasks: that were asked for, or the config's.
      checkpoints: of them.
      workdir: of the records.
      output: the Markdown file.
    """

    tasks: list[tasks.Task]
    checkpoints: list[pathlib.Path]
    workdir: pathlib.Path
    output: pathlib.Path


def define_report(
    name: str, stem: str, help_: str
) -> Callable[[], tuple[ConfigDict, Report]]:
    """Defines the flags of a script that measures, and writes a report.

    Args:
      name: of the script.
      stem: of the report, and of its directory in experiments/studies.
      help_: what the config holds.

    Returns:
      What reads them. Of the config, `tasks` are those measured by default, and
      `quick` what differs in a quick report, unless the command line sets it.
    """
    directory = f"experiments/studies/{stem}"
    config = _app.define_config(_app.STUDIES / stem / "config.py", help_)
    is_quick = flags.DEFINE_bool(
        "quick", False, "Measure fewer examples, and write to other files."
    )
    names = flags.DEFINE_list("tasks", None, "Tasks to measure; default: the config's.")
    root = _app.define_path(
        "checkpoints",
        None,
        "Directory with one checkpoint per task; default: the shipped ones.",
    )
    workdir = _app.define_path(
        "workdir",
        None,
        f"Directory of the records; default: runs/{name}, with --quick {name}_quick.",
    )
    output = _app.define_path(
        "output",
        None,
        "Report to write, with figures beside it; replaces older ones. Default: "
        f"{directory}/{stem}.md, with --quick {stem}_quick.md.",
    )

    def read() -> tuple[ConfigDict, Report]:
        asked = config.value
        suffix = "_quick" if is_quick.value else ""
        if is_quick.value:
            given = config_flags.get_override_values(flags.FLAGS["config"])
            asked.update(asked.quick)
            asked.update_from_flattened_dict(given)
        for seed in ("seed", "example_seed"):
            check_seed(asked[seed], seed)
        chosen = [tasks.get(task) for task in names.value or asked.tasks]
        own = root.value
        return asked, Report(
            tasks=chosen,
            checkpoints=[
                pathlib.Path(own, t.name) if own else zoo.path(t.name) for t in chosen
            ],
            workdir=pathlib.Path(workdir.value or f"runs/{name}{suffix}"),
            output=pathlib.Path(output.value or f"{directory}/{stem}{suffix}.md"),
        )

    return read
