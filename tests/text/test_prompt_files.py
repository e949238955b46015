"""Files of prompts: what they hold, in which form, and where they are wrong."""

import io
import json
import types

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dlm_jax.errors import InputError
from dlm_jax.text.prompt_files import read_prompts

TURNS = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
MARK = b"\xef\xbb\xbf"


def written(tmp_path, name, content: bytes):
    path = tmp_path / name
    path.write_bytes(content)
    return path


@pytest.fixture
def piped(monkeypatch):
    """Reads prompts from stdin that holds something."""

    def read(content: bytes):
        stdin = types.SimpleNamespace(buffer=io.BytesIO(content))
        monkeypatch.setattr("sys.stdin", stdin)
        return read_prompts("-")

    return read


def test_a_text_has_a_prompt_a_line(tmp_path):
    path = written(tmp_path, "a.txt", " one\r\n\n  \ntwo \u2028é".encode())
    read = read_prompts(path)
    assert read.prompts == (" one", "two \u2028é")
    assert (read.lines, read.form) == ((1, 4), "text")


@pytest.mark.parametrize(
    "name",
    ["a.jsonl", "a.JSONL", "a.ndjson", "a.NdJson", "a.json", "a.JSON", "a", "a.bak"],
)
def test_objects_stand_one_a_line(tmp_path, name):
    path = written(
        tmp_path, name, b'{"prompt": "two\\nlines"}\n\n{"prompt": "x", "i": 3}'
    )
    read = read_prompts(path)
    assert read.prompts == ("two\nlines", "x")
    assert (read.lines, read.form) == ((1, 3), "JSON Lines")


def test_a_name_in_txt_is_text_whatever_it_holds(tmp_path):
    path = written(tmp_path, "a.TXT", b'{"prompt": "x"}\n')
    read = read_prompts(path)
    assert (read.prompts, read.form) == (('{"prompt": "x"}',), "text")


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a"])
def test_objects_stand_in_an_array(tmp_path, name):
    value = [{"prompt": "x"}, {"messages": TURNS}]
    path = written(tmp_path, name, MARK + json.dumps(value, indent=1).encode())
    read = read_prompts(path)
    assert read.prompts == ("x", TURNS)
    assert (read.lines, read.form) == ((1, 2), "a JSON array")


@pytest.mark.parametrize("field", ["prompt", "messages"])
def test_a_conversation_keeps_its_roles(tmp_path, field):
    path = written(tmp_path, "a.jsonl", json.dumps({field: TURNS}).encode())
    assert read_prompts(path).prompts == (TURNS,)


@pytest.mark.parametrize(
    ("content", "form", "prompts"),
    [
        (b"why?\n", "text", ("why?",)),
        (b'\n  \n{"prompt": "x"}\n', "JSON Lines", ("x",)),
        (b'[{"prompt": "x"}]', "a JSON array", ("x",)),
        # Prompts that only look like JSON.
        (b"{x} is a set\n", "text", ("{x} is a set",)),
        (b"[1, 2] is a list\n", "text", ("[1, 2] is a list",)),
        (b"[1, 2]\n", "text", ("[1, 2]",)),
        (b"3\n", "text", ("3",)),
    ],
)
def test_the_first_line_of_stdin_decides(piped, content, form, prompts):
    for mark in (b"", MARK):
        read = piped(mark + content)
        assert (read.form, read.prompts) == (form, prompts)


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be"]
)
def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path, encoding):
    mark = "\ufeff" if encoding[-3:] in ("-le", "-be") else ""
    path = written(tmp_path, "a.txt", f"{mark}é\nb\n".encode(encoding))
    assert read_prompts(path).prompts == ("é", "b")


def test_marks_inside_of_joined_files_are_skipped(tmp_path):
    path = written(tmp_path, "a.jsonl", 2 * (MARK + b'{"prompt": "x"}\n'))
    assert read_prompts(path).prompts == ("x", "x")


@pytest.mark.parametrize("name", ["a.json", "a"])
def test_one_object_may_take_several_lines(tmp_path, name):
    path = written(
        tmp_path, name, b"\n" + json.dumps({"messages": TURNS}, indent=1).encode()
    )
    read = read_prompts(path)
    assert (read.prompts, read.lines, read.form) == ((TURNS,), (2,), "a JSON object")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_line_may_end_in_a_carriage_return(tmp_path, name):
    lines = ["one", "two"]
    if name != "a.txt":
        lines = [json.dumps({"prompt": line}) for line in lines]
    path = written(tmp_path, name, "\r".join([*lines, ""]).encode())
    assert read_prompts(path).prompts == ("one", "two")
    # Where lines end otherwise, it is a character like others.
    path = written(tmp_path, "b.txt", b"a\rb\nc")
    assert read_prompts(path).prompts == ("a\rb", "c")


