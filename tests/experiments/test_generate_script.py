"""`python -m experiments.generate`: puzzles, texts, records, and bad input."""

import io
import json
import os
import pathlib
import stat
import subprocess
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest
from chat_tokenizer import CONFIG, IDS, MASK, TEMPLATE, make_tokenizer
from flax import nnx

import dlm_jax as dlm
from dlm_jax import checkpoints, samplers, zoo
from dlm_jax.evaluation import growing
from dlm_jax.evaluation.records import Log
from dlm_jax.models.llada import LLaDA
from dlm_jax.tasks import sudoku
from dlm_jax.text.codec import Codec
from experiments import _report

SUDOKU = pathlib.Path(zoo.__file__).parent / "sudoku"


@pytest.fixture(scope="module")
def sudoku_model(tmp_path_factory):
    """A checkpoint with the shipped model's vocabulary and random weights."""
    config = sudoku.Sudoku().model_config(
        d_model=8, n_heads=2, n_layers=1, mlp_hidden_size=8
    )
    directory = tmp_path_factory.mktemp("sudoku") / "model"
    model = LLaDA(config, rngs=nnx.Rngs(0))
    checkpoints.save_hf(model, directory, checkpoints.companions(SUDOKU))
    return directory


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    """A checkpoint with LLaDA's special tokens and chat template."""
    root = tmp_path_factory.mktemp("chat")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(root / "tokenizer")
    files = checkpoints.companions(root / "tokenizer")
    checkpoints.save_hf(LLaDA(CONFIG, rngs=nnx.Rngs(0)), root / "model", files)
    return root / "model"


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_puzzles_are_shown_beside_each_sampler_s_answer(
    run_script, sudoku_model, tmp_path
):
    output = tmp_path / "answers.jsonl"
    status, out, _ = run_script(
        "generate",
        f"--checkpoint={sudoku_model}",
        "--num_examples=2",
        "--sampler=threshold(threshold=0.0)",
        "--sampler=left_to_right",
        f"--output={output}",
    )
    assert status == 0
    assert max(map(len, out.splitlines())) <= 100
    records = read(output)
    assert [(r["index"], r["sampler"]) for r in records] == [
        (i, samplers.canonical_spec(spec))
        for spec in ("threshold(threshold=0.0)", "left_to_right")
        for i in (0, 1)
    ]
    task = sudoku.Sudoku()
    examples = task.examples("test", 2)
    for record in records:
        puzzle = examples[record["index"]].truth
        num_blanks = int((puzzle == 0).sum())
        assert record["prompt"] == sudoku.to_text(puzzle).replace(".", MASK)
        assert record["is_complete"]
        assert record["nfe"] == (1 if "threshold" in record["sampler"] else num_blanks)
        assert len(record["tokens"]) == num_blanks
        assert record["dtype"] == "float32"
        assert record["seconds"] > 0
    # What is printed is what is recorded: the first answer of the last sampler.
    printed = [line[48:69] for line in out.splitlines()[1:12]]
    assert printed == task.pretty(records[2]["text"]).split("\n")
    assert out.splitlines()[0].split() == [
        "test/0",
        "threshold(threshold..",
        "left_to_right",
    ]
    is_right = [
        task.verdict(examples[i], records[2 + i]["text"]).is_correct for i in (0, 1)
    ]
    heading, *rows, line = out.splitlines()[-4:]
    assert f"{sum(is_right)} of 2" in rows[-1]
    assert line == "TPS: 1 x cpu, batch 8, dtype float32, cache none."
    assert heading.split()[-6:] == [
        "NFE",
        "TPF",
        "TPS",
        "seconds",
        "compile",
        "seconds",
    ]
    for row, own in zip(rows, (records[:2], records[2:]), strict=True):
        nfe, tpf, tps, seconds, _ = map(float, row.split()[-5:])
        num_tokens = sum(len(record["tokens"]) for record in own)
        num_forwards = sum(record["nfe"] for record in own)
        assert nfe == num_forwards / 2
        # Sums over sums: puzzles differ in their blanks.
        assert tpf == pytest.approx(num_tokens / num_forwards, abs=0.005)
        exact = sum(record["seconds"] for record in own)
        assert seconds == pytest.approx(exact, abs=0.005)
        assert tps == pytest.approx(num_tokens / exact, abs=0.5)


