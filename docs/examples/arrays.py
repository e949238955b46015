"""The second door: a model of one's own, arrays in and arrays out.

    python docs/examples/arrays.py

The model here is a table of logits for every position. Anything with the methods of
`dlm.Denoiser` will do; `dlm.as_denoiser` makes one of a module of Flax NNX.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import dlm_jax as dlm

LENGTH, VOCABULARY, MASK = 12, 20, 19


@dataclasses.dataclass(frozen=True)
class TableModel:
    """Predicts each position from a table [length, vocabulary] alone."""

    mask_id: int = MASK
    eos_id: int = 0
    max_length: int = LENGTH
    model_axis: None = None
    is_block_causal: bool = False

    def init_cache(self, params, batch_size, length):
        """No cache."""
        return ()

    def sources(self, region):
        """The columns whose outputs predict these positions: their own."""
        return region

    def denoise(self, params, view, region, cache):
        """What the head reads, for the positions of `region`: [b, r, d]."""
        return jnp.take(params, region, axis=0, mode="clip"), cache

    def head(self, params):
        """The head, [v, d]: the table's rows are the logits themselves."""
        return jnp.eye(VOCABULARY, dtype=params.dtype)


# Two rows: four known tokens, then eight blanks. Padding would be not valid.
is_blank = np.arange(LENGTH) >= 4
prompts = dlm.Prompts(
    tokens=np.tile(np.arange(LENGTH, dtype=np.int32), (2, 1)),
    is_blank=np.tile(is_blank, (2, 1)),
    is_valid=np.ones((2, LENGTH), bool),
)
table = 3 * jax.random.normal(jax.random.key(0), (LENGTH, VOCABULARY))
options = dlm.Options(gen_length=8, block_length=4)
result = dlm.sample(
    TableModel(), table, dlm.EntropyBound(gamma=1.0), prompts, options, seed=0
)
for row in range(2):
    print(result.tokens[row], "forwards:", result.num_steps[row])
