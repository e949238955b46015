"""Where texts end: a checkpoint's further stop tokens, and stop texts."""

import pathlib
from collections.abc import Sequence

from dlm_jax import files
from dlm_jax.errors import InputError
from dlm_jax.models.family import ModelConfig

# Files of a checkpoint whose `eos_token_id` is none, one or several.
_FILES = ("config.json", "generation_config.json")


def eos_ids(directory: pathlib.Path, config: ModelConfig) -> tuple[int, ...]:
    """The EOS ids that a checkpoint's config.json and generation_config.json name.

    Args:
      directory: of the checkpoint; either file may be missing.
      config: of its model.

    Raises:
      InputError: if a file is damaged, or names the mask token or what is no token of
        the model.
    """
    return tuple(
        token for name in _FILES for token in _eos_ids(directory / name, config)
    )


def _eos_ids(path: pathlib.Path, config: ModelConfig) -> list[int]:
    if not path.is_file():
        return []
    try:
        read = files.parse_json(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        problem = f"{error}{files.nature(path)}"
        raise InputError(f"{path} cannot be read: {problem}") from None
    if not isinstance(read, dict):
        raise InputError(f"{path} must hold a JSON object")
    found = read.get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    for token in ids:
        if type(token) is not int or not 0 <= token < config.embedding_size:
            raise InputError(
                f"{path}: eos_token_id ({found!r}) must be token ids from 0 to "
                f"{config.embedding_size - 1}"
            )
        if token == config.mask_token_id:
            # It would end every text at its first blank.
            raise InputError(
                f"{path}: eos_token_id ({found!r}) must not hold the mask token "
                f"({token})"
            )
    return ids


def cut(text: str, stops: Sequence[str]) -> str:
    """A text up to the earliest of some stop texts; whole if it has none of them."""
    places = [text.find(stop) for stop in stops]
    return text[: min((place for place in places if place >= 0), default=len(text))]