def test_tokens_of_a_table_are_written_ones_before_the_stop():
    common = {"sampler": "random", "cache": "none", "seed": 0, "num_whole": 0}
    common |= {"compile_seconds": 0.0, "batch_size": 2, "run": 0, "seconds": 0.5}
    rows = [(3, 1, True), (5, 3, True), (9, 4, False)]
    records = [
        {"index": i, "tokens": [7] * size, "nfe": nfe, "is_complete": is_complete}
        | common
        for i, (size, nfe, is_complete) in enumerate(rows)
    ]
    heading, row, line = _report.summary({"random": records}, {}, ["1 x chip"])
    # The forwards of a row that is not complete count, its tokens do not.
    assert row.split() == ["random", "2.7", "1.00", "5", "1.50", "0.00"]
    assert line == "TPS: 1 x chip, cache none."
    # Times of two batch sizes are of none.
    records[1] = {**records[1], "batch_size": 3, "run": 1}
    conditions = ["1 x chip, batch 2", "1 x chip, batch 3"]
    heading, row, line = _report.summary({"random": records}, {}, conditions)
    assert heading.endswith("batch size")
    assert row.split() == ["random", "2.7", "1.00", "-", "1.50", "0.00", "2,", "3"]
    assert line.startswith("No TPS for `random`: its runs differ: 1 x chip, batch 2; ")


def test_answers_do_not_depend_on_the_batch(run_script, chat_model, tmp_path):
    (tmp_path / "prompts.txt").write_text("one\n\nanother prompt\nthree\n")
    common = [
        f"--checkpoint={chat_model}",
        f"--prompts_file={tmp_path / 'prompts.txt'}",
        "--gen_length=6",
        "--block_length=3",
        "--temperature=1",
        "--seed=5",
        "--sampler=entropy_bound(gamma=0.5)",
    ]
    runs = []
    for name, batch_size in (("a", 8), ("b", 2)):
        output = tmp_path / f"{name}.jsonl"
        flags = [f"--batch_size={batch_size}", f"--output={output}"]
        status, out, _ = run_script("generate", *common, *flags)
        assert status == 0
        runs.append(read(output))
        assert all(record["text"] in out for record in runs[-1])
    for records in runs:
        assert [record["prompt"] for record in records] == [
            "one",
            "another prompt",
            "three",
        ]
        assert [r["tokens"] for r in records] == [r["tokens"] for r in runs[0]]
        assert {record["seed"] for record in records} == {5}
        assert {record["num_prompts"] for record in records} == {3}


def test_a_precision_is_recorded(run_script, chat_model, tmp_path):
    known = []
    for name, flags in (("a", []), ("b", ["--precision=default"])):
        status, _, err = run_script(
            "generate",
            f"--checkpoint={chat_model}",
            "--prompt=one",
            "--gen_length=2",
            "--block_length=2",
            "--sampler=threshold",
            f"--output={tmp_path / name}",
            *flags,
        )
        assert status == 0, err
        known += [record.get("precision") for record in read(tmp_path / name)]
    # As it was before there was a choice, and the choice.
    assert known == [None, "default"]


def test_chat_template_is_used_unless_refused(run_script, chat_model, tmp_path):
    model = checkpoints.load(chat_model)
    codec = Codec.load(chat_model, model.config)
    for encode, flags in ((codec.encode_chat, []), (codec.encode, ["--nochat"])):
        output = tmp_path / encode.__name__
        flags = [*flags, "--gen_length=4", "--block_length=4", "--prompt=abc"]
        flags += ["--sampler=threshold(threshold=0.0)", f"--output={output}"]
        status, _, _ = run_script("generate", f"--checkpoint={chat_model}", *flags)
        assert status == 0
        # One forward at temperature 0: the answer is its argmax, up to a stop.
        [row] = encode(["abc"], 4)
        logits = (
            model(jnp.asarray(row.tokens[None]))[0].at[:, codec.mask_id].set(-jnp.inf)
        )
        expected = codec.generated(row, np.asarray(logits.argmax(axis=-1)))
        assert read(output)[0]["tokens"] == expected.tolist()


