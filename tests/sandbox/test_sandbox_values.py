"""Which values a program may return, and when two values are equal."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sandbox_programs import PATIENT, first, judged

from dlm_jax.sandbox import plain, process, sandbox
from dlm_jax.sandbox.sandbox import Limits


@pytest.mark.parametrize(
    "value, status",
    [
        ("'x' * 300_000", "output"),
        ("[0] * 300_000", "output"),
        ("['x' * 1000] * 1000", "output"),
        ("10 ** 5000", "output"),
        ("nested(1000)", "output"),
        ("cyclic()", "output"),
        ("(i for i in [4])", "failed"),
        ("f", "failed"),
        ("[4, object()]", "failed"),
        ("Liar()", "failed"),
        ("LyingInt(5)", "failed"),
        ("LyingInt(4)", "passed"),
    ],
)
def test_values_that_are_large_or_not_plain_are_wrong(value, status):
    source = f"""
class Liar:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = None
class LyingInt(int):
    __eq__ = Liar.__eq__
    __repr__ = lambda self: "4"
    __hash__ = None
def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value
def cyclic():
    value = []
    value.append(value)
    return value
def f(x):
    return {value}
"""
    outcome = judged(source)
    assert outcome.status == status, outcome
    assert (outcome.reason == "") == (status == "passed")


def test_deep_recursion_is_an_error_or_a_crash():
    source = "def f(x):\n    return f(x)"
    assert "RecursionError" in judged(source).reason
    deep = "import sys\nsys.setrecursionlimit(10**9)\n" + source
    limits = Limits(memory_bytes=64 << 20, wall_seconds=60.0)
    assert judged(deep, limits).status in ("memory", "crashed", "failed")


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.complex_numbers(allow_nan=False)
    | st.text(st.characters())
    | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.integers() | st.text() | st.booleans(), inner)
        | st.sets(st.integers() | st.text() | st.tuples(st.floats(allow_nan=False)))
        | st.frozensets(st.booleans() | st.binary())
    ),
    max_leaves=12,
)


@settings(max_examples=40)
@given(PLAIN)
def test_plain_data_comes_back_as_it_was(value):
    text = plain.encode(value, 10**6)
    assert text.isascii() and "\n" not in text
    found = process._decode(json.loads(text), 0)
    assert sandbox.is_equal(found, value)
    # repr tells types apart too; the order of a set is that of its making.
    if "{" not in repr(value):
        assert repr(found) == repr(value)


def test_plain_data_comes_back_from_a_process():
    values = [
        (None, True, 1, 1.0, -0.0, math.inf, 1e-300, 2**70, 1 + 2j, "é\ud800\n", b"\0"),
        ({"a": [1, (2, {3})], 1: {}, (1, "b"): frozenset({2.5})},),
        (math.nan,),
        (),
    ]
    made = sandbox.calls("def f(*a): return a", "f", values, PATIENT)
    assert sandbox.is_equal([result.value for result in made.results], values)
    # Of subclasses, what they derive from.
    source = """
import collections
P = collections.namedtuple("P", "x y")
def f(): return collections.Counter("aab"), P(1, 2), collections.OrderedDict(a=1)
"""
    _, result = first(source)
    assert sandbox.is_equal(result.value, ({"a": 2, "b": 1}, (1, 2), {"a": 1}))


@pytest.mark.parametrize(
    "left, right",
    [
        (1, True),
        (1, 1.0),
        ([1], (1,)),
        ([0], [False]),
        ({1: 2}, {True: 2}),
        ({1: 2}, {1: 2.0}),
        ({1: 2}, {1: 2, 3: 4}),
        ({1}, {1.0}),
        ({1}, frozenset({1})),
        ({(1, "a")}, {(True, "a")}),
        ("a", b"a"),
        (None, False),
        ([1, 2], [1]),
        (math.nan, 1.0),
    ],
)
def test_equality_knows_types_at_every_depth(left, right):
    assert sandbox.is_equal(left, left) and sandbox.is_equal(right, right)
    for wrap in (lambda x: x, lambda x: [x], lambda x: {"k": (x,)}):
        assert not sandbox.is_equal(wrap(left), wrap(right))
        assert not sandbox.is_equal(wrap(right), wrap(left))


def test_types_count_unless_told():
    source = "def f(x): return 4.0"
    assert judged(source).reason == "f(2) is 4.0, not 4"
    assert judged(source, is_exact=False).is_passed
