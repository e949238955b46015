"""Docstrings of public names say what is taken, given and refused."""

import ast
import enum
import functools
import inspect
import re
import textwrap
import types
from collections.abc import Callable, Iterator

import pytest

import dlm_jax as dlm

SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises")
# Dunder names of modules and classes explain themselves.
NAMES = [name for name in dlm.__all__ if not name.startswith("__")]


def entries(doc: str, *headings: str) -> set[str]:
    """The names that sections of a docstring explain; "" for text without a name."""
    found, heading = set(), None
    for line in inspect.cleandoc(doc).splitlines():
        if line and not line.startswith(" "):
            heading = line.removesuffix(":") if line.endswith(":") else None
        elif heading in headings and re.match(r"  \S", line):
            name = re.match(r"  \*{0,2}([\w.]+): \S", line)
            found.add(name.group(1) if name else "")
    return found


def is_own(thing: object) -> bool:
    """Whether this package defines a class or a function."""
    return str(getattr(thing, "__module__", "")).startswith("dlm_jax")


def raised(function: Callable) -> set[str]:
    """The errors that a function's own code raises by name."""
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
    calls = [
        node.exc.func.id
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and isinstance(node.exc.func, ast.Name)
    ]
    # What an abstract method raises is for whoever writes a subclass.
    return set(calls) - {"NotImplementedError"}


def missing_of_function(function: Callable, doc: str | None) -> Iterator[str]:
    """What a function's docstring does not say."""
    if not doc:
        yield "a docstring"
        return
    signature = inspect.signature(function)
    names = {name for name in signature.parameters if name not in ("self", "cls")}
    for name in names ^ entries(doc, "Args"):
        yield f"{name} in Args" if name in names else f"an argument {name or '?'}"
    returned = signature.return_annotation
    is_none = returned is None or function.__name__ == "__init__"
    if not is_none and not entries(doc, "Returns", "Yields"):
        yield "Returns"
    for name in raised(function) - entries(doc, "Raises"):
        yield f"{name} in Raises"


def missing_of_class(cls: type) -> Iterator[str]:
    """What the docstrings of a class and of its public members do not say."""
    own = vars(cls).get("__doc__")
    if not own or own.startswith(f"{cls.__name__}("):  # As dataclasses write it.
        yield "a docstring"
    # Readers find the fields that a public class shares with its public bases there.
    documented = {
        name
        for base in cls.__mro__
        if base is cls or base in public_classes()
        for name in entries(base.__doc__ or "", "Attributes")
    }
    bases = [base for base in cls.__mro__ if is_own(base)]
    fields = {name for base in bases for name in inspect.get_annotations(base)}
    if issubclass(cls, enum.Enum):
        fields |= set(cls.__members__)
    members = {name for base in bases for name in vars(base)}
    is_property = {
        name: isinstance(
            inspect.getattr_static(cls, name), property | functools.cached_property
        )
        for name in members
    }
    for name in fields - documented:
        if not name.startswith("_") and not is_property.get(name):
            yield f"{name} in Attributes"
    for name in sorted(members):
        if name.startswith("_") and name != "__init__":
            continue
        # An override is documented where it is declared, as `help` shows it.
        docs = [vars(base)[name].__doc__ for base in bases if name in vars(base)]
        doc = next(filter(None, docs), None)
        value = inspect.getattr_static(cls, name)
        if isinstance(value, classmethod | staticmethod):
            value = value.__func__
        if is_property[name]:
            if not doc:
                yield f"{name}: a docstring"
        elif inspect.isfunction(value) and is_own(value) and has_source(value):
            for problem in missing_of_function(value, doc):
                yield f"{name}: {problem}"


def has_source(function: Callable) -> bool:
    """Whether somebody wrote it; `dataclasses` compiles methods from strings."""
    return inspect.unwrap(function).__code__.co_filename != "<string>"


def contents(module: types.ModuleType) -> dict[str, object]:
    """The public names of a public module."""
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and getattr(value, "__module__", "") == module.__name__
    ]
    return {name: getattr(module, name) for name in names}


@functools.cache
def public_classes() -> set[type]:
    """Every class that a user can name."""
    things = [getattr(dlm, name) for name in NAMES]
    for module in filter(inspect.ismodule, list(things)):
        things += contents(module).values()
    return {thing for thing in things if inspect.isclass(thing)}


def missing(thing: object) -> Iterator[str]:
    """What the docstrings of a public thing do not say."""
    if inspect.isclass(thing):
        yield from missing_of_class(thing)
    elif inspect.ismodule(thing):
        known = contents(thing)
        assert known
        for name, value in known.items():
            if callable(value):
                yield from (f"{name}: {problem}" for problem in missing(value))
            elif name not in entries(thing.__doc__, "Attributes"):
                yield f"{name} in Attributes"
    else:
        yield from missing_of_function(thing, thing.__doc__)


@pytest.mark.parametrize("name", NAMES)
def test_public_names_are_documented(name):
    assert sorted(missing(getattr(dlm, name))) == []


def test_what_is_missing_is_named():
    def function(first: int, *rest: int) -> int:
        """Adds.

        Args:
          first: a number.
          last: another.
        """
        if not rest:
            raise ValueError("rest")
        return first

    assert sorted(missing(function)) == [
        "Returns",
        "ValueError in Raises",
        "an argument last",
        "rest in Args",
    ]

    class Rule(dlm.Sampler):
        """Has fields.

        Attributes:
          one: a number.
        """

        one: float = 1.0
        two: float = 2.0

        @property
        def name(self):
            return "rule"

        def step(self, key, state, canvas, prediction):
            """Decides."""

        def own(self) -> None:
            pass

    Rule.__module__ = Rule.own.__module__ = Rule.step.__module__ = "dlm_jax.rules"
    assert set(missing(Rule)) >= {
        "name: a docstring",
        "own: a docstring",
        "step: Returns",
        "step: prediction in Args",
        "two in Attributes",
    }
    assert "one in Attributes" not in set(missing(Rule))
