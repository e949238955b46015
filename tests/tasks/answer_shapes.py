"""The shapes in which models write a correct function down."""

import ast
import dataclasses
import html
import json
import textwrap
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Parts:
    """A problem and its solution, as text.

    Attributes:
      prompt: of the problem.
      body: the function's, indented.
      name: of the function.
    """

    prompt: str
    body: str
    name: str

    @property
    def whole(self) -> str:
        """Everything, as one would write it."""
        return f"{self.prompt.rstrip()}\n{self.body.strip(chr(10))}\n"

    @property
    def head(self) -> str:
        """The line that begins the function, and what stands before it."""
        start = self.prompt.rindex(f"def {self.name}(")
        return self.prompt[: self.prompt.index("\n", start)]

    @property
    def function(self) -> str:
        """The function, without what stands before it."""
        return self.whole[self.prompt.rindex(f"def {self.name}(") :]

    @property
    def before(self) -> str:
        """What stands before the function."""
        return self.prompt[: self.prompt.rindex(f"def {self.name}(")]

    @property
    def draft(self) -> str:
        """A function that is wrong."""
        return f"{self.head}\n    return 'draft'\n"

    @property
    def stub(self) -> str:
        """A function that does nothing yet."""
        return f"{self.prompt.rstrip()}\n    # TODO\n    pass\n"

    def cut(self, share: float) -> str:
        """The beginning of the function."""
        return self.function[: len(self.head) + int(share * len(self.function))]


def fenced(code: str, info: str = "python", fence: str = "```") -> str:
    return f"{fence}{info}\n{code.rstrip()}\n{fence}\n"


