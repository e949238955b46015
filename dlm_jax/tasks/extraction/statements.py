"""Text that holds Python among other things, cut into statements at the left margin.

Nothing is executed. The work is linear in the text, whatever is in it.
"""

import ast
import dataclasses
import functools
import re
import symtable
import unicodedata
import warnings
from collections.abc import Sequence

from dlm_jax.errors import NOT_PYTHON

# An answer's odd escape sequences are no warning to whoever judges it.
FILENAME = "<answer>"
warnings.filterwarnings("ignore", module=FILENAME)

# What decides where a statement begins: comments, strings, brackets, line ends.
_TOKEN = re.compile(
    r"""\#[^\n]*|\\[\s\S]|\"{3}|'{3}"""
    r"""|"(?:\\[\s\S]|[^"\\\n])*"?|'(?:\\[\s\S]|[^'\\\n])*'?|[()\[\]{}\n]"""
)
_CLOSERS = {quote: re.compile(rf"\\[\s\S]|{quote}") for quote in ('"""', "'''")}
# A clause of the statement above, at the left margin.
_CLAUSE = re.compile(r"(?:else|finally)[ \t]*:|(?:elif|except)\b[^\n]*:")
# Begins a statement even if a bracket of the text above was never closed.
_BEGINS = re.compile(r"(?:async[ \t]+def|def|class|import|from)[ \t]+\w")
_DECORATED = re.compile(r"@|(?:async[ \t]+def|def|class)[ \t]")
_SPACES = [chr(i) for i in range(0x80, 0x3001) if unicodedata.category(chr(i)) == "Zs"]
# Characters that text has where Python needs plain ones.
_PLAIN = str.maketrans(
    {
        **dict.fromkeys(("\v", *_SPACES), " "),
        "\N{ZERO WIDTH SPACE}": "",
        "\N{ZERO WIDTH NO-BREAK SPACE}": "",
        "\N{LEFT DOUBLE QUOTATION MARK}": '"',
        "\N{RIGHT DOUBLE QUOTATION MARK}": '"',
        "\N{LEFT SINGLE QUOTATION MARK}": "'",
        "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    }
)
_MOST_CUTS = 20

_Scope = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda


@dataclasses.dataclass(frozen=True)
class Chunk:
    """The text between two places where a statement may begin.

    Attributes:
      first: number of its first line in the text.
      last: number of its last line that is not blank.
      source: its lines.
      nodes: its statements; none if it is not Python.
    """

    first: int
    last: int
    source: str
    nodes: tuple[ast.stmt, ...]

    @functools.cached_property
    def names(self) -> "Names | None":
        """Its names; None if it is not Python."""
        return names_of(self.source) if self.nodes else None


@dataclasses.dataclass(frozen=True)
class Names:
    """Global names of a piece of Python.

    Attributes:
      bound: assigned, defined or imported at the left margin.
      used: read at the left margin, or read as globals by functions.
    """

    bound: frozenset[str]
    used: frozenset[str]


def split(lines: Sequence[str], first: int = 0) -> list[Chunk]:
    """Cuts lines where statements begin at the left margin.

    Lines at the margin that are no Python are chunks of their own, and leave what is
    above and below them alone.

    Args:
      lines: of the text, without their ends.
      first: number of the first line.
    """
    source = "\n".join(lines)
    tree = parse(source)
    if tree is not None:
        return _chunks_of(tree, lines, first)
    starts = _starts(source, lines)
    ends = [*starts[1:], len(lines)]
    found = []
    for start, end in zip(starts, ends, strict=True):
        last = end - 1
        while last > start and not lines[last].strip():
            last -= 1
        own, tree = tidied("\n".join(lines[start : last + 1]))
        nodes = tuple(tree.body) if tree else ()
        found.append(Chunk(first + start, first + last, own, nodes))
    return found


def _chunks_of(tree: ast.Module, lines: Sequence[str], first: int) -> list[Chunk]:
    """The statements of a text that is Python as a whole."""
    groups: list[tuple[int, int, list[ast.stmt]]] = []
    for node in tree.body:
        decorators = getattr(node, "decorator_list", [])
        start = min([node.lineno, *(part.lineno for part in decorators)]) - 1
        end = node.end_lineno or node.lineno
        if groups and start < groups[-1][1]:  # several on one line
            groups[-1][2].append(node)
            groups[-1] = groups[-1][0], end, groups[-1][2]
        else:
            groups.append((start, end, [node]))
    return [
        Chunk(first + start, first + end - 1, "\n".join(lines[start:end]), tuple(nodes))
        for start, end, nodes in groups
    ]


def _starts(source: str, lines: Sequence[str]) -> list[int]:
    """Numbers of the lines that begin a chunk."""
    starts, depth, number, place = [0], 0, 0, 0
    open_quotes = set(_CLOSERS)
    is_decorated = lines[0].startswith("@")
    while token := _TOKEN.search(source, place):
        text, place = token.group(), token.end()
        if text in _CLOSERS and text in open_quotes:
            end = _closed(source, place, _CLOSERS[text])
            if end is None:
                # Without an end it is no string; nor is any later one of the kind.
                open_quotes.discard(text)
            else:
                number += source.count("\n", place, end)
                place = end
            continue
        if text[0] in "([{":
            depth += 1
        elif text[0] in ")]}":
            depth = max(depth - 1, 0)
        if text != "\n":
            number += text.count("\n")
            continue
        number += 1
        line = lines[number]
        begins = _BEGINS.match(line) is not None
        is_inner = not line.strip() or line[0].isspace() or line[0] == "#"
        if is_inner or (depth and not begins):
            continue
        if is_decorated and _DECORATED.match(line):
            is_decorated = line.startswith("@")
        elif not _CLAUSE.match(line):
            starts.append(number)
            depth, is_decorated = 0, line.startswith("@")
    return starts


def _closed(source: str, place: int, closer: re.Pattern[str]) -> int | None:
    """Where a string that is open at a place ends; None if it does not."""
    while token := closer.search(source, place):
        place = token.end()
        if token.group()[0] != "\\":
            return place
    return None


def parse(source: str) -> ast.Module | None:
    """The syntax tree; None if the text is not Python."""
    try:
        return ast.parse(source, FILENAME)
    except NOT_PYTHON:
        return None


def tidied(source: str) -> tuple[str, ast.Module | None]:
    """A text and its syntax tree; with tabs and quotes made plain if that helps."""
    tree = parse(source)
    if tree is None:
        plain = source.translate(_PLAIN).expandtabs(4)
        tree = parse(plain) if plain != source else None
        source = source if tree is None else plain
    return source, tree


def error_of(source: str) -> str:
    """One line on why a text is not Python."""
    try:
        ast.parse(source, FILENAME)
    except SyntaxError as error:
        return f"{type(error).__name__}: {error.msg} (line {error.lineno})"
    except NOT_PYTHON as error:
        return f"{type(error).__name__}: {error}"
    return ""


def longest_prefix(source: str) -> str | None:
    """The most lines from the start that are Python; None if there are none.

    The search gives up after a fixed number of attempts.
    """
    lines = source.split("\n")
    for _ in range(_MOST_CUTS):
        while lines and not lines[-1].strip():
            lines.pop()
        if not lines:
            return None
        text = "\n".join(lines)
        try:
            ast.parse(text, FILENAME)
        except SyntaxError as error:
            # For a block without a body, Python names the line after its end.
            number = min(error.lineno or len(lines), len(lines))
            del lines[max(number - 1, 0) :]
        except NOT_PYTHON:
            return None
        else:
            return text
    return None


def names_of(source: str) -> Names | None:
    """The global names of Python text; None if the compiler would refuse it."""
    try:
        table = symtable.symtable(source, FILENAME, "exec")
    except NOT_PYTHON:
        return None
    bound, used = set(), set()
    for symbol in table.get_symbols():
        if symbol.is_assigned() or symbol.is_imported():
            bound.add(symbol.get_name())
        if symbol.is_referenced():
            used.add(symbol.get_name())
    tables = list(table.get_children())
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for symbol in table.get_symbols():
            if symbol.is_global():
                used.add(symbol.get_name())
                if symbol.is_declared_global() and symbol.is_assigned():
                    bound.add(symbol.get_name())
    return Names(frozenset(bound), frozenset(used))


def reads_at_once(nodes: Sequence[ast.stmt], name: str) -> bool:
    """Whether statements read a name when they run, and not only when they are called.

    Args:
      nodes: the statements.
      name: a global name.
    """
    todo: list[ast.AST | None] = list(nodes)
    while todo:
        match todo.pop():
            case ast.Name(id=other, ctx=ast.Load()) if other == name:
                return True
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda() as node:
                todo += [*node.args.defaults, *node.args.kw_defaults]
                todo += getattr(node, "decorator_list", [])
            case ast.AST() as node:
                todo += ast.iter_child_nodes(node)
    return False


def has_result(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a function returns a value or yields one."""
    todo: list[ast.AST] = list(function.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Yield | ast.YieldFrom):
            return True
        if isinstance(node, ast.Return) and node.value is not None:
            return True
        if not isinstance(node, _Scope):
            todo += ast.iter_child_nodes(node)
    return False


def ends(body: Sequence[ast.stmt]) -> bool:
    """Whether no statement after these could be reached."""
    todo = [body]
    while todo:
        match todo.pop()[-1:]:
            case [ast.Return() | ast.Raise()]:
                continue
            case [ast.If(body=first, orelse=second)]:
                todo += [first, second]
            case [ast.With(body=first) | ast.AsyncWith(body=first)]:
                todo.append(first)
            case [ast.Try(body=first, orelse=second, handlers=handlers)]:
                todo += [second or first, *(handler.body for handler in handlers)]
            case [ast.While(test=ast.Constant(value=value))] if value:
                continue
            case _:
                return False
    return True
