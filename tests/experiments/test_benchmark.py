"""The benchmark: its eager loop finds what ours finds, its arithmetic, its script."""

import json
import subprocess
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import DATA

from dlm_jax import checkpoints, samplers, zoo
from dlm_jax.core.keys import row_keys
from dlm_jax.core.options import Options
from dlm_jax.devices.runner import DataParallel, without_axis
from dlm_jax.models import as_denoiser
from dlm_jax.models.llada import LLaDA, tiny
from dlm_jax.samplers.saber import Saber
from dlm_jax.tasks import sudoku
from dlm_jax.tasks.base import load
from dlm_jax.text.codec import Codec
from dlm_jax.text.prompts import gen_length, pad
from experiments.timing import races, steps

SUDOKU = sudoku.Sudoku()
SHAPE = {"d_model": 32, "n_heads": 2, "n_layers": 2, "mlp_hidden_size": 48}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random Sudoku model whose confidences spread over (0, 1)."""
    config = SUDOKU.model_config(**SHAPE)
    graph, params = nnx.split(LLaDA(config, rngs=nnx.Rngs(0)))
    model = nnx.merge(graph, jax.tree.map(lambda weight: 4 * weight, params))
    directory = tmp_path_factory.mktemp("model") / "hf"
    files = SUDOKU.tokenizer().save_pretrained(tmp_path_factory.mktemp("tokenizer"))
    checkpoints.save_hf(model, directory, files)
    return directory


@pytest.fixture(scope="module")
def parallel(checkpoint):
    return DataParallel(*as_denoiser(checkpoints.load(checkpoint)))


def prompts_of(num):
    config = SUDOKU.model_config(**SHAPE)
    codec = Codec.of(SUDOKU.tokenizer(), config)
    return pad(SUDOKU.encode(codec, SUDOKU.examples("test", num)), 90)


def race(parallel, specs, num_slots=1, num_pairs=2, block_length=None, **options):
    rules = {spec: samplers.parse(spec) for spec in specs}
    loop = Options(60, block_length, num_slots=num_slots)
    return races.race(
        parallel,
        rules,
        prompts_of(2),
        loop,
        forward=float,
        num_pairs=num_pairs,
        **options,
    )


# Blocks of 12 blanks, of which the last is not full.
@pytest.mark.parametrize("block_length", [None, 12])
@pytest.mark.parametrize(
    "spec",
    [
        "low_confidence",
        "low_confidence(schedule=fixed(k=3))",
        "threshold(threshold=0.5)",
        "entropy_bound(gamma=1.0)",
        "saber",
        "saber(n=4, mu=2)",
    ],
)
def test_eager_loop_fills_as_ours_does(spec, block_length, checkpoint, parallel):
    torch = pytest.importorskip("torch")
    from dlm_jax.parity import torch_llada
    from experiments.timing import eager

    model = torch_llada.load_llada(checkpoint)

    def fill(sampler, prompts, keys):
        # Tensors that the loop makes must lie where the model does; by default, these
        # would lie nowhere.
        with torch.device("meta"):
            return eager.fill(model, sampler, prompts, sudoku.MASK_ID, block_length)

    (result,) = race(
        parallel,
        [spec],
        2,
        1,
        block_length,
        reference=fill,
    )
    assert result.num_equal == 2
    blanks = prompts_of(2).is_blank.sum(axis=1)
    # A rule that commits one token a step would show nothing but the order.
    is_one_a_step = (result.num_steps == blanks).all()
    assert is_one_a_step == (spec == "low_confidence")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_saber_on_the_shipped_model_fills_as_pytorch_in_float64(dtype):
    """In float32 too: it compares 1 - p, which keeps its digits near p = 1."""
    torch = pytest.importorskip("torch")
    from dlm_jax.parity import torch_llada
    from experiments.timing import eager

    path = zoo.path("sudoku")
    with jax.enable_x64(dtype == "float64"):
        model, codec = load(SUDOKU, path, dtype)
        rows = SUDOKU.encode(codec, SUDOKU.examples("test", 16))
        prompts = pad(rows, rows[0].tokens.size)
        options = Options(gen_length(rows, None))
        ours = DataParallel(*as_denoiser(model))(
            Saber(), prompts, row_keys(0, np.arange(16)), options
        )
    theirs = torch_llada.load_llada(path).to(torch.float64)
    tokens, num_steps = eager.fill(theirs, Saber(), prompts, sudoku.MASK_ID)
    np.testing.assert_array_equal(ours.tokens, tokens)
    np.testing.assert_array_equal(ours.num_steps, num_steps)
    # It takes back and goes on: no row has as many steps as another rule would.
    assert len(set(num_steps.tolist())) > 4


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
        reference=one_wrong_token_one_wrong_nfe,
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
        reference=reference,
        on_run=lambda: runs.append("end"),
    )
    # An untimed pass, then three pairs; two batches of a row.
    batches = ["theirs"] * 2
    assert runs == batches + ["end", *batches, "end"] * 3
    assert result.compile_seconds > 0
    assert result.seconds.shape == result.reference_seconds.shape == (3,)
    assert (result.seconds > 0).all()
    assert result.num_forwards == result.num_steps.sum()


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
        reference=reference,
    )
    assert result.batch_size == 4
    # An untimed pass and a pair, with as many rows at once as ours has.
    assert batches == [4, 1] * 2


def test_records_are_medians_of_neighbours():
    def result(name, seconds, reference, num_steps, num_forwards):
        return races.Result(
            sampler=name,
            length=90,
            batch_size=2,
            compile_seconds=1.0,
            seconds=np.array(seconds),
            reference_seconds=np.array(reference),
            forward_seconds=np.ones(3),
            num_steps=np.array(num_steps),
            num_forwards=num_forwards,
            num_tokens=30,
            num_equal=2,
        )

    one = result("one", [1.0, 4.0, 2.0], [2.0, 12.0, 2.0], [10, 20], 20)
    two = result("two", [0.5, 1.0, 1.0], [1.0, 1.0, 1.0], [2, 4], 5)
    first, second = races.records([one, two], num_cores=2)
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
    speed, gains = races.tables([first, second]).split("\n\n")
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in speed.splitlines()]
    assert cells[2] == [
        "one",
        "90",
        "2",
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
    assert cells[3] == ["two", "90", "2", "3.0", "60%", "2.00", "5.00", "0.40"]


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


def test_the_queue_changes_no_row(parallel):
    specs = ["random", "entropy_bound(gamma=2.0)"]
    rules = {spec: samplers.parse(spec) for spec in specs}
    options = Options(60, num_slots=2)
    results = races.race(
        parallel,
        rules,
        prompts_of(5),
        options,
        forward=float,
        num_pairs=1,
        seed=3,
        reference=races.without_queue(parallel, options),
    )
    assert [result.num_equal for result in results] == [5, 5]


@pytest.mark.parametrize("guidance", [0.0, 0.5])
def test_a_loop_driven_from_python_fills_as_the_compiled_one(parallel, guidance):
    specs = ["random", "saber"]
    rules = {spec: samplers.parse(spec) for spec in specs}
    options = Options(60, 20, temperature=0.5, guidance=guidance, num_slots=2)
    fill = races.host_driven(parallel, options)
    results = races.race(
        parallel,
        rules,
        prompts_of(5),
        options,
        forward=float,
        num_pairs=1,
        reference=fill,
    )
    assert [result.num_equal for result in results] == [5, 5]


def test_script_writes_and_prints(run_script, checkpoint, tmp_path):
    output = tmp_path / "out.jsonl"
    status, out, err = run_script(
        "benchmark",
        f"--checkpoint={checkpoint}",
        "--reference=none",
        "--samplers=low_confidence",
        "--samplers=entropy_bound(gamma=2.0)",
        "--batch_sizes=1",
        "--batch_sizes=2",
        "--rows_per_slot=2",
        "--num_pairs=1",
        f"--output={output}",
    )
    assert status == 0, err
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [record["batch_size"] for record in records] == [1, 1, 2, 2]
    assert [record["num_rows"] for record in records] == [2, 2, 4, 4]
    assert records[1]["nfe_gain"] > 1
    assert records[1]["busy_slots"] == 1
    assert 0.5 < records[3]["busy_slots"] <= 1
    assert "reference" not in out
    assert out.count("entropy_bound(gamma=2.0)") == 6
    for record in records:
        assert record["tokens_per_second"] > 0 and record["megabytes"] > 0
        # The loop does all that the forward alone does; the rest is noise of timing.
        assert record["beyond_forward"] > -0.5
        assert 0 < record["of_peak"] < 1


@pytest.mark.parametrize("other", ["host", "torch"])
def test_a_preset_runs_on_random_prompts_of_all_lengths(other, run_script, tmp_path):
    if other == "torch":
        pytest.importorskip("torch")
    output = tmp_path / "out.jsonl"
    status, out, err = run_script(
        "benchmark",
        "--preset=tiny",
        f"--reference={other}",
        "--seed=1",
        "--samplers=threshold(threshold=0.0)",
        "--prompt_length=5",
        "--gen_lengths=8",
        "--gen_lengths=12",
        "--block_length=4",
        "--batch_sizes=2",
        "--rows_per_slot=1",
        "--num_pairs=1",
        f"--output={output}",
        f"--profile={tmp_path / 'trace'}",
    )
    assert status == 0, err
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [record["length"] for record in records] == [13, 17]
    # One forward for each block.
    assert [record["nfe"] for record in records] == [2, 3]
    assert [record["num_equal"] for record in records] == [2, 2]
    for record in records:
        name = tmp_path / f"trace/batch2_length{record['length']}_sampler1"
        assert record["trace"] == str(name)
        assert len(list(name.rglob("*.xplane.pb"))) == 1
        assert f"{name} is of threshold(threshold=0.0).\n" in out
        assert record["num_devices"] == 1
        assert f"{record['ratios'][0]:.2f} |" in out


def test_too_little_memory_for_torch_is_one_line(run_script, monkeypatch):
    torch = pytest.importorskip("torch")
    from experiments.timing import eager

    def fill(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(eager, "fill", fill)
    status, out, err = run_script(
        "benchmark",
        "--preset=tiny",
        "--gen_lengths=4",
        "--prompt_length=0",
        "--samplers=threshold",
        "--batch_sizes=1",
        "--num_pairs=1",
    )
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "--reference=torch does not fit beside our loop: CUDA out of mem" in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--preset=tiny --prompt_length=200 --gen_lengths=4 --gen_lengths=57",
            "row length (257) must be at most the model's context (256)",
        ),
        ("--config.zoo=program", "the eager loop takes rows without padding"),
        ("--preset=tiny --samplers=margin", "there is no eager version of Margin"),
        ("--output=out --profile=out", "profile (out) must not lie at or in the outp"),
        ("--output=out --profile=x/../out/a", "profile (x/../out/a) must not lie at"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_timed(
    flags, message, run_script, monkeypatch
):
    pytest.importorskip("torch")
    for module, name in ((steps, "matmul_peak"), (checkpoints, "save_hf")):
        monkeypatch.setattr(module, name, None)
    status, out, err = run_script("benchmark", *flags.split())
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert message in err


def test_the_peak_is_not_measured_on_constants():
    x = steps.operand(64, jnp.bfloat16)
    assert x.dtype == jnp.bfloat16
    assert float(jnp.std(x.astype(float))) == pytest.approx(1, abs=0.1)


def test_nothing_takes_a_device_before_the_script_says_how_much_of_it():
    child = """
