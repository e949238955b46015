"""Token ids of texts, and errors of the tokenizers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32

from dlm_jax.errors import InputError

# An array where there may be none.
Tokens = Sequence[int] | np.ndarray


def is_refusal(error: BaseException) -> bool:
    """Whether the Rust tokenizers raised it, about a file or a text.

    They raise plain Exception. Where they panic, they raise a BaseException of their
    own.
    """
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def encode_text(
    tokenizer: Any, text: str, what: str, add_special_tokens: bool = True
) -> Int32[np.ndarray, "n"]:
    """The token ids of a text, exactly as it is.

    Args:
      tokenizer: a tokenizer of transformers.
      text: to be encoded.
      what: names the text in an error.
      add_special_tokens: let the tokenizer add its own.

    Raises:
      InputError: for a character that the tokenizer does not know.
    """
    try:
        found = tokenizer(text, add_special_tokens=add_special_tokens)
    except BaseException as error:
        if not is_refusal(error):
            raise
        raise InputError(
            f"{what} cannot be written in the tokenizer's vocabulary: {error}"
        ) from None
    return np.asarray(found["input_ids"], np.int32)


def is_tokens(prompt: Any) -> bool:
    """Whether it is token ids, and no text, conversation or list of any of these."""
    if isinstance(prompt, np.ndarray):
        return prompt.ndim == 1 and prompt.dtype.kind in "iu"
    is_list = isinstance(prompt, Sequence) and not isinstance(prompt, str)
    return is_list and len(prompt) > 0 and isinstance(prompt[0], (int, np.integer))


def token_ids(index: int, tokens: Any, kind: str) -> Int32[np.ndarray, "n"]:
    """Token ids as an array; the model says later which it has.

    Raises:
      InputError: if they are not token ids.
    """
    found = np.asarray(tokens)
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
        raise InputError(f"{kind} {index} ({tokens!r}) must be a text or token ids")
    if (abs(found) > np.iinfo(np.int32).max).any():
        raise InputError(f"{kind} {index} must be token ids of 32 bits")
    return found.astype(np.int32)
