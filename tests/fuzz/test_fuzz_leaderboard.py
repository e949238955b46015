"""leaderboard.csv: entries that make a page, or one line."""

import csv
import io
from pathlib import Path

import pytest
from damage import WRONG_FILES, bytes_of, inputs, read
from hypothesis import example, given
from hypothesis import strategies as st

from dlm_jax.errors import InputError
from experiments.studies.leaderboard import board

REAL = Path(board.__file__).with_name("leaderboard.csv").read_text()
ROWS = list(csv.reader(io.StringIO(REAL)))[:4]
COLUMNS = ",".join(ROWS[0])
FIELDS = st.one_of(
    st.sampled_from(
        [
            "",
            "nan",
            "inf",
            "-1",
            "0",
            "1e400",
            "1_0",
            "9" * 5000,
            "1" * 30,
            "\uff11\uff12",
        ]
    ),
    st.sampled_from(["a" * 200_000, "\0", '"', "\n", "=1+1", "maze", "os:system"]),
    st.text(max_size=8).filter(lambda x: ":" not in x),
)


@st.composite
def tables(draw):
    rows = [list(row) for row in ROWS]
    for _ in range(draw(st.integers(1, 3))):
        row = draw(st.sampled_from(rows))
        match draw(
            st.sampled_from(["replace", "replace", "delete", "insert", "twice"])
        ):
            case "replace" if row:
                row[draw(st.integers(0, len(row) - 1))] = draw(FIELDS)
            case "delete" if row:
                del row[draw(st.integers(0, len(row) - 1))]
            case "insert":
                row.insert(draw(st.integers(0, len(row))), draw(FIELDS))
            case "twice":
                rows.append(list(row))
    file = io.StringIO()
    quoted = draw(st.booleans())
    if quoted:
        csv.writer(file).writerows(rows)
    else:
        file.write("\n".join(",".join(row) for row in rows))
    return file.getvalue().encode("utf-8", "surrogatepass")


LINE = "maze,margin,{correct},{nfe},{num_tokens},0,0f,{num},test,0,0,{temperature}\n"


def _line(**values):
    values = {
        "correct": 1,
        "nfe": 2.0,
        "num_tokens": 4,
        "num": 3,
        "temperature": 0,
    } | values
    return (COLUMNS + "\n" + LINE.format(**values)).encode()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("board") / "leaderboard.csv"


@inputs(40)
@given(
    content=st.one_of(tables(), bytes_of(REAL.encode()), st.sampled_from(WRONG_FILES))
)
@example(content=_line())
@example(content=(COLUMNS + "\n" + "a" * 200_000).encode())
@example(content=COLUMNS.encode() + b"\n\xff")
@example(content=COLUMNS.encode() + b"\n\0")
def test_board(path, content):
    path.write_bytes(content)
    entries = read(board.read, path)
    assert path.read_bytes() == content
    if not isinstance(entries, Exception):
        read(board.page, entries, "command")


@pytest.mark.parametrize(
    "values",
    [
        {"num": 0, "correct": 0},
        {"num": -3},
        {"correct": 4},
        {"correct": -1},
        {"num": 10**12},
        {"nfe": "nan"},
        {"nfe": "inf"},
        {"num_tokens": "-1"},
        {"num_tokens": "1.5"},
        {"temperature": "nan"},
        {"temperature": "-1"},
        {"temperature": "0,0"},
    ],
    ids=str,
)
def test_numbers_that_are_none(path, values):
    path.write_bytes(_line(**values))
    assert isinstance(read(board.read, path), InputError)


def test_many_lines(path):
    # Looking for a sampler that is there twice once took the square of their number.
    rows = "".join(f"maze,s{i},1,2,9,0,0f,3,test,0,0,0\n" for i in range(20_000))
    path.write_text(f"{COLUMNS}\n{rows}")
    assert len(read(board.read, path)) == 20_000
