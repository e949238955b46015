"""Data in the forms of the hub: files, directories, splits, and what is refused."""

import gzip
import json

import huggingface_hub
import pytest
from published_data import GSM8K, MATH, MBPP, write_lines

from dlm_jax import tasks
from dlm_jax.errors import InputError
from dlm_jax.tasks.rows import read_rows

SPLITS = ("test", "train")


def questions(source, split="test", subset=""):
    return [
        row.text("question") for row in read_rows(str(source), split, SPLITS, subset)[0]
    ]


ASKED = [row["question"] for row in GSM8K]


@pytest.mark.parametrize("name", ["x.jsonl", "x.ndjson", "x.json", "x.jsonl.gz"])
def test_lines_are_read_under_any_name(tmp_path, name):
    path = write_lines(tmp_path / name, GSM8K)
    content = b"\xef\xbb\xbf" + path.read_bytes() + b"\n"
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert questions(path) == ASKED


def test_json_is_an_array_an_object_of_rows_or_one_row(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(GSM8K))
    assert questions(path) == ASKED
    path.write_text(json.dumps({str(i): row for i, row in enumerate(GSM8K)}))
    assert questions(path) == ASKED
    path.write_text(json.dumps(GSM8K[3]))
    assert questions(path) == ASKED[3:4]


def test_parquet_is_read_as_on_the_hub(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "full" / "test-00000-of-00001.parquet"
    path.parent.mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(MBPP), path)
    found = tasks.get("mbpp").with_data(str(tmp_path)).problems("test")
    lines = write_lines(tmp_path / "lines" / "mbpp.jsonl", MBPP)
    same = tasks.get("mbpp").with_data(str(lines))
    assert found == same.problems("test")
    own = tasks.get("mbpp").with_data(str(path)).identity("test")
    assert own == same.identity("test") and set(own) == {"data"}


def test_without_pyarrow_parquet_is_refused_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "test.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"pip install 'dlm_jax\[hub\]'"):
        questions(tmp_path)


def test_a_directory_is_read_by_split_and_subset(tmp_path):
    for subset, rows in (("main", GSM8K), ("socratic", GSM8K[:1])):
        for split, own in (("test", rows[:3]), ("train", rows[3:])):
            path = tmp_path / subset / f"{split}-00000-of-00001.jsonl"
            write_lines(path, own)
    # What the hub and its library leave beside the data.
    (tmp_path / "dataset_infos.json").write_text("{}")
    write_lines(tmp_path / ".cache" / "test.jsonl", GSM8K[:1])
    assert questions(tmp_path, "test", "main") == ASKED[:3]
    assert questions(tmp_path, "train", "main") == ASKED[3:]
    assert questions(tmp_path / "main") == ASKED[:3]
    # A folder that is not there chooses nothing.
    assert questions(tmp_path / "main", "test", "full") == ASKED[:3]


def test_files_of_one_problem_each_are_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 2, 1):
        path = tmp_path / "test" / "algebra" / f"{number}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(MATH[0] | {"problem": f"p{number}"}))
    found = tasks.get("math").with_data(str(tmp_path)).problems("test")
    assert [problem.problem for problem in found] == ["p1", "p2", "p10"]
    with pytest.raises(InputError, match="no file of the split train, only of test"):
        tasks.get("math").with_data(str(tmp_path)).problems("train")


def test_mbpp_of_one_file_is_split_by_task_id(tmp_path):
    rows = [MBPP[0] | {"task_id": number} for number in (1, 10, 11, 510, 511, 601, 974)]
    mbpp = tasks.get("mbpp").with_data(str(write_lines(tmp_path / "mbpp.jsonl", rows)))
    names = {s: [p.name for p in mbpp.problems(s)] for s in mbpp.splits}
    assert names == {
        "test": ["11", "510"],
        "validation": ["511"],
        "train": ["601", "974"],
        "prompt": ["1", "10"],
    }


def test_the_sanitized_form_is_read(tmp_path):
    row = {
        "source_file": "x",
        "task_id": 11,
        "prompt": "Write a function.",
        "code": "def root(x):\n    return math.sqrt(x)",
        "test_imports": ["import math"],
        "test_list": ["assert math.isclose(root(4), 2)"],
    }
    mbpp = tasks.get("mbpp").with_data(str(write_lines(tmp_path / "x.jsonl", [row])))
    [example] = mbpp.examples("test", 1)
    assert example.truth.text == "Write a function."
    answer = "import math\ndef root(x):\n    return math.sqrt(x)"
    assert mbpp.verdict(example, answer).is_correct
    assert not mbpp.verdict(example, f"{answer} + 1").is_correct