def tabs(code: str) -> str:
    """Code with a tab for each level."""
    code = ast.unparse(ast.parse(code))
    return "\n".join(
        "\t" * ((len(line) - len(line.lstrip(" "))) // 4) + line.lstrip(" ")
        for line in code.split("\n")
    )


def marked(code: str, first: str, rest: str) -> str:
    """Code with a mark before each line."""
    lines = code.rstrip().split("\n")
    return "\n".join([first + lines[0], *(rest + line for line in lines[1:])]) + "\n"


SHAPES: dict[str, Callable[[Parts], str]] = {
    # Continuations of the prompt.
    "body": lambda p: p.body,
    "body, next def cut off": lambda p: f"{p.body}\n\n\ndef another(x):\n    if x >",
    "body, next docstring cut off": lambda p: (
        f'{p.body}\n\ndef another(x):\n    """ It\'s the (second'
    ),
    "body, lone closing fence, sentence": lambda p: (
        f"{p.body}```\n\nThis returns what you're looking for (see above."
    ),
    "body, lone closing fence on its line": lambda p: f"{p.body.rstrip()}\n```",
    "body, tests": lambda p: (
        f"{p.body}\n\ndef check(candidate):\n    assert candidate(1) == 3\n\n"
        f"check({p.name})\n\nif __name__ == '__main__':\n    import doctest\n"
        "    doctest.testmod()\n"
    ),
    "body, prose": lambda p: f"{p.body}\n\nThis isn't hard: it's a loop.\n",
    "body, its own definition cut off": lambda p: f"{p.body}\n\n\n{p.cut(0.5)}",
    "body without the first line's indentation": lambda p: p.body.strip(),
    "body with one space cut off": lambda p: p.body.lstrip("\n")[1:],
    "body without indentation": lambda p: textwrap.dedent(p.body),
    "body in a fence": lambda p: fenced(p.body),
    "body in a fence without indentation": lambda p: fenced(textwrap.dedent(p.body)),
    "words, then the body": lambda p: f"Sure, here's the body:\n\n{p.body}",
    "body with tabs": lambda p: (
        "\t" + tabs(textwrap.dedent(p.function)).partition("\t")[2]
    ),
    # The whole function.
    "fenced": lambda p: f"Here you are:\n\n{fenced(p.whole)}\nIt's simple.",
    "fenced without the imports": lambda p: fenced(p.function),
    "fence never closed": lambda p: f"```python\n{p.whole}",
    "no info": lambda p: fenced(p.whole, ""),
    "info with a title": lambda p: fenced(p.whole, 'python title="solution.py"'),
    "tildes": lambda p: fenced(p.whole, fence="~~~"),
    "four backticks": lambda p: fenced(fenced(p.whole), "markdown", "````"),
    "code on the fence's line": lambda p: f"```python {p.function.rstrip()}```",
    "CRLF": lambda p: f"Here:\n{fenced(p.whole)}Done.".replace("\n", "\r\n"),
    "PYTHON tags": lambda p: f"[PYTHON]\n{p.whole}[/PYTHON]\n[TESTS]\nassert False",
    "BEGIN and DONE": lambda p: f"[BEGIN]\n{p.whole}[DONE]\nYou are an expert",
    "code tags": lambda p: f"<code>\n{p.whole}</code>",
    "no fence": lambda p: f"Sure! Here's the code:\n\n{p.whole}\n\nIt's done (really.",
    "no fence, then a fenced example": lambda p: (
        f"{p.whole}\n\nFor example:\n\n{fenced(f'print({p.name}(1))')}"
    ),
    "cut off in a usage line": lambda p: (
        f"```python\n{p.whole}\n# Usage\nprint({p.name}("
    ),
    "question repeated in a fence": lambda p: (
        f"The question:\n{fenced(p.prompt)}\nThe answer:\n{fenced(p.whole)}"
    ),
    "question repeated without a fence": lambda p: f"{p.prompt}\n\n{fenced(p.whole)}",
    "question repeated, then the body": lambda p: fenced(p.prompt) + fenced(p.body),
    "stub first": lambda p: f"{fenced(p.stub)}Now all of it:\n{fenced(p.whole)}",
    "draft first": lambda p: f"{fenced(p.draft)}That's wrong.\n{fenced(p.whole)}",
    "draft first, one fence": lambda p: fenced(f"{p.draft}\n\n{p.whole}"),
    "draft first, no fence": lambda p: f"{p.draft}\nWait, no:\n\n{p.whole}\nSo.",
    "solution, then the question": lambda p: f"{fenced(p.whole)}{fenced(p.prompt)}",
    "solution, then a usage example": lambda p: (
        fenced(p.whole)
        + f"Use it:\n{fenced(f'x = {p.name}(1)' + chr(10) + 'print(x)')}"
    ),
    "tests and main after it": lambda p: fenced(
        f"{p.whole}\n\nassert {p.name}(1) == 'nonsense'\nprint({p.name}('x'))\n\n"
        f"class Test(unittest.TestCase):\n    def test(self):\n        {p.name}(1)\n\n"
        f"if __name__ == '__main__':\n    print({p.name}(input()))"
    ),
    "tests before it": lambda p: fenced(
        f"import pytest\n\ndef test():\n    assert {p.name}(1)\n\n{p.whole}"
    ),
    "second definition cut off": lambda p: (
        f"{fenced(p.whole)}Another way:\n\n```python\n{p.cut(0.4)}"
    ),
    "second definition cut off late": lambda p: (
        f"{fenced(p.whole)}Another way:\n\n```python\n{p.cut(0.8)}"
    ),
    "second definition cut off, no fence": lambda p: f"{p.whole}\n\n{p.cut(0.6)}",
    "prose inside the fence": lambda p: fenced(
        f"Here's the function (as asked:\n\n{p.whole}\nThis function isn't slow.\n"
        "    It takes linear time."
    ),
    "prose, quotes unbalanced": lambda p: (
        f'He said "go (on [and {{on.\n\n{p.whole}\nIt\'s """ odd'
    ),
    "explained line by line": lambda p: (
        f"{fenced(p.whole)}The main line:\n"
        f"{fenced(p.body.strip(chr(10)).split(chr(10))[-1])}"
    ),
    "in a list": lambda p: (
        f"1. First:\n\n{textwrap.indent(fenced(p.whole), '   ')}\n2. Then rest."
    ),
    "indented": lambda p: f"Here it is:\n\n{textwrap.indent(p.whole, '    ')}\nDone.",
    "behind words": lambda p: f"Answer: {p.function}",
    "imports in one fence, function in another": lambda p: (
        f"Imports:\n{fenced('import math, re' + chr(10) + p.before + chr(10))}"
        f"Function:\n{fenced(p.function)}"
    ),
    "constants and try-imports first": lambda p: fenced(
        "from __future__ import annotations\nLIMIT = (\n    10\n)\n"
        "try:\n    import numpy as np\nexcept ImportError:\n    np = None\n" + p.whole
    ),
    "tabs": lambda p: fenced(tabs(p.whole)),
    "method": lambda p: fenced(
        f"{p.before}\nclass Solution:\n    @staticmethod\n"
        + textwrap.indent(p.function, "    ")
    ),
    "end token": lambda p: f"{fenced(p.whole)}<|eot_id|>",
    "fence in the docstring": lambda p: fenced(
        p.whole.replace(p.head, f'{p.head}\n    """As in\n    ```\n    1\n    ```"""')
    ),
    "a session": lambda p: marked(p.function, ">>> ", "... "),
    "quoted": lambda p: f"They wrote\n\n{marked(p.whole, '> ', '> ')}\nand left.",
    "no-break spaces": lambda p: fenced(
        p.whole.replace("\n    ", "\n\N{NO-BREAK SPACE}   ")
    ),
    "thought about": lambda p: (
        f"<think>Maybe `def {p.name}(`?\n{fenced(p.draft)}</think>\n" + fenced(p.whole)
    ),
    "inside main": lambda p: (
        f"def main():\n{textwrap.indent(p.function, '    ')}\n    print({p.name}(1))\n"
    ),
    "other languages around it": lambda p: (
        fenced("pip install numpy", "bash") + fenced(p.whole) + fenced("3", "text")
    ),
    "body, end token": lambda p: f"{p.body.rstrip()}<|eot_id|><|eot_id|>",
    "body, another end token": lambda p: f"{p.body.rstrip()}</s>",
    "end token, then the next turn": lambda p: (
        f"{p.whole.rstrip()}<|endoftext|>Q: Write def {p.name}(x):"
    ),
    "masks": lambda p: f"{p.body.rstrip()}\n<|mdm_mask|><|mdm_mask|>",
    # The code escaped or quoted as a whole.
    "Markdown escapes": lambda p: fenced(p.whole.replace("_", "\\_")),
    "HTML entities": lambda p: f"<pre>{html.escape(p.whole)}</pre>",
    "in quotes": lambda p: f"[BEGIN]\n '{p.function.rstrip()}' \n[DONE] \n\n ",
    "in three quotes": lambda p: f"'''\n{p.whole}'''\nDone.",
    "JSON": lambda p: json.dumps({"language": "python", "code": p.whole}),
    "numbered lines": lambda p: fenced(
        "\n".join(
            f"{i:3d} | {line}" for i, line in enumerate(p.whole.rstrip().split("\n"), 1)
        )
    ),
    "a difference": lambda p: fenced(marked(p.function, "+", "+"), "diff"),
    "em spaces": lambda p: fenced(p.whole.replace("\n    ", "\n\N{EM SPACE}   ")),
    "vertical tabs": lambda p: fenced(p.whole.replace("\n\n", "\n\v\n")),
    "single backticks": lambda p: f"`{p.function.rstrip()}`",
}
