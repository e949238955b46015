"""Pages in a real browser, without a window. Skipped where there is no Chromium."""

import shutil

import numpy as np
import pytest
from page_runs import HTML, grid_run, text_run

from dlm_jax.text import page

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

RUNS = {"first": text_run(0), "second (cache)": text_run(1, has_cache=True)}
GRIDS = {"first": grid_run(0), "second": grid_run(1)}
PAGES = {
    "text": page.build(RUNS, title=HTML, note="x" * 200, remarks={"first": HTML}),
    "grid": page.build(GRIDS, title="Grids", grid=page.Grid(9, box=3)),
}
PHONE = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        # Chromium's own sandbox does not start for root, as in a container.
        chromium = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"]
        )
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser, tmp_path):
    """Opens a page from a file; at the end there must be no error and no request."""
    problems, contexts = [], []

    def open_(name, at=0, **context):
        path = tmp_path / f"{name}.html"
        path.write_text(PAGES[name], encoding="utf-8")
        contexts.append(browser.new_context(**context))
        tab = contexts[-1].new_page()
        tab.on("console", lambda message: problems.append(message.text))
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("dialog", lambda dialog: problems.append("dialog"))
        tab.on(
            "request",
            lambda request: (
                request.url.startswith(("file:", "data:"))
                or problems.append(request.url)
            ),
        )
        tab.goto(f"{path.as_uri()}#{at}")
        return tab

    yield open_
    for context in contexts:
        context.close()
    assert problems == []


def shown(tab, index):
    """The texts of one run's tokens, in their order, with None for a blank."""
    script = """index => [...document.querySelectorAll("article")[index]
        .querySelectorAll("[data-place]")]
        .sort((a, b) => a.dataset.place - b.dataset.place)
        .map(cell => cell.classList.contains("blank") ? null : cell.textContent)"""
    return tab.evaluate(script, index)


def classes(tab, index, name):
    script = """([index, name]) => [...document.querySelectorAll("article")[index]
        .querySelectorAll(`[data-place].${name}`)]
        .map(cell => Number(cell.dataset.place)).sort((a, b) => a - b)"""
    return tab.evaluate(script, [index, name])


def at(tab):
    return int(tab.locator("#at").input_value())


def slide(tab, k):
    tab.locator("#at").fill(str(k))


def wait_for(tab, is_so):
    """Waits without scripts of its own, which the page's policy forbids."""
    for _ in range(200):
        if is_so():
            return
        tab.wait_for_timeout(50)
    pytest.fail("it did not happen within 10 seconds")


def num_forwards(runs):
    return max(len(run.commit) for run in runs.values())


@pytest.mark.parametrize(("name", "runs"), [("text", RUNS), ("grid", GRIDS)])
def test_the_slider_shows_every_canvas_and_what_changed(open_page, name, runs):
    tab = open_page(name)
    for k in range(num_forwards(runs) + 1):
        slide(tab, k)
        for index, run in enumerate(runs.values()):
            n = len(run.commit)
            now = run.canvas[min(k, n)]
            in_place = np.ones(now.size, bool)
            if name == "grid":
                in_place[9::10] = False
            taken = np.zeros(now.size, bool)
            if 0 < k <= n:
                taken = run.remask[k - 1]
            # Instead of a token just taken back, its old text is struck through.
            texts = [
                None if token == 0 else run.texts[token].replace("\n", "\u23ce\n")
                for token in now
            ]
            found = dict(
                zip(np.flatnonzero(in_place).tolist(), shown(tab, index), strict=True)
            )
            for place, text in found.items():
                assert taken[place] or text == texts[place]
            assert classes(tab, index, "taken") == np.flatnonzero(taken).tolist()
            new = np.zeros(now.size, bool)
            if 0 < k <= n:
                new = run.commit[k - 1] & ~taken
            assert classes(tab, index, "new") == np.flatnonzero(new).tolist()
            status = tab.locator("article .status").nth(index).inner_text()
            left = int((now == 0).sum())
            assert f"{left} blank{'' if left == 1 else 's'} left" in status
            if 0 < k <= n:
                assert f"Forward {k} of {n}" in status
                assert f"{run.commit[k - 1].sum()} written" in status
            assert ("(step)" in status) == (
                run.staleness is not None and 0 < k <= n and run.kind[k - 1] == 1
            )


