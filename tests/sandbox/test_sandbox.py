"""Verdicts on programs: correct, wrong, forged, and checks of one's own."""

import collections
import concurrent.futures
import signal

import pytest
from sandbox_programs import IS_LINUX, PATIENT, checked, first, judged

from dlm_jax.errors import InputError
from dlm_jax.sandbox import sandbox
from dlm_jax.sandbox.sandbox import Limits


@pytest.mark.parametrize("leave", ["sys.exit(0)", "os._exit(0)", "raise SystemExit"])
@pytest.mark.parametrize("is_inside", [False, True])
def test_leaving_early_does_not_pass(leave, is_inside):
    source = f"import os, sys\ndef f(x):\n    {leave}\n"
    source += "" if is_inside else f"{leave}\n"
    for outcome in (judged(source), checked(source, "candidate(2)")):
        assert outcome.status in ("failed", "crashed")
        assert "SystemExit" in outcome.reason or "status 0" in outcome.reason


FORGERY = """
import builtins, os, sys
for name in ("all", "any", "eq", "repr", "map", "print", "AssertionError"):
    setattr(builtins, name, lambda *a, **k: True)
lines = b'["passed"]\\n' * 5
lines += b'["returned",4]\\n' * 5 if {knows} else b""
def f(x):
    for number in range(64):
        try:
            os.write(number, lines)
        except OSError:
            pass
    {end}
"""


@pytest.mark.parametrize("end", ["os._exit(0)", "return 5", "raise AssertionError"])
def test_forged_results_are_no_results(end):
    source = FORGERY.format(knows=False, end=end)
    assert judged(source).status == "crashed"
    assert checked(source, "assert candidate(2) == 4").status == "crashed"
    # Even checks that want nothing of the value.
    assert checked(source, "candidate(2)").status == "crashed"


def test_whoever_writes_the_right_value_on_the_pipe_has_only_answered():
    source = FORGERY.format(knows=True, end="os._exit(0)").replace('["passed"]\\n', "")
    assert judged(source).is_passed
    tests = [((2,), 4), ((3,), 9)]
    assert sandbox.run_tests(source, "f", tests, PATIENT).status == "failed"


def test_the_program_cannot_see_what_is_expected_of_it():
    source = """
import gc, sys
def f(x):
    seen, frame = [], sys._getframe()
    while frame:
        seen += [frame.f_locals, frame.f_globals]
        frame = frame.f_back
    return str(73500 + 0 * x + 77) in repr(seen) + repr(gc.get_objects())
"""
    expected = "73577"
    tests = [((2,), False), ((3,), expected)]
    outcome = sandbox.run_tests(source, "f", tests, PATIENT)
    assert outcome.reason == "f(3) is False, not '73577'"
    # The same with checks; and the search does find what is there.
    assert checked(source, f"{expected}; assert not candidate(2)").is_passed
    assert judged(f"there = [[], {expected}]\n{source}").reason == "f(2) is True, not 4"


def test_a_right_function_passes_and_a_wrong_one_has_its_first_wrong_value_as_reason():
    tests = [((x,), [x, x * x]) for x in range(5)]
    right = "import typing\ndef f(x):\n    print('?')\n    return [x, x ** 2]"
    outcome = sandbox.run_tests(right, "f", tests, PATIENT)
    assert (outcome.status, outcome.reason, outcome.is_passed) == ("passed", "", True)
    wrong = "def f(x): return [x, 2 * x]"
    outcome = sandbox.run_tests(wrong, "f", tests, PATIENT)
    assert (outcome.status, outcome.is_passed) == ("failed", False)
    assert outcome.reason == "f(1) is [1, 2], not [1, 1]"


@pytest.mark.parametrize(
    "source, reason",
    [
        (
            "def f(x):\n    y = 1\n    return y / 0",
            "ZeroDivisionError: division by zero (line 3)",
        ),
        ("def f(x:\n  pass", "SyntaxError: '(' was never closed (line 1)"),
        ("x = 1\nx.y", "AttributeError: 'int' object has no attribute 'y' (line 2)"),
        ("def g(x): pass", "NameError: the program does not define f"),
        ("f = 3", "TypeError: 'int' object is not callable"),
        ("def f(x): return input()", "EOFError: EOF when reading a line (line 1)"),
        ("import pytest", "ModuleNotFoundError: No module named 'pytest' (line 1)"),
        (
            "def f(x):\n    assert x == 3, 'a\\n\\x1b[2Jb'",
            "AssertionError: a ?[2Jb (line 2)",
        ),
        ("\0", "SyntaxError: source code string cannot contain null bytes"),
    ],
)
def test_errors_are_one_line_with_the_line_of_the_program(source, reason):
    outcome = judged(source)
    assert outcome.status == "failed"
    assert outcome.reason.endswith(reason)


def test_what_a_program_does_as_a_script_is_left_out():
    source = "def f(x): return 4\nif __name__ == '__main__':\n    raise ValueError"
    assert judged(source).is_passed


