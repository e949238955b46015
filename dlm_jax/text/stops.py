"""Where texts end: a checkpoint's further stop tokens, and stop texts."""

import pathlib
from collections.abc import Sequence

from dlm_jax import files
from dlm_jax.errors import InputError
from dlm_jax.models.family import ModelConfig


def generation_eos(directory: pathlib.Path, config: ModelConfig) -> tuple[int, ...]:
    """The EOS ids of a checkpoint's generation_config.json: none, one or several.

    Raises:
      InputError: if the file is damaged or names what is no token of the model.
    """
    path = directory / "generation_config.json"
    if not path.is_file():
        return ()
    try:
        read = files.parse_json(path.read_text(encoding="utf-8"))
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
    return tuple(ids)


def cut(text: str, stops: Sequence[str]) -> str:
    """A text up to the earliest of some stop texts; whole if it has none of them."""
    places = [text.find(stop) for stop in stops]
    return text[: min((place for place in places if place >= 0), default=len(text))]
