"""Published benchmarks: problems that a user has, asked as a publication asked them.

A published number is of a prompt as much as of a model. Each way to write the problems
of a task is a `Style`; the task has a table of them, and a config names one.
"""

import abc
import copy
import dataclasses
import functools
import hashlib
import importlib.resources
import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from dlm_jax.errors import InputError
from dlm_jax.tasks.base import Example, Task, Verdict
from dlm_jax.tasks.rows import Row, read_rows
from dlm_jax.text.codec import Codec, Messages
from dlm_jax.text.prompts import Encoded
from dlm_jax.text.stops import cut

# Of lm-evaluation-harness, whose sampler draws the examples of one problem after the
# other from one generator.
_SHOT_SEED = 1234


@dataclasses.dataclass(frozen=True)
class Style:
    """One published way to write problems as prompts.

    Attributes:
      name: as flags and manifests have it.
      write: from a problem and its examples to a prompt: a conversation, which is
        written in the chat template, or a text, which is continued as it is.
      plain: the same for a checkpoint without a chat template; it is refused if None
        and `write` gives conversations.
      is_chat: a text is a user's message.
      opening: how the answer begins; it is written behind the prompt, and is no part of
        what is judged.
      stops: an answer ends before the first of these texts.
      num_shots: examples that `write` gets, drawn for each problem from the data's
        split `train` (as lm-evaluation-harness draws them, in one process).
    """

    name: str
    write: Callable[[Any, Sequence[Any]], str | Messages]
    plain: Callable[[Any], str] | None = None
    is_chat: bool = False
    opening: str = ""
    stops: tuple[str, ...] = ()
    num_shots: int = 0

    def cut(self, answer: str) -> str:
        """What of an answer is judged."""
        return cut(answer, self.stops)


def table(*styles: Style) -> dict[str, Style]:
    """Styles by name; the first is a task's default."""
    return {style.name: style for style in styles}


@functools.cache
def shipped(name: str) -> Any:
    """The JSON text of a published prompt, see `dlm_jax/tasks/prompts`."""
    files = importlib.resources.files("dlm_jax.tasks").joinpath("prompts")
    return json.loads(files.joinpath(f"{name}.json").read_text(encoding="utf-8"))


class Published(Task):
    """A task whose problems come from a data set that a user has.

    Attributes:
      styles: that it has, by name; the first is its default.
      form: the fields of a row, for the line that refuses a run without data.
      subset: folder of a directory that is read if it has it, see `read_rows`.
      data: where the problems are, see `with_data`; None without.
      style: how they are written, see `with_style`.
    """

    styles: ClassVar[Mapping[str, Style]]
    form: ClassVar[str]
    subset: ClassVar[str] = ""
    is_infill: ClassVar[bool] = False
    data: str | None
    style: Style

    def __init__(self) -> None:
        self.data = None
        self.style = next(iter(self.styles.values()))
        self._problems: dict[str, tuple[Any, ...]] = {}

    @abc.abstractmethod
    def problem(self, row: Row, index: int, split: str) -> Any:
        """The problem in a row: a frozen dataclass with a `name`.

        Args:
          row: of the data.
          index: its place among the split's.
          split: of it.

        Raises:
          InputError: naming file and line, for a row that is no problem.
        """

    @abc.abstractmethod
    def judge(self, problem: Any, answer: str) -> Verdict:
        """Judges an answer, up to the style's stops."""

    def belongs(self, row: Row, split: str) -> bool:
        """Whether a row of a file that names no split is of one: all are of `test`."""
        del row
        return split == self.splits[0]

    def with_data(self, source: str) -> "Published":
        found = copy.copy(self)
        found.data = source
        found._problems = {}
        return found

    def with_style(self, name: str) -> "Published":
        if name not in self.styles:
            known = ", ".join(self.styles)
            raise InputError(f"prompt_style ({name}) must be one of {known}")
        found = copy.copy(self)
        found.style = self.styles[name]
        return found

    def problems(self, split: str) -> tuple[Any, ...]:
        """All problems of a split.

        Raises:
          InputError: without data, or for data that cannot be read.
        """
        if split not in self._problems:
            if self.data is None:
                raise InputError(
                    f"task ({self.name}) needs data (--data=PATH of evaluate and "
                    "sweep): a .jsonl, .json or .parquet file, or a directory of them "
                    f"as on the hub, with {self.form}"
                )
            read = read_rows(self.data, split, self.splits, self.subset)
            rows = read.rows
            if not read.is_of_split:
                rows = [row for row in rows if self.belongs(row, split)]
            if not rows:
                raise InputError(f"data ({self.data}) has no rows of the split {split}")
            self._problems[split] = tuple(
                self.problem(row, index, split) for index, row in enumerate(rows)
            )
        return self._problems[split]

    def size(self, split: str) -> int:
        self.check(split, 1)
        return len(self.problems(split))

    def examples(self, split: str, num: int, seed: int = 0) -> list[Example]:
        self.check(split, num, seed)
        problems = self.problems(split)
        self.check(split, num, seed, len(problems))
        return [
            Example(problem.name, self.style.write(problem, shots), problem)
            for problem, shots in zip(problems[:num], self._shots(num), strict=True)
        ]

    def verdict(self, example: Example, answer: str) -> Verdict:
        return self.judge(example.truth, self.style.cut(answer))

    def encode(self, codec: Codec, examples: Sequence[Example]) -> list[Encoded]:
        style = self.style
        if style.plain is not None and not self.is_chat(codec):
            prompts: list[str | Messages] = [style.plain(x.truth) for x in examples]
            return codec.encode_prompts(prompts, self.gen_length, is_chat=False)
        is_text = all(isinstance(example.prompt, str) for example in examples)
        if self.chat is False and not is_text:
            raise InputError(
                f"chat (False) must not be set for prompt_style ({style.name}) of "
                f"{self.name}, which writes conversations"
            )
        return codec.encode_prompts(
            [example.prompt for example in examples],
            self.gen_length,
            is_chat=style.is_chat if self.chat is None else self.chat,
            opening=style.opening,
        )

    def identity(self, split: str) -> dict[str, Any]:
        found = super().identity(split)
        # The default's absence keeps directories that older versions began. It comes
        # first, for the data of another style may be others too.
        if self.style.name != next(iter(self.styles)):
            found["prompt_style"] = self.style.name
        if self.data is not None:
            found["data"] = self._digest(split)
        return found

    def _digest(self, split: str) -> str:
        """SHA-256 of all problems that a prompt may hold, in whatever form they are."""
        splits = {split, *(["train"] if self.style.num_shots else [])}
        total = hashlib.sha256()
        for name in sorted(splits):
            for problem in self.problems(name):
                fields = dataclasses.asdict(problem)
                total.update(json.dumps(fields, sort_keys=True).encode() + b"\n")
        return total.hexdigest()

    def _shots(self, num: int) -> list[list[Any]]:
        """The examples of the first problems."""
        if not self.style.num_shots:
            return [[] for _ in range(num)]
        try:
            pool = self.problems("train")
        except InputError as error:
            raise InputError(
                f"prompt_style ({self.style.name}) takes its examples from the split "
                f"train: {error}"
            ) from None
        if len(pool) < self.style.num_shots:
            raise InputError(
                f"data ({self.data}) has {len(pool)} rows of the split train; "
                f"prompt_style ({self.style.name}) needs {self.style.num_shots}"
            )
        draw = random.Random(_SHOT_SEED)
        return [draw.sample(pool, self.style.num_shots) for _ in range(num)]
