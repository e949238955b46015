"""Specs of samplers, schedules and caches: a rule, or one line."""

import ast

import jax
import pytest
from damage import inputs, read
from helpers import TABLE
from hypothesis import example, given
from hypothesis import strategies as st

from dlm_jax import caches, samplers
from dlm_jax.errors import InputError
from dlm_jax.tasks.extraction import statements

NAMES = st.sampled_from([*samplers.SAMPLERS, *caches.CACHES, "inf", "a", "__import__"])
FIELDS = st.sampled_from(
    [
        "n",
        "mu",
        "threshold",
        "gamma",
        "factor",
        "schedule",
        "k",
        "steps",
        "eps",
        "refresh_every",
        "acceleration",
        "backtracking",
        "error_proxy",
        "needs",
        "__class__",
        "\u210c",
    ]
)
LITERALS = st.one_of(
    st.integers(-3, 9).map(str),
    st.sampled_from(
        [
            "True",
            "None",
            "inf",
            "-inf",
            "nan",
            "1e400",
            "-1e400",
            "1j",
            "2**9999",
            "-9223372036854775808",
            "...",
            "9223372036854775808",
            "-2147483648",
            "2147483648",
            "18446744073709551616",
            "'entropy'",
            "'margin'",
            "''",
            "b''",
            "()",
            "[]",
            "{}",
            "{1}",
            "[1,[2]]",
            "{[]:1}",
            "{**a}",
            "f'{a}'",
            "(yield)",
            "a.b",
            "a[0]",
            "a:=1",
            "lambda:0",
            "-'a'",
            "1+1",
            "1e-320",
            "0x10",
            "1_0",
            "'\\ud800'",
            "*a",
        ]
    ),
    st.sampled_from(["9" * 4000, "9" * 5000, "-" * 3000 + "1", "[" * 150 + "]" * 150]),
    st.floats().map(repr),
    st.text(max_size=6).map(repr),
    st.text(max_size=6),
)


@st.composite
def calls(draw, depth=0):
    name = draw(NAMES)
    fields = []
    for _ in range(draw(st.integers(0, 3))):
        is_part = depth < 2 and draw(st.integers(0, 3)) == 0
        parts = st.sampled_from([*samplers.spec.SCHEDULES])
        value = draw(calls(depth + 1) | parts) if is_part else draw(LITERALS)
        fields.append(f"{draw(FIELDS)}={value}")
    return f"{name}({', '.join(fields)})"


@st.composite
def edited(draw):
    spec = draw(st.sampled_from([*TABLE, "dual(refresh_every=8)", "block", "prefix"]))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(spec)))
        stop = start + draw(st.integers(0, 3))
        spec = spec[:start] + draw(LITERALS | st.text(max_size=3)) + spec[stop:]
    return spec


# Not MODULE:CLASS, which imports modules that do as they like.
SPECS = (calls() | edited() | st.text(max_size=40)).filter(lambda x: ":" not in x)


def check(room, spec):
    """A rule that was read is one: it can be compiled, and be written and read back."""
    found = read(room.parse, spec)
    if not isinstance(found, Exception):
        leaves, structure = jax.tree.flatten(found)
        hash(structure)
        assert all(isinstance(x, (int, float)) for x in leaves), leaves
        assert room.parse(room.to_spec(found)) == found
    return found


@inputs(50)
@given(SPECS)
@example("saber(acceleration=[1])")
@example("saber(mu=-9223372036854775808)")
@example("random(schedule=dream(steps=[]))")
def test_samplers(spec):
    check(samplers, spec)


@inputs(20)
@given(SPECS)
def test_caches(spec):
    check(caches, spec)


@inputs(20)
@given(LITERALS, st.sampled_from([*samplers.spec.SCHEDULES]), FIELDS)
def test_schedules(literal, schedule, field):
    if ":" not in literal:
        check(samplers, f"low_confidence(schedule={schedule}({field}={literal}))")


@pytest.mark.parametrize("room", [samplers, caches])
def test_nothing_is_evaluated(room, tmp_path):
    mark = tmp_path / "mark"
    for call in (f"open({str(mark)!r}, 'w')", f"__import__('os').mkdir({str(mark)!r})"):
        ast.parse(call)
        for spec in (call, f"saber(n={call})", f"dual(refresh_every={call})"):
            assert isinstance(read(room.parse, spec), InputError)
    assert not mark.exists()


def test_module_that_exits(tmp_path, monkeypatch):
    (tmp_path / "rules_that_exit.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        InputError, match=r"rules_that_exit does not import: SystemExit"
    ):
        samplers.parse("rules_that_exit:Rule")


def test_module_names_of_any_kind():
    for name in ("a..b", "os.", "os..path", "dlm_jax.", "json.nowhere.x", "os.path.x"):
        assert isinstance(read(samplers.parse, f"{name}:Rule"), InputError)


def fail(*arguments, **keywords):
    raise SystemError("AST constructor recursion depth mismatch")


def test_a_parser_that_lost_count_of_its_depth(monkeypatch):
    """CPython 3.11 then raises SystemError: one of 100,000 specs found it."""
    monkeypatch.setattr(ast, "parse", fail)
    for reader in (samplers.parse, caches.parse):
        assert isinstance(read(reader, "saber(n=2)"), InputError)
    assert statements.parse("x = 1") is None
    assert statements.error_of("x = 1").startswith("SystemError: AST constructor")
    assert statements.longest_prefix("x = 1") is None


def test_so_are_parameters_of_a_recording(monkeypatch):
    pytest.importorskip("torch")
    from dlm_jax.parity import recorder

    monkeypatch.setattr(ast, "parse", fail)
    assert isinstance(read(recorder.parse_params, "steps=16"), InputError)
