"""What may be the body of a function whose head is in the prompt."""

import ast
from collections.abc import Iterator, Sequence

from dlm_jax.tasks.extraction import pieces, statements

_INDENT = "    "


def bodies(lines: Sequence[str]) -> Iterator[tuple[int, str]]:
    """What a piece might hold of a function's body, indented; the likeliest first.

    Yields:
      The number of lines before it, and the body.
    """
    start = next((i for i, line in enumerate(lines) if line.strip()), 0)
    chunks = statements.split(lines[start:], start)
    if not chunks:  # comments only
        return
    first = chunks[0]
    if lines[start][0].isspace():
        # As it is; with another indentation; with the first line's cut.
        yield start, first.source
        own = "\n".join(_INDENT + x for x in pieces.dedented(first.source.split("\n")))
        if own != first.source:
            yield start, own
    else:
        # Statements at the margin that end in a return are a body without its
        # indentation.
        size = 0
        for i, chunk in enumerate(chunks):
            if not chunk.nodes:
                break
            if any(map(_returns, chunk.nodes)):
                size = i + 1
        if size:
            run = "\n".join(lines[start : chunks[size - 1].last + 1])
            yield start, "\n".join(_INDENT + line for line in run.split("\n"))
    yield start, _INDENT + first.source.lstrip()
    # Words at the margin, then a body.
    for chunk in chunks[:4]:
        _, _, rest = chunk.source.partition("\n")
        if not chunk.nodes and "return" in rest and rest.strip("\n")[:1] in (" ", "\t"):
            yield chunk.first + 1, rest


def _returns(node: ast.stmt) -> bool:
    """Whether a statement holds a return that belongs to no function in it."""
    todo: list[ast.AST] = [node]
    while todo:
        node_ = todo.pop()
        if isinstance(node_, ast.Return):
            return True
        if not isinstance(node_, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            todo += ast.iter_child_nodes(node_)
    return False
