"""The table of ties and of equality between float32 and float64."""

import numpy as np
import pytest

from dlm_jax.core.canvas import Generation, Prompts, Trajectory
from experiments.timing.ties import tied


def test_script_prints_a_row_per_sampler(run_script):
    pytest.importorskip("torch")
    arguments = ["--num_examples=2", "--sampler=threshold", "--sampler=saber"]
    status, out, error = run_script("certainty", *arguments)
    assert (status, error) == (0, "")
    lines = [[c.strip() for c in x.strip("|").split("|")] for x in out.splitlines()]
    assert [line[0] for line in lines[2:]] == ["`threshold`", "`saber`"]
    assert all(cells[2:] == ["2 of 2"] * 3 for cells in lines[2:])
    status, _, error = run_script("certainty", "--sampler=margin")
    assert status == 1 and "no eager version" in error and error.count("\n") == 1


def test_ties_are_counted_among_the_blanks_that_are_left():
    mask = 9
    canvas = np.array([[[5, mask, mask, mask], [5, mask, mask, 1], [5, 2, mask, 1]]])
    log_prob = np.array([[[0.0, -1, -1, -2], [-1.0, -1, -2, 0], [0, 0, -3, 0]]])
    is_blank = np.array([[False, True, True, True]])
    nothing = np.zeros_like(log_prob, bool)
    result = Generation(
        tokens=canvas[:, -1],
        num_steps=np.array([3]),
        num_whole=np.array([3]),
        num_stores=np.array([0]),
        last_iteration=np.array([3]),
        commit_step=canvas[:, -1],
        confidence=log_prob[:, -1],
        is_complete=np.array([True]),
        has_nan=np.array([False]),
        trajectory=Trajectory(canvas, log_prob, nothing, nothing),
    )
    prompts = Prompts(canvas[:, 0], is_blank, np.ones_like(is_blank))
    # A tie for the best in the first step only: decided positions do not count.
    assert tied(result, prompts, mask) == pytest.approx(1 / 3)
