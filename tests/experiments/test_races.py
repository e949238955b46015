"""Races: what is run, in which order, and how it is counted."""

import functools
from unittest import mock

import numpy as np
import pytest
from helpers import DATA
from race_helpers import prompts_of, race

from dlm_jax import samplers
from dlm_jax.core.options import Options
from experiments.timing import race_tables, races, steps


def test_rows_that_differ_are_not_counted_equal(parallel):
    def one_wrong_token_one_wrong_nfe(sampler, prompts, keys):
        generation = parallel(sampler, prompts, keys, Options(60))
        tokens, num_steps = generation.tokens.copy(), generation.num_steps.copy()
        tokens[0, 0] += 1
        num_steps[1] += 1
        return tokens, num_steps

    (result,) = race(
        parallel,
        ["low_confidence"],
        num_slots=2,
        references={"wrong": one_wrong_token_one_wrong_nfe},
    )
    assert result.num_equal == 0


def test_race_alternates_and_compiles_before(parallel):
    runs = []

    def reference(sampler, prompts, keys):
        runs.append("theirs")
        return np.zeros((1, 90), int), np.ones(1, int)

    (result,) = race(
        parallel,
        ["entropy_bound(gamma=2.0)"],
        num_pairs=3,
        references={"theirs": reference},
        on_run=lambda: runs.append("end"),
    )
    # An untimed pass, then three pairs; two batches of a row.
    batches = ["theirs"] * 2
    assert runs == batches + ["end", *batches, "end"] * 3
    assert result.compile_seconds > 0
    assert result.seconds.shape == result.reference_seconds.shape == (3,)
    assert (result.seconds > 0).all()
    assert result.num_forwards == result.num_steps.sum()


def test_references_run_in_turn_and_have_a_result_each(parallel):
    runs = []

    def reference(name, sampler, prompts, keys):
        runs.append(name)
        generation = parallel(sampler, prompts, keys, Options(60))
        is_wrong = name == "second"
        return generation.tokens + is_wrong, generation.num_steps

    specs = ["entropy_bound(gamma=2.0)", "entropy_bound(gamma=4.0)"]
    results = race(
        parallel,
        specs,
        num_slots=2,
        num_pairs=2,
        references={
            name: functools.partial(reference, name) for name in ("first", "second")
        },
    )
    assert runs == ["first", "second"] * 2 * (1 + 2)
    assert [(x.sampler, x.reference, x.num_equal) for x in results] == [
        (spec, name, num)
        for spec in specs
        for name, num in (("first", 2), ("second", 0))
    ]
    one, other = results[:2]
    np.testing.assert_array_equal(one.seconds, other.seconds)
    assert (one.reference_seconds != other.reference_seconds).all()
    records = list(race_tables.records(results))
    assert [x["gain"] for x in records[:2]] == [1, 1]
    assert records[2]["gain"] == records[3]["gain"] != 1
    # What is of dlm_jax alone is printed once.
    speed, gains = race_tables.tables(records).split("\n\n")
    assert (speed.count("gamma"), gains.count("gamma")) == (4, 2)
    assert speed.count(" second ") == 2


def test_slots_of_all_devices_are_counted(parallel):
    """Two groups of two slots, each with half of the rows."""
    batches = []

    def reference(sampler, prompts, keys):
        batches.append(len(keys))
        return prompts.tokens, prompts.is_blank.sum(axis=1)

    groups = mock.Mock(wraps=parallel, num_groups=2, denoiser=parallel.denoiser)
    groups.side_effect = parallel
    options = Options(60, num_slots=2)
    rules = {"saber": samplers.parse("saber")}
    (result,) = races.race(
        groups,
        rules,
        prompts_of(5),
        options,
        forward=float,
        num_pairs=1,
        references={"theirs": lambda options: reference},
    )
    assert result.batch_size == 4
    # An untimed pass and a pair, with as many rows at once as ours has.
    assert batches == [4, 1] * 2


def test_records_are_medians_of_neighbours():
    def result(name, seconds, reference, num_steps, num_forwards):
        return races.Result(
            sampler=name,
            cache="none",
            reference="theirs",
            length=90,
            batch_size=2,
            compile_seconds=1.0,
            seconds=np.array(seconds),
            reference_seconds=np.array(reference),
            forward_seconds=np.ones(3),
            cached_seconds={},
            num_steps=np.array(num_steps),
            num_whole=np.array(num_steps),
            num_forwards=num_forwards,
            num_tokens=30,
            num_equal=2,
        )

    one = result("one", [1.0, 4.0, 2.0], [2.0, 12.0, 2.0], [10, 20], 20)
    two = result("two", [0.5, 1.0, 1.0], [1.0, 1.0, 1.0], [2, 4], 5)
    first, second = race_tables.records([one, two], num_cores=2)
    assert first["ratios"] == [2.0, 3.0, 1.0]
    assert first["ratio"] == 2.0
    assert first["rows_per_second"] == 1.0
    assert first["gain"] == first["gain_per_nfe_gain"] == 1.0
    assert second["gain"] == 2.0  # median of 2, 4, 2
    assert second["nfe_gain"] == 5.0
    assert (first["busy_slots"], second["busy_slots"]) == (0.75, 0.6)
    assert second["gain_per_nfe_gain"] == pytest.approx(0.4)
    assert second["num_cores"] == 2
    assert (first["tokens_per_second"], second["tokens_per_second"]) == (15.0, 30.0)
    speed, gains = race_tables.tables([first, second]).split("\n\n")
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in speed.splitlines()]
    assert cells[2] == [
        "one",
        "none",
        "90",
        "2",
        "theirs",
        "1.00",
        "1.00",
        "2.00",
        "2.00 3.00 1.00",
        "15",
        "2",
        "2",
        "1.0",
    ]
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in gains.splitlines()]
    assert cells[3] == ["two", "none", "90", "2", "3.0", "60%", "2.00", "5.00", "0.40"]


def test_headings_are_those_of_the_documentation():
    page = (DATA.parents[1] / "docs/results/speed.md").read_text()
    # The page leaves some columns out, and names its reference in the heading.
    own = {"length", "reference", "reference rows/s", "rows", "dlm_jax tokens/s"}
    own |= {"loop memory, MB", "cache", "of whole rows", "of windows"}
    own |= {"window alone, ms", "refresh alone, ms"}
    own.add("window / reading the block weights")
    for columns in (race_tables._SPEED, race_tables._GAINS, steps.COLUMNS):
        for title, _, _ in columns:
            assert title in own or f"| {title} |" in page, title


def test_in_batches_fills_all_rows_in_order():
    prompts, sizes = prompts_of(5), []

    def fill(sampler, batch, keys):
        assert len(keys) == len(batch.tokens)
        sizes.append(len(batch.tokens))
        return batch.tokens, batch.is_blank.sum(axis=1)

    tokens, num_steps = races.in_batches(fill, 2)(None, prompts, np.arange(5))
    assert sizes == [2, 2, 1]
    np.testing.assert_array_equal(tokens, prompts.tokens)
    np.testing.assert_array_equal(num_steps, prompts.is_blank.sum(axis=1))
