"""How far a script is, in a terminal and in a log file."""

import io
import re
import threading
import time

import pytest

from experiments import _progress
from experiments._progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """Time that stands still until it is set."""
    now = [100.0]
    monkeypatch.setattr(_progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_says_rows_rate_nfe_and_time_left(clock):
    with Progress(1200, "row") as progress:
        assert progress.line() == (
            "0 of 1,200 rows, compiling or filling the first ones"
        )
        progress.describe("saber")
        progress.add([10, 20])
        clock[0] += 4
        assert progress.line() == (
            "2 of 1,200 rows, 0.5 rows/s, 0:39:56 left; saber: mean NFE 15.0"
        )


def test_samplers_have_means_of_their_own(clock):
    """They take turns: the rows are of all, the NFE of the one that is named."""
    with Progress(8, "row") as progress:
        progress.describe("saber")
        progress.add([10, 20])
        progress.describe("threshold")
        clock[0] += 1
        assert progress.line().endswith("threshold: no row yet")
        progress.add([2, 4])
        assert progress.line() == (
            "4 of 8 rows, 4 rows/s, 0:00:01 left; threshold: mean NFE 3.0"
        )
        progress.describe("saber")
        progress.add([30])
        assert progress.line().startswith("5 of 8 rows")
        assert progress.line().endswith("; saber: mean NFE 20.0")


def test_rows_of_earlier_runs_take_no_time(clock):
    with Progress(110, "row") as progress:
        progress.add_known([4] * 90)
        assert progress.line().startswith("90 of 110 rows, compiling")
        clock[0] += 10
        progress.add([14] * 10)
        # One a second, and ten are left.
        assert progress.line() == (
            "100 of 110 rows, 1 rows/s, 0:00:10 left; mean NFE 5.0"
        )


def test_a_log_file_gets_lines_also_while_nothing_is_done(capsys):
    with Progress(4, "row", period=0.05) as progress:
        time.sleep(0.3)
        progress.add([8])
        time.sleep(0.3)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "0 of 4 rows, compiling or filling the first ones"
    assert re.fullmatch(
        r"1 of 4 rows, [\d.]+ rows/s, 0:00:\d\d left; mean NFE 8.0", lines[-1]
    )
    assert 4 <= len(lines) <= 12
    # And none after the end.
    time.sleep(0.15)
    assert capsys.readouterr().err == ""


def test_a_short_run_says_nothing(capsys):
    with Progress(4, "row") as progress:
        progress.add([8])
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_bar_and_no_lines(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", terminal)
    before = threading.active_count()
    with Progress(4, "row", period=0.01) as progress:
        progress.add_known([2, 2], correct="50.0%")
        progress.describe("saber")
        progress.add([8, 8], correct="75.0%")
        assert "saber: mean NFE 8.0, correct 75.0%" in str(progress._bar)
        time.sleep(0.1)
    said = terminal.getvalue()
    assert "saber: mean NFE 8.0" in said and "4/4" in said
    assert " left; " not in said
    # A bar may have a monitor of its own, which stays.
    assert threading.active_count() <= before + 1


def test_a_failure_ends_the_lines():
    with pytest.raises(ValueError), Progress(4, "row", period=0.01) as progress:
        raise ValueError
    assert not progress._thread.is_alive()
