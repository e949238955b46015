r"""Other readings of an answer whose code is escaped or quoted as a whole.

An answer is read as it is first. These count only where that gives no function, so what
they may damage (a `\_` or a `&lt;` in a string) is what is no Python anyway.
"""

import ast
import html
import re
from collections.abc import Callable, Iterator

from dlm_jax.errors import NOT_PYTHON

# Markdown's escapes of characters that Python does not escape outside of strings.
_ESCAPED = re.compile(r"\\([_*\[\]<>#])")
_ENTITY = re.compile(r"&(?:lt|gt|amp|quot|apos|nbsp|#\d{1,7}|#x[0-9a-f]{1,6});", re.I)
# A quote before code, as in the worked examples of MBPP.
_QUOTE = re.compile(
    r"(?:^|(?<=\[BEGIN\]))\s*('''|\"\"\"|'|\")"
    r"(?=\s*(?:def|import|from|class|async|@|#))",
    re.IGNORECASE | re.MULTILINE,
)
_DONE = re.compile(r"\[DONE\]", re.IGNORECASE)
# A string of one line, as JSON has it.
_LITERAL = re.compile(r"\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'")
_TICK = re.compile(r"^[ \t]*`{1,2}(?!`)|(?<!`)`{1,2}[ \t]*$", re.MULTILINE)


def readings(answer: str) -> Iterator[str]:
    """The answer as it is, then without one more kind of escapes or quotes each time.

    HTML's entities in lines without strings are no code in any reading.

    Args:
      answer: any text.

    Yields:
      Texts, each unlike the one before.
    """
    # `a &lt; b` may be Python, which `return a &lt; b` is. No code means that.
    answer = "\n".join(
        line if "'" in line or '"' in line else _without_entities(line)
        for line in answer.split("\n")
    )
    yield answer
    rewrites: tuple[Callable[[str], str], ...] = (
        _unescaped,
        _without_entities,
        _unquoted,
        _decoded,
        _ticked,
    )
    text = answer.replace("\r\n", "\n")
    for rewrite in rewrites:
        changed = rewrite(text)
        if changed != text:
            text = changed
            yield text


def _unescaped(text: str) -> str:
    return _ESCAPED.sub(r"\1", text)


def _without_entities(text: str) -> str:
    return _ENTITY.sub(lambda found: html.unescape(found.group()), text)


def _unquoted(text: str) -> str:
    """Without a quote before code, and the last one of its kind that ends a line."""
    opened = _QUOTE.search(text)
    if opened is None:
        return text
    quote, start = opened.group(1), opened.end()
    done = _DONE.search(text, start)
    end = done.start() if done else len(text)
    inner = text[start:end]
    closers = list(re.finditer(rf"{quote}[ \t]*$", inner, re.MULTILINE))
    if not closers:
        return text
    close = closers[-1]
    parts = inner[: close.start()], inner[close.end() :]
    return f"{text[: opened.start()]}\n```\n{parts[0]}\n```\n{parts[1]}{text[end:]}"


def _decoded(text: str) -> str:
    """With a fence of its own for each string in which line ends are escaped."""
    found = []
    for literal in _LITERAL.findall(text):
        if "\\n" not in literal:
            continue
        try:
            found.append(ast.literal_eval(literal))
        except NOT_PYTHON:
            continue
    return text + "".join(f"\n```\n{code}\n```\n" for code in found)


def _ticked(text: str) -> str:
    """With fences for single or double backticks at the ends of lines."""
    return _TICK.sub("\n```\n", text)
