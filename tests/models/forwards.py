"""Forwards of modules as the tests of models run them."""

import jax
import jax.numpy as jnp
from flax import nnx


def block_causal(length, block_length, first=0, width=None):
    """Which of `length` columns those from `first` on see: bool [width, length]."""
    blocks = jnp.arange(length) // block_length
    width = length - first if width is None else width
    return blocks[None, :] <= blocks[first : first + width, None]


@nnx.jit
def _hidden(model, tokens, positions, visibility, region, cache, columns):
    return model.hidden(
        tokens, positions, visibility, region=region, cache=cache, columns=columns
    )


def hidden_of(model, tokens, visibility, *, region=None, cache=None, columns=None):
    """Outputs and cache of a window; all columns from 0 on if none are given."""
    positions = columns
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return _hidden(model, tokens, positions, visibility, region, cache, columns)


def enlarged(model, factor):
    """The model with larger matrices, so that attention is far from uniform."""
    graph, state = nnx.split(model)

    def scale(path, x):
        is_norm = "norm" in jax.tree_util.keystr(path)
        return x if is_norm or x.ndim == 1 else factor * x

    return nnx.merge(graph, jax.tree.map_with_path(scale, state))
