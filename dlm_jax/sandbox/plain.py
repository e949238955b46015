"""Plain data as JSON: what the sandbox's child process writes.

Sent with `child`, into the same space; like it, it imports nothing of this package.
"""

import sys
from typing import Any

_MAX_DEPTH = 100


class TooLarge(Exception):
    """A value has more parts or characters than may be sent."""


def encode(value: Any, limit: int) -> str:
    """Plain data as JSON in which containers are arrays that start with their type.

    A value of a subclass (a Counter, a named tuple) is written as what it derives from,
    a number of numpy as the number.

    Args:
      value: of None, bool, int, float, complex, str, bytes, list, tuple, set, frozenset
        and dict.
      limit: number of characters and of parts that are not exceeded by much.

    Raises:
      TypeError: for anything else.
      TooLarge: beyond the limit, or nested deeper than 100.
    """
    parts: list[str] = []
    _encode(value, parts, limit, 0)
    return "".join(parts)


def _encode(value: Any, parts: list[str], limit: int, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise TooLarge(f"nested deeper than {_MAX_DEPTH}")
    if len(parts) > limit:
        raise TooLarge(f"more than {limit} parts")
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic):
        value = value.item()  # it is equal to the number
    kind = _kind(value)
    if value is None or value is True or value is False:
        parts.append({None: "null", True: "true", False: "false"}[value])
    elif kind is int:
        if value.bit_length() > 14_000:  # Python's own bound on digits is 4,300
            raise TooLarge("an integer of more than 4,200 digits")
        parts.append(int.__repr__(value))
    elif kind is float:
        text = float.__repr__(value)
        names = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
        parts.append(names.get(text, text))
    elif kind is str:
        if str.__len__(value) > limit:
            raise TooLarge(f"a string of more than {limit} characters")
        parts.append(_quote(str.__str__(value)))
    else:
        if kind is complex:
            items = (value.real, value.imag)
        elif kind is dict:
            items = (item for pair in dict.items(value) for item in pair)
        else:
            items = kind.__iter__(value)
        parts.append(f'["{kind.__name__}"')
        for item in items:
            parts.append(",")
            _encode(item, parts, limit, depth + 1)
        parts.append("]")


def _kind(value: Any) -> type:
    kinds = (int, float, str, list, tuple, dict, set, frozenset, bytes, complex)
    for kind in kinds:
        if isinstance(value, kind):
            return kind
    if value is None:
        return type(None)
    raise TypeError(f"{type(value).__name__} is not plain data")


try:  # without the package json, whose import takes as long as all the rest
    from _json import encode_basestring_ascii as _quote
except ImportError:
    from json.encoder import encode_basestring_ascii as _quote
