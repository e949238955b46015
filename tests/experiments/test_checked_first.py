"""Wrong arguments are refused before any weight is read."""

import json
import os
import shutil
import threading

import pytest

from dlm_jax import checkpoints, files, zoo
from dlm_jax.evaluation import run as evaluation


class Reached(Exception):
    """The weights would be read now."""


@pytest.fixture
def call(run_script, monkeypatch, tmp_path):
    """Runs a script up to where it reads weights; fails if it gets there."""

    def load(*arguments, **options):
        raise Reached

    monkeypatch.setattr(checkpoints, "load", load)
    monkeypatch.chdir(tmp_path)

    def call(name, *flags):
        return run_script(name, *flags)

    return call


def _foreign_checkpoint(directory):
    """The Sudoku model, with a tokenizer that has other digits."""
    shutil.copytree(zoo.path("sudoku"), directory)
    path = directory / "tokenizer.json"
    path.write_text(path.read_text().replace('"9"', '"z"'))


GENERATE = [
    ("--sampler=saber(n=0)", "n "),
    ("--sampler=low_confidence(schedule=quota(tokens=1))", "quota has no field"),
    ("--split=exam", "split (exam) must be one of test, hard, valid"),
    ("--num_examples=0", "num_examples (0) must be at least 1"),
    (
        "--num_examples=99999",
        "num_examples (99999) must be at most 1000, those of test",
    ),
    ("--task=chess", "task (chess)"),
    ("--cache=dual(refresh_every=-1)", "refresh_every"),
    ("--cache=block", "cache (Block) must be"),
    ("--cache=tape", "cache (tape) must be one of"),
    ("--batch_size=0", "batch_size (0) must be at least 1"),
    ("--temperature=-1", "temperature (-1.0) must be at least 0 and finite"),
    ("--temperature=nan", "temperature (nan) must be at least 0 and finite"),
    ("--guidance=-2", "guidance (-2.0) must be at least 0 and finite"),
    ("--seed=-1", "seed (-1) must be an integer from 0"),
    ("--output=FILE/out.jsonl", "/FILE/out.jsonl) cannot be written"),
    ("--checkpoint=FOREIGN", "the checkpoint's tokenizer is not the one of the task"),
    ("--dtype=int8", "flag --dtype=int8: value should be one of"),
]
STEPS = "--sampler=low_confidence(schedule=linear(steps=7))"
PROMPT = [
    (f"{STEPS} --block_length=2", "Linear: steps (7) must be a multiple of the number"),
    ("--gen_length=0", "gen_length (0) must be at least 1"),
    ("--block_length=0", "gen_length (8) must be a multiple of block_length (0)"),
    ("--block_length=3", "gen_length (8) must be a multiple of block_length (3)"),
    (f"--prompt={'1' * 400}", "prompt 1 has 400 tokens; with gen_length (8)"),
    ("--prompt=a", "prompt 1 cannot be written in the tokenizer's vocabulary"),
    ("--chat", "the checkpoint's tokenizer has no chat template"),
    ("--infill", "gen_length is for prompts that are continued"),
]
EVALUATE = [
    ("--split=exam", "split (exam) must be one of test, hard, valid"),
    ("--num_examples=0", "num_examples (0) must be at least 1"),
    ("--num_examples=99999", "num_examples (99999) must be at most"),
    ("--batch_size=0", "batch_size (0) must be at least 1"),
    ("--queue_length=3", "queue_length (3) must be at least batch_size (4)"),
    ("--temperature=-1", "temperature (-1.0) must be at least 0 and finite"),
    ("--workdir=FILE", "/FILE) cannot be written"),
    ("--workdir=FILE/runs", "/FILE/runs) cannot be written"),
    ("--workdir=/proc/runs", "workdir (/proc/runs) cannot be written"),
    ("--workdir=OTHER", "temperature (0.0) must be 0.7, as in the evaluation"),
    ("--workdir=ANOTHER", "checkpoint (2c3f"),
    ("--workdir=DAMAGED", "/DAMAGED/records.jsonl, line 1 ('{') must be a record"),
    ("--gen_length=9", "gen_length (9) must not be set for sudoku"),
    ("--block_length=7", "gen_length (64) must be a multiple of block_length (7)"),
    ("--example_seed=-1", "example_seed (-1) must be an integer from 0"),
    ("--checkpoint=FOREIGN", "the checkpoint's tokenizer is not the one of the task"),
    ("--cache=block", "cache (Block) must be"),
    ("--cache=tape", "cache (tape) must be one of"),
]
SAMPLED = [
    (f"{STEPS} --block_length=32", "Linear: steps (7) must be a multiple"),
    ("--sampler=threshold(threshold='a')", "threshold"),
    ("--seeds=-1", "seeds (-1) must be an integer from 0"),
]
SHORT = ["--gen_length=8", "--block_length=8"]
VIEW = [
    ("--block_length=3", "gen_length (8) must be a multiple of block_length (3)"),
    (f"{STEPS} --block_length=2", "Linear: steps (7) must be a multiple of the number"),
    ("--cache=block", "cache (Block) must be"),
    ("--temperature=-1", "temperature (-1.0) must be at least 0 and finite"),
    ("--chat", "the checkpoint's tokenizer has no chat template"),
    (f"--prompt={'1' * 400}", "prompt 0 has 400 tokens; with gen_length (8)"),
    ("--prompt=a", "prompt 0 cannot be written in the tokenizer's vocabulary"),
    ("--output=FILE/page.html", "/FILE/page.html) cannot be written"),
]
CASES = [
    *(
        (
            "view",
            ["--output=a.html", "--prompt=1", *SHORT],
            *case,
        )
        for case in VIEW
    ),
    ("view", ["--output=a.html"], "--checkpoint=FOREIGN", "checkpoint's tokenizer is"),
    *(("generate", ["--num_examples=1"], *case) for case in GENERATE),
    *(
        ("generate", ["--prompt=1", "--gen_length=8", "--block_length=8"], *case)
        for case in PROMPT
    ),
    *(
        (name, ["--num_examples=4", "--batch_size=4", "--split=test"], *case)
        for name in ("evaluate", "sweep")
        for case in EVALUATE
    ),
    *(
        ("evaluate", ["--num_examples=4", "--batch_size=4", "--split=test"], *case)
        for case in SAMPLED
    ),
]


