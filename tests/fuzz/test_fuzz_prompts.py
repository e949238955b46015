"""Prompt files: prompts that can be encoded, or one line."""

import json

import pytest
from damage import POINTER, WRONG_FILES, bytes_of, inputs, read, texts_of
from hypothesis import example, given
from hypothesis import strategies as st

from dlm_jax.errors import InputError
from dlm_jax.text.prompt_files import read_prompts

TURN = {"role": "user", "content": "How many?"}
OBJECTS = [
    {"prompt": "How many primes are below 50?"},
    {"messages": [TURN, {"role": "assistant", "content": "15"}, TURN]},
    {"prompt": [TURN], "id": 7, "messages": None},
]
SUFFIXES = st.sampled_from([".json", ".jsonl", ".ndjson", ".txt", "", ".JSONL"])


def _encoded(text, encoding):
    return text.encode(encoding, "surrogatepass")


LINES = st.lists(
    st.one_of([texts_of(x) for x in OBJECTS] + [st.text(max_size=20)]), max_size=3
).map("\n".join)
TEXTS = st.one_of(LINES, texts_of(OBJECTS), st.text(max_size=60))
ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"])
CONTENTS = st.one_of(
    st.builds(_encoded, TEXTS, ENCODINGS),
    bytes_of("\n".join(map(json.dumps, OBJECTS)).encode()),
    bytes_of(json.dumps(OBJECTS, indent=1).encode("utf-16")),
    st.binary(max_size=80),
    st.sampled_from(WRONG_FILES),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("prompts")


def _check(path, content):
    path.write_bytes(content)
    found = read(read_prompts, path)
    assert path.read_bytes() == content
    if isinstance(found, InputError):
        assert str(path) in str(found)
        return
    assert len(found.prompts) == len(found.lines) > 0
    assert list(found.lines) == sorted(set(found.lines))
    for prompt in found.prompts:
        if isinstance(prompt, str):
            prompt.encode()
        else:
            assert prompt
            for message in prompt:
                (message["role"] + message["content"]).encode()


@inputs(40)
@given(content=CONTENTS, suffix=SUFFIXES)
@example(content=b"[" * 100_000, suffix=".json")
@example(content=b'{"prompt": ' * 100_000, suffix="")
@example(content=b'{"prompt": "\\ud800"}', suffix=".jsonl")
@example(content=b'{"prompt": ' + b"9" * 5000 + b"}", suffix=".jsonl")
@example(content=b"[" * 950 + b"]" * 950, suffix=".jsonl")
@example(content=POINTER, suffix=".jsonl")
def test_prompts(folder, content, suffix):
    _check(folder / f"file{suffix}", content)


def test_path_that_none_can_be():
    assert isinstance(read(read_prompts, "a\0b"), InputError)
