"""Groups of few shapes, and runs of prompts through a sampler."""

import time

import jax
import numpy as np
import pytest
from helpers import TableDenoiser
from hypothesis import given
from hypothesis import strategies as st

from dlm_jax import samplers
from dlm_jax.core.keys import row_keys
from dlm_jax.core.loop import generate
from dlm_jax.core.options import Options
from dlm_jax.devices import batches
from dlm_jax.devices.runner import DataParallel
from dlm_jax.errors import InputError, OutOfMemory
from dlm_jax.text.prompts import Encoded, bucket, gen_length, groups, pad

MASK_ID, MAX_LENGTH, VOCAB_SIZE = 9, 128, 10
lengths_strategy = st.lists(st.integers(1, 100), min_size=1, max_size=20)


def rows_of(lengths, num_blanks: int) -> list[Encoded]:
    """Rows of different tokens, each ending in blanks."""
    rows = []
    for i, length in enumerate(lengths):
        tokens = np.full(length + num_blanks, MASK_ID, np.int32)
        tokens[:length] = (np.arange(length) + i) % 9
        rows.append(Encoded(tokens, tokens == MASK_ID, is_infill=False))
    return rows


@given(st.integers(1, 5000), st.sampled_from([100, 128, 4096]))
def test_buckets_are_tight_and_fixed_points(length, max_length):
    length = min(length, max_length)
    padded = bucket(length, max_length)
    assert length <= padded <= max_length
    assert padded - length < max(16, padded / 5)
    assert bucket(padded, max_length) == padded


def test_buckets_are_few():
    assert [bucket(n, 4096) for n in (1, 16, 17, 64, 65, 90, 129)] == [
        16,
        16,
        32,
        64,
        80,
        96,
        160,
    ]
    assert len({bucket(n, 4096) for n in range(1, 4097)}) == 28


@given(lengths_strategy, st.integers(1, 6))
def test_groups_hold_every_prompt_once(lengths, group_size):
    rows = rows_of(lengths, num_blanks=2)
    seen, widths = [], []
    for group in groups(rows, group_size, MAX_LENGTH):
        prompts = group.prompts
        assert prompts.tokens.shape[0] == group_size
        assert prompts.tokens.shape == prompts.is_blank.shape == prompts.is_valid.shape
        widths.append(prompts.tokens.shape[1])
        for i, tokens, is_blank, is_valid in zip(
            group.ids, prompts.tokens, prompts.is_blank, prompts.is_valid, strict=True
        ):
            if i < 0:
                assert not is_blank.any() and not is_valid.any()
                continue
            seen.append(i)
            size = rows[i].tokens.size
            np.testing.assert_array_equal(tokens[:size], rows[i].tokens)
            np.testing.assert_array_equal(np.flatnonzero(is_valid), np.arange(size))
            np.testing.assert_array_equal(
                np.flatnonzero(is_blank), [size - 2, size - 1]
            )
    assert sorted(seen) == list(range(len(lengths)))
    assert len(widths) == -(-len(lengths) // group_size)
    # The longest first: if memory is short, it is known at once.
    assert widths == sorted(widths, reverse=True) and widths[0] <= MAX_LENGTH


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, None), r"batch_size \(0\) must be at least 1"),
        ((3, 2), r"queue_length \(2\) must be at least batch_size \(3\)"),
    ],
)
def test_sizes_must_fit(sizes, message):
    denoiser = TableDenoiser(mask_id=MASK_ID, max_length=MAX_LENGTH)
    parallel = DataParallel(denoiser, jax.numpy.zeros((MAX_LENGTH, VOCAB_SIZE)))
    sampler, options = samplers.parse("threshold"), Options(gen_length=1)
    with pytest.raises(InputError, match=message):
        batches.stream(parallel, sampler, rows_of([3], 1), options, 0, *sizes)


@pytest.mark.parametrize(("block_length", "expected"), [(None, 7), (4, 8), (7, 7)])
def test_gen_length_holds_the_fullest_row(block_length, expected):
    rows = rows_of([5], 3) + rows_of([1], 7)
    assert gen_length(rows, block_length) == expected


