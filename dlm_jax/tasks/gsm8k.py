r"""GSM8K (arXiv:2110.14168): word problems of school mathematics, 1,319 for tests.

The data: `question` and `answer`, which ends in `#### n`, as openai/gsm8k on the hub
has them. The styles:

- `opencompass`: four worked examples as a conversation. OpenCompass'
  gsm8k_gen_1d7fe4, which LLaDA's released evaluation uses (ML-GSAI/LLaDA, opencompass).
- `zero_shot`: the last message of it alone; no publication is known here.
- `harness`: five examples drawn from the split `train` as text that is continued, as
  lm-evaluation-harness' gsm8k. Its drawing depends on how many processes share the
  problems; here it is that of one.

An answer is correct if its number equals the published one: the number behind the first
`####` that is no numbered heading, else the one in the last `\boxed{}`, else the last
one. OpenCompass takes the last one and reads 1,234 as 234; lm-evaluation-harness has
the first rule and the last, as strict-match and flexible-extract.
"""

import dataclasses
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import ClassVar

from dlm_jax.errors import InputError
from dlm_jax.tasks.base import Verdict
from dlm_jax.tasks.math_problems import last_boxed
from dlm_jax.tasks.published import Published, Style, shipped, table
from dlm_jax.tasks.rows import Row
from dlm_jax.text.codec import Messages

# A sign is no minus behind a digit, a letter or a bracket: "5-3" ends in 3.
_NUMBER = re.compile(
    r"(?<![\w.)\]])-?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)|\d[\d,]*(?:\.\d+)?"
)
# There may be signs of formulas and of bold text between the mark and the number.
_MARKED = re.compile(
    r"####(?:\\boxed|[\s*_`$(\[{\\])*(-?\s*\$?\s*(?:\d[\d,]*+(?:\.\d++)?+|\.\d+))"
)
# Behind the number of a heading, as in "#### 2. Add them".
_HEADING = re.compile(r"[.):][ \t*_]*[^\W\d]")
# Between the groups of digits: those of LaTeX, and spaces that do not break.
_GROUPS = re.compile(r"(?<=\d)(?:\{,\}|,?\\[,!;]|[\u00a0\u2009\u202f])(?=\d{3}(?!\d))")
_MINUS = re.compile("[\N{MINUS SIGN}\N{EN DASH}]")
_MOST_DIGITS = 100


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
      name: split and place.
      question: the text.
      answer: the published solution, which ends in `#### n`.
    """

    name: str
    question: str
    answer: str


def number_in(answer: str) -> Fraction | None:
    """The number that an answer ends in, see the module; None if there is none."""
    text = _GROUPS.sub("", _MINUS.sub("-", answer))
    found = _marked(text)
    if found is None:
        boxed = _NUMBER.findall(last_boxed(text) or "")
        found = (boxed or _NUMBER.findall(text) or [None])[-1]
    if found is None:
        return None
    digits = re.sub(r"[,$\s]", "", found)
    return Fraction(digits) if len(digits) <= _MOST_DIGITS else None


def _marked(text: str) -> str | None:
    """The number behind the first #### that does not begin a numbered heading."""
    place = 1
    for marked in _MARKED.finditer(text):
        is_heading = _HEADING.match(text, marked.end())
        if not is_heading or marked.group(1) != str(place):
            return marked.group(1)
        place += 1
    return None


def _ask(problem: Problem) -> str:
    return f"Question: {problem.question}\nLet's think step by step\nAnswer:"


def _conversation(problem: Problem, shots: Sequence[Problem]) -> Messages:
    del shots
    return [*shipped("gsm8k_opencompass"), {"role": "user", "content": _ask(problem)}]


def _few_shot(problem: Problem, shots: Sequence[Problem]) -> str:
    solved = [f"Question: {x.question}\nAnswer: {x.answer}\n\n" for x in shots]
    return "".join(solved) + f"Question: {problem.question}\nAnswer:"


class GSM8K(Published):
    """Word problems; an example's truth is a `Problem`."""

    name: ClassVar[str] = "gsm8k"
    splits: ClassVar[tuple[str, ...]] = ("test", "train")
    form: ClassVar[str] = "`question` and `answer` (which ends in #### n)"
    subset: ClassVar[str] = "main"
    styles: ClassVar[dict[str, Style]] = table(
        Style("opencompass", _conversation, stops=("Question:",)),
        Style(
            "zero_shot",
            lambda problem, _: _ask(problem),
            is_chat=True,
            stops=("Question:",),
        ),
        Style(
            "harness",
            _few_shot,
            stops=("Question:", "</s>", "<|im_end|>"),
            num_shots=5,
        ),
    )
    gen_length: int = 256
    block_length: int = 8

    def problem(self, row: Row, index: int, split: str) -> Problem:
        found = Problem(f"{split}/{index}", row.text("question"), row.text("answer"))
        if not _MARKED.search(found.answer):
            raise InputError(f"{row.where}: answer must end in #### and a number")
        return found

    def judge(self, problem: Problem, answer: str) -> Verdict:
        correct, found = number_in(problem.answer), number_in(answer)
        if found is None:
            return Verdict(False, "the answer has no number")
        if found == correct:
            return Verdict(True, "")
        return Verdict(False, f"the number is {_shown(found)}, not {_shown(correct)}")


def _shown(number: Fraction | None) -> str:
    if number is None or number.denominator == 1:
        return str(number)
    return f"{float(number):.12g}"