def test_the_hub_is_asked_only_where_it_is_named(tmp_path, monkeypatch):
    asked = []

    def download(name, **options):
        asked.append((name, options["repo_type"], options["revision"]))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    write_lines(tmp_path / "main" / "test.jsonl", GSM8K)
    assert questions("hub:openai/gsm8k@abc") == ASKED
    assert questions("hub:openai/gsm8k") == ASKED
    assert asked == [
        ("openai/gsm8k", "dataset", "abc"),
        ("openai/gsm8k", "dataset", None),
    ]

    def refuse(name, **options):
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(InputError, match=r"\(hub:x/y\) cannot be downloaded: no route"):
        questions("hub:x/y")


@pytest.mark.parametrize(
    ("task", "content", "message"),
    [
        ("gsm8k", '{"question": "a"}', r"line 1: must have the field answer; it has q"),
        ("gsm8k", "[1]", r"line 1: must be an object, not \[1\]"),
        ("gsm8k", "{", r"line 1: must be JSON"),
        (
            "gsm8k",
            '{"question": 1, "answer": "#### 1"}',
            r"question \(1\) must be a t",
        ),
        ("gsm8k", '{"question": "a", "answer": "one"}', r"answer must end in #### and"),
        ("gsm8k", '{"question": " ", "answer": "#### 1"}', r"question \(' '\) must be"),
        (
            "math",
            '{"problem": "a", "solution": "b"}',
            r"solution must have its answer",
        ),
        ("math", '{"problem": "a"}', r"must have the field solution"),
        ("mbpp", '{"task_id": "x"}', r"task_id \('x'\) must be an integer"),
        (
            "mbpp",
            '{"task_id": 11, "text": "a", "code": "def f(", "test_list": ["f()"]}',
            "code must be Python",
        ),
        (
            "mbpp",
            '{"task_id": 11, "text": "a", "code": "f = 1", "test_list": "f"}',
            r"test_list \('f'\) must be a list of texts",
        ),
        (
            "mbpp",
            '{"task_id": 11, "text": "a", "code": "f = 1", "test_list": []}',
            "test_list must not be empty",
        ),
        ("humaneval", '{"prompt": "a"}', "must have the field entry_point"),
    ],
)
def test_a_bad_row_is_refused_with_file_and_line(tmp_path, task, content, message):
    path = tmp_path / "data.jsonl"
    path.write_text("\n" + content)
    message = message.replace("line 1", "line 2")
    with pytest.raises(InputError, match=message) as error:
        tasks.get(task).with_data(str(path)).examples("test", 1)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_source_without_rows_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        questions(tmp_path / "none")
    with pytest.raises(InputError, match=r"holds no file that ends in \.jsonl"):
        questions(tmp_path)
    (tmp_path / "x.csv").write_text("a")
    with pytest.raises(InputError, match=r"must end in \.jsonl"):
        questions(tmp_path / "x.csv")
    (tmp_path / "x.jsonl").write_text("\n")
    with pytest.raises(InputError, match="has no rows"):
        questions(tmp_path / "x.jsonl")
    (tmp_path / "x.jsonl").write_bytes(b"\xff\xfe{}")
    with pytest.raises(InputError, match=r"x\.jsonl cannot be read"):
        questions(tmp_path / "x.jsonl")


@pytest.mark.parametrize("name", ["gsm8k", "math", "mbpp"])
def test_without_data_a_task_says_in_one_line_what_it_takes(name):
    with pytest.raises(InputError) as error:
        tasks.get(name).examples("test", 1)
    text = str(error.value)
    assert text.startswith(f"task ({name}) needs data (--data=PATH")
    assert tasks.get(name).form in text and "\n" not in text


def test_tasks_of_their_own_data_take_no_other():
    with pytest.raises(InputError, match="must not be given for sudoku"):
        tasks.get("sudoku").with_data("x")
    with pytest.raises(InputError, match="must not be given for sudoku"):
        tasks.get("sudoku").with_style("harness")
    with pytest.raises(InputError, match=r"\(x\) must be one of opencompass, zero"):
        tasks.get("gsm8k").with_style("x")


def test_a_digest_is_of_what_prompts_may_hold(tmp_path):
    write_lines(tmp_path / "test.jsonl", GSM8K)
    write_lines(tmp_path / "train.jsonl", GSM8K[:6])
    task = tasks.get("gsm8k").with_data(str(tmp_path))
    one = task.identity("test")
    few = task.with_style("harness").identity("test")
    assert set(one) == {"data"} and few["prompt_style"] == "harness"
    # Other examples to be shown are other data, of the style that shows them.
    write_lines(tmp_path / "train.jsonl", GSM8K[1:7])
    again = tasks.get("gsm8k").with_data(str(tmp_path))
    assert again.identity("test") == one
    assert again.with_style("harness").identity("test")["data"] != few["data"]
    write_lines(tmp_path / "test.jsonl", GSM8K[:7])
    assert tasks.get("gsm8k").with_data(str(tmp_path)).identity("test") != one