def test_pipes_carry_conversations_and_nothing_else(
    run_script, chat_model, monkeypatch, tmp_path
):
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    lines = [json.dumps({"messages": turns}), json.dumps({"prompt": "abc"})]
    content = b"\xef\xbb\xbf" + "\n".join(lines).encode()
    stdin = types.SimpleNamespace(buffer=io.BytesIO(content))
    monkeypatch.setattr("sys.stdin", stdin)
    flags = [f"--checkpoint={chat_model}", "--gen_length=4", "--block_length=4"]
    flags += ["--sampler=threshold(threshold=0.0)"]
    piped = ["--prompts_file=-", "--output=-"]
    status, out, err = run_script("generate", *flags, *piped)
    assert status == 0
    records = [json.loads(line) for line in out.splitlines()]
    assert "2 prompts of -, read as JSON Lines\n" in err
    assert "[0] user: a\nassistant: b\nuser: c\n" in err and "mean NFE" in err
    assert records[0]["messages"] == turns and "prompt" not in records[0]
    assert records[1]["prompt"] == "abc" and "messages" not in records[1]
    # The records are a file of the same prompts.
    (tmp_path / "again.jsonl").write_text(out)
    output = tmp_path / "out.jsonl"
    files = [f"--prompts_file={tmp_path / 'again.jsonl'}", f"--output={output}"]
    assert run_script("generate", *flags, *files)[0] == 0
    for old, new in zip(records, read(output), strict=True):
        assert old | {"seconds": 0} == new | {"seconds": 0}


def test_rows_are_written_to_stdout_as_they_are_done(
    run_script, chat_model, monkeypatch
):
    """And not only at the end, which a run that is stopped does not reach."""
    append, rows = Log.append, []

    def stop(self, records):
        if rows:
            raise SystemExit(143)
        append(self, records)
        rows.extend(records)

    monkeypatch.setattr(Log, "append", stop)
    command = [f"--checkpoint={chat_model}", "--nochat", "--gen_length=4"]
    command += ["--block_length=4", "--prompt=a", "--prompt=b", "--output=-"]
    command += ["--sampler=threshold", "--sampler=random"]
    status, out, _ = run_script("generate", *command)
    assert status == 143 and 0 < len(rows) < 4
    written = [json.loads(line) for line in out.splitlines()]
    assert written == [growing.as_written(row) for row in rows]


@pytest.mark.parametrize(
    ("start", "flags"),
    [("x", ["--nochat", "--gen_length=4", "--block_length=4"]), (MASK, ["--infill"])],
)
def test_an_error_names_the_line_of_a_prompt(
    run_script, chat_model, tmp_path, start, flags
):
    path = tmp_path / "a.txt"
    path.write_text(f"{start}\n\n{start}{'b' * 200}\n")
    command = [f"--checkpoint={chat_model}", f"--prompts_file={path}", *flags]
    status, _, err = run_script("generate", *command, f"--prompt={start}")
    assert status == 1 and err.count("\n") == 1
    # After the one of the flag.
    message = f"error: prompts_file ({path}), line 3: prompt 2 has 201 tokens"
    assert err.startswith(message)


def test_prompts_that_are_too_long_are_skipped_if_asked(
    run_script, chat_model, tmp_path
):
    path, output = tmp_path / "a.txt", tmp_path / "out.jsonl"
    path.write_text(f"one\n{'b' * 200}\ntwo\n{'c' * 300}\n")
    command = [f"--checkpoint={chat_model}", f"--prompts_file={path}", "--nochat"]
    command += ["--gen_length=4", "--block_length=4", f"--output={output}"]
    command += ["--sampler=threshold(threshold=0.0)", "--skip_long"]
    status, _, err = run_script("generate", *command)
    assert status == 0
    told = f"2 of 4 prompts are too long and skipped, first prompts_file ({path}), line"
    assert f"{told} 2: prompt 1 has 200 tokens; with gen_length (4)" in err
    records = read(output)
    assert [(r["index"], r["prompt"]) for r in records] == [(0, "one"), (1, "two")]
    assert {record["num_skipped"] for record in records} == {2}
    # What else is wrong with a prompt is told, with its line.
    path.write_text(f"{'b' * 200}\none\nZ\n")
    command[-3] = f"--output={tmp_path / 'other.jsonl'}"
    status, _, err = run_script("generate", *command)
    assert (
        status == 1 and f"error: prompts_file ({path}), line 3: prompt 1 cannot" in err
    )
    path.write_text("b" * 200)
    status, _, err = run_script("generate", *command)
    assert status == 1 and "error: skip_long leaves no prompt: prompts_file (" in err
    assert not (tmp_path / "other.jsonl").exists()


