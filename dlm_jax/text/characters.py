"""A tokenizer with one token per character, for small tasks."""

from collections.abc import Sequence
from typing import Any


def character_tokenizer(
    vocabulary: Sequence[str], *, bos: str, eos: str, mask: str
) -> Any:
    """A tokenizer with one token per character, for small tasks.

    Args:
      vocabulary: token ids are places in it; what is longer than one character is a
        special token. Other characters cannot be encoded.
      bos: the special token before a text; nothing adds it by itself.
      eos: the one that ends a text, and pads.
      mask: the one that marks a blank.

    Returns:
      A tokenizer of transformers; `save_pretrained` writes a checkpoint's files.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {token: i for i, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    named = {bos, eos, mask}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token=eos,
        mask_token=mask,
        extra_special_tokens=[t for t in vocabulary if len(t) > 1 and t not in named],
    )
