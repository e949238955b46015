"""Verdicts on GSM8K, MATH and MBPP: many shapes of answers, and hostile ones."""

import pathlib
import subprocess
import sys
import threading

import pytest
from published_data import MBPP, write_all

from dlm_jax import tasks
from dlm_jax.tasks import equality, equality_child, gsm8k, math_problems, mbpp

# The number that each text ends in, as written in the question's answer.
NUMBERS = [
    ("18", "18"),
    ("The answer is 18", "18"),
    ("The answer is 18.", "18"),
    ("She has 3 + 15 = 18 pens.\n#### 18", "18"),
    ("#### 18\n\nThat took 20 minutes.", "18"),
    ("#### -3,500", "-3500"),
    ("####18", "18"),
    ("#### $18.00", "18"),
    ("It costs $1,234.50.", "1234.5"),
    ("It costs $1,234,567", "1234567"),
    ("**Answer:** 42 apples", "42"),
    (r"Thus \boxed{42}.", "42"),
    (r"Thus $\boxed{1,000}$", "1000"),
    ("x = 5-3", "3"),
    ("so x = -7", "-7"),
    ("so x = \N{MINUS SIGN}7", "-7"),
    ("a loss of -$5", "-5"),
    ("about 20%", "20"),
    ("in 2.50 hours", "2.5"),
    ("it is .75", "0.75"),
    ("10.00", "10"),
    ("first 10, then 12.\n", "12"),
    ("007", "7"),
    ("3 apples and 4 pears make 7", "7"),
    ("the answer is\n\n16\n", "16"),
    ("half of 10 is 5.", "5"),
    ("(8)", "8"),
    # Only what is boxed, or what no numbered heading begins with.
    (r"Thus \boxed{42}. That is 3 days of 14 hours.", "42"),
    (r"It is \boxed{\text{all}}, so 42", "42"),
    ("#### 1. Eggs\n16-3=13\n#### 2. **Sold**\nShe makes 26 dollars.", "26"),
    ("#### 1) Eggs: 13\n#### 2) Sold: 26\n#### 26 dollars\nThat took 5 days.", "26"),
    ("#### 18. That took 20 minutes.", "18"),
    ("#### **18**\n\nThat took 20 minutes.", "18"),
    (r"#### $\boxed{18}$, in 20 minutes", "18"),
    # Groups of digits, and a minus, as formulas and editors write them.
    (r"\boxed{1{,}234}", "1234"),
    (r"It is $1,\!234$", "1234"),
    (r"It is $12\,345\,678$", "12345678"),
    ("It is 1\u202f234", "1234"),
    ("It is \N{EN DASH}5", "-5"),
    ("between 10\N{EN DASH}15", "15"),
]


@pytest.mark.parametrize(("answer", "number"), NUMBERS)
def test_the_number_of_an_answer(answer, number):
    problem = gsm8k.Problem("test/0", "?", f"Steps.\n#### {number}")
    task = tasks.get("gsm8k")
    verdict = task.judge(problem, answer)
    assert verdict.is_correct, verdict.reason
    other = gsm8k.Problem("test/0", "?", f"Steps 18.\n#### {number}1")
    assert not task.judge(other, answer).is_correct


def test_an_answer_without_its_number_is_wrong():
    problem = gsm8k.Problem("test/0", "?", "#### 18")
    for answer, reason in (
        ("", "the answer has no number"),
        ("I do not know.", "the answer has no number"),
        ("1" * 200, "the answer has no number"),
        ("18 or rather 19", "the number is 19, not 18"),
        ("1.8", "the number is 1.8, not 18"),
    ):
        verdict = tasks.get("gsm8k").judge(problem, answer)
        assert (verdict.is_correct, verdict.reason) == (False, reason)


