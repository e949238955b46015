"""Specs: rules as text, for the command line and for tables.

A spec is a call that is read with `ast` and never evaluated, such as
`entropy_bound(gamma=0.1)` or `low_confidence(schedule=linear(steps=64))`. A rule that
is not of this package is named with its module: `my_rules:Confident(threshold=0.8)`.
"""

import ast
import dataclasses
import importlib
import math
import re
import typing
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from dlm_jax.core.sampler import Rule, canonical
from dlm_jax.errors import NOT_PYTHON, InputError

# MODULE:CLASS, and what follows.
_FOREIGN = re.compile(r"\s*([^\W\d][\w.]*):([^\W\d]\w*)(.*)", re.DOTALL)

_Rule = TypeVar("_Rule", bound=Rule)


@dataclasses.dataclass(frozen=True)
class Specs(Generic[_Rule]):
    """Reads and writes the specs of one kind of rule.

    Attributes:
      kind: what errors call a rule.
      base: the class that all derive from.
      known: those of this package, by name.
      example: a spec, for errors.
      parts: rules that are fields of others, by name.
      part_kind: what errors call one of those.
    """

    kind: str
    base: type[_Rule]
    known: Mapping[str, type]
    example: str
    parts: Mapping[str, type] = dataclasses.field(default_factory=dict)
    part_kind: str = ""

    def parse(self, spec: str) -> _Rule:
        """Reads a rule from its spec.

        Raises:
          InputError: for an unknown name or field, with the known ones, a bad value, or
            a module that does not import.
        """
        known, name = self.known, None
        call = spec
        if foreign := _FOREIGN.fullmatch(spec):
            module, cls, rest = foreign.groups()
            known = {cls: self._import(module, cls)}
            name = f"{module}:{cls}"
            call = cls + rest
        try:
            node = ast.parse(call.strip(), mode="eval").body
        except NOT_PYTHON:
            raise self._no_call(spec) from None
        try:
            return self._build(node, known, self.kind, spec, name)
        except RecursionError:  # The parser takes what is too deep to be read.
            raise self._no_call(spec) from None

    def _no_call(self, spec: str) -> InputError:
        return InputError(
            f"{self.kind} ({spec[:200]!r}) must be a name or a call like {self.example}"
        )

    def write(self, rule: _Rule, is_short: bool = False) -> str:
        """The spec that `parse` reads back.

        Args:
          rule: what is written.
          is_short: leave fields out that are at their defaults.
        """
        return self._write(rule, is_short)

    def _import(self, module: str, name: str) -> type:
        """A rule's class of any module.

        Raises:
          InputError: if the module does not import or has no such rule.
        """
        shown = f"{self.kind} ({module}:{name})"
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ModuleNotFoundError as error:
            own = error.name is not None and module.startswith(error.name)
            reason = f"does not import: {error}"
            if own:
                reason = "is not on Python's path: add its folder, PYTHONPATH=FOLDER"
            raise InputError(f"{shown}: the module {module} {reason}") from None
        # Whatever somebody else's module raises; a script at its end exits.
        except (Exception, SystemExit) as error:
            raise InputError(
                f"{shown}: the module {module} does not import: "
                f"{type(error).__name__}: {error}"
            ) from None
        if not (isinstance(found, type) and issubclass(found, self.base)):
            raise InputError(
                f"{shown} must be a class of {module} derived from "
                f"dlm_jax.{self.base.__name__}"
            )
        return found

    def _build(
        self,
        node: ast.expr,
        known: Mapping[str, type],
        kind: str,
        spec: str,
        shown: str | None = None,
    ) -> Any:
        """Builds the object that a node of a spec describes; errors call it `shown`."""
        keywords = []
        if isinstance(node, ast.Call):
            if node.args or any(keyword.arg is None for keyword in node.keywords):
                raise InputError(f"{self.kind} ({spec!r}): write fields as name=value")
            node, keywords = node.func, node.keywords
        if not isinstance(node, ast.Name) or node.id not in known:
            own = ", or module:Class of your own" if known is self.known else ""
            raise InputError(
                f"{kind} ({ast.unparse(node)}) must be one of {', '.join(known)}{own}"
            )
        cls, shown = known[node.id], shown or node.id
        fields = {field.name: field for field in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
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
                part = keyword.value
                values[name] = self._build(part, self.parts, self.part_kind, spec)
                continue
            values[name] = _literal(keyword.value, shown, name)
        built = cls(**values)
        canonical(built, name=shown)
        return built

    def _name(self, cls: type) -> str:
        """What a spec calls a class."""
        for name, known in {**self.known, **self.parts}.items():
            if cls is known:
                return name
        return f"{cls.__module__}:{cls.__qualname__}"

    def _write(self, value: Any, is_short: bool) -> str:
        if not dataclasses.is_dataclass(value):
            return repr(value.item() if hasattr(value, "item") else value)
        hints = typing.get_type_hints(type(value))
        written = []
        for field in dataclasses.fields(value):
            part = getattr(value, field.name)
            if is_short and part == field.default:
                continue
            # 8 and 8.0 are the same rule where a float is declared.
            hint = hints[field.name]
            is_real = float in (hint, *typing.get_args(hint))
            if is_real and isinstance(part, int):
                part = float(part)
            written.append(f"{field.name}={self._write(part, is_short)}")
        return self._name(type(value)) + (f"({', '.join(written)})" if written else "")


def _literal(value: ast.expr, shown: str, name: str) -> Any:
    """The literal of a field.

    Raises:
      InputError: if it is none.
    """
    if isinstance(value, ast.Name) and value.id == "inf":
        # Python has no literal for infinity; `write` writes it like this.
        return math.inf
    try:
        return ast.literal_eval(value)
    except (ValueError, TypeError):
        written = ast.unparse(value)
        advice = ""
        if isinstance(value, ast.Name):
            advice = f"; if it is a text, in quotes: {name}='{written}'"
        raise InputError(
            f"{shown}: {name} ({written}) must be a literal{advice}"
        ) from None
