"""What the scripts share that ask one task's examples of one model: their flags."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict

import dlm_jax as dlm
from dlm_jax import tasks, zoo
from dlm_jax.core.keys import check_seed
from dlm_jax.evaluation import provenance
from dlm_jax.tasks.base import check_codec
from experiments import _app


class Asked(NamedTuple):
    """What is to be asked of which model, and where the records are.

    Attributes:
      config: the config's values, where no flag set others.
      task: whose examples; with the lengths of the config, where it has some.
      checkpoint: the model's directory.
      workdir: of the records.
      dtype: of the weights; as stored, if None.
      devices_per_model: see `runner.load`.
    """

    config: ConfigDict
    task: tasks.Task
    checkpoint: pathlib.Path
    workdir: pathlib.Path
    dtype: str | None
    devices_per_model: int | None

    def load(self) -> tuple[dlm.Model, dict[str, Any]]:
        """The model, and what a manifest says of the checkpoint.

        Raises:
          InputError: as `dlm.load`, or if the model's tokenizer is not the task's.
        """
        model = dlm.load(self.checkpoint, self.dtype, self.devices_per_model)
        check_codec(self.task, model.codec)
        digest = provenance.digest(self.checkpoint)
        return model, {"checkpoint": digest, "dtype": str(model.dtype)}


def define_evaluation(
    name: str, help_: str, own: Sequence[flags.FlagHolder[Any]] = ()
) -> Callable[[], Asked]:
    """Defines the flags of a script that evaluates.

    Args:
      name: of the script, its config file and its directory in runs/.
      help_: what the config holds.
      own: the script's own flags that stand for fields of the config.

    Returns:
      What reads them.
    """
    config = _app.define_config(_app.CONFIGS / f"{name}.py", help_)
    task = flags.DEFINE_string(
        "task", "sudoku", "sudoku, maze, countdown, program, ..."
    )
    checkpoint = _app.define_path(
        "checkpoint", None, "Hugging Face or Orbax directory; default: the zoo's."
    )
    dtype = flags.DEFINE_enum(
        "dtype", None, ["bfloat16", "float32", "float64"], "Default: as stored."
    )
    sharing = _app.define_sharing()
    workdir = _app.define_path(
        "workdir", None, f"Directory of the records; default: runs/{name}/TASK."
    )
    overrides = [
        *own,
        flags.DEFINE_string("split", None, "Of the task's examples."),
        flags.DEFINE_integer("num_examples", None, "The first ones of the split."),
        flags.DEFINE_integer("example_seed", None, "Of examples that are drawn."),
        flags.DEFINE_integer(
            "gen_length", None, "Blanks of a continuation; default: the task's."
        ),
        flags.DEFINE_integer(
            "block_length", None, "Tokens per block; default: the task's."
        ),
        flags.DEFINE_float("temperature", None, "0 takes the most probable token."),
        flags.DEFINE_integer("batch_size", None, "Rows in flight at once."),
        flags.DEFINE_integer("queue_length", None, "Rows of one call."),
    ]

    def read() -> Asked:
        asked = _app.merged(config, overrides)
        check_seed(asked.example_seed, "example_seed")
        # The lengths are checked here, before the weights are loaded.
        chosen = tasks.get(task.value).with_lengths(
            asked.get("gen_length"), asked.get("block_length")
        )
        return Asked(
            config=asked,
            task=chosen,
            checkpoint=pathlib.Path(checkpoint.value or zoo.path(chosen.name)),
            workdir=pathlib.Path(workdir.value or f"runs/{name}/{chosen.name}"),
            dtype=dtype.value,
            devices_per_model=sharing.value,
        )

    return read
