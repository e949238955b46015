"""Schedules against their published formulas, and in the loop over several blocks."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm_jax import samplers
from dlm_jax.core.canvas import Canvas, Prompts, View
from dlm_jax.core.checks import prepare
from dlm_jax.core.keys import row_keys
from dlm_jax.core.loop import generate
from dlm_jax.core.options import Options
from dlm_jax.errors import InputError
from dlm_jax.samplers import schedules

BLOCK_LENGTH = 32


@jax.jit
def _count(schedule, num_masks, block_masks, block_step, step, num_blocks):
    """The schedule's answer on a canvas with these counters."""
    positions = jnp.arange(BLOCK_LENGTH, dtype=jnp.int32)
    is_eligible = positions < num_masks
    return schedule.count(
        Canvas(
            tokens=positions,
            is_mask=is_eligible,
            is_editable=positions >= 0,
            is_open=positions >= 0,
            is_eligible=is_eligible,
            is_valid=positions >= 0,
            blanks=positions,
            block=jnp.int32(0),
            block_start=jnp.int32(0),
            block_column=jnp.int32(0),
            block_step=block_step,
            block_masks=block_masks,
            is_final=jnp.bool_(False),
            num_blocks=num_blocks,
            step=step,
            num_forwards=step,
            block_length=BLOCK_LENGTH,
            mask_id=0,
        )
    )


def _run_block(schedule, num_masks, num_blocks=1, first_step=0):
    """Counts of every step of one block, until it is full."""
    left, counts = num_masks, []
    while left:
        step = len(counts)
        count = _count(
            schedule,
            *(
                jnp.int32(x)
                for x in (left, num_masks, step, first_step + step, num_blocks)
            ),
        )
        counts.append(min(int(count), left))
        left -= counts[-1]
        assert step <= 2000, "the block never fills"
    return counts


@pytest.mark.parametrize("k", [1, 5, 12, 20])
def test_fixed_takes_k(k):
    counts = _run_block(schedules.Fixed(jnp.int32(k)), 12)
    assert counts[:-1] == [k] * (len(counts) - 1)
    assert sum(counts) == 12


@settings(max_examples=40, deadline=None)
@given(num_masks=st.integers(1, BLOCK_LENGTH), steps=st.integers(1, 40))
def test_quota_divides_the_block_whatever_is_open(num_masks, steps):
    """The shares of a full block, until nothing is left."""
    counts = _run_block(schedules.Quota(jnp.int32(steps)), num_masks, num_blocks=3)
    shares = [len(x) for x in np.array_split(np.arange(BLOCK_LENGTH), steps) if len(x)]
    left = num_masks - np.cumsum([0, *shares])
    expected = [min(a, b) for a, b in zip(shares, left, strict=False) if b > 0]
    assert counts == expected


