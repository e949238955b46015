"""`python -m experiments.view`: pages of runs and of traces, and bad input."""

import json
import pathlib

import numpy as np
import pytest
from chat_checkpoint import make_chat_checkpoint

from dlm_jax import tasks
from dlm_jax.parity import traces

TRACES = pathlib.Path(__file__).parents[1] / "data" / "traces"
TRACE = TRACES / "eb_entropy_gamma0.5__kv4_seed0_p0.json"


def read(path) -> dict:
    text = path.read_text(encoding="utf-8")
    start = text.index('<script type="application/json" id="data">')
    return json.loads(text[text.index(">", start) + 1 : text.index("</script", start)])


def final(run) -> str:
    now = list(run["start"])
    for forward in run["forwards"]:
        for position, place in forward["changes"]:
            now[position] = place
    return "".join(run["texts"][place] for place in now)


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    return make_chat_checkpoint(tmp_path_factory.mktemp("chat"))


def test_two_samplers_solve_a_sudoku_side_by_side(run_script, tmp_path):
    output = tmp_path / "pages" / "sudoku.html"
    status, out, err = run_script(
        "view",
        "--sampler=threshold(threshold=0.5)",
        "--sampler=saber",
        "--example=1",
        f"--output={output}",
    )
    assert (status, err) == (0, "")
    assert out.startswith(f"{output}: ")
    page = read(output)
    task = tasks.get("sudoku")
    example = task.examples("test", 2)[1]
    assert page["title"] == "sudoku test/1" and page["note"] == "sudoku, float32"
    assert page["grid"]["box"] == 3
    assert [run["name"] for run in page["runs"]] == [
        "threshold(threshold=0.5)",
        "saber",
    ]
    for run in page["runs"]:
        assert np.array(run["rows"]).shape == (9, 9)
        verdict = task.verdict(example, final(run))
        mark = "correct" if verdict.is_correct else f"wrong: {verdict.reason}"
        nfe = len(run["forwards"])
        num = example.prompt.count(tasks.base.BLANK)
        assert run["remark"] == f"{nfe} forwards, {num} tokens, {mark}"
    assert len(page["runs"][0]["forwards"]) < len(page["runs"][1]["forwards"])


def test_a_prompt_is_continued_with_each_sampler_and_cache(
    run_script, chat_model, tmp_path
):
    output = tmp_path / "page.html"
    status, _, err = run_script(
        "view",
        f"--checkpoint={chat_model}",
        "--prompt=<b>7 < 8?</b>",
        "--gen_length=16",
        "--block_length=8",
        "--sampler=saber",
        "--cache=none",
        "--cache=dual(refresh_every=3)",
        "--staleness",
        f"--output={output}",
    )
    assert (status, err) == (0, "")
    page = read(output)
    plain, cached = page["runs"]
    assert plain["name"] == "saber, cache none"
    assert cached["name"] == "saber, cache dual(refresh_every=3)"
    assert page["grid"] is None and page["title"] == "One prompt"
    for run in (plain, cached):
        assert "<b>7 < 8?</b>" in final(run)
        assert run["start"].count(run["mask"]) == 16
    assert {f["kind"] for f in plain["forwards"]} == {"refresh"}
    assert {f["kind"] for f in cached["forwards"]} == {"refresh", "step"}
    assert {f["staleness"] for f in plain["forwards"]} == {None}
    measured = [f["staleness"] for f in cached["forwards"]]
    assert None not in measured and max(measured) > 0


def test_the_blanks_of_a_prompt_are_filled_and_laid_out_as_asked(run_script, tmp_path):
    prompt = tasks.get("maze").examples("test", 1)[0].prompt
    output = tmp_path / "page.html"
    arguments = [
        f"--prompt={prompt.replace(tasks.base.BLANK, '<|mdm_mask|>')}",
        "--infill",
        "--sampler=threshold",
        f"--checkpoint={pathlib.Path(tasks.__file__).parents[1] / 'zoo' / 'maze'}",
    ]
    status, _, err = run_script("view", *arguments, "--task=maze", f"--output={output}")
    assert (status, err) == (0, "")
    page = read(output)
    (run,) = page["runs"]
    assert np.array(run["rows"]).shape == (9, 9)
    assert page["grid"]["styles"]["#"] == "wall"
    filled = zip(prompt, final(run), strict=True)
    assert all(a in (b, tasks.base.BLANK) for a, b in filled)


def test_recorded_runs_are_replayed(run_script, tmp_path):
    output = tmp_path / "page.html"
    status, _, err = run_script("view", f"--trace={TRACE}", f"--output={output}")
    assert (status, err) == (0, "")
    trace = traces.load(TRACE)
    (run,) = read(output)["runs"]
    assert run["remark"] == f"entropy_bound, {trace.nfe} forwards"
    assert len(run["forwards"]) == trace.nfe
    # Its checkpoint has no tokenizer, so ids are shown.
    assert [int(x) for x in final(run).split()] == trace.canvas[-1].tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--example=-1"], "example (-1) must be at least 0"),
        (["--example=1000"], "num_examples (1001) must be at most 1000, those"),
        (["--gen_length=8"], "gen_length (8) needs a prompt"),
        (["--prompt=a", "--split=test"], "split (test) must not be given with"),
        (["--prompt=a", "--infill", "--chat"], "chat (True) is for a prompt that"),
        ([f"--trace={TRACE}", "--sampler=saber"], "must not be given with a trace"),
        ([f"--trace={TRACE}", "--seed=1"], "seed (1) must not be given with a trace"),
        ([f"--trace={TRACE}", f"--trace={TRACE}"], "must not be given twice"),
        (["--trace=none.json"], "none.json does not exist"),
        (["--sampler=sabre"], "sabre"),
        (["--cache=double"], "double"),
        (["--task=chess"], "task (chess) must be one of"),
    ],
)
def test_bad_input_is_one_line(run_script, tmp_path, arguments, message):
    output = tmp_path / "page.html"
    status, _, err = run_script("view", *arguments, f"--output={output}")
    assert status == 1
    assert err.startswith("error: ") and err.count("\n") == 1
    assert message in err
    assert not output.exists()


def test_a_page_is_never_overwritten(run_script, tmp_path):
    output = tmp_path / "page.html"
    output.write_text("mine")
    status, _, err = run_script("view", f"--trace={TRACE}", f"--output={output}")
    assert status == 1 and "already exists" in err
    assert output.read_text() == "mine"
