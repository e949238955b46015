"""Pages that replay runs: the data in them, and that texts stay texts."""

import html
import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from chat_checkpoint import make_chat_checkpoint
from page_runs import DIGITS, HTML, MASK, grid_run, text_run

import dlm_jax as dlm
from dlm_jax import tasks
from dlm_jax.core.cache import Kind
from dlm_jax.errors import InputError
from dlm_jax.text import page
from dlm_jax.text.codec import Codec


def embedded(text: str) -> str:
    """The JSON in a page, as the browser finds it: up to the first closing tag."""
    start = text.index('<script type="application/json" id="data">')
    return text[text.index(">", start) + 1 : text.index("</script", start)]


def canvases(run: dict, mask_id: int) -> np.ndarray:
    """What the page replays, as texts, with None for a blank."""
    now = list(run["start"])
    found = [list(now)]
    for forward in run["forwards"]:
        for position, place in forward["changes"]:
            now[position] = place
        found.append(list(now))
    texts = [*run["texts"]]
    texts[run["mask"]] = None
    return np.array([[texts[place] for place in row] for row in found], object)


def expected(run: page.Run) -> np.ndarray:
    texts = {**run.texts, run.mask_id: None}
    return np.array([[texts[token] for token in row] for row in run.canvas], object)


def check_data(run: page.Run, found: dict) -> None:
    """Every canvas, commit, remask, confidence and kind is that of the run."""
    assert (canvases(found, run.mask_id) == expected(run)).all()
    assert len(found["forwards"]) == len(run.canvas) - 1
    for step, forward in enumerate(found["forwards"]):
        assert forward["commit"] == np.flatnonzero(run.commit[step]).tolist()
        assert forward["remask"] == np.flatnonzero(run.remask[step]).tolist()
        np.testing.assert_allclose(
            forward["confidence"],
            np.exp(run.log_prob[step][run.commit[step]]),
            rtol=1e-4,
        )
        if run.commit[step].any():
            log_prob = run.log_prob[step][run.commit[step]].astype(float)
            doubt = -np.expm1(log_prob.min())
            assert forward["doubt"] == pytest.approx(float(doubt), rel=1e-4)
        else:
            assert forward["doubt"] is None
        assert forward["kind"] == Kind(int(run.kind[step])).name.lower()


@pytest.mark.parametrize("seed", range(20))
def test_the_data_are_those_of_the_run(seed):
    run = text_run(seed, has_cache=bool(seed % 2))
    (found,) = json.loads(embedded(page.build({"one": run})))["runs"]
    check_data(run, found)
    assert run.remask.any() and found["rows"] is None
    staleness = [forward["staleness"] for forward in found["forwards"]]
    if seed % 2:
        np.testing.assert_allclose(staleness, run.staleness, rtol=1e-4)
    else:
        assert set(staleness) == {None}
    is_blank = run.canvas[0] == MASK
    for step, forward in enumerate(found["forwards"]):
        is_left = is_blank & (run.canvas[step] == MASK)
        mean = run.log_prob[step][is_left].mean()
        assert forward["log_prob"] == pytest.approx(float(mean), rel=1e-4)


def test_a_recorded_run_of_the_shipped_model_is_shown_as_it_was():
    model = dlm.load(dlm.zoo.path("sudoku"))
    task = tasks.get("sudoku")
    prompt = task.examples("test", 1)[0].prompt
    prompt = prompt.replace(tasks.base.BLANK, model.mask_text)
    out = model.infill(prompt, "saber", trajectory=True)
    assert out.trajectory.remask.any()
    made = page.data({"saber": out.replay}, grid=task.grid)
    (found,) = made["runs"]
    check_data(out.replay, found)
    assert (out.replay.canvas == out.trajectory.canvas).all()
    assert (out.replay.commit == out.trajectory.commit).all()
    assert "".join(canvases(found, 0)[-1]) == out.text
    assert [len(row) for row in found["rows"]] == 9 * [9]
    # Each token's confidence is the one at the forward that wrote it.
    places = np.flatnonzero(out.trajectory.canvas[0] == model.codec.mask_id)
    for place, step, confidence in zip(
        places, out.commit_step, out.confidence, strict=True
    ):
        forward = found["forwards"][step]
        shown = forward["confidence"][forward["commit"].index(place)]
        assert shown == pytest.approx(float(confidence), rel=1e-4)
    # A notebook shows the page; the same output without a trajectory is plain.
    shown = out._repr_html_()
    srcdoc = html.unescape(re.search('srcdoc="([^"]*)"', shown).group(1))
    (inside,) = json.loads(embedded(srcdoc))["runs"]
    assert inside["forwards"] == found["forwards"]
    assert model.infill(prompt, "saber")._repr_html_() is None


def test_a_continuation_shows_its_prompt_its_end_and_the_cache(tmp_path):
    model = dlm.load(make_chat_checkpoint(tmp_path))
    out = model.generate(
        "<b>hi</b>",
        "saber",
        gen_length=24,
        trajectory=True,
        staleness=True,
        cache="dual(refresh_every=4)",
    )
    (found,) = page.data({"one": out.replay})["runs"]
    check_data(out.replay, found)
    kinds = {forward["kind"] for forward in found["forwards"]}
    assert kinds == {"refresh", "step"}
    shown = "".join(x or "" for x in canvases(found, 0)[0])
    assert "<b>hi</b>" in shown and "<|start_header_id|>" in shown