def test_an_empty_prompt_is_continued_from_nothing(run_script, chat_model, tmp_path):
    output = tmp_path / "out.jsonl"
    command = [f"--checkpoint={chat_model}", "--prompt=", f"--output={output}"]
    command += ["--gen_length=4", "--block_length=4", "--sampler=threshold"]
    status, _, err = run_script("generate", *command)
    assert status == 1 and "a conversation needs a message" in err
    status, _, err = run_script("generate", *command, "--nochat")
    assert status == 0, err
    [record] = read(output)
    assert record["prompt"] == "" and record["nfe"] > 0 and record["is_complete"]


def test_conversations_are_not_infilled(run_script, chat_model, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "x"}]}')
    flags = [f"--checkpoint={chat_model}", "--infill", f"--prompts_file={path}"]
    status, _, err = run_script("generate", *flags)
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith("error: infill takes prompts that are texts, not conv")


def test_infill_without_a_blank_is_refused(run_script, chat_model, tmp_path):
    status, out, err = run_script(
        "generate",
        f"--checkpoint={chat_model}",
        "--infill",
        "--prompt=ab",
        f"--output={tmp_path / 'out.jsonl'}",
    )
    assert (status, out) == (1, "")
    assert err.startswith("error: prompt 0 has no blank to fill")
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_infill_keeps_the_text(run_script, chat_model, tmp_path):
    output = tmp_path / "out.jsonl"
    status, _, _ = run_script(
        "generate",
        f"--checkpoint={chat_model}",
        "--infill",
        f"--prompt=ab{MASK}d{MASK}",
        f"--prompt={MASK}bc",
        "--sampler=threshold(threshold=0.0)",
        f"--output={output}",
    )
    assert status == 0
    first, second = read(output)
    assert (len(first["tokens"]), len(second["tokens"])) == (2, 1)
    assert first["text"].startswith("ab") and "d" in first["text"][2:]
    assert second["text"].endswith("bc")
    assert MASK not in first["text"] + second["text"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sampler=sober"], "sampler (sober) must be one of dynamic, "),
        (["--sampler=saber(k=2)"], "saber has no field k; it takes n, "),
        (
            ["--gen_length=10", "--block_length=4"],
            "gen_length (10) must be a multiple of block_length (4)",
        ),
        (["--gen_length=0"], "gen_length (0) must be at least 1"),
        (["--batch_size=0"], "batch_size (0) must be at least 1"),
        (["--temperature=-1"], "temperature (-1.0) must be at least 0 and finite"),
        (
            [f"--prompt={'b' * 70}", "--nochat", "--gen_length=64"],
            "prompt 1 has 70 tokens; with gen_length (64) that is 134, more than the "
            "model's context (128)",
        ),
        ([f"--prompt=a{MASK}"], f"prompt 1 holds the mask token ({MASK}), which only"),
        (["--prompt="], "prompt 1 is empty"),
        (["--prompts_file={empty}"], "prompts_file ({empty}) holds no prompt"),
        (["--prompts_file={tmp}"], "prompts_file ({tmp}) cannot be read"),
        (["--prompts_file={tmp}/none"], "prompts_file ({tmp}/none) cannot be read"),
        (["--output={empty}"], "output ({empty}) already exists"),
        (["--output={empty}/out"], "output ({empty}/out) cannot be written: "),
        (["--checkpoint={tmp}/none"], "checkpoint ({tmp}/none) is not a directory"),
        (["--checkpoint={tmp}"], "{tmp}"),
        (["--infill", "--chat"], "chat is for prompts that are continued"),
        (["--infill"], "gen_length is for prompts that are continued"),
        (["--sampler=saber", "--sampler=saber(n=2)"], "sampler (saber(n=2, mu=8.0"),
        (["stray"], "unexpected arguments: stray"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    run_script, chat_model, tmp_path, flags, message
):
    paths = {"tmp": str(tmp_path), "empty": str(tmp_path / "empty.txt")}
    pathlib.Path(paths["empty"]).write_text("\n")
    given = [
        f"--checkpoint={chat_model}",
        "--gen_length=8",
        "--block_length=8",
        "--prompt=ab",
        f"--output={tmp_path / 'out.jsonl'}",
    ]
    flags = [flag.format(**paths) for flag in flags]
    status, out, err = run_script("generate", *given, *flags)
    assert (status, out) == (1, "")
    assert err.count("\n") == 1
    assert err.startswith("error: " + message.format(**paths))
    assert [path.name for path in tmp_path.iterdir()] == ["empty.txt"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_directory_is_refused_before_the_work(run_script, tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    status, _, err = run_script("generate", f"--output={tmp_path / 'out.jsonl'}")
    assert status == 1
    assert "cannot be written" in err


def test_puzzles_need_the_vocabulary(run_script, chat_model):
    status, out, err = run_script("generate", f"--checkpoint={chat_model}")
    assert (status, out) == (1, "")
    assert err == (
        "error: the checkpoint's tokenizer is not the one of the task sudoku\n"
    )


def test_command_line_answers_bad_input_without_a_traceback(tmp_path):
    command = [sys.executable, "-m", "experiments.generate", "--sampler=sober"]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=pathlib.Path(__file__).parents[2]
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: sampler (sober) must be one of dynamic, ")
    assert result.stderr.count("\n") == 1


def test_blocks_that_do_not_fit_the_page_go_below():
    lines = list(_report.beside([["a" * 40, "b"], ["c"], ["d", "e", "f"]]))
    assert lines == ["a" * 40 + "   c", "b", "d", "e", "f"]


def test_a_nan_is_told_once_everything_is_written(run_script, chat_model, tmp_path):
    # The letter q stands in the second and fourth prompt only.
    model = checkpoints.load(chat_model)
    weight = model.wte[...]
    model.wte[...] = weight.at[IDS["q"]].set(jnp.nan)
    broken, output = tmp_path / "broken", tmp_path / "out.jsonl"
    checkpoints.save_hf(model, broken, checkpoints.companions(chat_model))
    arguments = [
        "--gen_length=4",
        "--block_length=4",
        "--nochat",
        "--sampler=threshold(threshold=0.0)",
        "--sampler=left_to_right",
        "--seed=1",
    ]
    arguments += [f"--prompt={text}" for text in ("one", "quite", "three", "aq")]
    status, out, err = run_script(
        "generate", f"--checkpoint={broken}", f"--output={output}", *arguments
    )
    assert status == 1
    spec = samplers.canonical_spec("threshold(threshold=0.0)")
    assert err == (
        f"error: the model gave NaN for 4 of 8 rows, first for prompt 1 with {spec} at "
        "forward 1; the texts of these rows are no answers\n"
    )
    # The other rows are there, as with weights that have no NaN.
    other = tmp_path / "whole.jsonl"
    status, *_ = run_script(
        "generate", f"--checkpoint={chat_model}", f"--output={other}", *arguments
    )
    assert status == 0
    for record, whole in zip(read(output), read(other), strict=True):
        if record["index"] in (0, 2):
            assert record["tokens"] == whole["tokens"]
            assert record["is_complete"] and not record["has_nan"]
        else:
            assert not record["is_complete"] and record["has_nan"]
        assert not whole["has_nan"]
    assert out.count("NFE 1, NaN, NOT COMPLETE") == 4

    # The front door keeps it.
    texts = ["one", "quite"]
    settings = {"gen_length": 4, "chat": False}
    outputs = dlm.load(broken).generate(texts, "left_to_right", **settings)
    assert [o.has_nan for o in outputs] == [False, True]
    assert [o.num_tokens for o in outputs][1] == 0
    assert dlm.load(broken).generate("aq", "saber", **settings).has_nan
