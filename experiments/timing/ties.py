"""Ties between blanks, and rows that two ways of filling them have in common."""

from typing import Any

import numpy as np

from dlm_jax.core.canvas import Generation, Prompts


def tied(result: Generation, prompts: Prompts, mask_id: int) -> float:
    """Share of steps in which two blanks have the greatest log-probability."""
    assert result.trajectory is not None
    num_tied = num_steps = 0
    for row, is_blank in enumerate(np.asarray(prompts.is_blank)):
        for step in range(int(result.num_steps[row])):
            is_mask = result.trajectory.canvas[row, step] == mask_id
            log_prob = result.trajectory.log_prob[row, step][is_mask & is_blank]
            num_tied += int((log_prob == log_prob.max()).sum() > 1)
            num_steps += 1
    return num_tied / num_steps


def num_equal(left: tuple[Any, Any], right: tuple[Any, Any]) -> int:
    """Rows with the same tokens and the same number of forwards."""
    is_equal = (np.asarray(left[0]) == np.asarray(right[0])).all(axis=1)
    return int((is_equal & (np.asarray(left[1]) == np.asarray(right[1]))).sum())
