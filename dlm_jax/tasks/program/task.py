"""Small Python functions written to a specification in words, and run to be judged.

The programs come from a compositional grammar (`program.grammar`): two or three steps,
or up to five, described in varied words and not always in the order in which they are
done. Each has many correct texts, and the training data take one of them at random:
which names, loops or comprehensions. A token at one place then binds distant places,
which is what samplers that commit many tokens at once can get wrong.

Two programs that do the same have the same key, however they are described or written.
The key is a hash of their results on fixed arguments.
"""

import dataclasses
import functools
import hashlib
import pathlib
import random
import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from dlm_jax.core.keys import check_seed
from dlm_jax.errors import InputError
from dlm_jax.models import registry
from dlm_jax.models.family import ModelConfig
from dlm_jax.sandbox import sandbox
from dlm_jax.tasks.base import BatchAt, Example, Trainable, Verdict
from dlm_jax.tasks.program import drawing
from dlm_jax.tasks.program import text as program_text
from dlm_jax.tasks.program.grammar import (
    TESTS,
    TYPES,
    Choice,
    Steps,
    run,
    run_step,
    source_of,
)
from dlm_jax.tasks.splits import split_of

# Words of the specifications and parts of Python, with the space before them.
_SPACED = """
!= " % * ** + += - // 0 1 2 3 4 5 6 7 8 9 < <= = == > >= [ [- a above abs
absolute add after an and append apply are around ascending at before below
build but by c case change characters compute contains convert count data
decrease default descending digits divide divisible down drop duplicates e each
end even every f first for from front g greater h handle how if in increase
integer into is it its keep largest last len length lengths less list longer
lower m make max min modulo more multiples multiply n negate negative next
number numbers occurs odd of often or order otherwise out positive put reduce
remove repeat replace result reverse right rounding run s second smallest solve
sort sorted spaces square start str string subtract sum swap t take text than
that the then there times to total transform turn up upper value values very
vowels what word words write x xs you ys
"""
_BARE = """
" ( (- ([ ) , . 0 1 2 3 4 5 6 7 8 9 : = True [ [- [: [:- [:: [::- ] a abs aeiou
append b c count data def define dict e else for fromkeys given i if int join
len lower m n number o out r replace result return s sorted split swapcase t
text total upper values word write x xs ys
"""
# Token ids are places in this list.
VOCABULARY = (
    "<|startoftext|>",
    "<|endoftext|>",
    "<|mdm_mask|>",
    "\n",
    "\n" + " " * 4,
    "\n" + " " * 8,
    "\n" + " " * 12,
    *(f" {word}" for word in _SPACED.split()),
    *_BARE.split(),
)
EOS_ID = VOCABULARY.index("<|endoftext|>")
MASK_ID = VOCABULARY.index("<|mdm_mask|>")
_IDS = {token: index for index, token in enumerate(VOCABULARY)}
# A word, digit or run of signs with the space before it, or a line break with its
# indentation. Quotes and closing brackets stand alone: there would be many runs.
_PIECE = r' ?[A-Za-z_]+| ?[0-9]|\n *| ?"|[)\]]| ?[^\sA-Za-z0-9_")\]]+|\s'
_find_pieces = re.compile(_PIECE).findall

# Which of 16 keys are held out, and for what. Few programs have what 'unseen' asks for.
_SHARE = 16
_HELD_OUT = ("test", "valid", "unseen", "unseen")
_NUM_INPUTS = 12


@dataclasses.dataclass(frozen=True)
class Limits:
    """The longest programs that are drawn.

    Attributes:
      max_steps: of a program, 2 to 5; the fewest are two.
      prompt: tokens of a specification.
      answer: tokens of a text and of at least one EOS after it.
    """

    max_steps: int
    prompt: int
    answer: int


@dataclasses.dataclass(frozen=True)
class Question:
    """What decides whether an answer is correct.

    Attributes:
      program: what was asked for.
      function: the name it must have.
      inputs: arguments that it is tried on.
      outputs: what the program makes of each.
    """

    program: Steps
    function: str
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]


