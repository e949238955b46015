"""What the loop refuses before anything is compiled."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers import TableDenoiser, prompts_of
from table_loop import DENOISER, MASK, run, table

from dlm_jax import samplers
from dlm_jax.core import loop
from dlm_jax.core.canvas import Prompts
from dlm_jax.core.keys import row_keys
from dlm_jax.core.options import Options
from dlm_jax.errors import InputError


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_length": 4}, "gen_length (6) must be a multiple of block_length (4)"),
        ({"gen_length": 0}, "gen_length (0) must be at least 1"),
        ({"gen_length": 5}, "gen_length (5) must be at least the blanks of the"),
        ({"temperature": -1.0}, "temperature (-1.0) must be at least 0 and finite"),
        ({"guidance": np.inf}, "guidance (inf) must be at least 0 and finite"),
        ({"logits_bytes": 0}, "logits_bytes (0) must be at least 1"),
    ],
)
def test_bad_options_are_named(change, message):
    options = dataclasses.replace(Options(gen_length=6), **change)
    with pytest.raises(InputError) as error:
        run("low_confidence", prompts_of([2], 6, vocab_size=9), options)
    assert message in str(error.value)


def test_bad_prompts_are_named():
    short = TableDenoiser(mask_id=MASK, max_length=7)
    prompts = prompts_of([2], 6, vocab_size=9)
    with pytest.raises(InputError, match=r"row length \(8\) must be at most .* \(7\)"):
        run("random", prompts, Options(gen_length=6), denoiser=short)
    hole = Prompts(prompts.tokens, prompts.is_blank & False, prompts.is_valid.copy())
    hole.is_valid[0, 1] = False
    with pytest.raises(InputError, match="must be a run from column 0"):
        run("random", hole, Options(gen_length=6))
    nothing = jax.tree.map(lambda x: x[:0], prompts)
    with pytest.raises(
        InputError, match=r"shape \(0, 8\)\) must have at least one row"
    ):
        run("random", nothing, Options(gen_length=6))
    outside = Prompts(prompts.tokens, prompts.is_blank, prompts.is_valid & False)
    with pytest.raises(InputError, match="is_blank must be False where is_valid"):
        run("random", outside, Options(gen_length=6))


def test_bad_sampler_values_are_named():
    prompts = prompts_of([2], 6, vocab_size=9)
    keys = row_keys(0, np.arange(1))
    for value, message in (
        ("high", r"Threshold: threshold \('high'\) must be a number"),
        (np.zeros(3), r"Threshold: threshold .* must be a number or an array"),
        (1.5, r"^Threshold: threshold \(1.5\) must be at most 1$"),
        (np.array([-0.25]), r"^Threshold: threshold \(-0.25\) must be at least 0$"),
        (np.nan, r"^Threshold: threshold \(nan\) must be at least 0$"),
    ):
        with pytest.raises(InputError, match=message):
            loop.generate(
                DENOISER,
                table(8),
                samplers.Threshold(threshold=value),
                prompts,
                keys,
                Options(gen_length=6),
            )
