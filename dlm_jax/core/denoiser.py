"""The interface between the loop and a model."""

from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float, Int, PyTree

from dlm_jax.core.canvas import View


@runtime_checkable
class Denoiser(Protocol):
    """A model as pure functions of its parameters; hashable, static under jit."""

    @property
    def mask_id(self) -> int:
        """The mask token."""
        ...

    @property
    def eos_id(self) -> int:
        """The token that fills a row after a stop."""
        ...

    @property
    def max_length(self) -> int:
        """The longest row that the model accepts."""
        ...

    @property
    def model_axis(self) -> str | None:
        """The mapped axis that the parameters are split over; None if they are whole.

        The vocabulary is then split over it too: `head` gives a device's own part, and
        the axis index times its length is its first token.
        """
        ...

    @property
    def is_block_causal(self) -> bool:
        """Whether a position sees its own block and earlier ones only.

        Blocks then count columns, from column 0 of the row.
        """
        ...

    def init_cache(self, params: PyTree, batch_size: int, length: int) -> PyTree:
        """A cache to be written to; () for models that cannot have one.

        Every leaf is [batch_size, length, heads, ...]. With a `model_axis`, heads are
        the device's own. It is not cleared for a new row, which sees only columns that
        it has written itself.
        """
        ...

    def sources(self, region: Int[Array, "*b r"]) -> Int[Array, "*b r"]:
        """The columns whose outputs predict the positions of a region.

        Each its own in most models; the one before in others.
        """
        ...

    def denoise(
        self, params: PyTree, view: View, region: Int[Array, "b r"], cache: PyTree
    ) -> tuple[Float[Array, "b r d"], PyTree]:
        """Runs a batched view; returns what the head reads for `region`, and the cache.

        Args:
          params: the parameters.
          view: what is shown. If it names columns, only those go through the model, and
            see keys and values of the others in the cache.
          region: what outputs are wanted, as columns or, if the view names columns, as
            indices into those. Indices past the end are clipped.
          cache: () computes without one and returns (). Otherwise the keys and values
            of what goes through the model are written to it.
        """
        ...

    def head(self, params: PyTree) -> Float[Array, "v d"]:
        """The language-model head; logits are hidden @ head.T."""
        ...


def full_precision(
    denoiser: Denoiser, params: PyTree, precision: str = "highest"
) -> AbstractContextManager:
    """A context in which a model's matrix products have their full precision.

    The loop calls `denoise` and computes products with the head inside it. By default a
    GPU would use TF32 for float32 models, and a TPU bfloat16.

    Args:
      denoiser: the model.
      params: its parameters.
      precision: of models in float32 or wider, see `Options`. Products in bfloat16 are
        exact as they are; asking for more would slow them down.
    """
    is_wide = denoiser.head(params).dtype.itemsize >= 4
    return jax.default_matmul_precision(precision if is_wide else "default")
