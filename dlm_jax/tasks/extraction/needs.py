"""What else of an answer a function needs: imports, constants, helpers."""

import ast
from collections.abc import Callable, Iterator, Sequence

from dlm_jax.tasks.extraction import statements
from dlm_jax.tasks.extraction.statements import Chunk

_CHANGES = ast.For | ast.While | ast.With | ast.If | ast.Assign | ast.AugAssign


def needed(
    chosen: Chunk,
    own: Sequence[Chunk],
    others: Sequence[Sequence[Chunk]],
    entry_point: str,
    defines: Callable[[Chunk], bool],
) -> list[Chunk]:
    """The statements that a function needs, directly or through others of them.

    What only uses the function (tests, examples) binds nothing that it reads, and so is
    left out.

    Args:
      chosen: the function.
      own: statements around the function.
      others: other parts of the answer, in its order.
      entry_point: the function's name.
      defines: whether a statement is a definition of the function. It is left out,
        unless a statement before the chosen one reads the function by then.

    Returns:
      The statements, in the order of the answer.
    """
    order, definitions = [], [chosen]
    for rank, chunk in _nearest(own, others):
        if chunk.first == chosen.first:
            continue
        if defines(chunk):
            definitions.append(chunk)
        else:
            order.append((rank, chunk))
    binding: dict[str, list[tuple[int, Chunk]]] = {}
    for rank, chunk in order:
        for name in chunk.names.bound if chunk.names else ():
            binding.setdefault(name, []).append((rank, chunk))
    kept: dict[int, Chunk] = {}
    todo, seen = list(chosen.names.used if chosen.names else ()), set()

    def keep(chunk: Chunk) -> None:
        if id(chunk) not in kept:
            kept[id(chunk)] = chunk
            todo.extend(chunk.names.used if chunk.names else ())

    def close() -> None:
        while todo:
            name = todo.pop()
            if name in seen or name not in binding:
                continue
            seen.add(name)
            # The nearest part that has it; of that, all that binds it.
            nearest = binding[name][0][0]
            for rank, chunk in binding[name]:
                if rank == nearest and not _is_script(chunk):
                    keep(chunk)

    for rank, chunk in order:
        if _is_unlisted_import(chunk) or (rank == 0 and _sets_recursion(chunk)):
            keep(chunk)
    close()
    # Statements that change what is kept, as a loop that fills a table.
    known = seen.union(*(c.names.bound for c in kept.values() if c.names))
    parts = {rank for rank, chunk in order if id(chunk) in kept}
    for rank, chunk in order:
        if rank in parts and chunk.names and _is_change(chunk):
            used = chunk.names.used
            if used & known and not used & {entry_point, "print", "input"}:
                keep(chunk)
    close()
    # What reads the function at once, as `_old = f` before another f, needs one there.
    readers = [chosen, *kept.values()]
    while readers:
        reader = readers.pop()
        if not statements.reads_at_once(reader.nodes, entry_point):
            continue
        before = [chunk for chunk in definitions if chunk.first < reader.first]
        if before and (last := max(before, key=lambda c: c.first)) is not chosen:
            known = set(kept)
            keep(last)
            close()
            readers += [chunk for key, chunk in kept.items() if key not in known]
    return sorted(kept.values(), key=lambda chunk: chunk.first)


def _nearest(
    own: Sequence[Chunk], others: Sequence[Sequence[Chunk]]
) -> Iterator[tuple[int, Chunk]]:
    """Python around the function, then in earlier parts, then in later ones."""
    start = own[0].first if own else 0
    covered = {chunk.first for chunk in own}
    filled = [part for part in others if part]
    earlier = [part for part in filled if part[0].first < start]
    later = [part for part in filled if part[0].first >= start]
    for rank, part in enumerate([own, *earlier[::-1], *later]):
        for chunk in part:
            if chunk.nodes and (rank == 0 or chunk.first not in covered):
                yield rank, chunk


def is_future(chunk: Chunk) -> bool:
    """Whether it imports from __future__, which has to come first."""
    return all(
        isinstance(node, ast.ImportFrom) and node.module == "__future__"
        for node in chunk.nodes
    )


def _is_unlisted_import(chunk: Chunk) -> bool:
    """Whether it imports more than the names that it lists."""
    return any(
        isinstance(node, ast.ImportFrom)
        and (node.module == "__future__" or node.names[0].name == "*")
        for node in chunk.nodes
    )


def _sets_recursion(chunk: Chunk) -> bool:
    return _is_change(chunk) and "sys.setrecursionlimit(" in chunk.source


def _is_script(chunk: Chunk) -> bool:
    """Whether it runs only where the program is a script."""
    return any(
        isinstance(node, ast.If)
        and any(
            isinstance(part, ast.Name) and part.id == "__name__"
            for part in ast.walk(node.test)
        )
        for node in chunk.nodes
    )


def _is_change(chunk: Chunk) -> bool:
    """Whether it may change what other statements made."""
    return not _is_script(chunk) and all(
        isinstance(node, _CHANGES)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))
        for node in chunk.nodes
    )
