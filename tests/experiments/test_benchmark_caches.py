"""The benchmark with caches: what it races, times, prints and refuses."""

import json

import numpy as np
import pytest
from helpers import DATA, prompts_of
from race_helpers import prompts_of as puzzles

from dlm_jax import caches, checkpoints, samplers
from dlm_jax.core.options import Options
from dlm_jax.devices.runner import DataParallel
from dlm_jax.models import as_denoiser
from dlm_jax.models.llada import tiny
from experiments.timing import ceilings, race_tables, races, roofline, steps

K3 = "low_confidence(schedule=fixed(k=3))"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Nothing here depends on how long a forward takes."""
    monkeypatch.setattr(steps, "_SECONDS", 0.001)


@pytest.mark.parametrize(
    "specs", [[K3], pytest.param([K3, "threshold"], marks=pytest.mark.slow)]
)
def test_every_sampler_runs_with_every_cache(parallel, specs):
    """And its references are told of the cache."""
    seen = []

    def fill_of(options):
        host_driven = races.host_driven(parallel, options)

        def fill(sampler, prompts, keys):
            seen.append(caches.to_spec(options.cache))
            return host_driven(sampler, prompts, keys)

        return fill

    clock = iter([2.0, 4.0] * len(specs))
    rules = samplers.parse_all(specs)
    results = races.race(
        parallel,
        rules,
        puzzles(3),
        Options(60, 12, num_slots=2),
        forward=float,
        num_pairs=1,
        plans={spec: caches.parse(spec) for spec in ("none", "dual")},
        cached=lambda cache: {"window": next(clock)} if cache == "dual" else {},
        references={"steps from Python": fill_of},
    )
    methods = [(spec, cache) for spec in rules for cache in ("none", "dual")]
    assert [(x.sampler, x.cache) for x in results] == methods
    # Two batches each time, the last of one row.
    assert seen == ["none", "none", "dual", "dual"] * 2 * len(specs)
    assert [x.num_equal for x in results] == [3] * 2 * len(specs)
    for x in results:
        is_cached = x.cache == "dual"
        assert x.cached_seconds == ({"window": 3.0} if is_cached else {})
        assert ((x.num_whole < x.num_steps) == is_cached).all()
    records = list(race_tables.records(results))
    for record in records:
        parts = record["whole_forwards"], record["window_forwards"]
        assert sum(parts) == pytest.approx(record["nfe"])
        assert (parts[1] > 0) == (record["cache"] == "dual")
    assert "of windows" in race_tables.tables(records)
    assert "of windows" not in race_tables.tables(records[:1])


class Shaped:
    """A denoiser that notes how many columns of how many rows it was given."""

    def __init__(self, denoiser):
        self.inner, self.shapes = denoiser, set()

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def denoise(self, params, view, region, cache):
        assert cache != ()
        given = view.tokens if view.columns is None else view.columns
        self.shapes.add(given.shape)
        return self.inner.denoise(params, view, region, cache)


@pytest.mark.parametrize(("plan", "width"), [("dual", 8), ("prefix", 16)])
def test_the_forwards_of_a_cache_are_those_of_the_loop(plan, width):
    path = DATA / "checkpoints" / "tiny_kv2_seed3"
    denoiser, params = as_denoiser(checkpoints.load(path))
    shaped = Shaped(denoiser)
    options = Options(16, 8, cache=caches.parse(plan), num_slots=3, num_refreshed=2)
    timer = steps.cached_timer(
        DataParallel(shaped, params), prompts_of([8] * 4, 16), options
    )
    # Two rows whole, a window of each of the three in slots.
    assert shaped.shapes == {(2, 24), (3, width)}
    seconds = timer()
    assert seconds.keys() == {"refresh", "window"}
    assert min(seconds.values()) > 0


def test_a_window_is_compared_with_reading_the_weights():
    result = races.Result(
        sampler="saber",
        cache="dual",
        reference=None,
        length=16,
        batch_size=2,
        compile_seconds=1.0,
        seconds=np.array([11.0, 24.0, 33.0]),
        reference_seconds=None,
        forward_seconds=np.array([1.0, 2.0, 3.0]),
        cached_seconds={
            "refresh": np.array([0.5, 0.75, 1.0]),
            "window": np.array([0.25, 0.5, 0.25]),
        },
        num_steps=np.array([10, 10]),
        num_whole=np.array([2, 4]),
        num_forwards=10,
        num_tokens=8,
        num_equal=None,
    )
    method = "saber", "dual"
    (record,) = steps.records(
        [result],
        tiny(),
        steps.Shape(2, 16, 8),
        regions={method: 8},
        reached=ceilings.Ceilings(1e9, 8.0 * roofline.block_parameters(tiny())),
        memory={method: 2_000_000},
        itemsize=2,
    )
    # Two bytes a parameter are a quarter of what is copied in a second.
    assert (record["weights_ms"], record["window_per_weights"]) == (250, 1)
    assert (record["refresh_ms"], record["window_ms"]) == (750, 250)
    # Of steps that are of both kinds, there is no one forward to compare with.
    assert record["beyond_forward"] is record["of_peak"] is None
    # ... as there is in the records of other caches.
    table = race_tables.table([record, {**record, "of_peak": 0.5}], steps.COLUMNS[9:])
    assert "step beyond the forward" not in table
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == [
        "-",
        "50%",
    ]


def test_a_cache_on_puzzles_is_recorded_and_printed(run_script, checkpoint, tmp_path):
    output = tmp_path / "out.jsonl"
    status, out, err = run_script(
        "benchmark",
        f"--checkpoint={checkpoint}",
        "--reference=none",
        f"--sampler={K3}",
        "--cache=none",
        "--cache=dual(refresh_every=4)",
        "--block_length=16",
        "--num_refreshed=2",
        "--precision=default",
        "--batch_sizes=2",
        "--rows_per_slot=1",
        "--num_pairs=1",
        f"--output={output}",
        f"--profile={tmp_path / 'trace'}",
    )
    assert status == 0, err
    none, dual = (json.loads(line) for line in output.read_text().splitlines())
    assert (none["cache"], dual["cache"]) == ("none", "dual(refresh_every=4)")
    assert none["window_forwards"] == 0 < dual["window_forwards"]
    assert none["precision"] == dual["precision"] == "default"
    assert dual["window_ms"] > 0 and dual["refresh_ms"] > 0
    assert "window_ms" not in none and none["weights_ms"] == dual["weights_ms"] > 0
    assert out.count("| dual(refresh_every=4) |") == 3
    assert "window alone, ms" in out and "of whole rows" in out
    name = tmp_path / "trace/batch2_length90_sampler1"
    assert f"{name} is the trace of {K3}.\n" in out
    assert f"{name}_cache2 is the trace of {K3}, cache dual(refresh_every=4).\n" in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--cache=triple", "cache (triple) must be one of none"),
        ("--cache=dual", "cache (dual) must be used with block_length"),
        (
            "--block_length=4 --cache=dual --cache=dual(refresh_every=0)",
            "cache (dual, dual) must differ",
        ),
        ("--block_length=4 --cache=block", "cache (Block) must be used with a model"),
        (
            "--block_length=4 --cache=dual --num_refreshed=0",
            "num_refreshed (0) must be",
        ),
        (
            "--block_length=4 --cache=dual --sampler=margin",
            "no eager version of Margin",
        ),
    ],
)
def test_a_cache_that_does_not_fit_is_refused_before_anything_is_timed(
    flags, message, run_script, monkeypatch
):
    pytest.importorskip("torch")
    from dlm_jax.parity import torch_models

    for module, name in ((ceilings, "matmul_peak"), (torch_models, "twin")):
        monkeypatch.setattr(module, name, None)
    status, out, err = run_script(
        "benchmark", "--preset=tiny", "--gen_lengths=8", *flags.split()
    )
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert message in err
