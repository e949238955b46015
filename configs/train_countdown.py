"""Trains the countdown model shipped in dlm_jax/zoo/countdown.

python -m experiments.train --config=configs/train_countdown.py --workdir=runs/countdown

Expected: loss 0.29, 0.13, 0.17, 0.10, 0.14, 0.10, 0.17, 0.13, 0.15, 0.10 and 0.09 at
the ends of the stages, 80 minutes on one core at 3.0 steps a second; 65 % of 1,000
validation puzzles are then solved, one token a step.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.stages import stage


def get_config() -> ConfigDict:
    """The run that made the shipped model."""
    return ConfigDict(
        {
            "task": "countdown",
            "seed": 0,
            "batch_size": 128,
            "model": {
                "d_model": 128,
                "n_heads": 4,
                "n_layers": 6,
                "mlp_hidden_size": 352,
            },
            "data": {"seed": 1},
            "stages": (
                stage(
                    {"largest_given": 30},
                    num_steps=1600,
                    warmup_steps=100,
                    # The average over more steps would remember too early ones.
                    ema_decay=0.998,
                    # Rows with few masks are learned by then.
                    focus_step=700,
                    focus_power=3.0,
                    checkpoint_every=250,
                ),
                # Few masks: what is left to learn in such rows is arithmetic, whose
                # gradients drown in those of rows that could be anything.
                _stage(700, seed=1, focus_power=0.4),
                _stage(1000, seed=2, learning_rate=1.5e-3),
                _stage(800, seed=3, focus_power=0.5),
                _stage(1000, seed=4, learning_rate=1.5e-3),
                # Products are a third of what is drawn, but most of what is wrong.
                _stage(1200, (1.0, 1.0, 4.0, 4.0), seed=5, focus_power=0.5),
                # Arithmetic is correct by then. What is wrong is the choice of the
                # operations, which is to be made while all is masked.
                _stage(2000, (1.0, 1.0, 2.0, 2.0), seed=6, focus_power=3.0),
                _stage(1200, seed=7, focus_power=3.0),
                _stage(1300, (1.0, 1.0, 2.5, 4.0), seed=8, focus_power=3.0),
                _stage(1500, seed=9, focus_power=3.0),
                # The same again: the loss still fell when the rate ran out.
                _stage(2000, seed=10, focus_power=3.0),
            ),
        }
    )


def _stage(
    num_steps: int, operator_weights: tuple[float, ...] | None = None, **train: Any
) -> dict[str, Any]:
    data = {"operator_weights": operator_weights} if operator_weights else None
    return stage(data, num_steps=num_steps, checkpoint_every=100, **train)
