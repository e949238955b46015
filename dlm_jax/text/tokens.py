"""Token ids of texts, and errors of the tokenizers."""

import re
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
      InputError: for a character that the tokenizer does not know, which is named.
    """
    try:
        found = tokenizer(text, add_special_tokens=add_special_tokens)
    except BaseException as error:
        if not is_refusal(error):
            raise
        reason = _why_unknown(tokenizer, text) or str(error)
        raise InputError(
            f"{what} cannot be written in the tokenizer's vocabulary: {reason}"
        ) from None
    return np.asarray(found["input_ids"], np.int32)


def _why_unknown(tokenizer: Any, text: str) -> str:
    """What of a refused text has no token, and what has; empty if that is not found."""
    # The tokenizer looks for its special tokens before it splits what is left.
    special = tokenizer.get_added_vocab()
    parts = re.split("|".join(map(re.escape, special)), text) if special else [text]
    split = tokenizer.backend_tokenizer.pre_tokenizer
    if split is None:
        return ""
    found = (piece for part in parts for piece, _ in split.pre_tokenize_str(part))
    try:
        unknown = next((x for x in found if not _is_known(tokenizer, x)), None)
    except BaseException as error:
        if not is_refusal(error):
            raise
        return ""  # It cannot be split: no text, or a half of a UTF-16 pair in it.
    if unknown is None:
        return ""
    reason = f"it has no {unknown!r}"
    plain = sorted(tokenizer.get_vocab().keys() - special.keys())
    # Only a vocabulary of characters is short, and says what a text may hold.
    if all(len(token) == 1 for token in plain):
        reason += f"; it takes the characters {''.join(plain)!r}"
    if tokenizer.mask_token:
        mask = tokenizer.mask_token
        reason += f"; a blank to infill is written {mask} (model.mask_text)"
    return reason


def _is_known(tokenizer: Any, piece: str) -> bool:
    """Whether the tokenizer has tokens for a piece of a text."""
    try:
        tokenizer(piece, add_special_tokens=False)
    except BaseException as error:
        if not is_refusal(error):
            raise
        return False
    return True


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