def test_texts_are_shown_and_not_run(open_page):
    tab = open_page("text")
    assert tab.title() == HTML
    assert tab.locator("h1").inner_text() == HTML
    assert HTML in tab.locator(".prompt").first.inner_text()
    assert tab.locator("img").count() == 0


def test_keys_step_jump_and_play(open_page):
    tab = open_page("text")
    last = num_forwards(RUNS)
    tab.locator("#speed").select_option("fast")
    tab.evaluate("document.activeElement.blur()")
    press = tab.keyboard.press
    for key, expected in [
        ("ArrowRight", 1),
        ("ArrowRight", 2),
        ("ArrowLeft", 1),
        ("End", last),
        ("ArrowRight", last),
        ("Home", 0),
        ("ArrowLeft", 0),
    ]:
        press(key)
        assert at(tab) == expected
    press(" ")
    assert tab.locator("#play").inner_text() == "Pause"
    wait_for(tab, lambda: at(tab) >= 2)
    press(" ")
    paused = at(tab)
    assert 2 <= paused <= last and tab.locator("#play").inner_text() == "Play"
    tab.wait_for_timeout(300)
    assert at(tab) == paused
    # With the slider in focus a key moves it once, and a button keeps its own space.
    tab.locator("#at").focus()
    press("Home")
    press("ArrowRight")
    assert at(tab) == 1
    tab.locator("#next").focus()
    press(" ")
    assert at(tab) == 2 and tab.locator("#play").inner_text() == "Play"


def test_buttons_step_and_play_to_the_end(open_page):
    tab = open_page("grid", at=3)
    last = num_forwards(GRIDS)
    assert at(tab) == 3
    for button, expected in [
        ("next", 4),
        ("back", 3),
        ("last", last),
        ("back", last - 1),
        ("first", 0),
    ]:
        tab.locator(f"#{button}").click()
        assert at(tab) == expected
    tab.locator("#speed").select_option("fast")
    tab.locator("#play").click()
    wait_for(tab, lambda: at(tab) == last)
    wait_for(tab, lambda: tab.locator("#play").inner_text() == "Play")
    # From the end it starts again.
    tab.locator("#play").click()
    assert at(tab) < last


def test_charts_show_counts_kinds_and_curves(open_page):
    tab = open_page("text")
    for index, run in enumerate(RUNS.values()):
        article = tab.locator("article").nth(index)
        bars = article.locator(".counts .up").evaluate_all(
            "bars => bars.map(bar => Number(bar.getAttribute('height')))"
        )
        assert bars == run.commit.sum(1).tolist()
        taken = article.locator(".counts .down").evaluate_all(
            "bars => bars.map(bar => Number(bar.getAttribute('height')))"
        )
        assert taken == run.remask.sum(1).tolist()
        has_cache = run.staleness is not None
        assert article.locator(".strip").count() == has_cache
        assert article.locator(".line").count() == 2 + has_cache
        if has_cache:
            assert article.locator(".whole").count() == (run.kind == 0).sum()
            assert article.locator(".window").count() == (run.kind == 1).sum()
    # A bar leads to its forward.
    box = tab.locator(".counts svg").first.bounding_box()
    last = num_forwards(RUNS)
    x = box["x"] + box["width"] * 4.5 / last
    tab.mouse.click(x, box["y"] + box["height"] / 2)
    assert at(tab) == 5


def test_colours_and_numbers_follow_the_settings(open_page):
    run = GRIDS["first"]
    tab = open_page("grid", at=len(run.commit))
    place = int(np.flatnonzero(run.canvas[0] == 0)[0])
    when = int(np.flatnonzero(run.commit[:, place] & ~run.remask[:, place])[-1]) + 1
    cell = tab.locator(f'article:first-child [data-place="{place}"]')
    bar = "cell => parseFloat(cell.style.getPropertyValue('--p'))"
    confidence = 100 * float(np.exp(run.log_prob[when - 1, place]))
    assert cell.evaluate(bar) == pytest.approx(confidence, abs=0.1)
    tab.locator("#colour").select_option("order")
    assert cell.evaluate(bar) == pytest.approx(100 * when / len(run.commit), abs=0.1)
    after = "cell => getComputedStyle(cell, '::after').content"
    assert cell.evaluate(after) == "none"
    tab.locator("#numbers").check()
    assert cell.evaluate(after) == f'"{when}"'
    cell.click()
    detail = tab.locator(".detail").first.inner_text()
    assert f"written by forward {when}, probability" in detail


