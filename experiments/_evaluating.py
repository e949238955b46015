"""Flags shared by the scripts that evaluate one model on one task."""

import contextlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict

import dlm_jax as dlm
from dlm_jax import files, tasks, zoo
from dlm_jax.core.keys import check_seed
from dlm_jax.evaluation import provenance
from dlm_jax.evaluation import run as evaluation
from dlm_jax.evaluation.records import check_directory
from dlm_jax.model import load_weights
from dlm_jax.outline import read_outline
from dlm_jax.tasks.base import check_codec
from experiments import _app

# Examples of a split that are asked where nobody says how many.
_MOST = 1000


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

    def load(self, todo: Sequence[evaluation.Lane]) -> tuple[dlm.Model, dict[str, Any]]:
        """The model, and what a manifest says of the checkpoint.

        Everything that can be checked is, before a weight is read.

        Args:
          todo: what will be asked of it.

        Raises:
          InputError: naming what does not fit, or as `dlm.load`.
        """
        outline = read_outline(self.checkpoint)
        check_codec(self.task, outline.codec)
        ready = evaluation.check(
            denoiser=outline.denoiser,
            codec=outline.codec,
            task=self.task,
            plan=evaluation.Plan.of(self.config),
            todo=todo,
            num_examples=self.config.num_examples,
        )
        identity: dict[str, Any] = ready.identity
        if self.dtype:
            identity["dtype"] = self.dtype
        check_directory(self.workdir, identity)
        digest = provenance.digest(self.checkpoint)
        check_directory(self.workdir, {"checkpoint": digest})
        model = load_weights(outline, self.dtype, self.devices_per_model)
        return model, {"checkpoint": digest, "dtype": str(model.dtype)}

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Keeps other processes from writing to the work directory.

        Raises:
          InputError: if one does, or it cannot be written.
        """
        return files.locked(self.workdir, is_directory=True, name="workdir")


def define_evaluation(
    name: str, help_: str, own: Sequence[flags.FlagHolder[Any]] = ()
) -> Callable[[], Asked]:
    """Defines the flags of a script that evaluates.

    Args:
      name: of the script, its config file and its directory in runs/.
      help_: what the config holds.
      own: the script's own flags that override fields of the config.

    Returns:
      What reads them.
    """
    config = _app.define_config(_app.CONFIGS / f"{name}.py", help_)
    checkpoint = _app.define_path(
        "checkpoint",
        None,
        "Model directory, Hugging Face or Orbax; default: the task's shipped model.",
    )
    dtype = flags.DEFINE_enum(
        "dtype",
        None,
        ["bfloat16", "float32", "float64"],
        "Dtype of the weights; default: as stored.",
    )
    sharing = _app.define_sharing()
    workdir = _app.define_path(
        "workdir", None, f"Directory of the records; default: runs/{name}/TASK."
    )
    overrides = [
        *own,
        flags.DEFINE_string(
            "task", None, f"Task to solve, one of {', '.join(tasks.TASKS)}."
        ),
        _app.define_path(
            "data",
            None,
            "Problems of a published task: a file, a directory, or hub:NAME.",
        ),
        flags.DEFINE_string(
            "prompt_style",
            None,
            "Prompt style of a published task, such as opencompass.",
        ),
        flags.DEFINE_bool(
            "chat",
            None,
            "Put prompts into the chat template; default: as the prompt style says, or "
            "if the tokenizer has one.",
        ),
        flags.DEFINE_string("split", None, "Split that the examples are taken from."),
        flags.DEFINE_integer(
            "num_examples",
            None,
            f"Number of examples: the first ones of the split; default: {_MOST}, or "
            "all where there are fewer.",
        ),
        flags.DEFINE_integer(
            "example_seed", None, "Seed of the examples, for tasks that draw them."
        ),
        flags.DEFINE_integer(
            "gen_length",
            None,
            "Tokens to generate after each prompt; default: the task's.",
        ),
        flags.DEFINE_integer(
            "block_length", None, "Tokens per block; default: the task's."
        ),
        *_app.define_drawing(has_seed=False),
        flags.DEFINE_integer(
            "batch_size", None, "Rows in flight at once, over all devices."
        ),
        flags.DEFINE_integer(
            "queue_length",
            None,
            "Rows per call of the compiled loop, waiting ones included.",
        ),
    ]

    def read() -> Asked:
        asked = _app.merged(config, overrides)
        check_seed(asked.example_seed, "example_seed")
        chosen = tasks.get(asked.get("task") or "sudoku")
        if asked.get("prompt_style"):
            chosen = chosen.with_style(asked.prompt_style)
        if asked.get("chat") is not None:
            chosen = chosen.with_chat(asked.chat)
        if asked.get("data"):
            chosen = chosen.with_data(asked.data)
        chosen = chosen.with_lengths(asked.get("gen_length"), asked.get("block_length"))
        if asked.split is None:
            # Not the test examples, where a task has others.
            with asked.unlocked():
                splits = chosen.splits
                asked.split = "valid" if "valid" in splits else splits[0]
        if asked.get("num_examples") is None:
            with asked.unlocked():
                size = chosen.size(asked.split)
                asked.num_examples = _MOST if size is None else min(_MOST, size)
        return Asked(
            config=asked,
            task=chosen,
            checkpoint=pathlib.Path(checkpoint.value or zoo.path(chosen.name)),
            workdir=pathlib.Path(workdir.value or f"runs/{name}/{chosen.name}"),
            dtype=dtype.value,
            devices_per_model=sharing.value,
        )

    return read
