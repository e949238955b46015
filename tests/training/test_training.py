"""Training: the loss by hand, learning on a toy, and exact resumption."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dlm_jax import checkpoints
from dlm_jax.errors import InputError
from dlm_jax.models.llada import LLaDA, LLaDAConfig
from dlm_jax.training import files as training_files
from dlm_jax.training import loop as training

MASK_ID = 7


def _model(mlp_hidden_size: int = 32) -> LLaDA:
    config = LLaDAConfig(
        d_model=16,
        n_heads=2,
        n_kv_heads=2,
        n_layers=2,
        mlp_hidden_size=mlp_hidden_size,
        vocab_size=8,
        embedding_size=8,
        max_sequence_length=16,
        rope_theta=100.0,
        rms_norm_eps=1e-5,
        weight_tying=False,
        mask_token_id=MASK_ID,
        eos_token_id=0,
        pad_token_id=0,
    )
    return LLaDA(config, rngs=nnx.Rngs(0))


def _copying(step: int) -> training.Batch:
    """Six tokens, of which the last three repeat the first three; then padding."""
    rng = np.random.default_rng([5, step])
    half = rng.integers(1, 7, (16, 3), dtype=np.int32)
    tokens = np.concatenate([half, half, np.zeros((16, 2), np.int32)], axis=1)
    columns = np.broadcast_to(np.arange(8), tokens.shape)
    # Padding is marked maskable on purpose: is_valid must take it out.
    return training.Batch(tokens, columns >= 3, columns < 6)


CONFIG = training.TrainConfig(
    num_steps=60, warmup_steps=5, learning_rate=2e-2, log_every=4, checkpoint_every=100
)
SHORT = dataclasses.replace(CONFIG, num_steps=9, warmup_steps=2)


def _train(workdir, config, **options):
    return training.train(
        _model(), _copying, config, workdir, mask_id=MASK_ID, is_quiet=True, **options
    )


def _leaves(model: nnx.Module) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model))]


def _curve(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "curve.jsonl").open()]


def test_loss_is_the_hand_written_one():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 5, 8)).astype(np.float32)
    tokens = rng.integers(0, 8, (3, 5)).astype(np.int32)
    is_maskable = np.array([[0, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], bool)
    is_masked = np.array([[0, 1, 0, 0, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]], bool)
    ratio = np.array([0.5, 0.25, 0.9], np.float32)

    rows, nlls = [], []
    for row in range(3):
        total = 0.0
        for i in np.flatnonzero(is_masked[row]):
            exact = logits[row, i].astype(np.float64)
            nll = np.log(np.exp(exact).sum()) - exact[tokens[row, i]]
            total += nll / ratio[row]
            nlls.append(nll)
        rows.append(total / max(1, is_maskable[row].sum()))

    loss, nll = training.diffusion_loss(
        *map(jnp.asarray, (logits, tokens, is_masked, is_maskable, ratio))
    )
    np.testing.assert_allclose(loss, np.mean(rows), rtol=1e-5)
    np.testing.assert_allclose(nll, np.mean(nlls), rtol=1e-5)


def test_corruption_masks_each_row_at_its_own_stratified_ratio():
    is_maskable = jnp.ones((64, 4000), bool).at[:, :1000].set(False)
    is_masked, ratio = training.corrupt(jax.random.key(0), is_maskable, 0.1)
    assert not is_masked[:, :1000].any()
    share = is_masked[:, 1000:].mean(1)
    # Five standard deviations of a binomial share of 3,000 draws.
    np.testing.assert_allclose(share, ratio, atol=5 * 0.5 / 3000**0.5)
    # One row in each of 64 equal parts of [0.1, 1], in an order that is not sorted.
    parts = np.sort(np.asarray(ratio) - 0.1) / 0.9 * 64
    assert (np.diff(parts) > 0.99).all() and (np.diff(parts) < 1.01).all()
    assert (np.diff(ratio) < 0).any()
    assert ratio.min() >= 0.1 and ratio.max() <= 1


def test_power_favours_heavily_masked_rows():
    is_maskable = jnp.ones((1000, 4), bool)
    _, ratio = training.corrupt(jax.random.key(1), is_maskable, 0.1, 3.0)
    # P(ratio > x) = ((1 - x) / 0.9)^(1/3), to the width of a stratum.
    for x in (0.2, 0.5, 0.9):
        expected = ((1 - x) / 0.9) ** (1 / 3)
        np.testing.assert_allclose((ratio > x).mean(), expected, atol=2e-3)


def test_training_learns_to_copy(tmp_path):
    config = dataclasses.replace(CONFIG, num_steps=300, ema_decay=0.9)
    model = _train(tmp_path, config)
    losses = [line["loss"] for line in _curve(tmp_path)]
    assert losses[0] > 1.5  # of log(6) = 1.79
    assert losses[-1] < 0.1
    # The averaged model reads the first half and writes the second.
    batch = _copying(10_000)
    shown = np.where(batch.is_maskable & batch.is_valid, MASK_ID, batch.tokens)
    best = model(jnp.asarray(shown), jnp.asarray(batch.is_valid)).argmax(-1)
    accuracy = (np.asarray(best) == batch.tokens)[:, 3:6].mean()
    assert accuracy > 0.95


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A short run: its directory and its result."""
    workdir = tmp_path_factory.mktemp("unbroken")
    return workdir, _leaves(_train(workdir, SHORT))