def test_a_stream_gives_what_each_prompt_alone_gives():
    rows = rows_of([40, 5, 12], num_blanks=4)
    denoiser = TableDenoiser(mask_id=MASK_ID, max_length=MAX_LENGTH)
    table = jax.random.normal(jax.random.key(0), (MAX_LENGTH, VOCAB_SIZE))
    options = Options(gen_length=4, temperature=1.0)
    sampler = samplers.parse("low_confidence")
    parallel = DataParallel(denoiser, table)
    start = time.perf_counter()
    done = list(
        batches.stream(
            parallel=parallel,
            sampler=sampler,
            rows=rows,
            options=options,
            seed=7,
            batch_size=2,
            queue_length=2,
            ids=[5, 0, 8],
            period=0.0,
        )
    )
    elapsed = time.perf_counter() - start
    # The longest come first, and the shortest has a call of its own.
    assert [sorted(some.indices) for some in done] == [[0, 2], [1]]
    total = sum(some.seconds.sum() for some in done)
    compiling = sum(some.compile_seconds * some.indices.size for some in done)
    # What the stream does after its last rows belongs to none.
    assert 0.5 * elapsed < total + compiling <= elapsed
    assert total > 0 and compiling > 0
    for some in done:
        for row, i in enumerate(some.indices):
            size = rows[i].tokens.size
            alone = pad([rows[i]], length=size)
            keys = row_keys(7, np.array([5, 0, 8])[[i]])
            expected = generate(denoiser, table, sampler, alone, keys, options)
            tokens = some.filled.tokens[row, :size]
            np.testing.assert_array_equal(tokens, expected.tokens[0])
            assert not (tokens == MASK_ID).any()
            assert some.filled.num_steps[row] == 4
            assert some.filled.is_complete[row]
            assert some.seconds[row] > 0


def test_rows_that_are_not_asked_for_keep_their_place_and_take_no_forward():
    rows = rows_of([40, 5, 12, 7], num_blanks=4)
    denoiser = TableDenoiser(mask_id=MASK_ID, max_length=MAX_LENGTH)
    table = jax.random.normal(jax.random.key(0), (MAX_LENGTH, VOCAB_SIZE))
    parallel = DataParallel(denoiser, table)

    def run(is_asked):
        done = batches.stream(
            parallel=parallel,
            sampler=samplers.parse("low_confidence"),
            rows=rows,
            options=Options(gen_length=4, temperature=1.0),
            seed=7,
            batch_size=2,
            queue_length=2,
            is_asked=is_asked,
        )
        return {
            int(index): (some.filled.tokens[row], some.compile_seconds)
            for some in done
            for row, index in enumerate(some.indices)
        }

    whole = run(None)
    num_traces = len(denoiser.traces)
    some = run([False, True, True, False])
    assert sorted(some) == [1, 2] and sorted(whole) == [0, 1, 2, 3]
    for index, (tokens, compile_seconds) in some.items():
        np.testing.assert_array_equal(tokens, whole[index][0])
        # Calls have the shapes of the whole run: nothing is compiled.
        assert compile_seconds == 0
    # Rows 3 and 1 share a call, which nobody asks for.
    assert sorted(run([True, False, False, False])) == [0]
    assert run([False] * 4) == {}
    assert len(denoiser.traces) == num_traces


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of\nmemory"),
            "RESOURCE_EXHAUSTED: Out of memory",
        ),
        (MemoryError(), "no memory is left on this machine"),
    ],
)
@pytest.mark.parametrize("where", ["compile", "stream"])
def test_too_little_memory_names_the_batch_size(monkeypatch, where, error, reason):
    def fail(*arguments):
        raise error

    denoiser = TableDenoiser(mask_id=MASK_ID, max_length=MAX_LENGTH)
    parallel = DataParallel(denoiser, jax.numpy.zeros((MAX_LENGTH, VOCAB_SIZE)))
    # A generator fails when it is asked for its first rows.
    monkeypatch.setattr(
        parallel, where, lambda *a: map(fail, [1]) if where == "stream" else fail()
    )
    sampler, options = samplers.parse("threshold"), Options(gen_length=1)
    done = batches.stream(parallel, sampler, rows_of([3], 1), options, 0, 6)
    with pytest.raises(OutOfMemory) as caught:
        next(done)
    assert str(caught.value) == (
        "batch_size (6) must be smaller: this batch and model take more memory than "
        f"there is ({reason})"
    )


def test_another_failure_of_jax_stays_what_it_is():
    with (
        pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"),
        batches.too_large(3),
    ):
        raise jax.errors.JaxRuntimeError("INTERNAL: a defect")


def test_same_shapes_compile_once():
    table = jax.numpy.zeros((MAX_LENGTH, VOCAB_SIZE))
    denoiser = TableDenoiser(mask_id=MASK_ID, max_length=MAX_LENGTH)
    parallel = DataParallel(denoiser, table)
    options = Options(gen_length=2)
    for spec in ("threshold(threshold=0.5)", "threshold(threshold=0.7)"):
        sampler = samplers.parse(spec)
        done = batches.stream(parallel, sampler, rows_of([3, 4, 5], 2), options, 0, 2)
        assert sum(some.indices.size for some in done) == 3
    assert len(denoiser.traces) == 1