EQUAL = [
    (r"\frac{1}{2}", "0.5"),
    (r"\frac{1}{2}", "1/2"),
    (r"\frac12", r"\dfrac{1}{2}"),
    (r"-\frac{2}{3}", r"\frac{-2}{3}"),
    (r"3\frac{1}{2}", r"\frac{7}{2}"),
    ("7", "7.0"),
    ("1{,}000", "1000"),
    ("1,000", "1000"),
    ("10,\\!080", "10080"),
    (r"\$18", "18"),
    ("18", r"\$18.00"),
    ("5", r"5\text{ cm}"),
    ("5", r"5 \mbox{ inches}"),
    ("90", r"90^\circ"),
    ("90^{\\circ}", "90"),
    (r"10\%", "10"),
    (r"\sqrt{8}", r"2\sqrt{2}"),
    (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}"),
    ("x^2+2x+1", "(x+1)^2"),
    ("2x+1", "1+2x"),
    ("5", "x=5"),
    ("y=2x+1", "2x+1"),
    ("[2,5)", "[2, 5)"),
    (r"(-\infty,2)\cup(3,\infty)", r"(3,\infty)\cup(-\infty,2)"),
    (r"\{1,2\}", r"\{2,1\}"),
    ("1,2", "2, 1"),
    ("(1,2)", r"\left(1, 2\right)"),
    (r"(3, \frac{\pi}{2})", r"(3,\pi/2)"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    ("2+3i", "3i+2"),
    (r"\text{Monday}", "Monday"),
    (r"\text{(C)}", "C"),
    (r"\text{even}", r"\textbf{even}"),
    ("2^{10}", "1024"),
    ("10!", "3628800"),
    (r"\binom{5}{2}", "10"),
    ("x>3", "3<x"),
    (r"\pm 2", "2,-2"),
    ("4210_5", "4210_{5}"),
    (r"\pi", r"$\pi$"),
    (r"\frac{\pi}{4}", r"\tfrac14\pi"),
    ("0", "-0"),
    ("6", r"6~\text{m}"),
    (r"\text{June 20}", "June 20"),
    (r"\emptyset", r"\varnothing"),
]
DIFFERENT = [
    ("7", "8"),
    ("0.333", "1/3"),
    (r"\pi", "3.14"),
    ("[2,5)", "(2,5)"),
    ("(1,2)", "(2,1)"),
    (r"\{1,2\}", r"\{1,2,3\}"),
    ("1,2", "1"),
    (r"\text{even}", r"\text{odd}"),
    ("a", "b"),
    ("x^2", "x^3"),
    (r"\frac{1}{2}", "2"),
    ("5", "-5"),
    (r"\sqrt{2}", "2"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}"),
    ("2+3i", "3+2i"),
    ("5", ""),
    ("5", "what"),
    (r"\text{June 20}", "June 21"),
    ("5", r"\frac{"),
]


def test_equal_answers_are_right_and_others_are_wrong():
    for gold, answer in EQUAL:
        assert equality.compare(gold, answer).is_equal, (gold, answer)
    for gold, answer in DIFFERENT:
        assert not equality.compare(gold, answer).is_equal, (gold, answer)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{1}, no, \boxed{\{2\}}", r"\{2\}"),
        (r"so $\boxed 5$.", "5"),
        (r"\fbox{7}", "7"),
        (r"\boxed{3} and \boxed{4", "3"),
        (r"\boxed{a_{b_{c}}}", "a_{b_{c}}"),
        ("The answer is 7.", "7"),
        ("The final answer is: $x=2$", "$x=2$"),
        ("So the answer is **0.5**.", "0.5"),
        ("The answer is 7. It is not 8.", "7"),
        (
            r"\boxed{1}"
            "\nFinal Answer: The final answer is $2$. I hope it is correct.",
            "$2$",
        ),
        (r"\boxed{1", None),
        ("", None),
        ("I do not know", None),
    ],
)
def test_the_answer_of_a_text(text, answer):
    assert math_problems.answer_in(text) == answer


def test_a_verdict_on_math_says_what_was_found(tmp_path):
    write_all(tmp_path)
    task = tasks.get("math").with_data(str(tmp_path / "math"))
    half, three = task.examples("test", 2)
    assert (half.truth.answer, three.truth.answer) == (r"\frac{1}{2}", "3")
    assert task.verdict(half, r"It is \boxed{0.5}.").is_correct
    assert task.verdict(three, r"$x = \boxed{-3}$ or $\boxed{x = 3}$").is_correct
    wrong = task.verdict(half, r"It is \boxed{\frac{1}{3}}.")
    assert wrong.reason == r"the answer is \frac{1}{3}, not \frac{1}{2}"
    assert task.verdict(half, "none").reason == r"the answer has no \boxed{}"


def test_hostile_latex_takes_no_longer_than_its_limit(monkeypatch):
    monkeypatch.setattr(equality, "CPU_SECONDS", 1.0)
    workers = [equality._Worker()]
    monkeypatch.setattr(equality, "_idle", __import__("queue").LifoQueue())
    equality._idle.put(workers[0])
    # An exponential parse, which no handler of a signal could stop in between.
    nested = equality.compare("5", "{" * 900)
    assert nested == (False, "more than 1 s of processor time")
    for answer in ("9^{9^{9^9}}", "100000000!", "1" * 900, r"\prod_{k=1}^{10^9}k^k"):
        assert not equality.compare("5", answer).is_equal
    assert equality.compare("5", "x" * 5000).reason == "more than 1000 characters"
    # What follows is compared as ever.
    assert equality.compare(r"\frac{1}{2}", "0.5").is_equal


