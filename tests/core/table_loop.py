"""The loop on a table of logits, for several tests."""

import jax
import numpy as np
from helpers import TableDenoiser

from dlm_jax import samplers
from dlm_jax.core import loop
from dlm_jax.core.keys import row_keys

VOCAB, MASK, EOS = 12, 11, 1
DENOISER = TableDenoiser(mask_id=MASK, eos_id=EOS)


def table(length, seed=0):
    """Random logits for every position."""
    return jax.random.normal(jax.random.key(seed), (length, VOCAB)) * 2


def run(spec, prompts, options, params=None, denoiser=DENOISER, seed=0):
    if params is None:
        params = table(prompts.tokens.shape[1])
    keys = row_keys(seed, np.arange(len(prompts.tokens)))
    result = loop.generate(
        denoiser, params, samplers.parse(spec), prompts, keys, options
    )
    return jax.device_get(result)