@settings(max_examples=40, deadline=None)
@given(
    num_masks=st.integers(1, BLOCK_LENGTH),
    steps=st.integers(1, 80),
    num_blocks=st.integers(1, 4),
)
def test_linear_is_lladas_division(num_masks, steps, num_blocks):
    """Shares differ by at most one, the larger ones first, in steps // blocks steps."""
    counts = _run_block(schedules.Linear(jnp.int32(steps)), num_masks, num_blocks)
    block_steps = max(steps // num_blocks, 1)
    shares = [len(part) for part in np.array_split(np.arange(num_masks), block_steps)]
    assert counts == [share for share in shares if share]


def _unless_near_integer(value):
    """floor(value), or None where float32 may fall on the other side."""
    return math.floor(value) if abs(value - round(value)) > 1e-4 else None


@settings(max_examples=40, deadline=None)
@given(
    num_masks=st.integers(1, BLOCK_LENGTH),
    steps=st.integers(1, 40),
    eps=st.sampled_from([1e-3, 0.1]),
)
def test_dream_takes_its_share_of_the_masks(num_masks, steps, eps):
    """A share of 1 - s / t, on linspace(1, eps, steps + 1); what is left comes last."""
    schedule = schedules.Dream(steps=steps, eps=jnp.float32(eps))
    counts = _run_block(schedule, num_masks)
    assert len(counts) <= steps
    times = np.linspace(1, eps, steps + 1)
    left = num_masks
    for step, count in enumerate(counts):
        share = _unless_near_integer(left * (1 - times[step + 1] / times[step]))
        if step == steps - 1:
            assert count == left
        elif share is not None:
            assert count == share
        left -= count
    assert left == 0


@settings(max_examples=40, deadline=None)
@given(num_masks=st.integers(1, BLOCK_LENGTH), steps=st.integers(1, 40))
def test_cosine_leaves_maskgits_number_of_masks(num_masks, steps):
    """floor(m cos(pi k / 2 s)) masks are left after step k, but a step takes one."""
    counts = _run_block(schedules.Cosine(jnp.int32(steps)), num_masks)
    assert len(counts) <= steps or len(counts) == num_masks
    left = num_masks
    for step, count in enumerate(counts, start=1):
        goal = _unless_near_integer(
            num_masks * math.cos(math.pi / 2 * min(step / steps, 1))
        )
        if step >= steps:
            goal = 0
        if goal is not None:
            assert count == max(left - goal, 1)
        left -= count
    assert left == 0


def test_cosine_starts_slowly():
    counts = _run_block(schedules.Cosine(jnp.int32(8)), 32)
    assert sum(counts[:4]) < sum(counts[4:])


@dataclasses.dataclass(frozen=True)
class Constant:
    """A denoiser that always predicts token 1."""

    mask_id: int = 0
    eos_id: int = 1
    max_length: int = 64
    model_axis: None = None
    is_block_causal: bool = False

    def init_cache(self, params, batch_size, length):
        return ()

    def sources(self, region):
        return region

    def denoise(self, params, view: View, region, cache):
        return jnp.ones((*region.shape, 1)), cache

    def head(self, params):
        return jnp.array([[0.0], [1.0], [0.0]])


# Rows of an infilling: blanks in several places, 1 to 15 of them, in blocks of 4.
BLANKS = (
    [1, 2, 3, 9, 10, 11, 12, 13, 14, 20, 22, 24, 26, 28, 30],
    [0, 5, 6, 7, 8, 31],
    [4],
    list(range(8, 20)),
)


@pytest.mark.parametrize(
    "spec",
    [
        "fixed",
        "fixed(k=3)",
        *(
            f"{name}(steps={steps})"
            for name in ("linear", "cosine", "dream")
            for steps in (4, 8, 52)
        ),
    ],
)
def test_infilling_fills_every_block_in_turn(spec):
    sampler = samplers.parse(f"left_to_right(schedule={spec})")
    is_blank = np.zeros((len(BLANKS), 32), bool)
    for row, blanks in enumerate(BLANKS):
        is_blank[row, blanks] = True
    prompts = Prompts(np.full((len(BLANKS), 32), 2), is_blank, np.ones_like(is_blank))
    options = Options(gen_length=16, block_length=4)
    result = generate(
        Constant(), (), sampler, prompts, row_keys(0, np.arange(len(BLANKS))), options
    )
    assert np.asarray(result.is_complete).all()
    assert (np.asarray(result.num_steps) <= sampler.max_steps(16)).all()
    np.testing.assert_array_equal(result.tokens, np.where(is_blank, 1, 2))
    for row, blanks in enumerate(BLANKS):
        commit_step = np.asarray(result.commit_step)[row, blanks]
        num_blocks, first_step = -(-len(blanks) // 4), 0
        schedule = sampler.schedule
        for block in range(num_blocks):
            steps = commit_step[block * 4 : block * 4 + 4]
            expected = _run_block(schedule, len(steps), num_blocks, first_step)
            counts = np.bincount(steps - first_step, minlength=len(expected))
            assert counts.tolist() == expected, (row, block)
            first_step += len(expected)
        assert result.num_steps[row] == first_step


def _rows_of_sixteen(num_rows):
    """Rows that are blank from end to end, and options for them: four blocks."""
    is_blank = np.ones((num_rows, 16), bool)
    prompts = Prompts(np.zeros((num_rows, 16), int), is_blank, is_blank)
    return prompts, Options(gen_length=16, block_length=4)


@pytest.mark.parametrize("name", ["linear", "cosine", "dream"])
@pytest.mark.parametrize("steps", [4, 8, 16])
def test_a_multiple_of_the_blocks_runs_as_many_forwards_as_asked(name, steps):
    sampler = samplers.parse(f"left_to_right(schedule={name}(steps={steps}))")
    prompts, options = _rows_of_sixteen(1)
    keys = row_keys(0, np.arange(1))
    result = generate(Constant(), (), sampler, prompts, keys, options)
    assert result.num_steps.tolist() == [steps]


@pytest.mark.parametrize("name", ["linear", "cosine", "dream"])
@pytest.mark.parametrize("steps", [1, 3, 6, 15])
def test_other_steps_are_refused_before_anything_is_compiled(name, steps):
    class Untouched(Constant):
        def denoise(self, *arguments):
            raise AssertionError("the model was traced")

    sampler = samplers.parse(f"left_to_right(schedule={name}(steps={steps}))")
    prompts, options = _rows_of_sixteen(1)
    with pytest.raises(InputError) as error:
        generate(Untouched(), (), sampler, prompts, row_keys(0, np.arange(1)), options)
    assert str(error.value) == (
        f"{name.title()}: steps ({steps}) must be a multiple of the number of blocks "
        "(4, of gen_length 16 and block_length 4)"
    )
    # One block takes any number.
    prepare(Constant(), sampler, prompts, Options(gen_length=16))


@pytest.mark.parametrize("schedule", [schedules.Linear, schedules.Cosine])
def test_steps_of_every_row_are_checked(schedule):
    prompts, options = _rows_of_sixteen(3)
    good = samplers.Margin(schedule=schedule(steps=np.array([4, 8, 12])))
    prepare(Constant(), good, prompts, options)
    bad = samplers.Margin(schedule=schedule(steps=np.array([4, 8, 6])))
    with pytest.raises(InputError, match=r"steps \(6\) must be a multiple of"):
        prepare(Constant(), bad, prompts, options)


def test_a_rule_of_ones_own_can_refuse_lengths():
    class Picky(samplers.Margin):
        def check(self, gen_length, block_length):
            raise InputError(f"{gen_length} in blocks of {block_length}")

    prompts, options = _rows_of_sixteen(1)
    with pytest.raises(InputError, match=r"^16 in blocks of 4$"):
        prepare(Constant(), Picky(), prompts, options)
    with pytest.raises(InputError, match=r"^16 in blocks of 16$"):
        prepare(Constant(), Picky(), prompts, Options(gen_length=16))