def test_threads_compare_at_once():
    found = {}

    def ask(number):
        found[number] = equality.compare(str(number), f"{number - 1}+1").is_equal

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: True, 1: True}


def test_latex_reaches_neither_eval_nor_files(tmp_path):
    path = tmp_path / "made"
    for answer in (f"__import__('os').system('touch {path}')", f"open('{path}','w')"):
        assert not equality.compare("5", answer).is_equal
    assert not path.exists()
    # The hook of the processes that compare refuses what a parser might be led to.
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import equality_child as c\n"
        "import os, socket, subprocess\n"
        "sys.addaudithook(c.guard)\n"
        "for act in (lambda: eval('1+1'), lambda: exec('x=1'),\n"
        "            lambda: open(sys.argv[2], 'w'), lambda: os.system('true'),\n"
        "            lambda: subprocess.run(['true']), socket.socket, os.fork,\n"
        "            lambda: os.open(sys.argv[2], os.O_CREAT | os.O_WRONLY)):\n"
        "    try:\n"
        "        act()\n"
        "    except PermissionError as error:\n"
        "        print(error)\n"
        "    else:\n"
        "        print('done')\n"
        "open(c.__file__).close()\n"
    )
    folder = pathlib.Path(equality_child.__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", program, folder, path], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 8 and all(line.startswith("refused: ") for line in lines)
    assert not path.exists()


def problem(row):
    return mbpp.Problem(
        name=str(row["task_id"]),
        text=row["text"],
        code=row["code"],
        tests=tuple(row["test_list"]),
        setup=row["test_setup_code"],
    )


ADD = "def add_one(x):\n    return x + 1"


@pytest.mark.parametrize(
    "answer",
    [
        ADD,
        "[BEGIN]\n 'def add_one(x):\r\n    return x + 1' \n[DONE] \n\n ",
        " 'def add_one(x):\r\n    return x + 1' \n[DONE]",
        f"'{ADD}'",
        f"[BEGIN]\n{ADD}\n[DONE]",
        f"{ADD}\n[DONE]\n\nYou are an expert Python programmer",
        f"Here it is:\n```python\n{ADD}\n```\nIt adds one.",
        "def add\\_one(x):\n    return x + 1",
        f"{ADD}\n\nassert add_one(1) == 2\nprint(add_one(3))",
        "one = 1\ndef helper(x):\n    return x + one\ndef add_one(x):\n"
        "    return helper(x)",
    ],
)
def test_code_is_found_in_the_shapes_that_the_prompts_lead_to(answer):
    verdict = tasks.get("mbpp").judge(problem(MBPP[0]), answer)
    assert verdict.is_correct, verdict.reason


def test_wrong_code_is_wrong_with_its_first_failure():
    for answer, reason in (
        ("def add_one(x):\n    return x", "AssertionError in: assert add_one(1) == 2"),
        (
            "def add_one(x):\n    return abs(x) + 1",
            "AssertionError in: assert add_on",
        ),
        ("def add_two(x):\n    return x + 1", "the answer does not define add_one"),
        ("", "the answer is empty"),
        ("import sys\nsys.exit(0)\n" + ADD.replace("1", "2"), "AssertionError"),
    ):
        verdict = tasks.get("mbpp").judge(problem(MBPP[0]), answer)
        assert not verdict.is_correct and verdict.reason.startswith(reason)


def test_tests_that_need_a_class_run_beside_the_program():
    own, code = problem(MBPP[1]), MBPP[1]["code"]
    assert mbpp.tested(own) == ["Pair", "total"]
    task = tasks.get("mbpp")
    for answer in (
        code,
        f"[BEGIN]\n'{code}'\n[DONE]",
        f"Yes.\n```\n{code}\n```\nBye",
        # Another question, and a test of its own that is wrong.
        f"{code}\n[DONE]\n\nYou are an expert.\n[BEGIN]\ndef total(pairs):\n    ret",
        f"```python\n{code}\n```\n```python\nassert total([]) == 9\n```",
        f"[DONE]\n{code}",
    ):
        verdict = task.judge(own, answer)
        assert verdict.is_correct, verdict.reason
    for answer, reason in (
        (code.replace("pair.a", "pair.b"), "AssertionError"),
        (code.replace("class Pair", "class Pear"), "NameError"),
        ("I do not know", "the answer has no Python"),
        ("import os\nos._exit(0)", ""),
    ):
        verdict = task.judge(own, answer)
        assert not verdict.is_correct and verdict.reason.startswith(reason)
        assert verdict.reason