def test_what_has_no_finite_number_is_left_out():
    run = text_run(0, has_cache=True)
    run.log_prob[0] = np.nan
    run.log_prob[1] = -np.inf
    run.staleness[0] = np.inf
    run.kind[0] = -1
    text = embedded(page.build({"one": run}))
    first, second, *_ = json.loads(text)["runs"][0]["forwards"]
    assert first["log_prob"] is second["log_prob"] is None
    assert set(first["confidence"] + second["confidence"]) == {None}
    assert first["doubt"] is second["doubt"] is None
    assert first["staleness"] is None and first["kind"] is None
    assert "NaN" not in text and "Infinity" not in text


def test_texts_cannot_end_the_data_or_become_html():
    name = f"{HTML}__DATA____TITLE__"
    text = page.build({name: text_run(0)}, title=name, note=HTML, remarks={name: HTML})
    data = embedded(text)
    assert not set("<>&\u2028") & set(data)
    made = json.loads(data)
    assert made["title"] == made["runs"][0]["name"] == name
    assert made["note"] == made["runs"][0]["remark"] == HTML
    assert HTML in made["runs"][0]["texts"]
    assert f"<title>{html.escape(name)}</title>" in text
    # Two scripts, as in the template, and nothing of the texts outside the data.
    assert text.count("<script") == text.count("</script>") == 2
    assert "<img" not in text.replace("&lt;img", "")
    shown = page.frame(text)
    assert shown.count("<") == 2 and "srcdoc=" in shown
    assert html.unescape(re.search('srcdoc="([^"]*)"', shown).group(1)) == text


def test_the_page_asks_for_nothing_from_the_network():
    text = page.build({"one": text_run(0)}).replace("http://www.w3.org/2000/svg", "")
    text = text.replace(embedded(text), "")
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(|\bsrc=|fetch\(", text)
    assert re.findall(r'href="([^"]*)"', text) == ["data:,"]
    assert "default-src 'none'" in text


@pytest.mark.parametrize("name", ["sudoku", "maze"])
def test_tasks_with_a_grid_say_how_they_are_laid_out(name):
    task = tasks.get(name)
    codec = Codec.of(
        task.tokenizer(),
        task.model_config(d_model=8, n_heads=2, n_layers=1, mlp_hidden_size=8),
    )
    (encoded,) = task.encode(codec, task.examples("test", 1))
    run = page.of_canvases(np.stack(2 * [encoded.tokens]), codec.mask_id, codec)
    (found,) = page.data({"one": run}, grid=task.grid)["runs"]
    assert found["rows"] == np.arange(90).reshape(9, 10)[:, :9].tolist()
    vocabulary = set(codec.vocabulary)
    assert set(task.grid.styles) <= vocabulary
    assert not np.isin(
        run.canvas[0][found["rows"]], [codec.vocabulary.index("\n")]
    ).any()


@pytest.mark.parametrize(
    ("start", "texts"),
    [
        ([2, 3, 1, 4], DIGITS),  # lines of different widths
        ([2, 3, 1, 4, 5, 1, 1], DIGITS),  # an empty line
        ([2, 3, 4, 1, 2, 3, 4], DIGITS),  # another width
        ([2, 3, 1, 4, 11], {**DIGITS, 11: "two"}),  # a token of several characters
    ],
)
def test_a_text_that_is_no_grid_is_shown_as_text(start, texts):
    canvas = np.array([start, start], np.int32)
    run = page.Run(canvas, texts, MASK, *2 * [np.zeros((1, len(start)), bool)])
    (found,) = page.data({"one": run}, grid=page.Grid(2))["runs"]
    assert found["rows"] is None


def test_runs_of_canvases_alone_say_what_was_written_and_taken_back():
    canvas = np.array(
        [[7, 0, 0, 0], [7, 5, 6, 0], [7, 0, 5, 6], [7, 5, 5, 6]], np.int32
    )
    run = page.of_canvases(canvas, mask_id=0)
    assert run.commit.tolist() == [
        [False, True, True, False],
        [False, False, True, True],
        [False, True, False, False],
    ]
    assert run.remask.tolist() == [
        4 * [False],
        [False, True, False, False],
        4 * [False],
    ]
    (found,) = page.data({"one": run})["runs"]
    assert found["texts"] == ["0 ", "5 ", "6 ", "7 "]
    forward = found["forwards"][1]
    assert forward["changes"] == [[1, 0], [2, 1], [3, 2]]
    assert forward["confidence"] is forward["kind"] is forward["log_prob"] is None
    with pytest.raises(InputError, match="at least 2"):
        page.of_canvases(canvas[:1], mask_id=0)
    with pytest.raises(InputError, match="runs must be at least one"):
        page.build({})


def test_tokens_without_a_text_of_their_own_are_named():
    class Tokenizer:
        def decode(self, tokens, skip_special_tokens):
            assert not skip_special_tokens
            return {1: "a", 2: "\N{REPLACEMENT CHARACTER}", 3: ""}[tokens[0]]

        def convert_ids_to_tokens(self, token):
            return {2: "\u0120\u00c3", 3: None}[token]

    codec = Codec(Tokenizer(), mask_id=9, stop_ids=(), max_length=8)
    run = page.of_canvases(np.array([[1, 2], [2, 3]], np.int32), 9, codec)
    assert run.texts == {1: "a", 2: "\u0120\u00c3", 3: "#3"}


def test_grids_are_shown_as_rows():
    run = grid_run(0)
    (found,) = page.data({"one": run}, grid=page.Grid(9, box=3))["runs"]
    check_data(run, found)
    assert np.array(found["rows"]).shape == (9, 9)
    assert jnp.asarray(run.canvas[0])[np.array(found["rows"])].shape == (9, 9)
