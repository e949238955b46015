"""The front door: a checkpoint that writes text with any sampler."""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Unpack, cast, overload

import jax
import numpy as np
from jaxtyping import PyTree

from dlm_jax import likelihood
from dlm_jax.core import loop
from dlm_jax.core.canvas import Generation, Prompts
from dlm_jax.core.denoiser import Denoiser
from dlm_jax.core.keys import row_keys
from dlm_jax.core.options import Options
from dlm_jax.core.sampler import Sampler
from dlm_jax.devices import batches
from dlm_jax.devices.runner import Loaded
from dlm_jax.devices.runner import load as load_on_devices
from dlm_jax.errors import InputError
from dlm_jax.likelihood import Likelihood
from dlm_jax.outline import Outline, Prompt, read_outline, rule_of
from dlm_jax.text.codec import Codec
from dlm_jax.text.output import Output
from dlm_jax.text.prompts import Encoded
from dlm_jax.text.settings import Settings
from dlm_jax.text.tokens import Tokens, is_tokens


def load(
    checkpoint: str | os.PathLike,
    dtype: jax.typing.DTypeLike | None = None,
    devices_per_model: int | None = None,
) -> "Model":
    """Loads a checkpoint onto all local devices; nothing is downloaded.

    Args:
      checkpoint: directory in Hugging Face format, or one that `experiments.convert`
        wrote, with its tokenizer.
      dtype: bfloat16, float32 or float64 (needs JAX_ENABLE_X64) of the weights; as
        stored by default.
      devices_per_model: devices that share one copy of the weights; by default every
        device has all of them.

    Returns:
      The model, its weights on the devices.

    Raises:
      InputError: naming what is missing, damaged or not supported.
    """
    return load_weights(read_outline(checkpoint), dtype, devices_per_model)


def load_weights(
    outline: Outline,
    dtype: jax.typing.DTypeLike | None = None,
    devices_per_model: int | None = None,
) -> "Model":
    """Reads the weights of an outline; arguments and errors are those of `load`."""
    loaded = load_on_devices(outline.checkpoint, dtype, devices_per_model)
    return Model(loaded, outline.codec, outline.checkpoint)