def test_resuming_is_exact_and_cuts_the_lost_tail_of_the_curve(unbroken, tmp_path):
    workdir, expected = unbroken
    _train(tmp_path, SHORT, stop_at=4)
    with pytest.raises(InputError, match=r"stop_at \(3\) must be at least the 4 steps"):
        _train(tmp_path, SHORT, stop_at=3)
    with (tmp_path / "curve.jsonl").open("a") as file:
        file.write(json.dumps({"step": 6, "loss": 0.0}) + "\n")
    resumed = _leaves(_train(tmp_path, SHORT))
    for one, other in zip(expected, resumed, strict=True):
        np.testing.assert_array_equal(one, other)
    start = _leaves(_model())
    assert any((a != b).any() for a, b in zip(start, resumed, strict=True))
    assert [line["step"] for line in _curve(tmp_path)] == [4, 8, 9]
    for one, other in zip(_curve(workdir), _curve(tmp_path), strict=True):
        assert (one["step"], one["loss"]) == (other["step"], other["loss"])


def test_finished_run_returns_its_result(unbroken):
    workdir, expected = unbroken
    curve = _curve(workdir)
    for one, other in zip(expected, _leaves(_train(workdir, SHORT)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert _curve(workdir) == curve


def test_another_configuration_does_not_resume(unbroken):
    changed = dataclasses.replace(SHORT, learning_rate=1e-3)
    with pytest.raises(InputError, match=r"learning_rate \(0.001\) must be 0.02"):
        _train(unbroken[0], changed)


@pytest.mark.parametrize(
    ("made_by", "message"),
    [
        ({"data": {"num": 6, "seed": 0}}, r"made_by.data.num (6) must be 5, as in"),
        ({"data": {"num": 5}}, "made_by.data.seed (absent) must be 0"),
        ({"data": {"num": 5, "seed": 0}, "more": 1}, "made_by.more (1) must be absent"),
        ({"data": object()}, "made_by must be JSON"),
    ],
)
def test_other_data_does_not_resume(described, made_by, message):
    with pytest.raises(InputError) as error:
        _train(described, SHORT, made_by=made_by)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    """The directory of one step of a run with a description of its data."""
    workdir = tmp_path_factory.mktemp("described")
    _train(workdir, SHORT, stop_at=1, made_by={"data": {"num": 5, "seed": 0}})
    return workdir


def test_another_batch_size_model_or_mask_does_not_resume(unbroken):
    def resume(model=None, batch_at=_copying, mask_id=MASK_ID):
        model = model or _model()
        training.train(
            model, batch_at, SHORT, unbroken[0], mask_id=mask_id, is_quiet=True
        )

    def smaller(step):
        return tuple(array[:8] for array in _copying(step))

    with pytest.raises(InputError, match=r"^batch_size \(8\) must be 16, as in"):
        resume(batch_at=smaller)
    with pytest.raises(InputError, match=r"^mask_id \(6\) must be 7, as in"):
        resume(mask_id=6)
    with pytest.raises(InputError) as error:
        resume(_model(mlp_hidden_size=24))
    assert str(error.value).startswith(
        "model.blocks.ff_out (float32[2, 24, 16]) must be float32[2, 32, 16], as in"
    )
    assert "\n" not in str(error.value)


def test_a_cut_last_line_of_the_curve_is_dropped(tmp_path):
    path = tmp_path / "curve.jsonl"
    whole = '{"step": 4, "loss": 1.5}\n'
    path.write_text(whole + '{"step": 8, "lo')
    training_files.Curve(path, 8)
    assert path.read_text() == whole
    assert os.listdir(tmp_path) == ["curve.jsonl"]
    # A rewriting that fails leaves the old file.
    damages = (b"damaged", b"\xff", b"[1]", b'{"loss": 1.5}', b'{"step": "4"}', b"")
    for damaged in damages:
        path.write_bytes(whole.encode() + damaged + b"\n")
        with pytest.raises(InputError, match=r"curve.jsonl, line 2 \("):
            training_files.Curve(path, 8)
        assert path.read_bytes() == whole.encode() + damaged + b"\n"
        assert os.listdir(tmp_path) == ["curve.jsonl"]


def test_a_loaded_model_trains_on_two_devices(tmp_path):
    """Parameters from a checkpoint are bound to one device, batches lie on both."""
    checkpoints.save_hf(_model(), tmp_path / "model")
    script = f"""
import sys
import jax
sys.path.insert(0, {os.path.dirname(__file__)!r})
from test_training import MASK_ID, SHORT, _copying
from dlm_jax import checkpoints
from dlm_jax.training import loop
model = checkpoints.load({str(tmp_path / "model")!r})
assert len(model.wte[...].sharding.device_set) == 1 < jax.device_count()
model = loop.train(
    model, _copying, SHORT, {str(tmp_path / "run")!r},
    mask_id=MASK_ID, stop_at=2, is_quiet=True,
)
assert len(model.wte[...].sharding.device_set) == 2
"""
    environment = {
        **os.environ,
        "JAX_NUM_CPU_DEVICES": "2",
        "JAX_PLATFORMS": "cpu",
    }
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
    # The losses are those of one device, to rounding.
    _train(tmp_path / "alone", SHORT, stop_at=2)
    (two,), (one,) = _curve(tmp_path / "run"), _curve(tmp_path / "alone")
    np.testing.assert_allclose(two["loss"], one["loss"], rtol=1e-3)


def test_prompt_and_padding_do_not_enter_the_loss():
    model = _model()
    graphdef, params = nnx.split(model)
    optimizer = training.make_optimizer(CONFIG)
    step = jax.jit(training.make_train_step(graphdef, MASK_ID, optimizer, CONFIG))
    state = training.TrainState(
        jnp.zeros((), jnp.int32), params, params, optimizer.init(params)
    )
    batch = _copying(0)
    padded = batch.tokens.copy()
    padded[:, 6:] = 3
    _, metrics = step(state, batch)
    _, other = step(state, batch._replace(tokens=padded))
    np.testing.assert_array_equal(metrics["loss"], other["loss"])
    nothing = batch._replace(is_maskable=np.zeros_like(batch.is_maskable))
    _, metrics = step(state, nothing)
    assert metrics["loss"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"warmup_steps": 60}, r"warmup_steps \(60\) must be in \[0, num_steps=60\)"),
        ({"min_ratio": 0.0}, r"min_ratio \(0.0\) must be in \(0, 1\]"),
        ({"focus_power": 0.0}, r"focus_power \(0.0\) must be above 0"),
        ({"log_every": 0}, r"log_every \(0\) must be at least 1"),
    ],
)
def test_bad_configuration_is_one_line(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(CONFIG, **change)


TINY_CONFIG = """
from ml_collections import ConfigDict


def get_config():
    train = {"num_steps": 4, "warmup_steps": 1, "checkpoint_every": 2, "log_every": 1}
    return ConfigDict(
        {
            "task": "sudoku",
            "seed": 0,
            "batch_size": 4,
            "model": {
                "d_model": 16, "n_heads": 2, "n_layers": 2, "mlp_hidden_size": 32
            },
            "data": {"seed": 1, "num": 5, "min_clues": 34, "max_clues": 36},
            "stages": (
                {"data": {"is_advanced": False}, "stop_at": 2, "train": train},
                {
                    "data": {"is_advanced": True},
                    "stop_at": None,
                    "train": {**train, "seed": 1},
                },
            ),
        }
    )
"""


def test_script_trains_all_stages_and_exports_a_checkpoint(run_script, tmp_path):
    config, workdir = tmp_path / "config.py", tmp_path / "run"
    config.write_text(TINY_CONFIG)
    arguments = ("train", f"--config={config}", f"--workdir={workdir}")
    status, output, _ = run_script(*arguments)
    assert status == 0 and f"Wrote {workdir / 'model'}" in output
    assert [line["step"] for line in _curve(workdir / "stage_1")] == [1, 2]
    assert [line["step"] for line in _curve(workdir / "stage_2")] == [1, 2, 3, 4]
    model = checkpoints.load(workdir / "model")
    assert model.config.d_model == 16 and model.config.vocab_size == 13

    status, _, error = run_script(*arguments)
    assert status == 1
    assert "already exists" in error and len(error.splitlines()) == 1


def test_script_goes_on_from_a_model_that_the_first_stages_made(run_script, tmp_path):
    whole, half = tmp_path / "whole.py", tmp_path / "half.py"
    whole.write_text(TINY_CONFIG)
    text = TINY_CONFIG.splitlines()
    start = next(i for i, line in enumerate(text) if '"stages": (' in line)
    half.write_text("\n".join([*text[: start + 2], "),", "}", ")"]))
    for config, workdir in ((whole, "whole"), (half, "half")):
        arguments = (f"--config={config}", f"--workdir={tmp_path / workdir}")
        status, _, error = run_script("train", *arguments)
        assert status == 0, error
    source = f"--from_model={tmp_path / 'half' / 'model'}"
    arguments = ("train", f"--config={whole}", f"--workdir={tmp_path / 'rest'}")
    status, _, error = run_script(*arguments, source, "--from_stage=2")
    assert status == 0, error
    assert not (tmp_path / "rest" / "stage_1").exists()
    one, other = (
        (tmp_path / name / "model" / "model.safetensors").read_bytes()
        for name in ("whole", "rest")
    )
    assert one == other
    for flags, message in (
        ([source], "from_model and from_stage must be given together"),
        ([source, "--from_stage=3"], "from_stage (3) must be one of the config's 2"),
        (
            ["--from_model=dlm_jax/zoo/sudoku", "--from_stage=2"],
            "from_model (dlm_jax/zoo/sudoku) is no model of this config",
        ),
    ):
        workdir = f"--workdir={tmp_path / 'none'}"
        status, _, error = run_script("train", f"--config={whole}", workdir, *flags)
        assert status == 1 and message in error
