"""A checkpoint without its weights: what is checked before they are read."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

from flax import nnx

from dlm_jax import checkpoints, samplers
from dlm_jax.core.checks import prepare
from dlm_jax.core.denoiser import Denoiser
from dlm_jax.core.keys import check_seed
from dlm_jax.core.options import Options
from dlm_jax.core.sampler import Sampler, canonical
from dlm_jax.devices import batches
from dlm_jax.errors import InputError
from dlm_jax.models import as_denoiser, registry
from dlm_jax.models.family import ModelConfig
from dlm_jax.text import prompts as prompts_
from dlm_jax.text.codec import Codec, Messages, Tokens
from dlm_jax.text.prompts import Encoded
from dlm_jax.text.settings import Settings, options_of

Prompt = str | Messages


def read_outline(checkpoint: str | os.PathLike) -> "Outline":
    """Reads what is to know of a checkpoint without its weights, in a second or two.

    Args:
      checkpoint: as `load`.

    Raises:
      InputError: naming what is missing, damaged or not supported.
    """
    config = checkpoints.read_config(checkpoint)
    # Shapes only: what does not depend on the weights.
    denoiser, _ = as_denoiser(nnx.eval_shape(lambda: registry.init(config)))
    return Outline(config, Codec.load(checkpoint, config), denoiser, checkpoint)


class Outline:
    """A checkpoint without its weights: what can be checked before they are read.

    Attributes:
      config: the shape of the model.
      codec: text to tokens and back.
      denoiser: what the model sees and predicts, without parameters.
      checkpoint: its directory.
    """

    def __init__(
        self,
        config: ModelConfig,
        codec: Codec,
        denoiser: Denoiser,
        checkpoint: str | os.PathLike,
    ):
        """Joins what `outline` reads; the arguments are the attributes."""
        self.config = config
        self.codec = codec
        self.denoiser = denoiser
        self.checkpoint = pathlib.Path(checkpoint)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.checkpoint)!r})"

    @property
    def mask_text(self) -> str:
        """What marks a blank in a text to be infilled."""
        return self.codec.mask_text

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a continuation."""
        return self.codec.stop_ids

    def check(
        self,
        rows: Sequence[Encoded],
        sampler: Sampler | str,
        options: Options,
        settings: Settings | None = None,
    ) -> None:
        """Checks the arguments of `Model.stream_rows`.

        Args:
          rows: encoded, of `codec`.
          sampler: a sampler or its spec.
          options: how to generate.
          settings: `seed`, `batch_size` and `queue_length` are read.

        Raises:
          InputError: naming the argument that does not fit.
        """
        settings = settings or {}
        batches.check_sizes(
            batch_size=settings.get("batch_size", 8),
            queue_length=settings.get("queue_length"),
        )
        check_seed(settings.get("seed", 0))
        rule = rule_of(sampler)
        canonical(rule, (len(rows),))
        if rows:
            # With one row: what fits it fits all, but for their own numbers of blanks.
            one = prompts_.pad(rows[:1], rows[0].tokens.size)
            prepare(self.denoiser, rule, one, options)

    def continued(
        self,
        prompts: Sequence[Prompt | Tokens],
        gen_length: int,
        chat: bool | None,
        settings: Settings,
    ) -> tuple[list[Encoded], Options]:
        """Encodes prompts to continue.

        Args:
          prompts: as a list of `Model.generate`; also token ids.
          gen_length: tokens to generate after each prompt.
          chat: see `Model.generate`.
          settings: see `Settings`.

        Returns:
          The rows, and how to fill them.

        Raises:
          InputError: naming the argument or the prompt that does not fit.
        """
        # A wrong keyword is reported before a prompt that does not fit the others.
        options = self.options(gen_length, settings)
        is_chat = self.codec.has_chat_template if chat is None else chat
        rows = self.codec.encode_prompts(prompts, gen_length, is_chat)
        return prompts_.fit_blocks(rows, options, self.denoiser)

    def infilled(
        self, texts: Sequence[str], settings: Settings
    ) -> tuple[list[Encoded], Options]:
        """Encodes texts to infill.

        Args:
          texts: with `mask_text` once for every missing token.
          settings: see `Settings`.

        Returns:
          The rows, and how to fill them.

        Raises:
          InputError: naming the argument or the text that does not fit.
        """
        rows = self.codec.encode_infill(texts)
        block_length = self._block_length(settings)
        gen_length = prompts_.gen_length(rows, block_length) if rows else 1
        options = self.options(gen_length, settings)
        return prompts_.fit_blocks(rows, options, self.denoiser)

    def _block_length(self, settings: Settings) -> int | None:
        """The one of the settings or else, of a block-causal model, its own.

        Raises:
          InputError: if such a model does not name one.
        """
        given = settings.get("block_length")
        if given or not self.denoiser.is_block_causal:
            return given
        own = getattr(self.config, "block_size", None)
        if own is None:
            raise InputError(
                "block_length must be given: the model is block-causal and its "
                "config.json names no block_size"
            )
        return own

    def options(self, gen_length: int, settings: Settings) -> Options:
        """Reads settings.

        Args:
          gen_length: most blanks of a row.
          settings: see `Settings`.

        Returns:
          The `Options` that they mean.

        Raises:
          InputError: for a keyword that is no setting.
        """
        block_length = self._block_length(settings)
        if block_length and self.denoiser.is_block_causal:
            # Blanks of such a model fill whole blocks.
            gen_length = -(-gen_length // block_length) * block_length
        own = Settings(**settings) | Settings(block_length=block_length)
        return options_of(own, gen_length, self.config.eos_token_id, self.stop_ids)


def rule_of(sampler: Any) -> Sampler:
    """A sampler as an object.

    Raises:
      InputError: if it is neither a sampler nor a spec.
    """
    if isinstance(sampler, str):
        return samplers.parse(sampler)
    if isinstance(sampler, type) and issubclass(sampler, Sampler):
        name = sampler.__name__
        raise InputError(f"sampler ({name}) must be an object: write {name}()")
    if not isinstance(sampler, Sampler):
        raise InputError(f"sampler ({sampler!r}) must be a Sampler or a spec")
    return sampler
