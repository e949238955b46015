"""What a task is: examples with a split and a seed, and a verdict on what was written.

A task knows text and no tokens, so that the models shipped here and any other
checkpoint are asked the same thing. A task that a model is trained for from nothing
also brings its own tokenizer, the shape of a model and the training data: `Trainable`.
"""

import abc
import copy
import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from dlm_jax import checkpoints
from dlm_jax.core.canvas import ABSENT
from dlm_jax.core.keys import check_seed
from dlm_jax.core.options import Options
from dlm_jax.errors import InputError
from dlm_jax.models import registry
from dlm_jax.models.family import ModelConfig, Module
from dlm_jax.text.characters import character_tokenizer
from dlm_jax.text.codec import Codec, Messages
from dlm_jax.text.page import Grid
from dlm_jax.text.prompts import Encoded

# Marks one missing token in the prompt of an infilling task.
BLANK = "\N{OPEN BOX}"

# step -> tokens [b, l], is_maskable [b, l], is_valid [b, l]; see `training.Batch`.
BatchAt = Callable[[int], tuple[np.ndarray, np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Example:
    """One thing to solve.

    Attributes:
      name: unique in its task, as 'test/17'.
      prompt: the text to be continued, or a conversation to be answered; in an
        infilling task the whole text, with BLANK for every missing token.
      truth: what the task's verdict needs to know besides.
    """

    name: str
    prompt: str | Messages
    truth: Any = None

    @property
    def text(self) -> str:
        """The prompt as a text; of a conversation its last message."""
        if isinstance(self.prompt, str):
            return self.prompt
        return self.prompt[-1]["content"]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether an answer is correct, and the first reason why not."""

    is_correct: bool
    reason: str


class Task(abc.ABC):
    """Examples and verdicts.

    Attributes:
      name: in the registry.
      splits: what `examples` takes. 'test' is never trained on.
      is_infill: blanks are inside the prompt's text; else they follow it, and the
        answer ends at EOS.
      gen_length: most blanks that an example has; of a continuation, their number.
      block_length: tokens per semi-autoregressive block; one block if ABSENT.
      chat: whether prompts are put into the chat template, see `with_chat`; None if the
        task and the tokenizer decide.
      grid: how a page lays its text out; None for running text.

    Both lengths are defaults, see `with_lengths`.
    """

    name: ClassVar[str]
    splits: ClassVar[tuple[str, ...]]
    is_infill: ClassVar[bool]
    gen_length: int
    block_length: int = ABSENT
    chat: bool | None = None
    grid: ClassVar[Grid | None] = None

    @abc.abstractmethod
    def examples(self, split: str, num: int, seed: int = 0) -> list[Example]:
        """The first `num` examples of a split.

        Args:
          split: one of `splits`.
          num: how many; asking for more gives the same ones first.
          seed: of splits that are drawn; published sets have none.

        Raises:
          InputError: for an unknown split, or more examples than it has.
        """

    def size(self, split: str) -> int | None:
        """How many examples a split has; None, the default, if as many as are asked.

        Args:
          split: one of `splits`.

        Raises:
          InputError: for an unknown split, or data that cannot be read.
        """
        self.check(split, 1)
        return None

    @abc.abstractmethod
    def verdict(self, example: Example, answer: str) -> Verdict:
        """Judges an answer.

        Args:
          example: what was asked.
          answer: the continuation up to EOS; in an infilling task the whole text. Masks
            that are left in it are shown as the tokenizer writes them.
        """

    def pretty(self, text: str) -> str:
        """A prompt or an answer as people like to see it; '.' for a blank."""
        return text.replace(BLANK, ".")

    def encode(self, codec: Codec, examples: Sequence[Example]) -> list[Encoded]:
        """The canvases of some examples: infilled, by chat template, or continued.

        Raises:
          InputError: if the tokenizer cannot write a prompt, or it is too long.
        """
        if self.is_infill:
            return codec.encode_infill(
                [example.text.replace(BLANK, codec.mask_text) for example in examples]
            )
        prompts = [example.prompt for example in examples]
        return codec.encode_prompts(
            prompts, self.gen_length, is_chat=self.is_chat(codec)
        )

    def is_chat(self, codec: Codec) -> bool:
        """Whether a prompt is a user's message: `chat`, or if there is a template."""
        return codec.has_chat_template if self.chat is None else self.chat

    def with_data(self, source: str) -> "Task":
        """The same task with data of a user's.

        Args:
          source: a file, a directory, or `hub:NAME`, see `rows.read_rows`.

        Returns:
          A copy; the task itself does not change.

        Raises:
          InputError: if the task takes none.
        """
        raise InputError(
            f"data ({source}) must not be given for {self.name}, which brings its own"
        )

    def with_style(self, name: str) -> "Task":
        """The same task with its problems written in another published way.

        Args:
          name: of a style, see `published.Style`.

        Returns:
          A copy; the task itself does not change.

        Raises:
          InputError: if the task has no such style.
        """
        raise InputError(
            f"prompt_style ({name}) must not be given for {self.name}, which has one"
        )

    def with_chat(self, chat: bool) -> "Task":
        """The same task with or without the chat template.

        Args:
          chat: put prompts into the chat template; if not, they are continued as they
            are.

        Returns:
          A copy; the task itself does not change.

        Raises:
          InputError: if the task's blanks are inside its texts.
        """
        if self.is_infill:
            raise InputError(
                f"chat ({chat}) must not be set for {self.name}, whose blanks are "
                "inside the text"
            )
        found = copy.copy(self)
        found.chat = chat
        return found

    def identity(self, split: str) -> dict[str, Any]:
        """What a manifest says of the task's data and prompts; `chat` if it is set.

        Args:
          split: of the examples.

        Raises:
          InputError: for data that cannot be read.
        """
        del split
        return {} if self.chat is None else {"chat": self.chat}

    def with_lengths(
        self, gen_length: int | None = None, block_length: int | None = None
    ) -> "Task":
        """The same task with other lengths.

        Args:
          gen_length: blanks of a continuation; the task's own if None. An infilling
            task takes no other: the blanks are in its prompts.
          block_length: tokens per semi-autoregressive block, a divisor of gen_length;
            the task's own if None.

        Returns:
          A copy; the task itself does not change.

        Raises:
          InputError: for a length that does not fit.
        """
        if gen_length is not None and self.is_infill:
            raise InputError(
                f"gen_length ({gen_length}) must not be set for {self.name}, whose "
                "prompts hold their blanks"
            )
        asked = copy.copy(self)
        if gen_length is not None:
            asked.gen_length = gen_length
        if block_length is not None:
            asked.block_length = block_length
        blanks, block = asked.gen_length, asked.block_length
        for name, value in (("gen_length", blanks), ("block_length", block)):
            if value is not ABSENT and value < 1:
                raise InputError(f"{name} ({value}) must be at least 1")
        if block is not ABSENT and blanks % block:
            raise InputError(
                f"gen_length ({blanks}) must be a multiple of block_length ({block})"
            )
        return asked

    def options(self, codec: Codec, temperature: float = 0.0) -> Options:
        """How to generate: the task's lengths; continuations stop at EOS."""
        return Options(
            self.gen_length, self.block_length, temperature, stop_ids=codec.stop_ids
        )

    def check(
        self, split: str, num: int, seed: int = 0, most: int | None = None
    ) -> None:
        """Raises InputError for an argument of `examples` that does not fit.

        Args:
          split: must be one of the task's.
          num: must be at least 1, and at most `most`.
          seed: must be one, see `keys.check_seed`.
          most: examples that there are.
        """
        if split not in self.splits:
            raise InputError(f"split ({split}) must be one of {', '.join(self.splits)}")
        if num < 1:
            raise InputError(f"num_examples ({num}) must be at least 1")
        check_seed(seed, "seed of the examples")
        if most is not None and num > most:
            raise InputError(
                f"num_examples ({num}) must be at most {most}, those of {split}"
            )


class Trainable(Task):
    """A task with a small model of its own."""

    @abc.abstractmethod
    def tokenizer(self) -> Any:
        """The tokenizer of transformers; `save_pretrained` writes its files."""

    @abc.abstractmethod
    def model_config(self, **shape: int) -> ModelConfig:
        """The shape of a model for this task, see `registry.small`.

        Args:
          shape: d_model, n_heads, n_layers and mlp_hidden_size.
        """

    @abc.abstractmethod
    def training_batches(
        self,
        data: Mapping[str, Any],
        *,
        batch_size: int,
        seed: int,
        workdir: pathlib.Path,
    ) -> BatchAt:
        """Training data as a function of the step, which depends on nothing else.

        Args:
          data: what the config says of it.
          batch_size: rows.
          seed: of the rows.
          workdir: where data that takes long to make may be kept.
        """


class CharacterTask(Trainable):
    """A trainable task whose text has one token per character, and a period.

    Attributes:
      vocabulary: token ids are places in it: first the special tokens that begin and
        end a text, last the one that marks a blank.
      period: tokens from a place in a line to the same place in the next one.
      embedding_size: rows of the model's embedding.
      max_sequence_length: of the model.
    """

    vocabulary: ClassVar[tuple[str, ...]]
    period: ClassVar[int]
    embedding_size: ClassVar[int]
    max_sequence_length: ClassVar[int]

    def tokenizer(self) -> Any:
        bos, eos, *_, mask = self.vocabulary
        return character_tokenizer(self.vocabulary, bos=bos, eos=eos, mask=mask)

    def model_config(self, **shape: int) -> ModelConfig:
        head_dim = shape["d_model"] // shape["n_heads"]
        return registry.small(
            **shape,
            vocab_size=len(self.vocabulary),
            embedding_size=self.embedding_size,
            max_sequence_length=self.max_sequence_length,
            # Frequency i is theta^(-2i / head_dim): the second is 2 pi / period.
            rope_theta=(self.period / (2 * math.pi)) ** (head_dim / 2),
            mask_token_id=len(self.vocabulary) - 1,
            eos_token_id=1,
        )


def load(
    task: Task, checkpoint: str | pathlib.Path, dtype: str | None = None
) -> tuple[Module, Codec]:
    """Loads a model that is to be asked a task, and its tokenizer.

    Raises:
      InputError: if the checkpoint cannot be loaded, or as `check_codec`.
    """
    model = checkpoints.load(checkpoint, dtype)
    return model, load_codec(task, checkpoint, model.config)


def load_codec(
    task: Task, checkpoint: str | pathlib.Path, config: ModelConfig
) -> Codec:
    """Loads the tokenizer of a model that is to be asked a task.

    Raises:
      InputError: if it cannot be loaded, or as `check_codec`.
    """
    codec = Codec.load(checkpoint, config)
    check_codec(task, codec)
    return codec


def check_codec(task: Task, codec: Codec) -> None:
    """Refuses a tokenizer that would cut a task's text in another way than its own.

    Only what is a sentence can be given to any model.

    Raises:
      InputError: if the task has a tokenizer, and it is another.
    """
    if isinstance(task, Trainable):
        vocabulary = tuple(task.tokenizer().get_vocab())
        if set(vocabulary) != set(codec.vocabulary):
            raise InputError(
                f"the checkpoint's tokenizer is not the one of the task {task.name}"
            )
