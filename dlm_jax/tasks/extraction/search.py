"""The places in an answer that may hold a function, and the choice between them."""

import ast
import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from dlm_jax.tasks.extraction import needs, pieces, rewrites, statements
from dlm_jax.tasks.extraction.bindings import SURELY, Bindings
from dlm_jax.tasks.extraction.bodies import bodies
from dlm_jax.tasks.extraction.pieces import ADDED, MARK
from dlm_jax.tasks.extraction.statements import Chunk

# Quality of a candidate. WHOLE, unless it ends where the answer does and might go on.
_WHOLE, _OPEN, _EMPTY = 3, 2, 0
# Pieces that are tried as continuations, and broken or indented definitions.
_MOST_PIECES, _MOST_BROKEN = 32, 4
_FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


@dataclasses.dataclass(frozen=True)
class Extracted:
    """What was found in an answer.

    Attributes:
      program: Python source that defines the function; empty if there is none.
      reason: one line on why there is none; else empty.
    """

    program: str
    reason: str


@dataclasses.dataclass(frozen=True)
class _Candidate:
    """A definition of the function.

    Attributes:
      quality: of the above.
      is_own: the answer names the function; else it continues the prompt's head.
      first: number of its first line in the answer.
      is_last: nothing follows it in the answer.
      source: the definition.
      place: number of the region that it is in.
      alias: source that gives a method the function's name.
    """

    quality: int
    is_own: bool
    first: int
    is_last: bool
    source: str
    place: int
    alias: str = ""


def extract(answer: str, entry_point: str, prompt: str = "") -> Extracted:
    """The program in an answer.

    Args:
      answer: any text: the whole function or, after a prompt that begins it, its body;
        in fences or not.
      entry_point: name of the function.
      prompt: Python that ends in the function's head and docstring, before which its
        imports and helpers are; empty if the answer has to have all of it.

    Returns:
      The program: what the prompt has before the function, what the answer has that
      the function needs, and the function.
    """
    if not answer.strip():
        return Extracted("", "the answer is empty")
    made: list[_Search] = []
    texts = rewrites.readings(answer)

    def searches() -> Iterator[_Search]:
        """Of each reading; most answers need one."""
        yield from made
        for text in texts:
            made.append(_Search(text, entry_point, prompt))
            yield made[-1]

    chosen = _choice(searches)
    if chosen is None:
        return Extracted("", made[0].reason())
    search, candidate = chosen
    return Extracted(search.program(candidate), "")


def _choice(
    searches: Callable[[], Iterator["_Search"]],
) -> "tuple[_Search, _Candidate] | None":
    """The best candidate, and the reading of the answer that has it.

    A way to look for candidates is tried on every reading before the next way. What
    continues the prompt yields to a definition, in whichever reading.
    """
    continued = None
    for look in (_Search.plain, _Search.methods, _Search.indented, _Search.prefixes):
        for search in searches():
            best = search.best(look(search))
            if best and best.quality >= _OPEN:
                if best.is_own:
                    return search, best
                continued = continued or (search, best)
        if continued:
            return continued
    for search in searches():
        if empty := search.best():
            return search, empty
    return None


