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
        """Makes a cache of keys and values to be written to.

        It is not cleared for a new row, which sees only columns that it has written
        itself.

        Args:
          params: the parameters.
          batch_size: rows that are shown at once; under guidance each counts twice.
          length: tokens of a view.

        Returns:
          A pytree of arrays [batch_size, length, heads, ...]. With a `model_axis`,
          heads are the device's own. () for models that cannot have a cache.
        """
        ...

    def sources(self, region: Int[Array, "*b r"]) -> Int[Array, "*b r"]:
        """Tells which columns' outputs predict the positions of a region.

        Args:
          region: int32 [..., r]; positions.

        Returns:
          int32 [..., r]; each position's own column in most models, the one before in
          others.
        """
        ...

    def denoise(
        self, params: PyTree, view: View, region: Int[Array, "b r"], cache: PyTree
    ) -> tuple[Float[Array, "b r d"], PyTree]:
        """Runs the model, without its head.

        Args:
          params: the parameters.
          view: what is shown, of b rows. If it names columns, only those go through the
            model, and see keys and values of the others in the cache.
          region: int32 [b, r]; what outputs are wanted, as columns or, if the view
            names columns, as indices into those. Indices past the end are clipped.
          cache: () computes without one. Otherwise the keys and values of what goes
            through the model are written to it.

        Returns:
          float [b, r, d], what the head reads for the region; and the cache as
          written, () without one.
        """
        ...

    def head(self, params: PyTree) -> Float[Array, "v d"]:
        """Gives the language-model head.

        Args:
          params: the parameters.

        Returns:
          float [v, d]; logits are hidden @ head.T.
        """
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
