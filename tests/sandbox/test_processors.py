"""Verdicts that do not depend on processors: how many there are, how busy they are."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sandbox_programs import checked, judged

from dlm_jax.evaluation import calls, provenance
from dlm_jax.sandbox import processors, sandbox
from dlm_jax.sandbox.sandbox import Limits
from dlm_jax.tasks.base import Example, Verdict

# Half a second of a processor.
BUSY = (
    "import time\ndef f(x):\n    end = time.process_time() + 0.5\n"
    "    while time.process_time() < end:\n        pass\n    return 4\n"
)


def tree(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/", {}, 64),
        ("0::/", {"cpu.max": "max 100000"}, 64),
        ("0::/", {"cpu.max": "400000 100000"}, 4),
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        ("0::/", {"cpu.max": "250000 100000"}, 2),
        ("0::/", {"cpu.max": "nonsense"}, 64),
        # The tightest of the groups around it; a path that is the host's.
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, 3),
        ("0::/a/b", {"a/b/cpu.max": "200000 100000", "a/cpu.max": "max 1"}, 2),
        ("0::/docker/123", {"cpu.max": "500000 100000"}, 5),
        ("0::/../x", {"cpu.max": "500000 100000"}, 5),
        # The first version, alone and beside the second.
        (
            "7:memory:/m\n3:cpu,cpuacct:/j\n0::/",
            {
                "cpu,cpuacct/j/cpu.cfs_quota_us": "700000",
                "cpu,cpuacct/j/cpu.cfs_period_us": "100000",
                "memory/m/cpu.cfs_quota_us": "100000",
            },
            7,
        ),
        (
            "1:cpu:/",
            {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
            64,
        ),
        (
            "4:cpu,cpuacct:/",
            {"cpu/cpu.cfs_quota_us": "600000", "cpu/cpu.cfs_period_us": "100000"},
            6,
        ),
    ],
)
def test_affinity_and_quotas_bound_the_processors(
    groups, files, expected, tmp_path, monkeypatch
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), False)
    proc = tree(tmp_path / "proc", {"self/cgroup": groups})
    cgroups = tree(tmp_path / "cgroups", files)
    assert processors.usable(proc, cgroups) == expected
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, False)
    assert processors.usable(proc, cgroups) == min(expected, 2)


def test_a_system_that_tells_nothing_has_all_its_processors(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert processors.usable(tmp_path, tmp_path) == 12
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert processors.usable(tmp_path, tmp_path) == 1


def test_no_more_answers_are_judged_at_once_than_processors(monkeypatch):
    monkeypatch.setattr(processors, "usable", lambda: 3)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    running, most = [], []

    class Slow:
        def verdict(self, example, answer):
            running.append(answer)
            most.append(len(running))
            time.sleep(0.05)
            running.pop()
            return Verdict(True, "")

    class Answer:
        text = name = reason = ""
        nfe = num_whole = num_tokens = seconds = compile_seconds = 0
        is_complete = True
        has_nan = False

    records = calls._judge(Slow(), [Example("", "")] * 12, [Answer()] * 12)
    assert len(records) == 12 and max(most) == 3
    assert provenance.environment()["num_cores"] == 3


@pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="Linux tells it")
@pytest.mark.parametrize("is_checked", [False, True])
def test_waiting_for_a_processor_costs_a_program_nothing(is_checked):
    layers = sandbox.strongest_layers()
    # Five times as many programs as fit into the wall time.
    limits = Limits(cpu_seconds=10, wall_seconds=0.8)

    def judge(_):
        if is_checked:
            return checked(BUSY, "assert candidate(2) == 4", limits, layers=layers)
        return judged(BUSY, limits, layers=layers)

    before = os.sched_getaffinity(0)
    try:
        # Threads, and the processes that they start, have it from this one.
        os.sched_setaffinity(0, {min(before)})
        with ThreadPoolExecutor(8) as pool:
            outcomes = list(pool.map(judge, range(8)))
    finally:
        os.sched_setaffinity(0, before)
    assert [outcome.reason for outcome in outcomes] == [""] * 8
    assert max(outcome.seconds for outcome in outcomes) > 0.8


@pytest.mark.parametrize("is_checked", [False, True])
def test_sleeping_is_still_bounded(is_checked):
    source = "import time\ndef f(x):\n    time.sleep(60)\n    return 4"
    limits = Limits(wall_seconds=1.0)
    begun = time.monotonic()
    if is_checked:
        outcome = checked(source, "assert candidate(2) == 4", limits)
    else:
        outcome = judged(source, limits)
    assert outcome.status == "timeout"
    assert outcome.reason == "not done after 1 s of wall time"
    assert time.monotonic() - begun < 30


def test_calls_share_their_wall_time():
    source = "import time\ndef f(x):\n    time.sleep(0.4)\n    return x"
    made = sandbox.calls(
        source, "f", [(i,) for i in range(9)], Limits(wall_seconds=1.0)
    )
    assert made.status == "timeout" and 1 <= len(made.results) <= 3
