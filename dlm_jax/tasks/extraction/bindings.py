"""Whether a statement binds a name to a function without defining one."""

import ast
import builtins
import importlib
from collections.abc import Iterable

# Modules whose functions are an answer by themselves. Another one may be the answer's
# own file, from which its tests import.
# fmt: off
_MODULES = {
    "bisect", "collections", "copy", "functools", "heapq", "itertools", "math",
    "operator", "random", "re", "statistics", "string", "textwrap",
}
# What makes a function of a function.
_WRAPPERS = {
    "cache", "jit", "lru_cache", "njit", "partial", "singledispatch", "vectorize",
}
# fmt: on
_MOST_STEPS = 4

SURELY, MAYBE = 2, 1


class Bindings:
    """The names of an answer, and which of them are functions."""

    def __init__(self, nodes: Iterable[ast.stmt]):
        """Reads statements.

        Args:
          nodes: of the answer and the prompt, at the left margin.
        """
        self._made: set[str] = set()
        self._imported: set[str] = set()
        self._values: dict[str, ast.expr] = {}
        for node in nodes:
            match node:
                case (
                    ast.FunctionDef(name=name)
                    | ast.AsyncFunctionDef(name=name)
                    | ast.ClassDef(name=name)
                ):
                    self._made.add(name)
                case ast.Import(names=names) | ast.ImportFrom(names=names):
                    self._imported |= {
                        item.asname or item.name.split(".")[0] for item in names
                    }
                case ast.Assign() | ast.AnnAssign(value=ast.expr()):
                    value = node.value
                    if value is not None:
                        self._values.update(dict.fromkeys(_targets(node), value))

    def binds(self, node: ast.AST, name: str) -> int | None:
        """Whether a statement other than a definition makes a name a function.

        Args:
          node: a statement.
          name: of the function.

        Returns:
          SURELY, MAYBE, or None if it does not.
        """
        match node:
            case ast.Assign() | ast.AnnAssign() if name in _targets(node):
                return self._kind(node.value, name, _MOST_STEPS)
            case ast.ImportFrom(module=str(module), names=names, level=0):
                for item in names:
                    if (item.asname or item.name) == name:
                        return SURELY if _has(module, item.name) else MAYBE
        return None

    def _kind(self, value: ast.AST | None, name: str, steps: int) -> int | None:
        """Of a value; None if it is no function, or the very name."""
        match value:
            case ast.Lambda():
                return SURELY
            case ast.Name(id=other) if other != name:
                if other in self._made | self._imported or hasattr(builtins, other):
                    return SURELY
                if steps and other in self._values:
                    return self._kind(self._values[other], name, steps - 1)
            case ast.Attribute():
                root = _root(value)
                if root in self._imported | self._made or hasattr(builtins, root):
                    return SURELY
                if root in self._values:
                    made = isinstance(self._values[root], ast.Call)
                    is_object = made and _last(self._values[root]) in self._made
                    return SURELY if is_object else MAYBE
            case ast.Call(func=function, args=arguments):
                outer = _last(function)
                if outer != name and outer in _WRAPPERS | self._made:
                    first = arguments[0] if arguments else None
                    if isinstance(first, ast.Name) and first.id == name:
                        return SURELY
                    is_wrapped = not isinstance(first, ast.Call) and steps
                    if is_wrapped and self._kind(first, name, steps - 1):
                        return SURELY
                    return MAYBE
        return None


def _targets(node: ast.Assign | ast.AnnAssign) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _root(node: ast.AST) -> str:
    """The name that attributes and calls begin with; empty if there is none."""
    while isinstance(node, ast.Attribute | ast.Call):
        node = node.value if isinstance(node, ast.Attribute) else node.func
    return node.id if isinstance(node, ast.Name) else ""


def _last(node: ast.AST) -> str:
    """The name of what is called: partial, in functools.partial and partial(f)."""
    while isinstance(node, ast.Call):
        node = node.func
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _has(module: str, name: str) -> bool:
    return module in _MODULES and hasattr(importlib.import_module(module), name)
