"""Foreign input: valid files that were damaged, and bytes of any kind.

`read` runs what reads one, and holds it to what all of them promise.
"""

import copy
import json
import os
import resource

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from dlm_jax.errors import InputError
from experiments import _signals

# Inputs of each test; the default suite has no time for as many.
NUMBER = os.environ.get("DLM_JAX_FUZZ")
# Seconds for one input, on a machine that is busy.
DEADLINE = 20
# Peak memory that one input may add, in KiB as Linux counts it.
MEMORY = 2**19
# Of one line that people can read; a path comes on top.
MESSAGE = 2500


def inputs(number):
    """Runs a test with so many inputs, or with those that the environment asks for."""
    return settings(
        max_examples=int(NUMBER or number),
        suppress_health_check=list(HealthCheck),
    )


class Hung(BaseException):
    """An input that was not read in time; no `except Exception` stops it."""


def deadline(seconds=DEADLINE):
    """Ends a block that takes too long."""
    return _signals.limited(seconds, Hung(f"not read in {seconds} s"))


def read(reader, *arguments, **keywords):
    """What a reader makes of foreign input; the InputError if it refuses it.

    Any other exception, a hang, much memory or an endless message fails the test.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with deadline():
            value = reader(*arguments, **keywords)
    except (InputError, OSError) as error:
        # Scripts print these two without a traceback. Spaces are folded there.
        assert str(error).strip()
        assert len(str(error)) < MESSAGE, len(str(error))
        value = error
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    assert grown < MEMORY, f"{grown} KiB more"
    return value


# What stands for text that `json.dumps` would not write.
_RAW = {
    "\ue000long integer\ue001": "9" * 5000,
    "\ue000deep list\ue001": "[" * 20_000,
    "\ue000deep closed list\ue001": "[" * 3000 + "]" * 3000,
    "\ue000deep object\ue001": '{"a":' * 20_000,
    "\ue000half a number\ue001": "-",
    "\ue000huge exponent\ue001": "1e999999",
    "\ue000half a text\ue001": '"\\ud8',
}
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from(
        [2**31 - 1, 2**31, -(2**31), 2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63)]
    ),
    st.sampled_from([2**64, 10**12, 10**30, 10**400, -(10**400)]),
    st.floats(),
    st.sampled_from([0.5, 1e-300, 1e300]),
    st.text(max_size=8),
    st.sampled_from(
        ["", "\0", "\ud800", "../..", "/etc/passwd", "..", "a/b", "nan", "True", "\n"]
    ),
    st.sampled_from(list(_RAW)),
    st.sampled_from(["a" * 5000, "a." * 5000]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(max_size=4), inner, max_size=3),
    ),
    max_leaves=6,
)


def _places(value, path=()):
    """The paths of everything inside of a JSON value."""
    items = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, inner in items:
        yield (*path, key)
        yield from _places(inner, (*path, key))


@st.composite
def damaged(draw, whole, values=VALUES, most=3):
    """A JSON value with a few places changed; the whole one is left as it is."""
    value = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, most))):
        places = list(_places(value))
        if not places:
            return draw(values)
        *path, key = draw(st.sampled_from(places))
        parent = value
        for step in path:
            parent = parent[step]
        match draw(st.sampled_from(["replace", "replace", "delete", "add", "nest"])):
            case "replace":
                parent[key] = draw(values)
            case "delete":
                del parent[key]
            case "add" if isinstance(parent, dict):
                parent[draw(st.text(max_size=6))] = draw(values)
            case "add":
                parent.insert(key, draw(values))
            case "nest":
                inner = parent[key]
                parent[key] = {"a": inner} if draw(st.booleans()) else [inner]
    return value


@st.composite
def texts_of(draw, whole, values=VALUES):
    """JSON of a damaged value; sometimes with a key twice."""
    value = draw(damaged(whole, values))
    text = json.dumps(value, ensure_ascii=draw(st.booleans()))
    for name, raw in _RAW.items():
        text = text.replace(json.dumps(name), raw).replace(f'"{name}"', raw)
    if (
        text.startswith("{")
        and draw(st.integers(0, 7)) == 0
        and isinstance(value, dict)
    ):
        key = draw(st.sampled_from([*value, "a"]))
        text = f"{{{json.dumps(key)}: {draw(st.integers(0, 9))}, {text[1:]}"
    return text


def _encoded(text):
    return text.encode("utf-8", "surrogatepass")


@st.composite
def bytes_of(draw, whole):
    """Bytes of a file with some lost, changed, repeated or put in; or any bytes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=64))
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        match draw(st.sampled_from(["truncate", "flip", "delete", "insert", "repeat"])):
            case "truncate":
                del content[start:]
            case "flip" if start < len(content):
                content[start] ^= 1 << draw(st.integers(0, 7))
            case "delete":
                del content[start : start + draw(st.integers(1, 9))]
            case "insert":
                content[start:start] = draw(st.binary(min_size=1, max_size=9))
            case "repeat":
                size = draw(st.integers(1, 40))
                content[start:start] = content[start : start + size]
    return bytes(content)


def contents_of(whole, values=VALUES):
    """Bytes of a damaged JSON file."""
    written = json.dumps(whole).encode()
    texts = texts_of(whole, values).map(_encoded)
    return st.one_of(texts, texts, texts, bytes_of(written))


# What downloads leave instead of a file.
POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    b"size 12345\n"
)
WRONG_FILES = [b"", b"\0", POINTER, b"<!DOCTYPE html><html></html>", b"\x80\x04N."]