class Program(Trainable):
    """Continues a specification with a Python function of two or three steps.

    No program of the splits is in the training data under any wording: 'test', 'valid'
    and, harder, 'unseen', whose programs have operations one after the other that never
    follow one another in training. An example's truth is a `Question`.

    How much there is within the limits, by enumeration: 638,938 programs, fewer than a
    million, of 227,007 behaviours. Each is asked for in 36 pairs of names and about 125
    wordings, which makes some 2.9e9 distinct specifications. The splits have 15,374
    ('test'), 15,636 ('valid') and 9,749 ('unseen') behaviours.

    Attributes:
      limits: of the programs that are asked for.
      most_examples: that a split gives, each of another behaviour.
    """

    name: ClassVar[str] = "program"
    splits: ClassVar[tuple[str, ...]] = ("test", "unseen", "valid")
    is_infill: ClassVar[bool] = False
    limits: ClassVar[Limits] = Limits(max_steps=3, prompt=28, answer=40)
    gen_length: int = limits.answer
    most_examples: ClassVar[Mapping[str, int]] = {
        "test": 1000,
        "unseen": 500,
        "valid": 1000,
    }

    def size(self, split: str) -> int | None:
        self.check(split, 1)
        return self.most_examples.get(split)

    def examples(self, split: str, num: int, seed: int = 0) -> list[Example]:
        self.check(split, num, seed, self.most_examples.get(split))
        rng = random.Random(f"{split} {seed}")
        examples: list[Example] = []
        keys = set()
        for program, key, prompt, function, _ in _draws(rng, split, self.limits):
            if key in keys:
                continue
            keys.add(key)
            source = source_of(program)
            inputs = tuple(_arguments(random.Random(prompt), source, _NUM_INPUTS))
            outputs = tuple(run(program, value) for value in inputs)
            truth = Question(program, function, inputs, outputs)
            examples.append(Example(f"{split}/{seed}/{len(examples)}", prompt, truth))
            if len(examples) == num:
                break
        return examples

    def verdict(self, example: Example, answer: str) -> Verdict:
        question = example.truth
        return judge(question, answer)

    def tokenizer(self) -> Any:
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        tokenizer = Tokenizer(models.WordLevel(dict(_IDS)))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECE), "isolated")
        tokenizer.decoder = decoders.Fuse()
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token=VOCABULARY[0],
            eos_token=VOCABULARY[EOS_ID],
            pad_token=VOCABULARY[EOS_ID],
            mask_token=VOCABULARY[MASK_ID],
            clean_up_tokenization_spaces=False,
        )

    def model_config(self, **shape: int) -> ModelConfig:
        return registry.small(
            **shape,
            vocab_size=len(VOCABULARY),
            embedding_size=-(-len(VOCABULARY) // 16) * 16,
            max_sequence_length=128,
            rope_theta=1000.0,
            mask_token_id=MASK_ID,
            eos_token_id=EOS_ID,
        )

    def training_batches(
        self,
        data: Mapping[str, Any],
        *,
        batch_size: int,
        seed: int,
        workdir: pathlib.Path,
    ) -> BatchAt:
        """New programs in every step, each in one of its texts.

        The specification is prompt; the function and the EOS after it are learned.

        Args:
          data: fields of `Limits`, for a stage that begins with short programs; and
            `is_told_only`, for one that hides only tokens which are in the
            specification too (names, numbers, letters).
          batch_size: rows.
          seed: of the programs, their wording and their texts.
          workdir: not used.

        Raises:
          InputError: if data names anything else, or for a seed out of range.
        """
        del workdir
        check_seed(seed)
        known = [*(field.name for field in dataclasses.fields(Limits)), "is_told_only"]
        unknown = ", ".join(name for name in data if name not in known)
        if unknown:
            raise InputError(f"data ({unknown}) must be among {', '.join(known)}")
        bounds = dict(data)
        is_told_only = bounds.pop("is_told_only", False)
        limits = dataclasses.replace(self.limits, **bounds)
        columns = np.arange(limits.prompt + limits.answer)

        def batch_at(step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            draws = _draws(random.Random(f"train {seed} {step}"), "train", limits)
            tokens = np.full((batch_size, columns.size), EOS_ID, np.int32)
            starts = np.zeros((batch_size, 1), np.int32)
            is_hidden = np.full(tokens.shape, not is_told_only)
            for row, (_, _, prompt, _, answer) in zip(range(batch_size), draws):  # noqa: B905
                ids = encode(prompt)
                starts[row] = len(ids)
                ids += encode(answer)
                tokens[row, : len(ids)] = ids
                is_hidden[row] |= np.isin(tokens[row], ids[: starts[row, 0]])
            is_valid = columns < starts + limits.answer
            return tokens, (columns >= starts) & is_valid & is_hidden, is_valid

        return batch_at


class LongProgram(Program):
    """Up to five steps. No model of it is shipped; it is there for larger ones.

    Its programs of three operations alone are 3,247,021, of 796,437 behaviours.
    """

    name: ClassVar[str] = "program_long"
    limits: ClassVar[Limits] = Limits(max_steps=5, prompt=48, answer=64)
    gen_length: int = limits.answer


def encode(text: str) -> list[int]:
    """Token ids of a text of the grammar, as the tokenizer gives them.

    Raises:
      KeyError: for anything else.
    """
    return [_IDS[piece] for piece in _find_pieces(text)]


def judge(question: Question, answer: str) -> Verdict:
    """Runs an answer on the question's inputs and compares types and values.

    Args:
      question: what it must do.
      answer: Python text.
    """
    inputs = [(value,) for value in question.inputs]
    tests = list(zip(inputs, question.outputs, strict=True))
    outcome = sandbox.run_tests(answer, question.function, tests)
    return Verdict(outcome.is_passed, outcome.reason)


def _arguments(rng: random.Random, source: str, num: int) -> Iterator[Any]:
    """Arguments of a type: first those where programs break, then random ones."""
    if source == "list":
        yield []
        yield [rng.randint(-9, 25)]
        for length in (*range(2, 9), *(rng.randint(3, 10) for _ in range(num)))[
            : num - 2
        ]:
            values = [rng.randint(-9, 25) for _ in range(length)]
            # Some numbers come twice.
            values[rng.randrange(length)] = values[0]
            yield values
    elif source == "str":
        yield ""
        yield rng.choice("aZ b")
        for length in range(num - 2):
            words = (
                "".join(
                    rng.choice("aeiobnrstAEONRSTzk") for _ in range(rng.randint(1, 7))
                )
                for _ in range(1 + length % 4)
            )
            yield " ".join(words)
    else:
        yield 0
        yield -rng.randint(1, 9)
        for _ in range(num - 2):
            yield rng.choice((rng.randint(1, 30), rng.randint(-99, 999)))


# Arguments whose results tell programs apart.
_PROBES = {
    source: list(_arguments(random.Random(f"probes {source}"), source, _NUM_INPUTS))
    for source in TYPES
}


@functools.lru_cache(maxsize=1 << 16)
def key_of(program: Steps) -> str | None:
    """What a program does: programs that do the same have the same key.

    Returns:
      A hash of the type that it takes and of what it gives on fixed arguments; None if
      it is not worth asking for: a step of it hardly matters, or it gives the same more
      often than not.
    """
    source = source_of(program)
    values = _PROBES[source]
    for step in program:
        if isinstance(step, Choice):
            test = TESTS[step.test]
            num_true = sum(test.meaning(value, *step.constants) for value in values)
            if not 2 <= num_true <= len(values) - 2:
                return None
        after = [run_step(step, value) for value in values]
        if sum(map(_differ, values, after)) < 2:
            return None
        values = after
    outputs = list(map(repr, values))
    if max(map(outputs.count, outputs)) > len(outputs) // 2:
        return None
    text = "\n".join([source, *outputs])
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _differ(before: Any, after: Any) -> bool:
    return before != after


def split_of_program(program: Steps, key: str) -> str:
    """The split of a program: 'train', one of the task's, or 'none'.

    Training has neither a key of another split nor a pair of operations that is kept
    for 'unseen', whose programs have such a pair; others with their keys are not used.
    """
    split = split_of(key, _HELD_OUT, _SHARE)
    is_unseen = any(drawing.is_unseen(*pair) for pair in drawing.pairs(program))
    return split if is_unseen == (split == "unseen") else "none"


def _draws(
    rng: random.Random, split: str, limits: Limits
) -> Iterator[tuple[Steps, str, str, str, str]]:
    """Random programs of a split: program, key, specification, function's name, text.

    They fit the limits.
    """
    while True:
        program = drawing.draw(rng, limits.max_steps)
        # What is cheap is checked first.
        is_unseen = any(drawing.is_unseen(*pair) for pair in drawing.pairs(program))
        if is_unseen != (split == "unseen"):
            continue
        function = rng.choice(program_text.FUNCTIONS)
        argument = rng.choice(program_text.ARGUMENTS[source_of(program)])
        prompt = program_text.describe(rng, program, function, argument)
        if len(_find_pieces(prompt)) > limits.prompt:
            continue
        key = key_of(program)
        if key is None or split_of_program(program, key) != split:
            continue
        style = program_text.draw_style(rng, program, argument)
        answer = program_text.write(program, function, argument, style)
        if len(_find_pieces(answer)) < limits.answer:
            yield program, key, prompt, function, answer
