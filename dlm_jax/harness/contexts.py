"""Contexts of requests: conversations as text, and whether a context leaves room."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dlm_jax.errors import InputError
from dlm_jax.text import templates
from dlm_jax.text.codec import Codec


def conversation(
    tokenizer: Any,
    messages: templates.Messages,
    template: str | None,
    opens_answer: bool,
) -> str:
    """A conversation in a chat template; arguments as of `templates.write`.

    Raises:
      InputError: if the template refuses it.
    """
    templates.check(tokenizer, template)
    try:
        return templates.write(tokenizer, messages, template, opens_answer)
    except Exception as error:  # whatever the checkpoint's template raises
        roles = ", ".join(message["role"] for message in messages)
        raise InputError(
            f"the chat template refuses a conversation ({roles}): {error}"
        ) from None


def fit(
    what: str, tokens: Sequence[int], room: int, codec: Codec, truncate: bool
) -> np.ndarray:
    """Checks that a context leaves room in the model's.

    Args:
      what: names the request in an error.
      tokens: ids of the context.
      room: tokens that follow it.
      codec: of the model.
      truncate: cut the front of a context that is too long, instead of refusing it.

    Returns:
      int32 [n]; the context, or its end.

    Raises:
      InputError: if it leaves too little room, or holds the mask token.
    """
    left = codec.max_length - room
    if truncate and 0 < left < len(tokens):
        tokens = tokens[-left:]
    if len(tokens) > left:
        raise InputError(
            f"{what}: a context of {len(tokens)} tokens and {room} more exceed the "
            f"model's context ({codec.max_length})"
            + ("" if truncate else "; truncate=true cuts its front")
        )
    if codec.mask_id in tokens:
        raise InputError(
            f"{what}: the context holds the mask token ({codec.mask_text})"
        )
    return np.asarray(tokens, np.int32)
