"""The benchmark: the loops it races fill alike, and what the script says."""

import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DATA
from race_helpers import SUDOKU, prompts_of, race

from dlm_jax import checkpoints, samplers, zoo
from dlm_jax.core.keys import row_keys
from dlm_jax.core.options import Options
from dlm_jax.devices.runner import DataParallel, without_axis
from dlm_jax.models import as_denoiser
from dlm_jax.samplers.saber import Saber
from dlm_jax.tasks import sudoku
from dlm_jax.tasks.base import load
from dlm_jax.text.prompts import gen_length, pad
from experiments.timing import ceilings, races


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
        references={"PyTorch": fill},
    )
    assert result.num_equal == 2
    blanks = prompts_of(2).is_blank.sum(axis=1)
    # A rule that commits one token a step would show nothing but the order.
    is_one_a_step = (result.num_steps == blanks).all()
    assert is_one_a_step == (spec == "low_confidence")


@pytest.mark.parametrize(
    ("dtype", "num", "least"),
    [
        ("float64", 4, 4),
        pytest.param("float64", 16, 16, marks=pytest.mark.slow),
        pytest.param("float32", 16, 15, marks=pytest.mark.slow),
    ],
)
def test_saber_on_the_shipped_model_fills_as_pytorch_in_float64(dtype, num, least):
    """In float32 too: it compares 1 - p, which keeps its digits near p = 1.

    What is left in float32 is rounding of the forwards. With probabilities as they were
    computed before, 12 of 16 rows were the same.
    """
    torch = pytest.importorskip("torch")
    from dlm_jax.parity import torch_llada
    from experiments.timing import eager

    path = zoo.path("sudoku")
    with jax.enable_x64(dtype == "float64"):
        model, codec = load(SUDOKU, path, dtype)
        rows = SUDOKU.encode(codec, SUDOKU.examples("test", num))
        prompts = pad(rows, rows[0].tokens.size)
        options = Options(gen_length(rows, None))
        ours = DataParallel(*as_denoiser(model))(
            Saber(), prompts, row_keys(0, np.arange(num)), options
        )
    theirs = torch_llada.load_llada(path).to(torch.float64)
    tokens, num_steps = eager.fill(theirs, Saber(), prompts, sudoku.MASK_ID)
    is_equal = (ours.tokens == tokens).all(axis=1) & (ours.num_steps == num_steps)
    assert is_equal.sum() >= least
    # It takes back and goes on: no row has as many steps as another rule would.
    assert len(set(num_steps.tolist())) > num // 4


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
        references={"batches": functools.partial(races.without_queue, parallel)},
    )
    assert [result.num_equal for result in results] == [5, 5]


@pytest.mark.parametrize("guidance", [pytest.param(0.0, marks=pytest.mark.slow), 0.5])
def test_a_loop_driven_from_python_fills_as_the_compiled_one(checkpoint, guidance):
    specs = ["random", "saber"]
    rules = {spec: samplers.parse(spec) for spec in specs}
    options = Options(60, 20, temperature=0.5, guidance=guidance, num_slots=2)
    # In float64: two programs round differently, which decides Saber's drops.
    with jax.enable_x64(True):
        model = checkpoints.load(checkpoint, "float64")
        parallel = DataParallel(*as_denoiser(model))
        results = races.race(
            parallel,
            rules,
            prompts_of(5),
            options,
            forward=float,
            num_pairs=1,
            references={"host": functools.partial(races.host_driven, parallel)},
        )
    assert [result.num_equal for result in results] == [5, 5]


def test_script_writes_and_prints(run_script, checkpoint, tmp_path):
    output = tmp_path / "out.jsonl"
    status, out, err = run_script(
        "benchmark",
        f"--checkpoint={checkpoint}",
        "--reference=none",
        "--sampler=low_confidence",
        "--sampler=entropy_bound(gamma=2.0)",
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


@pytest.mark.parametrize(
    "other", [pytest.param("host", marks=pytest.mark.slow), "torch"]
)
def test_a_preset_runs_on_random_prompts_of_all_lengths(other, run_script, tmp_path):
    if other == "torch":
        pytest.importorskip("torch")
    output = tmp_path / "out.jsonl"
    status, out, err = run_script(
        "benchmark",
        "--preset=tiny",
        f"--reference={other}",
        "--seed=1",
        "--sampler=threshold(threshold=0.0)",
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
        assert f"{name} is the trace of threshold(threshold=0.0).\n" in out
        assert record["num_devices"] == 1
        assert f"{record['ratios'][0]:.2f} |" in out


@pytest.mark.parametrize("works", [True, False])
def test_a_compiled_pytorch_has_a_row_of_its_own(
    works, run_script, monkeypatch, tmp_path
):
    torch = pytest.importorskip("torch")
    modes = []

    def compile(model, mode=None, dynamic=None):
        if not works:
            raise RuntimeError("no compiler\nis found")
        modes.append(mode)
        return model

    monkeypatch.setattr(torch, "compile", compile)
    output = tmp_path / "out.jsonl"
    status, out, err = run_script(
        "benchmark",
        "--preset=tiny",
        "--torch_compile=reduce-overhead",
        "--sampler=threshold(threshold=0.0)",
        "--prompt_length=5",
        "--gen_lengths=8",
        "--batch_sizes=2",
        "--rows_per_slot=1",
        "--num_pairs=1",
        f"--output={output}",
    )
    assert status == 0, err
    records = [json.loads(line) for line in output.read_text().splitlines()]
    names = ["eager PyTorch", "torch.compile"] if works else ["eager PyTorch"]
    assert [record["reference"] for record in records] == names
    assert [record["num_equal"] for record in records] == [2] * len(names)
    line = (
        "is left out, for it does not work here: RuntimeError: no compiler is found\n"
    )
    assert (line in out) == (not works)
    # The first call is a trial.
    assert modes == ([None, "reduce-overhead"] if works else [])


@pytest.mark.slow
def test_pytorch_compiles_here_or_says_why_not():
    pytest.importorskip("torch")
    from experiments.timing import eager

    problem = eager.problem_of_compiling()
    assert problem is None or (problem and "\n" not in problem)


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
        "--sampler=threshold",
        "--batch_sizes=1",
        "--num_pairs=1",
    )
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert (
        "--reference=torch does not fit in memory beside dlm_jax: CUDA out of mem"
        in err
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--preset=tiny --prompt_length=200 --gen_lengths=4 --gen_lengths=57",
            "row length (257) must be at most the model's context (256)",
        ),
        ("--config.zoo=program", "the eager loop takes rows without padding"),
        ("--preset=tiny --sampler=margin", "there is no eager version of Margin"),
        ("--output=out --profile=out", "profile (out) must not lie at or in the outp"),
        ("--output=out --profile=x/../out/a", "profile (x/../out/a) must not lie at"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_timed(
    flags, message, run_script, monkeypatch
):
    pytest.importorskip("torch")
    from dlm_jax.parity import torch_models

    for module, name in ((ceilings, "matmul_peak"), (torch_models, "twin")):
        monkeypatch.setattr(module, name, None)
    status, out, err = run_script("benchmark", *flags.split())
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert message in err


def test_nothing_takes_a_device_before_the_script_says_how_much_of_it():
    child = """
from experiments import benchmark
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()
"""
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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
        ("--sampler=sabre", "sampler (sabre) must be one of"),
        ("--sampler=margin", "there is no eager version of Margin"),
        ("--batch_sizes=0", "batch_sizes (0) must be at least 1"),
        ("--batch_sizes=200", "num_examples (1600) must be at most 1000"),
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
