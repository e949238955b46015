r"""MATH (arXiv:2103.03874): problems of mathematics competitions, 5,000 for tests.

The data: `problem`, and `solution` with the answer in `\boxed{}`, or `answer`, as
EleutherAI/hendrycks_math and HuggingFaceH4/MATH-500 on the hub have them, or the
original files of one problem each. The styles:

- `opencompass`: the problem and one instruction. OpenCompass' math_0shot_gen_393424 and
  11c4b5, which LLaDA's released evaluation uses (ML-GSAI/LLaDA, opencompass).
- `harness`: Minerva's four examples as text that is continued, as
  lm-evaluation-harness' minerva_math.

An answer is what follows "Final Answer: The final answer is", else in the last
`\boxed{}`, else behind "answer is". It is correct if it equals the published one as
LaTeX or as mathematics, see `equality`. The publications compare normalised text, and
lm-evaluation-harness lets sympy compare too, so slightly more answers are correct
here.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import ClassVar

from dlm_jax.errors import InputError
from dlm_jax.tasks import equality
from dlm_jax.tasks.base import Example, Verdict
from dlm_jax.tasks.published import Published, Style, shipped, table
from dlm_jax.tasks.rows import Row

_BOX = re.compile(r"\\(?:boxed|fbox)\s*")
_FINAL = re.compile(
    r"Final Answer: The final answer is(.*?)\. I hope it is correct", re.DOTALL
)
_SAID = re.compile(r"answer\s+is\s*:?\s*([^\n]+)", re.IGNORECASE)
# The end of a sentence that another one follows on its line.
_SENTENCE = re.compile(r"\.\s+(?=[A-Z])")
_MOST_SHOWN = 60


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
      name: split and place.
      problem: the text.
      answer: the correct answer, in LaTeX.
    """

    name: str
    problem: str
    answer: str


def last_boxed(text: str) -> str | None:
    r"""What is in the last `\boxed{}` of a text; None if there is none that ends."""
    for start in reversed([found.end() for found in _BOX.finditer(text)]):
        if text[start : start + 1] != "{":
            # As \boxed 5, up to the end of the formula.
            inner = re.match(r"[^$\n]+", text[start:])
            if inner:
                return inner.group().strip()
            continue
        depth = 0
        for place in range(start, len(text)):
            if text[place - 1] == "\\" and text[place] in "{}":
                continue
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if not depth:
                return text[start + 1 : place].strip()
    return None


def answer_in(text: str) -> str | None:
    """The answer that a text gives, see the module; None if there is none."""
    if final := _FINAL.search(text):
        return final.group(1).strip()
    if (boxed := last_boxed(text)) is not None:
        return boxed
    said = _SAID.findall(text)
    return _SENTENCE.split(said[-1])[0].strip(" \t*_.") if said else None


def _zero_shot(problem: Problem, shots: Sequence[Problem]) -> str:
    del shots
    return (
        f"{problem.problem}\nPlease reason step by step, and put your final answer "
        r"within \boxed{}."
    )


def _few_shot(problem: Problem, shots: Sequence[Problem]) -> str:
    del shots
    solved = [
        f"Problem:\n{x['problem']}\n\nSolution:\n{x['solution']}\n\n"
        for x in shipped("math_harness")
    ]
    return "".join(solved) + f"Problem:\n{problem.problem}\n\nSolution:"


class MATH(Published):
    """Competition problems; an example's truth is a `Problem`."""

    name: ClassVar[str] = "math"
    splits: ClassVar[tuple[str, ...]] = ("test", "train")
    form: ClassVar[str] = (
        r"`problem` and `solution` (with \boxed{}), or `problem` and `answer`"
    )
    styles: ClassVar[dict[str, Style]] = table(
        Style("opencompass", _zero_shot, is_chat=True),
        Style("harness", _few_shot, stops=("Problem:",)),
    )
    gen_length: int = 512
    block_length: int = 64

    def examples(self, split: str, num: int, seed: int = 0) -> list[Example]:
        equality.check_installed()
        return super().examples(split, num, seed)

    def problem(self, row: Row, index: int, split: str) -> Problem:
        text = row.text("problem")
        if row.fields.get("answer") is not None:
            return Problem(f"{split}/{index}", text, row.text("answer"))
        answer = last_boxed(row.text("solution"))
        if not answer:
            raise InputError(
                rf"{row.where}: solution must have its answer in \boxed{{}}"
            )
        return Problem(f"{split}/{index}", text, answer)

    def judge(self, problem: Problem, answer: str) -> Verdict:
        found = answer_in(answer)
        if not found:
            return Verdict(False, r"the answer has no \boxed{}")
        compared = equality.compare(problem.answer, found)
        if compared.is_equal:
            return Verdict(True, "")
        reason = f"the answer is {_shown(found)}, not {_shown(problem.answer)}"
        if compared.reason:
            reason = f"{reason}: {compared.reason}"
        return Verdict(False, reason)


def _shown(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 3] + "..."
