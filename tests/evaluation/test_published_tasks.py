"""All published tasks through `evaluate`, on a small checkpoint that chats."""

import json

import numpy as np
import pytest
from chat_checkpoint import make_chat_checkpoint
from published_data import GSM8K, ROWS, write_all, write_lines

from dlm_jax import checkpoints, tasks
from dlm_jax.errors import InputError
from dlm_jax.evaluation import run as evaluation
from dlm_jax.evaluation import tables
from dlm_jax.evaluation.records import conditions, read_records
from dlm_jax.tasks.sudoku.task import HARD_PUZZLES
from dlm_jax.text.codec import Codec


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return make_chat_checkpoint(tmp_path_factory.mktemp("chat"), 8192)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("data"))


def arguments(chat, data, workdir, task, style):
    return [
        f"--checkpoint={chat}",
        f"--task={task}",
        f"--prompt_style={style}",
        f"--data={data / task}",
        f"--workdir={workdir}",
        "--num_examples=2",
        "--sampler=threshold",
        "--gen_length=8",
        "--block_length=8",
        "--batch_size=2",
        "--queue_length=2",
        "--defer_stops",
        "--suppress_eos",
    ]


@pytest.mark.parametrize(
    ("task", "style"),
    [
        ("gsm8k", "zero_shot"),
        ("math", "opencompass"),
        ("mbpp", "opencompass_begin"),
        ("humaneval", "opencompass"),
    ],
)
def test_a_published_task_runs(chat, data, tmp_path, run_script, task, style):
    asked = arguments(chat, data, tmp_path, task, style)
    status, out, error = run_script("evaluate", *asked)
    assert (status, error) == (0, "")
    records = read_records(tmp_path)
    assert sorted(record["index"] for record in records) == [0, 1]
    assert all(record["reason"] for record in records if not record["is_correct"])
    identity = json.loads((tmp_path / "manifest.json").read_text())["identity"]
    assert identity["task"] == task and len(identity["data"]) == 64
    assert identity["defer_stops"] and identity["suppress_eos"]
    assert "guidance" not in identity and "batch_size" not in identity
    [result] = evaluation.summaries(records, conditions(tmp_path))
    table, line = out.rstrip("\n").split("\n\n")
    assert line == f"TPS: {result.conditions[0]}, cache none."
    assert "batch 2, dtype float32" in line
    cells = [cell.strip() for cell in table.splitlines()[2].strip("|").split("|")]
    tokens = sum(record["num_tokens"] for record in records)
    assert cells[7] == f"{tokens / sum(record['nfe'] for record in records):.2f}"


def test_a_directory_is_of_one_data_style_and_setting(chat, data, tmp_path, run_script):
    workdir = tmp_path / "runs"
    asked = arguments(chat, data, workdir, "gsm8k", "zero_shot")
    assert run_script("evaluate", *asked)[0] == 0
    before = (workdir / "records.jsonl").read_bytes()
    # The same problems in another form are the same.
    lines = write_lines(tmp_path / "again.jsonl", GSM8K)
    status, _, error = run_script("evaluate", *asked, f"--data={lines}")
    assert (status, error) == (0, "")
    other = write_lines(tmp_path / "other.jsonl", GSM8K[1:])
    for flag, message in (
        (f"--data={other}", "data ("),
        ("--prompt_style=harness", "prompt_style (harness) must be zero_shot"),
        ("--nodefer_stops", "defer_stops (None) must be True"),
        ("--nosuppress_eos", "suppress_eos (None) must be True"),
        ("--guidance=1", "guidance (1.0) must be None"),
        ("--noearly_stop", "early_stop (False) must be None"),
        ("--precision=default", "precision (default) must be None"),
    ):
        status, out, error = run_script("evaluate", *asked, flag)
        assert (status, out) == (1, "")
        assert message in error and error.count("\n") == 1
    assert (workdir / "records.jsonl").read_bytes() == before

    # Another batch size changes no result, but no speed is of both.
    more = "--num_examples=3", "--batch_size=1", "--queue_length=1"
    status, out, error = run_script("evaluate", *asked, *more)
    assert (status, error) == (0, "")
    runs = conditions(workdir)
    assert len(runs) == 2 and "batch 2," in runs[0] and "batch 1," in runs[1]
    [result] = evaluation.summaries(read_records(workdir), runs)
    assert result.conditions == tuple(runs) and result.tokens_per_second is None
    table, line = out.rstrip("\n").split("\n\n")
    assert line == f"No TPS for `threshold`: its runs differ: {'; '.join(runs)}."
    cells = [cell.strip() for cell in table.splitlines()[2].strip("|").split("|")]
    assert cells[8] == "-" and float(cells[7]) > 0