from experiments import benchmark
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()
"""
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_random_prompts_are_functions_of_their_seed():
    prompts = steps.synthetic(3, 4, 2, vocab_size=7, seed=1)
    assert prompts.tokens.shape == (3, 6) and prompts.tokens.max() < 7
    np.testing.assert_array_equal(prompts.is_blank, [[False] * 4 + [True] * 2] * 3)
    assert prompts.is_valid.all()
    again, other = (steps.synthetic(3, 4, 2, vocab_size=7, seed=s) for s in (1, 2))
    np.testing.assert_array_equal(again.tokens, prompts.tokens)
    assert (other.tokens != prompts.tokens).any()


def test_forwards_are_timed_around_every_run(parallel):
    clock = iter([1.0, 3.0, 2.0, 6.0])
    rules = {"saber": samplers.parse("saber")}
    options = Options(60, num_slots=2)
    (result,) = races.race(
        parallel,
        rules,
        prompts_of(2),
        options,
        forward=clock.__next__,
        num_pairs=2,
    )
    assert result.forward_seconds.tolist() == [2.0, 4.0]


def test_a_step_is_compared_with_forwards_beside_it():
    result = races.Result(
        "saber",
        16,
        2,
        1.0,
        seconds=np.array([11.0, 24.0, 33.0]),
        reference_seconds=None,
        forward_seconds=np.array([1.0, 2.0, 3.0]),
        num_steps=np.array([10, 10]),
        num_forwards=10,
        num_tokens=8,
        num_equal=None,
    )
    (record,) = steps.records(
        [result],
        tiny(),
        steps.Shape(2, 16, 8),
        regions={"saber": 8},
        peak=1e9,
        memory={"saber": 2_000_000},
    )
    # Ratios of 1.1, 1.2 and 1.1, where that of the medians is 1.2.
    assert record["beyond_forward"] == pytest.approx(0.1)
    assert (record["step_ms"], record["forward_ms"]) == (2400, 2000)
    assert record["megabytes"] == 2


def test_a_forward_is_timed_by_itself():
    parallel = DataParallel(*as_denoiser(LLaDA(tiny(), rngs=nnx.Rngs(0))))
    short, long = (
        steps.forward_timer(parallel, steps.Shape(2, length, 4))()
        for length in (8, 256)
    )
    assert 0 < short < long


def test_weights_that_are_given_up_are_held_once(parallel):
    kept = jax.tree.map(jnp.array, without_axis(parallel.first_shard()))
    given = jax.tree.map(jnp.copy, kept)
    call = (
        samplers.parse("threshold"),
        prompts_of(1),
        row_keys(0, np.arange(1)),
    )
    results = [
        DataParallel(parallel.denoiser, params, frees_params=is_given)(
            *call, Options(60)
        )
        for params, is_given in ((kept, False), (given, True))
    ]
    np.testing.assert_array_equal(results[0].tokens, results[1].tokens)
    assert not any(weight.is_deleted() for weight in jax.tree.leaves(kept))
    assert all(weight.is_deleted() for weight in jax.tree.leaves(given))
    held = jax.tree.leaves(parallel._params)[0].addressable_shards[0].data
    shared = jax.tree.leaves(parallel.first_shard())[0]
    assert held.unsafe_buffer_pointer() == shared.unsafe_buffer_pointer()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--samplers=sabre", "sampler (sabre) must be one of"),
        ("--samplers=margin", "there is no eager version of Margin"),
        ("--batch_sizes=0", "batch_sizes (0) must be at least 1"),
        ("--batch_sizes=200", "num (1600) must be at most 1000"),
        ("--config.split=sum", "split (sum) must be one of"),
        ("--num_pairs=0", "num_pairs (0) must be at least 1"),
        ("--rows_per_slot=0", "rows_per_slot (0) must be at least 1"),
        ("--output=.", "output (.) already exists"),
        ("--gen_lengths=0", "gen_lengths (0) must be at least 1"),
        ("--prompt_length=-100", "prompt_length (-100) must be at least 0"),
        ("--block_length=0", "block_length (0) must be at least 1"),
        (
            "--gen_lengths=8 --block_length=3",
            "gen_lengths (8) must be a multiple of block_length (3)",
        ),
        ("--preset=tiny", "preset and checkpoint cannot both be given"),
        ("--checkpoint=nowhere", "checkpoint (nowhere) is not a directory"),
        (
            f"--checkpoint={DATA / 'checkpoints/tiny_kv4_seed0'}",
            "holds no tokenizer.json",
        ),
    ],
)
def test_bad_input_is_one_line(flag, message, run_script, checkpoint):
    pytest.importorskip("torch")
    status, out, err = run_script(
        "benchmark", f"--checkpoint={checkpoint}", *flag.split()
    )
    assert (status, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1