@pytest.mark.parametrize(("name", "flags", "wrong", "message"), CASES)
def test_what_is_wrong_is_told_before_weights_are_read(
    call, tmp_path, name, flags, wrong, message
):
    paths = {x: str(tmp_path / x) for x in ("FILE", "FOREIGN", "OTHER", "ANOTHER")}
    paths |= {"DAMAGED": str(tmp_path / "DAMAGED")}
    (tmp_path / "FILE").write_text("")
    _foreign_checkpoint(tmp_path / "FOREIGN")
    lengths = {"gen_length": 64, "block_length": None}
    # As version 0.1 wrote it, with sizes that may change.
    run = {"batch_size": 99, "queue_length": 99}
    held = {"task": "sudoku", **evaluation.Plan().identity, **run, **lengths}
    for path, identity in (
        ("OTHER", held | {"temperature": 0.7}),
        ("ANOTHER", held | {"checkpoint": "of another"}),
        ("DAMAGED", held | {"checkpoint": "of another"}),
    ):
        (tmp_path / path).mkdir()
        manifest = {"identity": identity, "runs": []}
        (tmp_path / path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "DAMAGED" / "records.jsonl").write_text("{\n")
    before = sorted(os.listdir(tmp_path))
    for short, path in paths.items():
        wrong = wrong.replace(f"={short}", f"={path}")
    status, out, error = call(name, *flags, *wrong.split())
    assert (status, out) == (1, "")
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error
    # Nothing is written either.
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("name", ["generate", "evaluate", "sweep", "view"])
def test_what_is_right_gets_to_the_weights(call, name):
    """Or else the tests above would pass with everything refused."""
    flags = ["--num_examples=4", "--batch_size=4", "--split=test"]
    if name == "view":
        flags = ["--output=a.html", "--prompt=1", *SHORT]
    with pytest.raises(Reached):
        call(name, *flags)


@pytest.mark.parametrize(
    ("name", "flag", "is_directory"),
    [
        ("evaluate", "--workdir={}", True),
        ("sweep", "--workdir={}", True),
        ("generate", "--output={}", False),
    ],
)
def test_a_second_writer_is_refused_before_weights_are_read(
    call, tmp_path, name, flag, is_directory
):
    path = tmp_path / "out"
    held, ended = threading.Event(), threading.Event()

    def hold():
        with files.locked(path, is_directory=is_directory):
            held.set()
            ended.wait()

    first = threading.Thread(target=hold)
    first.start()
    try:
        assert held.wait(60)
        flags = ["--num_examples=4", "--batch_size=4", "--split=test"]
        status, out, error = call(name, *flags, flag.format(path))
    finally:
        ended.set()
        first.join()
    assert (status, out) == (1, "") and error.count("\n") == 1
    assert f"({path}) is being written by another process" in error


def test_the_default_split_is_one_that_the_task_has(call, tmp_path):
    """HumanEval has no validation examples."""
    config = checkpoints.read_config(zoo.path("program"))
    assert config.max_sequence_length < 1024
    status, _, error = call(
        "evaluate",
        "--task=humaneval",
        "--num_examples=1",
        f"--checkpoint={zoo.path('program')}",
    )
    # Not the split, but what comes after it.
    assert status == 1 and "split" not in error
