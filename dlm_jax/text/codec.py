"""Text to canvases and back: chat template, blanks, decoding cut at EOS."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from jaxtyping import Int, Int32

from dlm_jax import files
from dlm_jax.errors import InputError, PromptError
from dlm_jax.models import registry
from dlm_jax.models.family import ModelConfig
from dlm_jax.text import templates
from dlm_jax.text.prompts import Encoded
from dlm_jax.text.stops import eos_ids
from dlm_jax.text.templates import Messages
from dlm_jax.text.tokens import (
    Tokens,
    encode_text,
    is_refusal,
    is_tokens,
    token_ids,
)


@dataclasses.dataclass(frozen=True)
class Codec:
    """A checkpoint's tokenizer, and the special tokens of its model.

    Attributes:
      tokenizer: a tokenizer of transformers.
      mask_id: the token at blanks.
      stop_ids: tokens that end a generated text: the EOS of the tokenizer, those of
        config.json and generation_config.json, and the ends of a turn in the family's
        chat templates, if the vocabulary has them.
      max_length: longest canvas the model takes, blanks included.
    """

    tokenizer: Any
    mask_id: int
    stop_ids: tuple[int, ...]
    max_length: int

    @classmethod
    def load(cls, directory: str | os.PathLike, config: ModelConfig) -> "Codec":
        """Loads the tokenizer in a checkpoint's directory; nothing is downloaded.

        Args:
          directory: of the checkpoint.
          config: of its model.

        Raises:
          InputError: if there is no tokenizer, or none that fits the model.
        """
        path = pathlib.Path(directory) / "tokenizer.json"
        if not path.is_file():
            raise InputError(f"checkpoint ({directory}) holds no tokenizer.json")
        # Nothing here needs PyTorch: transformers need not tell that it is not there.
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        # Here because it takes seconds. AutoTokenizer would import torch as well, and
        # ask at the terminal whether to run the code that a config.json names.
        from transformers import PreTrainedTokenizerFast

        try:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(
                path.parent, local_files_only=True
            )
        except BaseException as error:
            if not is_refusal(error):
                raise
            raise InputError(
                f"{path} does not load{files.nature(path)}: {error}"
            ) from None
        return cls.of(tokenizer, config, eos_ids(path.parent, config))

    @classmethod
    def of(
        cls, tokenizer: Any, config: ModelConfig, more_stop_ids: Sequence[int] = ()
    ) -> "Codec":
        """Joins a tokenizer and the model that was trained with it.

        Args:
          tokenizer: a tokenizer of transformers.
          config: of the model.
          more_stop_ids: beside those that the two name.

        Raises:
          InputError: if the tokenizer has tokens that the model has not.
        """
        vocabulary = tokenizer.get_vocab()
        largest = max(vocabulary.values(), default=0)
        if largest >= config.embedding_size:
            raise InputError(
                f"tokenizer's largest token id ({largest}) must be below the model's "
                f"embedding_size ({config.embedding_size})"
            )
        stop_ids = {
            config.eos_token_id,
            tokenizer.eos_token_id,
            *(vocabulary.get(token) for token in registry.of(config).end_of_turn),
            *more_stop_ids,
        }
        return cls(
            tokenizer=tokenizer,
            mask_id=config.mask_token_id,
            stop_ids=tuple(sorted(stop_ids - {None})),
            max_length=config.max_sequence_length,
        )

    @property
    def mask_text(self) -> str:
        """What marks a blank in a text to be infilled; empty if nothing does."""
        return self.tokenizer.convert_ids_to_tokens(self.mask_id) or ""

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """All tokens in the order of their ids."""
        ids = self.tokenizer.get_vocab()
        return tuple(sorted(ids, key=ids.__getitem__))

    @property
    def has_chat_template(self) -> bool:
        """Whether the checkpoint was made for conversations."""
        return bool(self.tokenizer.chat_template)

    def encode(self, texts: Sequence[str], gen_length: int) -> list[Encoded]:
        """Encodes texts that are to be continued.

        Args:
          texts: the prompts, as they are; an empty one is continued from nothing.
          gen_length: blanks after each.

        Raises:
          InputError: naming the prompt that is too long, holds a mask token or
            a character that the tokenizer does not know.
        """
        return self.encode_prompts(texts, gen_length, is_chat=False)

    def encode_chat(
        self, messages: Sequence[str | Messages], gen_length: int
    ) -> list[Encoded]:
        """Encodes conversations that are to be answered, with the chat template.

        Args:
          messages: conversations; a text is one of one turn, the user's.
          gen_length: blanks for each answer.

        Raises:
          InputError: as `encode`, or if the tokenizer has no chat template, or for a
            conversation that is empty.
        """
        return self.encode_prompts(messages, gen_length, is_chat=True)

    def encode_prompts(
        self,
        prompts: Sequence[str | Messages | Tokens],
        gen_length: int,
        is_chat: bool,
        opening: str = "",
    ) -> list[Encoded]:
        """Encodes texts, conversations and token ids that are to be continued.

        Args:
          prompts: texts, token ids, or conversations, which are written in the chat
            template.
          gen_length: blanks after each.
          is_chat: write a text as a user's message too.
          opening: how each answer begins, before the blanks.

        Raises:
          InputError: as `encode` and `encode_chat`.
        """
        return [
            self._continued(
                index, self._prompt(index, prompt, is_chat, opening), gen_length
            )
            for index, prompt in enumerate(prompts)
        ]

    def encode_answers(
        self,
        prompts: Sequence[str | Messages | Tokens],
        answers: Sequence[str | Tokens],
        is_chat: bool,
    ) -> list[Encoded]:
        """Encodes prompts with answers whose likelihood is asked for.

        The two are encoded apart, so a space between them belongs to one of them. An
        answer gets no special tokens.

        Args:
          prompts: texts, conversations, or token ids, which may be none.
          answers: one for each, texts or token ids.
          is_chat: write a text as a user's message in the chat template.

        Returns:
          Rows whose blanks hold the answers.

        Raises:
          InputError: naming the answer that is empty, or the prompt or answer that is
            too long, holds a mask token or a character that the tokenizer does not
            know.
        """
        if isinstance(answers, str) or is_tokens(answers):
            raise InputError("answers must be a list, one for each of the prompts")
        if len(prompts) != len(answers):
            raise InputError(
                f"answers ({len(answers)}) must be as many as prompts ({len(prompts)})"
            )
        encoded = []
        for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            if isinstance(answer, str):
                new = self._tokens(index, answer, False, kind="answer")
            else:
                new = token_ids(index, answer, "answer")
            if not new.size:
                raise InputError(f"answer {index} is empty")
            # The answer takes the place of as many blanks.
            known = self._prompt(index, prompt, is_chat)
            row = self._continued(index, known, new.size, "the answer's tokens")
            if (new == self.mask_id).any():
                raise InputError(
                    f"answer {index} holds the mask token ({self.mask_text})"
                )
            tokens = row.tokens.copy()
            tokens[row.is_blank] = new
            encoded.append(dataclasses.replace(row, tokens=tokens))
        return encoded

    def _prompt(
        self,
        index: int,
        prompt: str | Messages | Tokens,
        is_chat: bool,
        opening: str = "",
    ) -> Int32[np.ndarray, "n"]:
        """The tokens of a text, a conversation, or tokens; behind it, the opening."""
        if is_tokens(prompt):
            return token_ids(index, prompt, "prompt")
        if isinstance(prompt, str) and not is_chat:
            return self._tokens(index, prompt + opening)
        # The template writes the special tokens itself.
        text = self._in_template(index, cast(str | Messages, prompt))
        return self._tokens(index, text + opening, add_special_tokens=False)

    def _in_template(self, index: int, prompt: str | Messages) -> str:
        """A conversation in the chat template, up to where the answer begins."""
        if not self.has_chat_template:
            raise InputError("the checkpoint's tokenizer has no chat template")
        own = self.tokenizer.chat_template
        if isinstance(own, Mapping) and "default" not in own:
            raise InputError(
                f"the checkpoint's tokenizer has chat templates "
                f"({', '.join(map(str, own))}), but none of the name default"
            )
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        for message in prompt:
            is_message = isinstance(message, Mapping) and all(
                isinstance(message.get(name), str) for name in ("role", "content")
            )
            if not is_message:
                raise PromptError(
                    index,
                    f"prompt {index}: a message ({message!r}) must be a mapping with "
                    "the texts role and content",
                )
        if not any(message["content"].strip() for message in prompt):
            raise PromptError(
                index,
                f"prompt {index} is empty: a conversation needs a message; without the "
                "chat template (chat=False, --nochat) a text may begin from nothing",
            )
        templates.check(self.tokenizer)
        try:
            return templates.write(self.tokenizer, prompt)
        except Exception as error:  # whatever the checkpoint's template raises
            raise PromptError(
                index, f"prompt {index}: the chat template refuses it: {error}"
            ) from None

    def encode_infill(self, texts: Sequence[str]) -> list[Encoded]:
        """Encodes texts whose blanks are to be filled.

        Args:
          texts: with `mask_text` once for every missing token.

        Raises:
          InputError: naming the prompt that is too long, has no blank or a
            character that the tokenizer does not know.
        """
        encoded = []
        for index, text in enumerate(texts):
            tokens = self._tokens(index, text)
            is_blank = tokens == self.mask_id
            if not is_blank.any():
                raise PromptError(
                    index,
                    f"prompt {index} has no blank to fill, written {self.mask_text}",
                )
            if tokens.size > self.max_length:
                raise PromptError(
                    index,
                    f"prompt {index} has {tokens.size} tokens, more than the model's "
                    f"context ({self.max_length})",
                    is_too_long=True,
                )
            encoded.append(Encoded(tokens, is_blank, is_infill=True))
        return encoded

    def generated(
        self, encoded: Encoded, tokens: Int[np.ndarray, "l"]
    ) -> Int32[np.ndarray, "g"]:
        """The tokens at the blanks; of a continuation, up to the first that stops.

        Args:
          encoded: what the row started from.
          tokens: the row afterwards, with or without its padding.
        """
        new = np.asarray(tokens[: encoded.tokens.size], np.int32)[encoded.is_blank]
        (stops,) = np.nonzero(np.isin(new, self.stop_ids))
        return new[: stops[0]] if stops.size and not encoded.is_infill else new

    def decode(self, encoded: Encoded, tokens: Int[np.ndarray, "l"]) -> str:
        """The text of a continuation up to its stop, or the whole text of an infilling.

        Special tokens are left out, except the masks of a row that is not complete.

        Args:
          encoded: what the row started from.
          tokens: the row afterwards, with or without its padding.
        """
        if encoded.is_infill:
            return self._text(tokens[: encoded.tokens.size])
        return self._text(self.generated(encoded, tokens))

    def _tokens(
        self,
        index: int,
        text: str,
        add_special_tokens: bool = True,
        kind: str = "prompt",
    ) -> Int32[np.ndarray, "n"]:
        what = f"{kind} {index}"
        try:
            return encode_text(self.tokenizer, text, what, add_special_tokens)
        except InputError as error:
            raise PromptError(index, str(error)) from None

    def _continued(
        self,
        index: int,
        tokens: Int32[np.ndarray, "n"],
        gen_length: int,
        name: str = "gen_length",
    ) -> Encoded:
        if gen_length < 1:
            raise InputError(f"gen_length ({gen_length}) must be at least 1")
        if (tokens == self.mask_id).any():
            raise PromptError(
                index,
                f"prompt {index} holds the mask token ({self.mask_text}), which only a "
                "text to be infilled may",
            )
        length = tokens.size + gen_length
        if length > self.max_length:
            raise PromptError(
                index,
                f"prompt {index} has {tokens.size} tokens; with {name} ({gen_length}) "
                f"that is {length}, more than the model's context ({self.max_length})",
                is_too_long=True,
            )
        blanks = np.full(gen_length, self.mask_id, np.int32)
        return Encoded(
            tokens=np.concatenate([tokens, blanks]),
            is_blank=np.arange(length) >= tokens.size,
            is_infill=False,
        )

    def _text(self, tokens: Int[np.ndarray, "n"]) -> str:
        """Decodes without special tokens, but shows where masks are left."""
        (masks,) = np.nonzero(tokens == self.mask_id)
        pieces = np.split(np.asarray(tokens), masks)
        return self.mask_text.join(
            # All but the first piece begin with their mask.
            self.tokenizer.decode(piece[i > 0 :].tolist(), skip_special_tokens=True)
            for i, piece in enumerate(pieces)
        )
