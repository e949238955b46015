"""The scripts of docs/examples, and the Python snippets of README and docs, run."""

import os
import pathlib
import re
import runpy
import subprocess
import sys
import xml.etree.ElementTree

import numpy as np
import pytest
from chat_checkpoint import make_chat_checkpoint

import dlm_jax as dlm
from dlm_jax.tasks.sudoku import task as sudoku

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SNIPPETS = [
    pytest.param(page, block, id=f"{page.relative_to(ROOT)}-{i}")
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    for i, block in enumerate(BLOCK.findall(page.read_text()))
]


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    return make_chat_checkpoint(tmp_path_factory.mktemp("chat"))


@pytest.fixture
def run_example(monkeypatch, capsys, tmp_path):
    """Runs a script as if it were started from its own folder; returns its names."""

    def run(name, *arguments):
        monkeypatch.chdir(EXAMPLES)
        monkeypatch.syspath_prepend(str(EXAMPLES))
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        names = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return names, capsys.readouterr().out

    yield run
    for name in ("my_rules", "my_plans"):
        sys.modules.pop(name, None)


def test_every_example_is_tested():
    tests = pathlib.Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f'"{path.stem}"' in tests or path.stem in ("my_rules", "my_plans")


def test_first_steps_solves_both_puzzles(run_example):
    names, out = run_example("first_steps")
    assert len(names["PUZZLES"]) == 2
    assert out.count("complete: True") == 4
    assert "4 forwards" in out and "47 forwards" in out
    for puzzle, output in zip(names["PUZZLES"], names["outs"], strict=True):
        cells = sudoku.parse(puzzle)
        assert sudoku.verdict(cells, sudoku.parse(output.text)).is_correct


def test_a_rule_of_one_s_own_is_the_same_as_object_and_as_spec(run_example):
    names, out = run_example("own_rule")
    lines = out.splitlines()
    assert len(lines) == 2
    assert lines[0].partition(": ")[2].split()[-1] == "True"
    nfes = [re.search(r"(\d+) forwards", line).group(1) for line in lines]
    assert nfes[0] == nfes[1]
    # It is the package's own rule of the same threshold.
    prompt = names["PUZZLE"].replace(".", names["model"].mask_text)
    own = names["model"].infill(prompt, "threshold(threshold=0.8)")
    assert str(own.nfe) == nfes[0] and own.text == names["out"].text


def test_a_plan_of_one_s_own_is_the_same_as_object_and_as_spec(run_example):
    names, out = run_example("own_plan")
    lines = out.splitlines()
    assert len(lines) == 3 and all(line.endswith("True") for line in lines)
    full, by_object, by_spec = names["outs"]
    assert full.num_whole == full.nfe
    assert by_object.nfe == by_spec.nfe and by_object.text == by_spec.text
    # 47 blanks are three blocks of 16, whose first two forwards are of the whole row.
    assert by_object.num_whole == by_spec.num_whole == 6
    plans, model = names["my_plans"], names["model"]

    def infill(cache):
        rule = "entropy_bound(gamma=0.01)"
        return model.infill(names["prompt"], rule, block_length=16, cache=cache)

    # With a window of all blanks it is Prefix, and with none behind the block Dual.
    for num_after, known in ((48, "prefix"), (0, "dual")):
        own = infill(plans.Vicinity(num_after=num_after, num_first=1))
        other = infill(known)
        assert (own.nfe, own.num_whole) == (other.nfe, other.num_whole)
        assert own.text == other.text
    assert infill("prefix").nfe != infill("dual").nfe


def test_arrays_are_filled_with_the_likeliest_tokens(run_example):
    names, _ = run_example("arrays")
    table, result = np.array(names["table"]), names["result"]
    table[:, names["MASK"]] = -np.inf
    expected = np.where(
        names["is_blank"], table.argmax(axis=1), np.arange(names["LENGTH"])
    )
    assert np.array_equal(result.tokens, np.stack([expected, expected]))
    assert (result.num_steps < 8).all()


def test_the_correct_answer_is_the_likeliest(run_example):
    names, out = run_example("likelihood")
    assert re.findall(r"greedy: (\w+)", out) == ["True", "False", "False"]
    for errors in names["errors"].values():
        # It is certain of the correct answer, and its estimate has no noise.
        assert errors[0] < 0.1 < min(errors[1:])


def test_a_task_of_one_s_own_keeps_the_rules_of_tasks(run_example):
    names, out = run_example("my_task")
    task = names["Addition"]()
    assert out.count("correct") == 3
    examples = {split: task.examples(split, 20) for split in task.splits}
    assert task.examples("test", 5) == examples["test"][:5]
    prompts = {split: {e.prompt for e in found} for split, found in examples.items()}
    assert not prompts["test"] & prompts["valid"]
    example = examples["test"][0]
    assert task.verdict(example, f" {example.truth} ").is_correct
    assert not task.verdict(example, str(example.truth + 1)).is_correct


def test_the_picture_is_of_the_run_that_it_tells_of(run_example, tmp_path):
    _, out = run_example("picture", tmp_path / "sudoku.svg")
    forwards = re.findall(r"^(.*): (\d+) forwards, correct$", out, re.MULTILINE)
    assert [name for name, _ in forwards] == [
        "low_confidence",
        "entropy_bound(gamma=0.01)",
    ]
    # The committed one is of the same run.
    for path in (tmp_path / "sudoku.svg", ROOT / "docs/_static/sudoku.svg"):
        root = xml.etree.ElementTree.parse(path).getroot()
        texts = [element.text for element in root.iter() if element.text]
        for name, nfe in forwards:
            assert f"{name}: {nfe} forwards" in texts


@pytest.mark.parametrize(("page", "block"), SNIPPETS)
def test_snippets_run(page, block, chat_model, monkeypatch, capsys):
    if "llada-8b" in block:
        # A small checkpoint with a chat template, in place of one that must be at hand.
        block = block.replace('"llada-8b"', repr(str(chat_model)))
    monkeypatch.chdir(EXAMPLES)
    names = {"__name__": "snippet"}
    exec(compile(block, str(page), "exec"), names)
    if "print(" in block:
        assert capsys.readouterr().out.strip()
    if "Confident" in names:
        model = dlm.load(dlm.zoo.path("sudoku"))
        out = model.infill("1" * 8 + model.mask_text, names["Confident"]())
        assert out.nfe == 1 and out.is_complete


def test_snippets_were_found():
    pages = {param.values[0].name for param in SNIPPETS}
    assert {"README.md", "getting_started.md"} <= pages


def test_the_skeleton_of_the_front_page_is_the_one_to_copy():
    (front,) = [
        block
        for block in BLOCK.findall((ROOT / "README.md").read_text())
        if "class Confident" in block
    ]
    skeleton = (EXAMPLES / "my_rules.py").read_text()
    names = {}
    for source in (front, skeleton):
        found: dict = {"__name__": "my_rules"}
        exec(source, found)
        names[source] = found["Confident"]
    assert names[front]().__dict__ == names[skeleton]().__dict__ == {"threshold": 0.9}


@pytest.mark.parametrize("script", ["first_steps.py"])
def test_examples_run_as_processes_from_the_root(script):
    """As the docstrings say, without the tests' settings."""
    done = subprocess.run(
        [sys.executable, f"docs/examples/{script}"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "forwards" in done.stdout