@pytest.mark.parametrize(
    ("name", "content", "places"),
    [
        ("a.txt", b"\none\n\ntwo", ["line 2", "line 4"]),
        ("a.jsonl", b'{"prompt": "x"}\n\n{"prompt": "y"}', ["line 1", "line 3"]),
        ("a.json", b'[{"prompt": "x"}, {"prompt": "y"}]', ["element 1", "element 2"]),
    ],
)
def test_a_prompt_knows_where_it_was_read(tmp_path, name, content, places):
    path = written(tmp_path, name, content)
    expected = [f"prompts_file ({path}), {place}" for place in places]
    assert read_prompts(path).places == expected


def test_a_closed_stdin_is_told(monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(
        InputError, match=r"^prompts_file \(stdin\) cannot be read: it is"
    ):
        read_prompts("-")


@pytest.mark.parametrize("order", ["LE", "BE"])
def test_an_encoding_without_its_mark_is_named(tmp_path, order):
    path = written(tmp_path, "a.txt", "one\ntwo".encode(f"utf-16-{order}"))
    with pytest.raises(
        InputError, match=f"as UTF-16-{order} without a byte order mark"
    ):
        read_prompts(path)


DEEP = b'{"prompt": "x"}\n{"prompt": ' + b"[" * 100_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b" \n\n", r"a.txt\) holds no prompt"),
        ("a.txt", MARK, "holds no prompt"),
        ("a.json", b"[]", "holds no prompt"),
        ("a.txt", b"\xff\xff", "line 1 cannot be read"),
        ("a.txt", b"a\n\nb \xe9", "line 3 cannot be read: 'utf-8' codec can't decode"),
        ("a.json", b'{\n"prompt": 3}', "line 1: must be a JSON object"),
        ("a.txt", b"\xff\xfea", "cannot be read"),
        ("a.txt", None, "cannot be read"),
        ("a.jsonl", b'{"prompt": "x"}\n\n{"text": "x"}', "line 3: must be a JSON obj"),
        ("a", b'{"prompt": "x"}\nhello', "line 2: must be a JSON object"),
        ("a", b'{"prompt": "x', "line 1: must be a JSON object"),
        ("a.jsonl", b'{"prompt": 3}', "line 1: must be a JSON object"),
        ("a.jsonl", b'{"prompt": []}', "line 1: must be a JSON object"),
        ("a.jsonl", b'{"prompt": null}', "line 1: must be a JSON object"),
        ("a.NDJSON", b"[1]", "line 1: must be a JSON object"),
        ("a.jsonl", b"hello", "line 1: must be a JSON object"),
        ("a.jsonl", b"9" * 5000, "line 1: must be a JSON object"),
        ("a.jsonl", DEEP, "line 2: must be a JSON object"),
        ("a.jsonl", b'{"prompt": "x", "messages": [{}]}', "line 1: .*, not both"),
        ("a.jsonl", b'{"messages": "x"}', "line 1: must be a JSON object"),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}', "line 1: messages must be"),
        ("a.jsonl", b'{"messages": ["x"]}', "line 1: messages must be a list of obj"),
        ("a.jsonl", b'{"prompt": "\\ud800"}', "line 1: prompt is no text"),
        ("a.json", b'[{"prompt": "x"}, {}]', "element 2: must be a JSON object"),
    ],
)
def test_bad_files_are_refused_with_the_line(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_prompts(path)
    assert "\n" not in str(caught.value)


def test_errors_name_stdin(piped):
    with pytest.raises(InputError, match=r"^prompts_file \(stdin\), line 2: must be"):
        piped(b'{"prompt": "x"}\n{}')


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@example(b"[" * 100_000)
@example(b'{"prompt": "x"}')
def test_any_bytes_are_prompts_or_one_line(tmp_path_factory, content):
    directory = tmp_path_factory.getbasetemp()
    for name in ("fuzz.txt", "fuzz.jsonl", "fuzz.json", "fuzz"):
        path = written(directory, name, content)
        try:
            read = read_prompts(path)
        except InputError as error:
            assert str(error).startswith("prompts_file (")
        else:
            assert len(read.prompts) == len(read.lines) > 0