@pytest.mark.parametrize("name", ["text", "grid"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_horizontal_scrolling(open_page, name, scheme):
    tab = open_page(name, at=4, viewport=PHONE, color_scheme=scheme, has_touch=True)
    tab.locator("#numbers").check()
    for k in (0, 4, num_forwards(RUNS)):
        slide(tab, k)
        width = tab.evaluate("document.documentElement.scrollWidth")
        assert width <= PHONE["width"]
    right = tab.locator("main *:visible").evaluate_all(
        "all => Math.max(...all.map(one => one.getBoundingClientRect().right))"
    )
    assert right <= PHONE["width"]
    # Two runs are below each other; on a wide screen they are side by side.
    tops = "all => all.map(one => one.getBoundingClientRect().top)"
    first, second = tab.locator("article").evaluate_all(tops)
    assert second > first + 100
    tab.set_viewport_size({"width": 1000, "height": 740})
    first, second = tab.locator("article").evaluate_all(tops)
    assert first == second


def luminance(color):
    channels = [int(part) / 255 for part in color[4:-1].split(",")]
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels
    ]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_in_both_schemes(open_page, scheme):
    tab = open_page("text", at=5, color_scheme=scheme)
    body = tab.locator("body")
    background = luminance(
        body.evaluate("one => getComputedStyle(one).backgroundColor")
    )
    assert (background < 0.05) == (scheme == "dark")
    for selector in ("body", ".muted", "figcaption", ".given", ".taken", ".blank"):
        found = tab.locator(selector)
        if not found.count():
            continue
        ink = luminance(found.first.evaluate("one => getComputedStyle(one).color"))
        low, high = sorted((ink, background))
        assert (high + 0.05) / (low + 0.05) >= 4.5, selector


def test_a_screen_reader_is_told_what_happens(open_page):
    tab = open_page("grid")
    live = tab.locator("#live")
    assert live.get_attribute("aria-live") == "polite"
    tab.locator("#next").click()
    run = GRIDS["first"]
    assert live.inner_text().startswith(
        f"first: Forward 1 of {len(run.commit)}: {run.commit[0].sum()} written"
    )
    assert tab.locator("#at").get_attribute("aria-valuetext").startswith("Forward 1 of")
    # While it plays it is silent, and told where it stops.
    before = live.inner_text()
    tab.locator("#speed").select_option("fast")
    tab.locator("#play").click()
    wait_for(tab, lambda: at(tab) >= 3)
    assert live.inner_text() == before
    tab.locator("#play").click()
    assert f"first: {tab.locator('.status').first.inner_text()}" in live.inner_text()
    # Every control has a name, and every name that is seen is a part of it.
    for control in tab.locator("button, input, select").all():
        name = control.evaluate(
            "one => one.ariaLabel || one.labels[0]?.textContent || one.textContent"
        )
        assert name.strip()
        if control.evaluate("one => one.tagName") == "BUTTON":
            assert control.inner_text() in name
    tab.get_by_role("slider", name="Forward").wait_for()
    # Cells say where they are and what happened to them.
    place = int(np.flatnonzero(run.canvas[0] != 0)[0])
    cell = tab.locator(f'[role="cell"][data-place="{place}"]').first
    row, column = place // 10 + 1, place % 10 + 1
    text = run.texts[int(run.canvas[0, place])]
    label = f"row {row}, column {column}: {text}, given"
    assert cell.get_attribute("aria-label") == label
    for figure in tab.locator("svg").all():
        assert figure.get_attribute("role") == "img" and figure.get_attribute(
            "aria-label"
        )


def test_a_notebook_s_frame_shows_the_page(browser):
    tab = browser.new_page()
    problems = []
    tab.on("console", lambda message: problems.append(message.text))
    tab.set_content(page.frame(PAGES["grid"]))
    frame = tab.frame_locator("iframe")
    frame.locator("#next").click()
    assert frame.locator("#where").inner_text().startswith("1 of")
    tab.close()
    assert problems == []
