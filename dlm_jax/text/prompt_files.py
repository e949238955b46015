"""Prompts from a file or from stdin: a text a line, or JSON."""

import codecs
import dataclasses
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from dlm_jax import files
from dlm_jax.errors import InputError
from dlm_jax.text.codec import Messages

STDIN = "-"
# Of names, in any case. The first line decides where a name ends otherwise.
_JSON = (".json", ".jsonl", ".ndjson")
_TEXT = (".txt", ".text")
_MARKS = (
    # UTF-32 before UTF-16, whose mark its own begins with.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_ARRAY = "a JSON array"
_TAKES = "must be a JSON object with the text prompt, or with messages"


@dataclasses.dataclass(frozen=True)
class PromptFile:
    """What a file of prompts holds.

    Attributes:
      prompts: texts and conversations.
      lines: of each, the line that it begins in, from 1; of an array in JSON, its
        place, from 1.
      form: how the file was read: "text", "JSON Lines", "a JSON array" or "a JSON
        object".
      name: what errors call the file.
    """

    prompts: tuple[str | Messages, ...]
    lines: tuple[int, ...]
    form: str
    name: str

    @property
    def places(self) -> list[str]:
        """Where each prompt was read, for errors about it."""
        unit = "element" if self.form == _ARRAY else "line"
        return [f"{self.name}, {unit} {number}" for number in self.lines]


def read_prompts(path: str | os.PathLike) -> PromptFile:
    """Reads prompts from a file.

    A text has a prompt a line. In JSON, a prompt is an object with the text `prompt`,
    or with `messages`, a list of objects with the texts `role` and `content`; other
    fields are left alone. Objects stand one a line, or in one array; a single one may
    take several lines. Names that end in .json, .jsonl or .ndjson are JSON, those in
    .txt text; of other names and of stdin, the first line that is not blank decides:
    JSON if it is an object, or the whole is an object or an array of objects. Blank
    lines are skipped, and so is a byte order mark. A line may end in CR too.

    Args:
      path: of the file; "-" is stdin.

    Raises:
      InputError: if it cannot be read, or holds no prompt; naming the line that is no
        prompt.
    """
    is_stdin = os.fspath(path) == STDIN
    name = "prompts_file (stdin)" if is_stdin else f"prompts_file ({path})"
    if is_stdin and sys.stdin is None:
        raise InputError(f"{name} cannot be read: it is closed")
    try:
        content = sys.stdin.buffer.read() if is_stdin else _bytes(path)
        text = _decoded(content)
    except UnicodeDecodeError as error:
        before = error.object[: error.start].decode(error.encoding, "ignore")
        line = before.count("\n") + 1
        raise InputError(f"{name}, line {line} cannot be read: {error}") from None
    except (OSError, ValueError) as error:  # also for a path that none can be
        raise InputError(f"{name} cannot be read: {error}") from None
    if "\n" not in text:
        text = text.replace("\r", "\n")
    # Not by splitlines, for which characters inside of a prompt end a line too. Files
    # that were put together have marks inside.
    lines = [
        (number, line.removeprefix("\ufeff").removesuffix("\r"))
        for number, line in enumerate(text.split("\n"), start=1)
    ]
    lines = [(number, line) for number, line in lines if line.strip()]
    if not lines:
        raise InputError(f"{name} holds no prompt")
    suffix = "" if is_stdin else pathlib.Path(path).suffix.casefold()
    whole = None if suffix in _TEXT else _whole(text)
    array = whole if isinstance(whole, list) else None
    if isinstance(whole, dict) and len(lines) > 1:
        form = "a JSON object"
        found = [(lines[0][0], _prompt(f"{name}, line {lines[0][0]}", whole))]
    elif array is not None and (array or suffix in _JSON):
        form = _ARRAY
        found = [
            (i, _prompt(f"{name}, element {i}", value))
            for i, value in enumerate(array, start=1)
        ]
    elif suffix in _JSON or (suffix not in _TEXT and _is_object(lines[0][1])):
        form = "JSON Lines"
        found = list(_objects(name, lines))
    else:
        form = "text"
        found = list(lines)
    if not found:
        raise InputError(f"{name} holds no prompt")
    numbers, prompts = zip(*found, strict=True)
    return PromptFile(prompts, numbers, form, name)


def _bytes(path: str | os.PathLike) -> bytes:
    return pathlib.Path(path).read_bytes()


def _decoded(content: bytes) -> str:
    """Text in UTF-8, or in what its byte order mark says."""
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return content.decode(encoding)
    text = content.decode("utf-8-sig")
    if "\0" in text:
        # Which half of a pair is zero says in which order they are.
        order = "LE" if 0 in content[1::2] else "BE"
        raise ValueError(
            f"it holds characters NUL, as UTF-16-{order} without a byte order mark "
            "does; it must be in UTF-8, or begin with that mark"
        )
    return text


def _whole(text: str) -> list[Any] | dict[str, Any] | None:
    """The object or the array of objects that the whole of a text is, if it is one."""
    if not text.lstrip("\ufeff \t\r\n").startswith(("[", "{")):
        return None
    try:
        value = files.parse_json(text.lstrip("\ufeff"))
    except ValueError:
        return None
    parts = value if isinstance(value, list) else [value]
    return value if all(isinstance(x, dict) for x in parts) else None


def _is_object(line: str) -> bool:
    """Whether a line holds an object, or begins like one that is not well formed."""
    try:
        return isinstance(files.parse_json(line), dict)
    except ValueError:
        return line.lstrip().startswith('{"')


def _objects(
    name: str, lines: list[tuple[int, str]]
) -> Iterator[tuple[int, str | Messages]]:
    for number, line in lines:
        where = f"{name}, line {number}"
        try:
            value = files.parse_json(line)
        except ValueError as error:
            raise InputError(f"{where}: {_TAKES} ({error})") from None
        yield number, _prompt(where, value)


def _prompt(where: str, value: Any) -> str | Messages:
    """The prompt that a JSON object is.

    Raises:
      InputError: beginning with where it is.
    """
    if not isinstance(value, dict):
        raise InputError(f"{where}: {_TAKES}")
    given = [field for field in ("prompt", "messages") if value.get(field) is not None]
    if len(given) != 1:
        both = ", not both" if given else ""
        raise InputError(f"{where}: {_TAKES}{both}")
    (field,) = given
    prompt = value[field]
    # Some data sets have conversations under `prompt`, too.
    if isinstance(prompt, str) and field == "prompt":
        texts = [prompt]
    elif isinstance(prompt, list) and prompt:
        texts = [text for message in prompt for text in _texts(where, field, message)]
    else:
        raise InputError(f"{where}: {_TAKES}")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: {field} is no text: {error.reason}") from None
    return prompt


def _texts(where: str, field: str, message: Any) -> tuple[str, str]:
    """Role and content of a message."""
    if isinstance(message, Mapping):
        role, content = message.get("role"), message.get("content")
        if isinstance(role, str) and isinstance(content, str):
            return role, content
    raise InputError(
        f"{where}: {field} must be a list of objects with the texts role and content"
    )
