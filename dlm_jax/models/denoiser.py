"""Denoisers as Flax NNX modules, and their adapter to the generation loop."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PyTree

from dlm_jax.core.canvas import View


@dataclasses.dataclass(frozen=True)
class ModuleDenoiser:
    """A module of `dlm_jax.models` as the pure functions of `core.denoiser.Denoiser`.

    The module is split once: what is left of it under jit is the hashable graph
    definition, and its parameters are an ordinary argument.

    Attributes:
      graphdef: the module without its parameters.
      mask_id: the mask token.
      eos_id: what fills a row behind a stop.
      max_length: the longest row that the model accepts.
      is_block_causal: see `core.denoiser.Denoiser`.
      model_axis: mapped axis that the parameters are split over, as the module's
        `partition` says; None if they are whole.
    """

    graphdef: nnx.GraphDef
    mask_id: int
    eos_id: int
    max_length: int
    is_block_causal: bool = False
    model_axis: str | None = None

    def init_cache(self, params: PyTree, batch_size: int, length: int) -> PyTree:
        """Keys and values of every layer; see `core.denoiser.Denoiser`."""
        model = nnx.merge(self.graphdef, params)
        return model.init_cache(batch_size, length, self.model_axis)

    def sources(self, region: Int[Array, "*b r"]) -> Int[Array, "*b r"]:
        """Every position's own column."""
        return region

    def denoise(
        self, params: PyTree, view: View, region: Int[Array, "b r"], cache: PyTree
    ) -> tuple[Float[Array, "b r d"], PyTree]:
        """Runs the module on a batched view; see `core.denoiser.Denoiser`."""
        tokens, positions, visibility = view.tokens, view.positions, view.visibility
        if self.is_block_causal:
            blocks = positions // view.block_length
            visibility = visibility & (blocks[:, :, None] >= blocks[:, None, :])
        columns = view.columns
        if columns is not None:
            # Columns past the end are not written, and nobody reads their outputs.
            tokens, positions = (
                jnp.take_along_axis(x, columns, axis=1, mode="clip")
                for x in (tokens, positions)
            )
            if visibility.shape[1] > 1:
                visibility = jnp.take_along_axis(
                    visibility, columns[..., None], axis=1, mode="clip"
                )
        model = nnx.merge(self.graphdef, params)
        # Without a cache the loop passes (), and a module takes None.
        hidden, written = model.hidden(
            tokens=tokens,
            positions=positions,
            visibility=visibility,
            sees_first=view.sees_first and not self.is_block_causal,
            region=region,
            model_axis=self.model_axis,
            cache=cache or None,
            columns=columns,
        )
        return hidden, written or ()

    def head(self, params: PyTree) -> Float[Array, "v d"]:
        """The language-model head."""
        return nnx.merge(self.graphdef, params).head


def as_denoiser(model: Any) -> tuple[ModuleDenoiser, PyTree]:
    """Splits a module into a static denoiser and its parameters.

    Args:
      model: a `family.Module`, such as `llada.LLaDA`.

    Returns:
      The denoiser, which has no arrays; and the parameters, a pytree of arrays.
    """
    graphdef, params = nnx.split(model)
    config = model.config
    denoiser = ModuleDenoiser(
        graphdef=graphdef,
        mask_id=config.mask_token_id,
        eos_id=config.eos_token_id,
        max_length=config.max_sequence_length,
        is_block_causal=model.is_block_causal,
    )
    return denoiser, params
