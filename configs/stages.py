"""What most stages of a training have in common."""

from collections.abc import Mapping
from typing import Any


def stage(
    data: Mapping[str, Any] | None = None,
    *,
    learning_rate: float = 2e-3,
    warmup_steps: int = 50,
    ema_decay: float = 0.995,
    **train: Any,
) -> dict[str, Any]:
    """A stage as `experiments.train` takes it, which is run to its end.

    Args:
      data: what it changes of the config's own `data`.
      learning_rate: the highest.
      warmup_steps: until it is reached.
      ema_decay: of the averaged weights.
      train: other fields of `training.TrainConfig`.
    """
    rates = {"learning_rate": learning_rate, "warmup_steps": warmup_steps}
    train = {**train, **rates, "ema_decay": ema_decay}
    return {"data": dict(data or {}), "stop_at": None, "train": train}