class _Search:
    """One answer and what is in it."""

    def __init__(self, answer: str, entry_point: str, prompt: str):
        self._name = entry_point
        name = re.escape(entry_point)
        self._head = re.compile(rf"(?:async[ \t]+)?def[ \t]+{name}[ \t]*\(")
        heads = list(re.finditer(rf"^{self._head.pattern}", prompt, re.MULTILINE))
        place = heads[-1].start() if heads else len(prompt)
        self._prelude, self._begun = prompt[:place], prompt[place:].rstrip()
        self._lines = pieces.read(answer)
        filled = [
            i for i, line in enumerate(self._lines) if line is None or line.strip()
        ]
        self._end = filled[-1] if filled else 0
        self._pieces = pieces.pieces(self._lines)
        self._regions = [
            statements.split(pieces.dedented(lines), first)
            for first, lines in self._pieces
        ]
        # Fences within a docstring are none, which is seen when nothing is cut.
        if len(self._pieces) > 1 and re.search(r"\"{3}|'{3}", answer):
            self._regions.append(statements.split(self._plain_lines()))
        # Definitions that are not Python, with their regions.
        self._broken: list[tuple[str, int]] = []
        self._body_error = ""
        self._found: list[_Candidate] = []
        tree = statements.parse(self._prelude)
        nodes = [n for region in self._regions for c in region for n in c.nodes]
        self._bindings = Bindings([*(tree.body if tree else ()), *nodes])

    def best(self, more: Iterable[_Candidate] = ()) -> _Candidate | None:
        """The best of all candidates until now, and more of them."""
        self._found += more
        return max(
            self._found, key=lambda c: (c.quality, c.is_own, c.first), default=None
        )

    def _plain_lines(self) -> list[str]:
        return ["```" if line is None else line for line in self._lines]

    # Candidates

    def plain(self) -> list[_Candidate]:
        """Definitions at the left margin, and bodies for the prompt's."""
        found = [c for i in range(len(self._regions)) for c in self._own(i)]
        if self._begun:
            found += self._continuations()
        return _without_parts(found, _plain(self._begun))

    def _own(self, place: int) -> Iterator[_Candidate]:
        """Definitions at the left margin of a region."""
        for chunk in self._regions[place]:
            if not chunk.nodes:
                if self._head.search(chunk.source):
                    self._broken.append((chunk.source, place))
                continue
            for node in chunk.nodes:
                if (quality := self._quality(node, chunk.last)) is not None:
                    yield self._candidate(quality, True, chunk, place)

    def _candidate(
        self, quality: int, is_own: bool, chunk: Chunk, place: int, alias: str = ""
    ) -> _Candidate:
        is_last = chunk.last >= self._end
        first, source = chunk.first, chunk.source
        return _Candidate(quality, is_own, first, is_last, source, place, alias)

    def _quality(self, node: ast.AST, last: int) -> int | None:
        """Of a definition that ends on a line; None if it is none of the function."""
        match node:
            case (
                ast.FunctionDef(name=self._name) | ast.AsyncFunctionDef(name=self._name)
            ):
                if not statements.has_result(node):
                    return _EMPTY
                is_open = last >= self._end and not statements.ends(node.body)
                return _OPEN if is_open else _WHOLE
        bound = self._bindings.binds(node, self._name)
        if bound is None:
            return None
        return _WHOLE if bound == SURELY else _OPEN

    def _continuations(self) -> Iterator[_Candidate]:
        """The prompt's function with a body that a piece begins with."""
        tried = list(enumerate(self._pieces))
        tried = tried[:1] + tried[1:][1 - _MOST_PIECES :]
        for place, (first, lines) in tried:
            for start, body in bodies(lines):
                source = f"{self._begun}\n{body}"
                source, tree = statements.tidied(source)
                if tree is None:
                    self._body_error = self._body_error or statements.error_of(source)
                    self._broken.insert(0, (source, place))
                    continue
                last = first + start + body.count("\n")
                quality = self._quality(tree.body[-1], last)
                if len(tree.body) == 1 and quality is not None:
                    chunk = Chunk(first + start, last, source, tuple(tree.body))
                    yield self._candidate(quality, False, chunk, place)
                    break

    def methods(self) -> Iterator[_Candidate]:
        """Methods with the function's name."""
        for place, region in enumerate(self._regions):
            for chunk in region:
                for node in chunk.nodes:
                    if not isinstance(node, ast.ClassDef):
                        continue
                    for part in node.body:
                        quality = self._quality(part, chunk.last)
                        if quality is None or not isinstance(part, _FUNCTIONS):
                            continue
                        owner = f"{node.name}()" if _has_self(part) else node.name
                        alias = f"{self._name} = {owner}.{self._name}"
                        yield self._candidate(quality, True, chunk, place, alias)

    def indented(self) -> Iterator[_Candidate]:
        """Definitions that do not begin at the left margin of anything."""
        lines = self._plain_lines()
        heads = [i for i, line in enumerate(lines) if self._head.search(line)]
        for number in heads[-_MOST_BROKEN:]:
            found = self._head.search(lines[number])
            assert found
            before = lines[number][: found.start()]
            if MARK.fullmatch(before):
                # In a difference a plus has no space behind it.
                mark = ADDED if before == "+" else MARK
                first, end = pieces.run(
                    lines, number, lambda x, mark=mark: mark.match(x) is not None
                )
                own = [mark.sub("", line, count=1) for line in lines[first:end]]
                number = first
            elif before.strip():
                own = [lines[number][found.start() :], *lines[number + 1 :]]
            else:
                first, end = pieces.run(
                    lines,
                    number,
                    lambda x, margin=before: x.startswith(margin) or not x.strip(),
                )
                own = pieces.dedented(lines[first:end], before)
                number = first
            self._regions.append(statements.split(own, number))
            yield from self._own(len(self._regions) - 1)

    def prefixes(self) -> Iterator[_Candidate]:
        """The longest prefixes that are Python of definitions that are not."""
        for source, place in self._broken[-_MOST_BROKEN:]:
            found = self._head.search(source)
            start = source.rfind("\n", 0, found.start()) + 1 if found else 0
            prefix = statements.longest_prefix(source[start:])
            tree = statements.parse(prefix) if prefix else None
            for node in tree.body[-1:] if tree else ():
                quality = self._quality(node, -1)
                if prefix and quality:
                    yield _Candidate(quality, True, self._end, True, prefix, place)

    # The program

    def program(self, chosen: _Candidate) -> str:
        """A definition with what it needs, in the order of the answer."""
        tree = statements.parse(chosen.source)
        nodes = tuple(tree.body) if tree else ()
        kept = needs.needed(
            chosen=Chunk(chosen.first, chosen.first, chosen.source, nodes),
            own=self._regions[chosen.place],
            others=[
                region
                for i, region in enumerate(self._regions[: len(self._pieces)])
                if i != chosen.place
            ],
            entry_point=self._name,
            defines=self._defines,
        )
        futures = [c for c in kept if needs.is_future(c)]
        before = [c for c in kept if c.first < chosen.first and c not in futures]
        after = [c for c in kept if c.first > chosen.first and c not in futures]
        parts = [
            *(c.source for c in futures),
            self._prelude.rstrip("\n"),
            *(c.source for c in before),
            chosen.source,
            *(c.source for c in after),
            chosen.alias,
        ]
        return "\n\n\n".join(part for part in parts if part.strip()) + "\n"

    def _defines(self, chunk: Chunk) -> bool:
        """Whether it defines or binds the function, and nothing else."""
        return any(self._quality(node, -1) is not None for node in chunk.nodes) and (
            chunk.names is None or chunk.names.bound <= {self._name}
        )

    def reason(self) -> str:
        """Why there is no candidate."""
        own = [source for source, _ in self._broken if not self._is_continued(source)]
        if own:
            error = statements.error_of(own[-1])
            return f"the definition of {self._name} is not Python: {error}"
        defined = [
            node.name
            for region in self._regions
            for chunk in region
            for node in chunk.nodes
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        others = ", ".join(dict.fromkeys(defined[:3]))
        reason = f"the answer does not define {self._name}"
        if others:
            return f"{reason}; it defines {others}"
        if self._body_error:
            return f"{reason}, nor is it a body of it: {self._body_error}"
        return reason

    def _is_continued(self, source: str) -> bool:
        return bool(self._begun) and source.startswith(self._begun)


def _without_parts(found: Sequence[_Candidate], head: str) -> list[_Candidate]:
    """Without what only repeats a part of another candidate.

    That is a definition cut off at the answer's end, or a body that an explanation
    quotes.
    """
    plain = [_plain(candidate.source) for candidate in found]
    bodies = [i for i, candidate in enumerate(found) if not candidate.is_own]

    def is_part(i: int) -> bool:
        own = found[i]
        if own.is_own:
            return own.is_last and any(
                len(other) > len(plain[i]) and other.startswith(plain[i])
                for other in plain
            )
        # Without the head, which all continuations share.
        body = plain[i].removeprefix(head).strip()
        return any(
            len(plain[j]) > len(plain[i]) and body in plain[j] for j in bodies if j != i
        )

    return [candidate for i, candidate in enumerate(found) if not is_part(i)]


def _plain(source: str) -> str:
    lines = (line.strip() for line in source.split("\n"))
    return "\n".join(line for line in lines if line)


def _has_self(method: ast.AST) -> bool:
    """Whether a method's first parameter is the object."""
    if not isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    arguments = [*method.args.posonlyargs, *method.args.args]
    return bool(arguments) and arguments[0].arg == "self"


def statements_of(answer: str) -> str:
    """All Python at the left margin of an answer's parts, in its order.

    For tests that need more of a program than one function. Of equal names the last
    counts. What follows the first [DONE] only does if there is no Python before it.

    Args:
      answer: any text.

    Returns:
      Python source; empty if there is none.
    """
    for own in dict.fromkeys((answer.split("[DONE]")[0], answer)):
        read = [_statements_of(text) for text in rewrites.readings(own)]
        if parts := max(read, key=len):
            return "\n\n\n".join(parts) + "\n"
    return ""


def _statements_of(text: str) -> list[str]:
    parts = []
    for first, lines in pieces.pieces(pieces.read(text)):
        chunks = statements.split(pieces.dedented(lines), first)
        parts += [chunk.source for chunk in chunks if _is_code(chunk)]
    return parts


def _is_code(chunk: Chunk) -> bool:
    """Whether it defines anything: no word of a sentence, and no test."""
    return any(not isinstance(node, ast.Expr | ast.Assert) for node in chunk.nodes)
