"""What the rest of the package knows of a model: config, module, family.

A family is one architecture of config.json. Its file defines a config class, a module
class and one `Family` that describes them; `registry` lists the families. Nothing
outside `dlm_jax.models` names one.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PyTree

from dlm_jax.errors import InputError
from dlm_jax.models.stack import Cache


@runtime_checkable
class ModelConfig(Protocol):
    """The shape of a model and its special tokens: a frozen dataclass.

    Attributes:
      n_layers: transformer blocks.
      vocab_size: tokens that the tokenizer may write.
      embedding_size: rows of the embedding and of the head, at least vocab_size.
      max_sequence_length: longest row that the model accepts.
      mask_token_id: the token at blanks.
      eos_token_id: what ends a text.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def n_layers(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def embedding_size(self) -> int: ...

    @property
    def max_sequence_length(self) -> int: ...

    @property
    def mask_token_id(self) -> int: ...

    @property
    def eos_token_id(self) -> int: ...

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "ModelConfig":
        """Reads the contents of a config.json.

        Raises:
          InputError: naming every option that the family does not implement.
        """
        ...

    def to_hf(self) -> dict[str, Any]:
        """The contents of a config.json that `from_hf` reads."""
        ...


class Module(nnx.Module):
    """A model with its weights.

    A base class and no protocol, so that it is a Flax module to type checkers as well.
    Position i's output predicts token i. Parameters of all layers are stacked, layers
    first.

    Attributes:
      config: its shape, a `ModelConfig`.
      is_block_causal: a position sees its own block and the ones before it, blocks
        counted from column 0; False if every position sees all others.
    """

    config: Any
    is_block_causal: ClassVar[bool] = False

    @abc.abstractmethod
    def __init__(
        self, config: Any, *, rngs: nnx.Rngs, dtype: jax.typing.DTypeLike = jnp.float32
    ):
        """Draws random weights of a shape."""

    @property
    @abc.abstractmethod
    def head(self) -> Float[Array, "v d"]:
        """The language-model head, [embedding_size, d]; logits are hidden @ head.T."""

    @abc.abstractmethod
    def hidden(
        self,
        tokens: Int[Array, "b w"],
        positions: Int[Array, "b w"],
        visibility: Bool[Array, "b #w m"],
        region: Int[Array, "b r"] | None = None,
        model_axis: str | None = None,
        cache: Cache | None = None,
        columns: Int[Array, "b w"] | None = None,
        sees_first: bool = False,
    ) -> tuple[Float[Array, "b r d"], Cache | None]:
        """Runs the transformer and returns the normed outputs that the head reads.

        Args:
          tokens: token ids of the whole row, or of a window of w of its m columns.
          positions: rotary positions.
          visibility: True where a query (axis 1) may attend to a key (axis 2): to one
            of the tokens, or with a cache to one of all m columns.
          region: indices into `tokens` of those whose output is wanted; all by default.
            Indices past the end are clipped, their output is meaningless.
          model_axis: mapped axis that the parameters are split over, as the family's
            `partition` says; None if they are whole. The output is whole on every
            device.
          cache: of `init_cache`; keys and values of the window are written to it and
            those of all other columns read from it. None computes without a cache.
          columns: the window's columns, those past the end are not written; all
            columns in order if None.
          sees_first: see `attention.Attention`.

        Returns:
          The outputs, and the cache with the window's keys and values.
        """

    @abc.abstractmethod
    def init_cache(
        self, batch_size: int, length: int, model_axis: str | None = None
    ) -> Cache:
        """An empty cache; the heads are this device's own with a `model_axis`."""

    def __call__(
        self,
        tokens: Int[Array, "b l"],
        is_valid: Bool[Array, "b l"] | None = None,
        block_length: int | None = None,
    ) -> Float[Array, "b l v"]:
        """Logits of every position, for training and tests.

        Args:
          tokens: token ids.
          is_valid: False at padding, which no token attends to; all valid by default.
          block_length: of a block-causal model; its own by default. Others have none.

        Returns:
          Logits over embedding_size entries, in the parameters' dtype.

        Raises:
          InputError: if a block-causal model has no block length of its own.
        """
        # A caller's padding may lie anywhere.
        sees_first = is_valid is None and not self.is_block_causal
        if is_valid is None:
            is_valid = jnp.ones(tokens.shape, bool)
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        visibility = is_valid[:, None, :]
        if self.is_block_causal:
            size = block_length or self.config.block_size
            if size is None:
                raise InputError("block_length must be given: the config names none")
            blocks = positions // size
            visibility = visibility & (blocks[:, :, None] >= blocks[:, None, :])
        hidden, _ = self.hidden(tokens, positions, visibility, sees_first=sees_first)
        return hidden @ self.head.T


@dataclasses.dataclass(frozen=True)
class Weight:
    """Where a parameter is in Hugging Face files.

    Attributes:
      name: tensor name; with `{layer}` in it, the parameter is a stack of such tensors.
      is_transposed: the file holds (out, in), the module [in, out].
    """

    name: str
    is_transposed: bool = False


@dataclasses.dataclass(frozen=True)
class Family:
    """One architecture: its classes, its files, and what can be done with its models.

    Attributes:
      architecture: its name in `architectures` of config.json.
      model_type: its name in `model_type`, which several families may share.
      config: the shape's class, a `ModelConfig`.
      module: the model's class.
      weights: the place in Hugging Face files of each parameter, by its path in the
        module ("blocks.q_proj"). A model may lack some, such as a tied head.
      partition: (config, number of parts, mesh axis) -> a `jax.P` for each parameter,
        as the nested dict of the module's parameters. Raises InputError naming what the
        parts do not divide.
      presets: named shapes, which can be tried with random weights.
      end_of_turn: tokens that end a turn in the family's chat templates.
      small: the shape of a model to be trained from nothing, from d_model, n_heads,
        n_layers, mlp_hidden_size, vocab_size, embedding_size, max_sequence_length,
        rope_theta, mask_token_id and eos_token_id; None if the family has no such.
      deepen: a model of twice the depth that computes the same; None likewise.
    """

    architecture: str
    model_type: str
    config: type[Any]
    module: type[Module]
    weights: Mapping[str, Weight]
    partition: Callable[[Any, int, str], PyTree]
    presets: Mapping[str, Callable[[], Any]] = dataclasses.field(default_factory=dict)
    end_of_turn: tuple[str, ...] = ()
    small: Callable[..., Any] | None = None
    deepen: Callable[[Any], Any] | None = None
