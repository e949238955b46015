r"""Trains a masked diffusion model on a task and writes it in Hugging Face format.

    python -m experiments.train --config=configs/train_sudoku.py --workdir=runs/sudoku

The same command continues a stopped training from its newest checkpoint. The result is
WORKDIR/model: the averaged weights and config.json. `curve.jsonl` of each stage holds
the losses.

If WORKDIR is lost, but the model after some stages is kept, train the later stages:

    python -m experiments.train --config=configs/train_sudoku.py \
        --from_model=DIR --from_stage=2
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from dlm_jax import checkpoints, files, tasks
from dlm_jax.core.keys import check_seed
from dlm_jax.errors import InputError
from dlm_jax.evaluation import provenance
from dlm_jax.models import registry
from dlm_jax.models.family import Module
from dlm_jax.tasks.base import Trainable
from dlm_jax.training import loop as training
from experiments import _app

_CONFIG = _app.define_config(
    _app.CONFIGS / "train_sudoku.py", "Config file: the task, the model and the stages."
)
_WORKDIR = _app.define_path(
    "workdir",
    None,
    "Directory of data, checkpoints, losses and result; default: runs/TASK.",
)
_FROM_MODEL = _app.define_path(
    "from_model", None, "Model that the stages before --from_stage made."
)
_FROM_STAGE = flags.DEFINE_integer(
    "from_stage",
    None,
    "Number of the first stage to train, from 1; needs --from_model.",
)


def main(argv: Sequence[str]) -> None:
    """Trains as the config says, and exports the result."""
    del argv
    config = _CONFIG.value
    task = tasks.trainable(config.task)
    # All stages are checked before the first one takes its time.
    check_seed(config.seed)
    schedules = [training.TrainConfig(**stage["train"]) for stage in config.stages]
    contents = [{**config.data, **stage["data"]} for stage in config.stages]
    for data in contents:
        check_seed(data.get("seed", 0), "data.seed")
    workdir = Path(_WORKDIR.value or f"runs/{task.name}")
    files.check_output(workdir / "model")
    with files.locked(workdir, is_directory=True, name="workdir"):
        model, first = _start(config, task)
        begun = {"seed": config.seed}
        if _FROM_MODEL.value:
            begun = {"model": provenance.digest(_FROM_MODEL.value), "stage": first}
        stages = zip(config.stages, schedules, contents, strict=True)
        for index, (stage, train, data) in enumerate(stages, start=1):
            if index < first:
                continue
            print(
                f"Stage {index} of {len(config.stages)}: preparing data ...", flush=True
            )
            if stage.get("is_deepened"):
                model = registry.deepen(model)
            batch_at = task.training_batches(
                data,
                batch_size=config.batch_size,
                seed=train.seed,
                workdir=workdir,
            )
            model = training.train(
                model,
                batch_at,
                train,
                workdir / f"stage_{index}",
                mask_id=model.config.mask_token_id,
                made_by={
                    "task": task.name,
                    "data": data,
                    "model": dataclasses.asdict(model.config),
                    "begun": begun,
                },
                stop_at=stage["stop_at"],
            )
        tokenizer_files = task.tokenizer().save_pretrained(workdir / "tokenizer")
        checkpoints.save_hf(model, workdir / "model", tokenizer_files)
        print(f"Wrote {workdir / 'model'}")


def _start(config: ConfigDict, task: Trainable) -> tuple[Module, int]:
    """The model to begin with, and the number of the first stage."""
    source, first = _FROM_MODEL.value, _FROM_STAGE.value
    shape = task.model_config(**config.model)
    if source is None and first is None:
        return registry.init(shape, config.seed), 1
    if source is None or first is None:
        raise InputError("from_model and from_stage must be given together")
    if not 1 <= first <= len(config.stages):
        raise InputError(
            f"from_stage ({first}) must be one of the config's {len(config.stages)} "
            "stages"
        )
    model = checkpoints.load(source, "float32")
    # Stages may have deepened it; nothing else changes from one to the next.
    if dataclasses.replace(shape, n_layers=model.config.n_layers) != model.config:
        raise InputError(f"from_model ({source}) is no model of this config")
    return model, first


if __name__ == "__main__":
    _app.run(main)
