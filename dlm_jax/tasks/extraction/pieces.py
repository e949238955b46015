"""An answer's lines, and the pieces between its fences and tags."""

import re
from collections.abc import Callable, Sequence

_TAG = re.compile(
    r"\[/(?:PYTHON|CODE|ANSWER|SOLUTION)\]"
    r"|^[ \t]*\[(?:PYTHON|CODE|ANSWER|SOLUTION|BEGIN)\]"
    r"|(?:^|(?<=\s))\[(?:BEGIN|DONE|END)\][ \t]*$"
    r"|^[ \t]*</?(?:code|python|answer|solution|pre)>"
    r"|</?(?:code|python|answer|solution|pre)>[ \t]*$"
    r"|^[ \t]*\\(?:begin|end)\{\w+\}"
    # What ends a turn or fills it up; in a string there is a quote behind it.
    r"|<[|\uff5c][\w\u2581-]+[|\uff5c]>"
    r"|(?:</?s>|<(?:eos|bos|pad|unk|end_of_turn|start_of_turn)>)+"
    r"(?![^\n\"']{0,200}[\"'])",
    re.MULTILINE | re.IGNORECASE,
)
_TICKS = re.compile(r"(`{3,})")
_TILDES = re.compile(r"[ \t]*~{3,}[^~]*")
# What may follow an opening fence on its line, and a language before code there.
_INFO = re.compile(r"[ \t]*(?:\{[^}]*\}|[\w+.#-]*)(?:[ \t:]+[\w-]+=\S+)*[ \t]*")
_LANGUAGE = re.compile(r"[ \t]*(?:python|py)[\w.]*[ \t]+", re.IGNORECASE)
# What a session, a quotation, a difference or numbered lines have before each line.
MARK = re.compile(r"[ \t]*(?:>>>|\.\.\.|>|\||\+|\d+(?:[ \t]*[.:|)])?)(?:[ \t]|$)")
ADDED = re.compile(r"\+")


def read(answer: str) -> list[str | None]:
    """The lines of an answer; None for one that is a fence or a tag."""
    text = answer.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")
    text = _TAG.sub("\n```\n", text)
    found: list[str | None] = []
    for line in text.split("\n"):
        if _TILDES.fullmatch(line):
            found.append(None)
            continue
        if "```" not in line:
            found.append(line)
            continue
        before, *rest = _TICKS.split(line)
        if before.strip():
            found.append(before.rstrip())
        for behind in rest[1::2]:
            found.append(None)
            if not _INFO.fullmatch(behind):
                found.append(_LANGUAGE.sub("", behind, count=1))
    return found


def pieces(lines: Sequence[str | None]) -> list[tuple[int, list[str]]]:
    """What is between fences: the number of its first line, and its lines."""
    found: list[tuple[int, list[str]]] = [(0, [])]
    for number, line in enumerate(lines):
        if line is None:
            found.append((number + 1, []))
        else:
            found[-1][1].append(line)
    return [piece for piece in found if any(line.strip() for line in piece[1])]


def dedented(lines: Sequence[str], margin: str | None = None) -> list[str]:
    """Lines without a margin: by default what all have that are not blank."""
    if margin is None:
        filled = [line for line in lines if line.strip()]
        if not filled:
            return list(lines)
        low, high = min(filled), max(filled)
        size = 0
        while size < len(low) and low[size] == high[size] and low[size] in " \t":
            size += 1
        margin = low[:size]
    return [line.removeprefix(margin) for line in lines]


def run(
    lines: Sequence[str], number: int, is_in: Callable[[str], bool]
) -> tuple[int, int]:
    """The lines around one that satisfy a condition: the first, and the end."""
    first, end = number, number + 1
    while first and is_in(lines[first - 1]):
        first -= 1
    while end < len(lines) and is_in(lines[end]):
        end += 1
    return first, end
