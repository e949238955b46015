"""Small trained checkpoints in Hugging Face format, with their model cards."""

import pathlib

from dlm_jax.errors import InputError

_ROOT = pathlib.Path(__file__).parent


def path(name: str) -> pathlib.Path:
    """Finds a shipped checkpoint.

    Args:
      name: of its directory, such as "sudoku".

    Returns:
      The directory, for `dlm_jax.load`.

    Raises:
      InputError: for an unknown name, with the known ones.
    """
    known = sorted(config.parent.name for config in _ROOT.glob("*/config.json"))
    if name not in known:
        raise InputError(
            f"zoo has no model {name}; it has {', '.join(known)}; give a checkpoint"
        )
    return _ROOT / name
