"""Trains a masked diffusion model on a task and writes it in Hugging Face format.

    python -m experiments.train --config=configs/train_sudoku.py --workdir=runs/sudoku

Started again with the same arguments, it continues from its newest checkpoint. The
result is WORKDIR/model: the averaged weights and config.json. `curve.jsonl` of each
stage holds the losses.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from flax import nnx

from dlm_jax import checkpoints, files, tasks, training
from dlm_jax.models.llada import LLaDA, deepen
from experiments import _app

_CONFIG = _app.define_config("configs/train_sudoku.py", "What to train, and on what.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of data, checkpoints, curve, result; default runs/TASK."
)


def main(argv: Sequence[str]) -> None:
    """Trains as the config says, and exports the result."""
    del argv
    config = _CONFIG.value
    task = tasks.trainable(config.task)
    workdir = Path(_WORKDIR.value or f"runs/{task.name}")
    files.check_output(workdir / "model")
    workdir.mkdir(parents=True, exist_ok=True)
    model = LLaDA(task.model_config(**config.model), rngs=nnx.Rngs(config.seed))
    for index, stage in enumerate(config.stages, start=1):
        print(f"Stage {index} of {len(config.stages)}: the data ...", flush=True)
        train = training.TrainConfig(**stage["train"])
        if stage.get("is_deepened"):
            model = deepen(model)
        data = {**config.data, **stage["data"]}
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
            },
            stop_at=stage["stop_at"],
        )
    tokenizer_files = task.tokenizer().save_pretrained(workdir / "tokenizer")
    checkpoints.save_hf(model, workdir / "model", tokenizer_files)
    print(f"Wrote {workdir / 'model'}")


if __name__ == "__main__":
    _app.run(main)