@pytest.mark.parametrize(
    ("script", "seeds"), [("evaluate", ["--seeds=3"]), ("sweep", [])]
)
def test_by_default_all_examples_of_a_short_split_are_asked(
    chat, data, tmp_path, run_script, script, seeds
):
    asked = arguments(chat, data, tmp_path, "gsm8k", "zero_shot")
    asked.remove("--num_examples=2")
    status, _, error = run_script(script, *asked, *seeds)
    assert (status, error) == (0, "")
    assert len(read_records(tmp_path)) == len(GSM8K)
    [made] = json.loads((tmp_path / "manifest.json").read_text())["runs"]
    assert made["num_examples"] == len(GSM8K)


@pytest.mark.parametrize(
    ("task", "split", "size"),
    [
        ("humaneval", "test", 164),
        ("sudoku", "test", 1000),
        ("sudoku", "hard", len(HARD_PUZZLES)),
        ("countdown", "valid", 1000),
        # Programs are drawn and run under checks of every call: minutes.
        pytest.param("program", "unseen", 500, marks=pytest.mark.slow),
    ],
)
def test_a_task_knows_how_many_examples_a_split_has(task, split, size):
    chosen = tasks.get(task)
    assert chosen.size(split) == size
    assert len(chosen.examples(split, size)) == size
    with pytest.raises(
        InputError, match=rf"^num_examples \({size + 1}\) must be at most"
    ):
        chosen.examples(split, size + 1)
    with pytest.raises(InputError, match=r"^split \(exam\) must be one of"):
        chosen.size("exam")


@pytest.mark.parametrize(("task", "split"), [("sudoku", "valid"), ("maze", "test")])
def test_splits_that_are_drawn_have_no_end(task, split):
    assert tasks.get(task).size(split) is None


@pytest.mark.parametrize("name", ROWS)
def test_what_is_wrong_is_told_before_weights_are_read(
    chat, data, tmp_path, run_script, monkeypatch, name
):
    monkeypatch.setattr("dlm_jax.checkpoints.load", None)
    base = [f"--checkpoint={chat}", f"--task={name}", f"--workdir={tmp_path}"]
    for flag, message in (
        ("--prompt_style=x", "prompt_style (x) must be one of"),
        (f"--data={tmp_path / 'none'}", "does not exist"),
        (
            f"--data={data / name} --num_examples={len(ROWS[name]) + 1}",
            f"num_examples ({len(ROWS[name]) + 1}) must be at most {len(ROWS[name])}",
        ),
    ):
        status, out, error = run_script("evaluate", *base, *flag.split())
        assert (status, out) == (1, "")
        assert message in error and error.count("\n") == 1
    if name in ("gsm8k", "mbpp"):
        asked = (f"--data={data / name}", "--num_examples=1", "--nochat")
        status, _, error = run_script("evaluate", *base, *asked)
        assert status == 1 and "chat (False) must not be set for prompt_style" in error
    if name != "humaneval":
        status, _, error = run_script("evaluate", *base, "--num_examples=1")
        assert status == 1 and f"task ({name}) needs data (--data=PATH" in error
    assert list(tmp_path.iterdir()) == []


def record(index, nfe, num_tokens, seconds, run=0, **other):
    return {
        "sampler": "threshold(threshold=0.9)",
        "seed": 0,
        "index": index,
        "is_correct": True,
        "nfe": nfe,
        "num_tokens": num_tokens,
        "is_complete": True,
        "seconds": seconds,
        "compile_seconds": 100.0,
        "run": run,
        **other,
    }


