"""Specs: samplers as text, for the command line and for tables.

A spec is a call that is read with `ast` and never evaluated, such as
`entropy_bound(gamma=0.1)` or `low_confidence(schedule=linear(steps=64))`. A rule that
is not of this package is named with its module: `my_rules:Confident(threshold=0.8)`.
"""

import ast
import dataclasses
import importlib
import math
import pathlib
import pkgutil
import re
import typing
from collections.abc import Iterable
from typing import Any

from dlm_jax.core.sampler import Sampler, canonical
from dlm_jax.errors import InputError
from dlm_jax.samplers.ordered import Ordered
from dlm_jax.samplers.schedules import Cosine, Dream, Fixed, Linear

# MODULE:CLASS, and what follows.
_FOREIGN = re.compile(r"\s*([^\W\d][\w.]*):([^\W\d]\w*)(.*)", re.DOTALL)


def _snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


# Where samplers are: a file in this folder is all that a new one needs.
FOLDERS = [str(pathlib.Path(__file__).parent)]


def find_samplers() -> dict[str, type[Sampler]]:
    """The samplers of this package by name: every class in a file of it."""
    package = __name__.rpartition(".")[0]
    found = {}
    for info in pkgutil.iter_modules(FOLDERS):
        name = f"{package}.{info.name}"
        if name == __name__:
            continue
        for cls in vars(importlib.import_module(name)).values():
            is_own = isinstance(cls, type) and cls.__module__ == name
            if is_own and issubclass(cls, Sampler) and cls is not Ordered:
                found[_snake_case(cls.__name__)] = cls
    return found


SAMPLERS: dict[str, type[Sampler]] = find_samplers()

SCHEDULES: dict[str, type] = {
    "fixed": Fixed,
    "linear": Linear,
    "cosine": Cosine,
    "dream": Dream,
}


def parse(spec: str) -> Sampler:
    """Reads a sampler from its spec.

    Args:
      spec: a name, or a name with fields: `saber(n=2, mu=8)`. Values are literals or,
        for the field `schedule`, a schedule of the same form. A rule of another module
        is `MODULE:CLASS` with its fields; the module is imported.

    Raises:
      InputError: for an unknown name or field, with the known ones, a bad value, or a
        module that does not import.

    >>> parse("saber(n=4)").n
    4
    """
    known, name = SAMPLERS, None
    call = spec
    if foreign := _FOREIGN.fullmatch(spec):
        module, cls, rest = foreign.groups()
        known, name = {cls: _import_rule(module, cls)}, f"{module}:{cls}"
        call = cls + rest
    try:
        node = ast.parse(call.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise InputError(
            f"sampler ({spec!r}) must be a name or a call like saber(n=2)"
        ) from None
    return _build(node, known, "sampler", spec, name)


def _import_rule(module: str, name: str) -> type[Sampler]:
    """A sampler's class of any module.

    Raises:
      InputError: if the module does not import or has no such sampler.
    """
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        own = error.name is not None and module.startswith(error.name)
        reason = "is not in this folder or on PYTHONPATH" if own else str(error)
        raise InputError(
            f"sampler ({module}:{name}): the module {module} "
            + (reason if own else f"does not import: {reason}")
        ) from None
    except Exception as error:  # whatever somebody else's module raises
        raise InputError(
            f"sampler ({module}:{name}): the module {module} does not import: "
            f"{type(error).__name__}: {error}"
        ) from None
    if not (isinstance(found, type) and issubclass(found, Sampler)):
        raise InputError(
            f"sampler ({module}:{name}) must be a class of {module} derived from "
            "dlm_jax.Sampler"
        )
    return found


def parse_all(specs: Iterable[str]) -> dict[str, Sampler]:
    """Reads several samplers, by their specs.

    Raises:
      InputError: as `parse`, or for a sampler that stands twice, in any spelling.
    """
    rules = {}
    names = set()
    for spec in specs:
        rules[spec] = parse(spec)
        name = to_spec(rules[spec])
        if name in names:
            raise InputError(f"sampler ({name}) must be given once")
        names.add(name)
    return rules


def canonical_spec(spec: str) -> str:
    """The one spelling of a spec, by which results are kept and found.

    Raises:
      InputError: as `parse`.
    """
    return to_spec(parse(spec))


def _build(
    node: ast.expr,
    known: dict[str, type],
    kind: str,
    spec: str,
    shown: str | None = None,
) -> Any:
    """Builds the object that a node of a spec describes; errors call it `shown`."""
    keywords = []
    if isinstance(node, ast.Call):
        if node.args or any(keyword.arg is None for keyword in node.keywords):
            raise InputError(f"sampler ({spec!r}): write fields as name=value")
        node, keywords = node.func, node.keywords
    if not isinstance(node, ast.Name) or node.id not in known:
        raise InputError(
            f"{kind} ({ast.unparse(node)}) must be one of " + ", ".join(known)
        )
    cls, shown = known[node.id], shown or node.id
    fields = {field.name: field for field in dataclasses.fields(cls)}
    values = {}
    for keyword in keywords:
        name = str(keyword.arg)
        if name not in fields:
            raise InputError(
                f"{shown} has no field {name}; it takes "
                + (", ".join(fields) or "no fields")
            )
        if name in values:
            raise InputError(f"{shown}: {name} is given twice")
        if dataclasses.is_dataclass(fields[name].default):
            values[name] = _build(keyword.value, SCHEDULES, "schedule", spec)
            continue
        if isinstance(keyword.value, ast.Name) and keyword.value.id == "inf":
            # Python has no literal for infinity; `to_spec` writes it like this.
            values[name] = math.inf
            continue
        try:
            values[name] = ast.literal_eval(keyword.value)
        except (ValueError, TypeError):
            written = ast.unparse(keyword.value)
            advice = ""
            if isinstance(keyword.value, ast.Name):
                advice = f"; if it is a text, in quotes: {name}='{written}'"
            raise InputError(
                f"{shown}: {name} ({written}) must be a literal{advice}"
            ) from None
    built = cls(**values)
    canonical(built, name=shown)
    return built


def to_spec(sampler: Sampler) -> str:
    """The spec that `parse` reads back; every field is written out."""
    return _write(sampler, is_short=False)


def short_spec(spec: str) -> str:
    """A spec without the fields at their defaults, for tables.

    Raises:
      InputError: as `parse`.
    """
    return _write(parse(spec), is_short=True)


def _name(cls: type) -> str:
    """What a spec calls a class."""
    for name, known in (SAMPLERS | SCHEDULES).items():
        if cls is known:
            return name
    return f"{cls.__module__}:{cls.__qualname__}"


def _write(value: Any, is_short: bool) -> str:
    if not dataclasses.is_dataclass(value):
        return repr(value.item() if hasattr(value, "item") else value)
    hints = typing.get_type_hints(type(value))
    written = []
    for field in dataclasses.fields(value):
        part = getattr(value, field.name)
        if is_short and part == field.default:
            continue
        # 8 and 8.0 are the same sampler where a float is declared.
        hint = hints[field.name]
        is_real = float in (hint, *typing.get_args(hint))
        if is_real and isinstance(part, int):
            part = float(part)
        written.append(f"{field.name}={_write(part, is_short)}")
    return _name(type(value)) + (f"({', '.join(written)})" if written else "")