class Model(Outline):
    """A checkpoint on the devices of this machine, with its tokenizer.

    Attributes:
      config: the shape of the model.
      codec: text to tokens and back.
      denoiser: see `Outline`.
      parallel: what runs batches on the devices.
      dtype: of the weights.
      checkpoint: the directory it was loaded from.
    """

    def __init__(self, loaded: Loaded, codec: Codec, checkpoint: str | os.PathLike):
        """Joins weights that lie on devices with their tokenizer.

        Args:
          loaded: what `devices.runner.load` gives.
          codec: of the same checkpoint.
          checkpoint: its directory.
        """
        self.parallel, config, self.dtype = loaded
        super().__init__(config, codec, self.parallel.denoiser, checkpoint)

    def __repr__(self) -> str:
        return f"Model({str(self.checkpoint)!r}, dtype={self.dtype})"

    @overload
    def generate(
        self,
        prompts: Prompt,
        sampler: Sampler | str,
        *,
        gen_length: int = ...,
        chat: bool | None = ...,
        **settings: Unpack[Settings],
    ) -> Output: ...

    @overload
    def generate(
        self,
        prompts: Sequence[Prompt],
        sampler: Sampler | str,
        *,
        gen_length: int = ...,
        chat: bool | None = ...,
        **settings: Unpack[Settings],
    ) -> list[Output]: ...

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampler: Sampler | str,
        *,
        gen_length: int = 128,
        chat: bool | None = None,
        **settings: Unpack[Settings],
    ) -> Output | list[Output]:
        """Continues a prompt, or several.

        Args:
          prompts: a text, or a conversation as a list of messages
            (`[{"role": "user", "content": "..."}]`); or a list of such prompts.
          sampler: a sampler or its spec, such as "saber(n=2, mu=8)".
          gen_length: tokens to generate after each prompt.
          chat: write texts as a user's message in the chat template; by default if the
            checkpoint has one. Conversations are always written in it.
          **settings: see `Settings`.

        Returns:
          What the prompt became; a list for a list of prompts, in their order.

        Raises:
          InputError: naming the argument or the prompt that does not fit.
        """
        is_one = _is_one(prompts)
        several = cast(Sequence[Prompt], [prompts] if is_one else prompts)
        rows, options = self.continued(several, gen_length, chat, settings)
        outputs = self._run(rows, sampler, options, settings)
        return outputs[0] if is_one else outputs

    @overload
    def infill(
        self, texts: str, sampler: Sampler | str, **settings: Unpack[Settings]
    ) -> Output: ...

    @overload
    def infill(
        self, texts: Sequence[str], sampler: Sampler | str, **settings: Unpack[Settings]
    ) -> list[Output]: ...

    def infill(
        self,
        texts: str | Sequence[str],
        sampler: Sampler | str,
        **settings: Unpack[Settings],
    ) -> Output | list[Output]:
        """Fills the blanks of a text, or of several.

        Args:
          texts: with `mask_text` once for every missing token.
          sampler: a sampler or its spec.
          **settings: see `Settings`.

        Returns:
          An `Output`; a list of them for a list of texts, in their order.

        Raises:
          InputError: naming the argument or the text that does not fit.
        """
        is_one = isinstance(texts, str)
        rows, options = self.infilled([texts] if is_one else texts, settings)
        outputs = self._run(rows, sampler, options, settings)
        return outputs[0] if is_one else outputs

    def stream(
        self,
        prompts: Sequence[Prompt],
        sampler: Sampler | str,
        *,
        gen_length: int = 128,
        chat: bool | None = None,
        **settings: Unpack[Settings],
    ) -> Iterator[tuple[int, Output]]:
        """Continues prompts and yields each output as soon as it is done.

        Arguments are checked at once; generation begins with the first `next`.

        Args:
          prompts: as a list of `generate`.
          sampler: a sampler or its spec.
          gen_length: tokens to generate after each prompt.
          chat: see `generate`.
          **settings: see `Settings`.

        Returns:
          Pairs of a prompt's index in `prompts` and its output, each prompt once.

        Raises:
          InputError: naming the argument or the prompt that does not fit.
        """
        if _is_one(prompts):
            raise InputError("prompts must be a list of prompts to stream")
        rows, options = self.continued(prompts, gen_length, chat, settings)
        return self.stream_rows(rows, sampler, options, settings)

    @overload
    def log_likelihood(
        self,
        prompts: Prompt | Tokens,
        answers: str | Tokens,
        *,
        chat: bool | None = ...,
        **settings: Unpack[likelihood.Settings],
    ) -> Likelihood: ...

    @overload
    def log_likelihood(
        self,
        prompts: Sequence[Prompt | Tokens],
        answers: Sequence[str | Tokens],
        *,
        chat: bool | None = ...,
        **settings: Unpack[likelihood.Settings],
    ) -> list[Likelihood]: ...

    def log_likelihood(
        self,
        prompts: Prompt | Tokens | Sequence[Prompt | Tokens],
        answers: str | Tokens | Sequence[str | Tokens],
        *,
        chat: bool | None = None,
        **settings: Unpack[likelihood.Settings],
    ) -> Likelihood | list[Likelihood]:
        """Estimates log p(answer | prompt), in nats, for one answer or several.

        Args:
          prompts: a prompt as of `generate` or token ids; or a list of such prompts.
          answers: as many, texts or token ids. They are encoded apart from the prompt.
          chat: see `generate`.
          **settings: see `likelihood.Settings`.

        Returns:
          A `Likelihood`; a list for a list of prompts, in their order.

        Raises:
          InputError: naming the argument, prompt or answer that does not fit.
        """
        is_one = is_tokens(prompts) or _is_one(prompts)
        rows = self.codec.encode_answers(
            cast(Sequence, [prompts] if is_one else prompts),
            cast(Sequence, [answers] if is_one else answers),
            self.codec.has_chat_template if chat is None else chat,
        )
        found = likelihood.estimate_rows(self.parallel, rows, **settings)
        return found[0] if is_one else found

    def stream_rows(
        self,
        rows: Sequence[Encoded],
        sampler: Sampler | str,
        options: Options,
        settings: Settings | None = None,
        ids: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, Output]]:
        """Fills encoded rows, and yields each when it is finished.

        Args:
          rows: of `codec`.
          sampler: a sampler or its spec.
          options: how to generate; `num_slots` is set from the batch size.
          settings: `seed`, `batch_size` and `queue_length` are read.
          ids: what the rows' random draws depend on; their places by default.

        Returns:
          Pairs of a row's place and what it became, every row once.

        Raises:
          InputError: naming the argument that does not fit.
          OutOfMemory: naming the batch size, when the memory is full.
        """
        handed_over = self.stream_done(rows, sampler, options, settings, ids)
        return (pair for done in handed_over for pair in done.items())

    def stream_done(
        self,
        rows: Sequence[Encoded],
        sampler: Sampler | str,
        options: Options,
        settings: Settings | None = None,
        ids: Sequence[int] | None = None,
        is_asked: Sequence[bool] | None = None,
    ) -> Iterator[dict[int, Output]]:
        """Fills encoded rows, and yields finished ones in groups.

        Args:
          rows: of `codec`.
          sampler: a sampler or its spec.
          options: how to generate; `num_slots` is set from the batch size.
          settings: `seed`, `batch_size` and `queue_length` are read.
          ids: what the rows' random draws depend on; their places by default.
          is_asked: which rows to fill, see `batches.stream`; all by default.

        Returns:
          About every five seconds, the outputs of finished rows by their places.

        Raises:
          InputError: naming the argument that does not fit.
          OutOfMemory: naming the batch size, when the memory is full.
        """
        settings = settings or {}
        self.check(rows, sampler, options, settings)
        rule = rule_of(sampler)
        handed_over = batches.stream(
            parallel=self.parallel,
            sampler=rule,
            rows=rows,
            options=options,
            seed=settings.get("seed", 0),
            batch_size=settings.get("batch_size", 8),
            queue_length=settings.get("queue_length"),
            ids=ids,
            is_asked=is_asked,
        )
        # A text ends where its row does.
        codec = dataclasses.replace(self.codec, stop_ids=options.stop_ids)
        return (done.outputs(codec, rows) for done in handed_over)

    def _run(
        self,
        rows: Sequence[Encoded],
        sampler: Sampler | str,
        options: Options,
        settings: Settings,
    ) -> list[Output]:
        """What rows became, in their order."""
        outputs = dict(self.stream_rows(rows, sampler, options, settings))
        return [outputs[i] for i in range(len(rows))]


def sample(
    denoiser: Denoiser,
    params: PyTree,
    sampler: Sampler | str,
    prompts: Prompts,
    options: Options,
    seed: int = 0,
) -> Generation:
    """Fills the blanks of a batch of arrays on one device, with any model.

    The door for models that are not in dlm_jax, and for tokens without text.

    Args:
      denoiser: the model as pure functions, see `Denoiser`; of a Flax module
        `as_denoiser` makes one.
      params: its parameters.
      sampler: a sampler or its spec; a numeric field may be an array, one value per
        row.
      prompts: the batch.
      options: lengths, temperature, guidance, stops.
      seed: of the random draws, an integer from 0 to 2^32 - 1.

    Returns:
      The filled rows.

    Raises:
      InputError: naming the argument that does not fit.
    """
    rule = rule_of(sampler)
    keys = row_keys(seed, np.arange(len(prompts.tokens)))
    return loop.generate(denoiser, params, rule, prompts, keys, options)


def _is_one(prompts: Any) -> bool:
    """Whether it is a text or a conversation, and not a list of them."""
    if isinstance(prompts, str):
        return True
    return bool(len(prompts)) and isinstance(prompts[0], Mapping)
