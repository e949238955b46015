"""A small checkpoint that chats: random weights, all of ASCII, LLaDA's template."""

import dataclasses
import string

import jax
import jax.numpy as jnp
from chat_tokenizer import BOS, CONFIG, EOS, EOT, HEADER, HEADER_END, MASK, TEMPLATE
from flax import nnx

from dlm_jax import checkpoints
from dlm_jax.models.llada import LLaDA
from dlm_jax.text.characters import character_tokenizer

VOCABULARY = (BOS, EOS, MASK, HEADER, HEADER_END, EOT, *string.printable)


def make_chat_checkpoint(directory, max_length=512):
    """Writes the checkpoint to DIRECTORY/model, and returns that path.

    Its confidences spread over (0, 1), so that samplers differ.
    """
    tokenizer = character_tokenizer(VOCABULARY, bos=BOS, eos=EOS, mask=MASK)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(directory / "tokenizer")
    config = dataclasses.replace(
        CONFIG,
        vocab_size=len(VOCABULARY),
        embedding_size=len(VOCABULARY),
        max_sequence_length=max_length,
        mask_token_id=VOCABULARY.index(MASK),
        eos_token_id=VOCABULARY.index(EOS),
        pad_token_id=VOCABULARY.index(EOS),
    )
    graph, params = nnx.split(LLaDA(config, rngs=nnx.Rngs(0)))
    model = nnx.merge(graph, jax.tree.map(lambda weight: 8 * weight, params))
    files = checkpoints.companions(directory / "tokenizer")
    checkpoints.save_hf(model, directory / "model", files)
    return directory / "model"


def break_letter(checkpoint, directory, letter):
    """Writes a checkpoint of `make_chat_checkpoint` that gives NaN where a letter is.

    Returns:
      The directory.
    """
    model = checkpoints.load(checkpoint)
    weight = model.wte[...]
    model.wte[...] = weight.at[VOCABULARY.index(letter)].set(jnp.nan)
    checkpoints.save_hf(model, directory, checkpoints.companions(checkpoint))
    return directory