@pytest.mark.parametrize("style", ["zero_shot", "harness"])
def test_texts_go_into_the_template_as_asked(chat, data, style):
    codec = Codec.load(chat, checkpoints.read_config(chat))
    task = tasks.get("gsm8k").with_style(style).with_data(str(data / "gsm8k"))
    examples = task.examples("test", 2)
    texts = [example.prompt for example in examples]
    in_chat = codec.encode_prompts(texts, task.gen_length, is_chat=True)
    as_text = codec.encode_prompts(texts, task.gen_length, is_chat=False)
    for chosen, expected in (
        (task, as_text if style == "harness" else in_chat),
        (task.with_chat(True), in_chat),
        (task.with_chat(False), as_text),
    ):
        for row, wanted in zip(chosen.encode(codec, examples), expected, strict=True):
            np.testing.assert_array_equal(row.tokens, wanted.tokens)
    assert len(in_chat[0].tokens) != len(as_text[0].tokens)
    assert "chat" not in task.identity("test")
    assert task.with_chat(False).identity("test")["chat"] is False


def test_without_the_template_a_request_becomes_text(chat):
    """As for a checkpoint that has none."""
    codec = Codec.load(chat, checkpoints.read_config(chat))
    task = tasks.get("humaneval")
    examples = task.examples("test", 1)
    (row,) = task.with_chat(False).encode(codec, examples)
    (plain,) = codec.encode([examples[0].truth.prompt], task.gen_length)
    np.testing.assert_array_equal(row.tokens, plain.tokens)
    (row,) = task.encode(codec, examples)
    assert row.tokens.size > plain.tokens.size


def test_a_reply_is_not_cut_where_a_continuation_would_end():
    task = tasks.get("humaneval").with_style("harness")
    (example,) = task.examples("test", 1)
    problem = example.truth
    reply = f"Sure:\n```python\n{problem.prompt}{problem.canonical_solution}```\n"
    assert task.with_chat(True).verdict(example, reply).is_correct
    continued = f"{problem.canonical_solution}\ndef next():\n    ret"
    assert task.verdict(example, continued).is_correct
    # As lm-evaluation-harness cuts it: in front of the function.
    assert not task.verdict(example, reply).is_correct


def test_the_template_is_a_flag_that_the_manifest_has(chat, data, tmp_path, run_script):
    asked = arguments(chat, data, tmp_path, "math", "opencompass")
    status, _, error = run_script("evaluate", *asked, "--nochat")
    assert (status, error) == (0, "")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["identity"]["chat"] is False
    status, _, error = run_script("evaluate", *asked)
    assert status == 1 and "chat (None) must be False" in error
    status, _, error = run_script("evaluate", "--task=sudoku", "--chat")
    message = "chat (True) must not be set for sudoku, whose blanks are inside the text"
    assert status == 1 and message in error and error.count("\n") == 1


def test_speeds_are_ratios_of_sums():
    rows = [record(0, 10, 10, 1.0), record(1, 1, 10, 0.25), record(2, 9, 0, 0.75)]
    # What is not complete has no valid token, but its forwards count.
    rows.append(record(3, 5, 7, 1.0, is_complete=False))
    [result] = evaluation.summaries(rows, ["1 x cpu, batch 2, dtype float32"])
    assert result.tokens_per_forward == pytest.approx(20 / 25)
    assert result.tokens_per_second == pytest.approx(20 / 3.0)
    assert tables.conditions([result]) == (
        "TPS: 1 x cpu, batch 2, dtype float32, cache none."
    )


def test_conditions_are_told_of_each_sampler_that_has_others():
    runs = ["1 x cpu, batch 2, dtype float32", "1 x gpu, batch 2, dtype float32"]
    rows = [record(0, 1, 1, 1.0), record(0, 1, 1, 1.0, 1, sampler="random")]
    rows.append(record(0, 1, 1, 1.0, sampler="margin"))
    rows.append(record(1, 1, 1, 1.0, 1, sampler="margin"))
    # A row without a forward took no time on any device.
    rows.append(record(1, 0, 0, 0.0, 1))
    results = evaluation.summaries(rows, runs)
    assert tables.conditions(results).splitlines() == [
        f"TPS of `threshold`: {runs[0]}, cache none.",
        f"TPS of `random`: {runs[1]}, cache none.",
        f"No TPS for `margin`: its runs differ: {runs[0]}; {runs[1]}.",
    ]
    assert tables.conditions(evaluation.summaries(rows)) == ""
