"""The benchmark: its eager loop finds what ours finds, its arithmetic, its script."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from helpers import DATA

from dlm_jax import batching, bench, checkpoints, samplers, text
from dlm_jax.models import as_denoiser
from dlm_jax.models.llada import LLaDA
from dlm_jax.parallel import DataParallel
from dlm_jax.tasks import sudoku
from dlm_jax.types import Options

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
    codec = text.Codec.of(SUDOKU.tokenizer(), config)
    return batching.pad(SUDOKU.encode(codec, SUDOKU.examples("test", num)), 90)


def race(parallel, specs, num_slots=1, num_pairs=2, **options):
    rules = {spec: samplers.parse(spec) for spec in specs}
    slots = Options(60, num_slots=num_slots)
    return bench.race(
        parallel, rules, prompts_of(2), slots, num_pairs=num_pairs, **options
    )


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
def test_eager_loop_fills_as_ours_does(spec, checkpoint, parallel):
    pytest.importorskip("torch")
    from dlm_jax import eager, reference

    model = reference.load_llada(checkpoint)

    def fill(sampler, prompts):
        return eager.fill(model, sampler, prompts, sudoku.MASK_ID)

    (result,) = race(parallel, [spec], num_slots=2, num_pairs=1, reference=fill)
    assert result.num_equal == 2
    blanks = prompts_of(2).is_blank.sum(axis=1)
    # A rule that commits one token a step would show nothing but the order.
    is_one_a_step = (result.num_steps == blanks).all()
    assert is_one_a_step == (spec == "low_confidence")


def test_rows_that_differ_are_not_counted_equal(parallel):
    def one_wrong_token_one_wrong_nfe(sampler, prompts):
        keys = jax.random.split(jax.random.key(0), 2)
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

    def reference(sampler, prompts):
        runs.append("theirs")
        return np.zeros((2, 90), int), np.ones(2, int)

    (result,) = race(
        parallel,
        ["entropy_bound(gamma=2.0)"],
        num_pairs=3,
        reference=reference,
        on_run=lambda: runs.append("end"),
    )
    # An untimed pass, then three pairs.
    assert runs == ["theirs"] + ["end", "theirs", "end"] * 3
    assert result.compile_seconds > 0
    assert result.seconds.shape == result.reference_seconds.shape == (3,)
    assert (result.seconds > 0).all()
    assert result.num_forwards == result.num_steps.sum()


def test_records_are_medians_of_neighbours():
    def result(name, seconds, reference, num_steps, num_forwards):
        return bench.Result(
            sampler=name,
            batch_size=2,
            compile_seconds=1.0,
            seconds=np.array(seconds),
            reference_seconds=np.array(reference),
            num_steps=np.array(num_steps),
            num_forwards=num_forwards,
            num_equal=2,
        )

    one = result("one", [1.0, 4.0, 2.0], [2.0, 12.0, 2.0], [10, 20], 20)
    two = result("two", [0.5, 1.0, 1.0], [1.0, 1.0, 1.0], [2, 4], 5)
    first, second = bench.records([one, two], num_cores=2)
    assert first["ratios"] == [2.0, 3.0, 1.0]
    assert first["ratio"] == 2.0
    assert first["rows_per_second"] == 1.0
    assert first["gain"] == first["gain_per_nfe_gain"] == 1.0
    assert second["gain"] == 2.0  # median of 2, 4, 2
    assert second["nfe_gain"] == 5.0
    assert (first["busy_slots"], second["busy_slots"]) == (0.75, 0.6)
    assert second["gain_per_nfe_gain"] == pytest.approx(0.4)
    assert second["num_cores"] == 2
    text = bench.tables([first, second])
    assert "| 2 | one | 1.00 | 1.00 | 2.00 | 2 | 2 | 1.0 |" in text
    assert "| 2 | two | 3.0 | 60% | 2.00 | 5.00 | 0.40 |" in text


def test_in_batches_fills_all_rows_in_order():
    prompts, sizes = prompts_of(5), []

    def fill(sampler, batch):
        sizes.append(len(batch.tokens))
        return batch.tokens, batch.is_blank.sum(axis=1)

    tokens, num_steps = bench.in_batches(fill, 2)(None, prompts)
    assert sizes == [2, 2, 1]
    np.testing.assert_array_equal(tokens, prompts.tokens)
    np.testing.assert_array_equal(num_steps, prompts.is_blank.sum(axis=1))


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
    assert "PyTorch" not in out
    assert out.count("entropy_bound(gamma=2.0)") == 4


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--samplers=sabre", "sampler (sabre) must be one of"),
        ("--samplers=margin", "there is no eager version of Margin"),
        ("--batch_sizes=0", "batch_sizes (0) must be at least 1"),
        ("--batch_sizes=100", "num (800) must be at most 500"),
        ("--num_pairs=0", "num_pairs (0) must be at least 1"),
        ("--output=.", "output (.) already exists"),
        ("--checkpoint=nowhere", "checkpoint (nowhere) is not a directory"),
        (
            f"--checkpoint={DATA / 'checkpoints/tiny_kv4_seed0'}",
            "holds no tokenizer.json",
        ),
    ],
)
def test_bad_input_is_one_line(flag, message, run_script, checkpoint):
    pytest.importorskip("torch")
    status, out, err = run_script("benchmark", f"--checkpoint={checkpoint}", flag)
    assert (status, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1