def test_an_error_is_a_result_and_the_next_call_is_made_on_fresh_arguments():
    shared = [3, 1, 2]
    source = "def f(x):\n    x.sort()\n    x.append(x[0] / (x[-1] - 5))\n    return x"
    inputs = [(shared,), ([5],), (shared,)]
    made = sandbox.calls(source, "f", inputs, PATIENT)
    assert made.status == "finished"
    assert [result.value for result in made.results] == [
        [1, 2, 3, -0.5],
        None,
        [1, 2, 3, -0.5],
    ]
    assert made.results[1].reason.startswith("ZeroDivisionError")
    assert shared == [3, 1, 2]


def test_results_until_a_limit_are_kept_and_the_first_wrong_one_counts():
    source = "import os\ndef f(x):\n    return x if x < 2 else os._exit(7)"
    made = sandbox.calls(source, "f", [(0,), (1,), (2,), (3,)], PATIENT)
    assert [result.value for result in made.results] == [0, 1]
    assert (made.status, made.reason) == (
        "crashed",
        "the process ended with status 7 after 2 of 4 calls",
    )
    tests = [((0,), 0), ((1,), 2), ((2,), 2)]
    outcome = sandbox.run_tests(source, "f", tests, PATIENT)
    assert (outcome.status, outcome.reason) == ("failed", "f(1) is 1, not 2")


@pytest.mark.skipif(not IS_LINUX, reason="the signal's number")
def test_a_crash_of_the_interpreter_is_named():
    outcome = judged("import ctypes\ndef f(x): ctypes.string_at(0)")
    assert (outcome.status, outcome.reason) == (
        "crashed",
        f"the process ended by {signal.SIGSEGV.name}",
    )


def test_checks_call_the_candidate_and_helpers_of_the_prelude():
    program = "def half(x): return x\ndef f(x, by=1): return half(x) // 2 * by"
    prelude = "import math\ndef half(x): return x // 2"
    checks = "METADATA = {}\ndef check(candidate):\n"
    for line in (
        "for x in range(9): assert candidate(x) == half(x) == f(x)",
        "assert candidate(4, by=3) == 6 and math.floor(2.5) == 2",
        "try: candidate(None)",
        "except TypeError as error: assert 'None' in str(error)",
        "else: assert False",
    ):
        checks += f"    {line}\n"
    outcome = sandbox.run_checks(program, checks, "f", PATIENT, prelude=prelude)
    assert outcome.is_passed, outcome
    wrong = program.replace("// 2", "// 3")
    outcome = sandbox.run_checks(wrong, checks, "f", PATIENT, prelude=prelude)
    assert (outcome.status, outcome.reason) == (
        "failed",
        "AssertionError in: for x in range(9): assert candidate(x) == half(x) == f(x)",
    )


@pytest.mark.parametrize(
    "body, status, reason",
    [
        ("return 3", "failed", "AssertionError in: assert candidate(2) == 4"),
        ("return x.y", "failed", "AttributeError: 'int' object has no attribute 'y'"),
        ("return {}[1]", "failed", "KeyError: '1 (line 2)' in: assert"),
        ("return iter([4])", "failed", "list_iterator is not plain data"),
        ("return 'x' * 10**6", "output", "too large a value"),
        ("raise MemoryError", "memory", "MemoryError"),
    ],
)
def test_checks_that_fail_say_why(body, status, reason):
    outcome = checked(f"def f(x):\n    {body}", "assert candidate(2) == 4")
    assert outcome.status == status
    assert reason in outcome.reason


def test_checks_that_never_end_are_stopped():
    limits = Limits(wall_seconds=2.0)
    waiting = "import time\ndef f(x): time.sleep(100)"
    assert checked(waiting, "candidate(1)", limits).status == "timeout"
    assert checked("def f(x): 1", "import time; time.sleep(99)", limits).status == (
        "timeout"
    )


@pytest.mark.parametrize("checks", ["def check(candidate:", "1 / 0", "x = 1"])
def test_checks_that_do_not_run_are_bad_input_and_no_wrong_answer(checks):
    with pytest.raises(InputError, match="checks do not run"):
        sandbox.run_checks("def f(x): return 4", checks, "f", PATIENT)


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="plain data"):
        sandbox.calls("def f(x): 1", "f", [(object(),)])
    with pytest.raises(InputError, match="must be of namespaces"):
        sandbox.calls("def f(x): 1", "f", [], layers=("magic",))
    with pytest.raises(InputError, match="wall_seconds"):
        Limits(wall_seconds=0.0)


def test_threads_judge_at_the_same_time_and_hashes_never_change():
    source = "def f(x): return [x, list({'b', 'a', 'd', 'c'})]"
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda x: first(source, x)[1].value, range(8)))
    assert [value[0] for value in made] == list(range(8))
    orders = collections.Counter(tuple(value[1]) for value in made)
    assert len(orders) == 1 and sorted(*orders) == ["a", "b", "c", "d"]
