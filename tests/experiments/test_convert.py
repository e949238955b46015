"""The conversion script: there and back, killed, and on bad input."""

import os
import signal
import subprocess
import sys

import checkpoint_files as files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from dlm_jax import checkpoints
from dlm_jax.checkpoints import CheckpointError
from dlm_jax.models.llada import tiny


@pytest.mark.parametrize(
    ("target", "last"), [("orbax", "files.json"), ("hf", "config.json")]
)
def test_a_killed_conversion_leaves_nothing_that_loads(tmp_path, target, last):
    """SIGKILL when all but the last file is on disk."""
    config = files.CONFIG
    directory = files.write(tmp_path / "in", files.random_tensors(config), config)
    output = tmp_path / "out"
    child = f"""
import os, runpy, signal
from dlm_jax.checkpoints import common
write = common.write_json
def killed(path, value):
    if path.name == "{last}":
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, value)
common.write_json = killed
runpy.run_module("experiments.convert", run_name="__main__")
"""
    arguments = [f"--checkpoint={directory}", f"--output={output}"]
    command = [sys.executable, "-c", child, f"--format={target}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not output.exists()
    (partial,) = tmp_path.glob(".out.partial-*")
    assert any(partial.rglob("*.safetensors" if target == "hf" else "params/*"))
    with pytest.raises(CheckpointError):
        checkpoints.load(partial)
    # What is left over is in nobody's way, and goes.
    checkpoints.save_orbax(checkpoints.load(directory), output)
    assert checkpoints.load(output).config == config
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]


@pytest.mark.parametrize("target", ["orbax", "hf"])
@pytest.mark.parametrize(
    ("number", "word"),
    [(signal.SIGTERM, "ended by SIGTERM"), (signal.SIGINT, "interrupted")],
)
def test_a_conversion_that_is_stopped_leaves_nothing(tmp_path, target, number, word):
    directory = files.write(tmp_path / "in", files.random_tensors(), files.CONFIG)
    # The signal comes while the output is half there.
    child = f"""
import os, runpy
from dlm_jax.checkpoints import common
write = common.write_json
def stopped(path, value):
    os.kill(os.getpid(), {int(number)})
    write(path, value)
common.write_json = stopped
runpy.run_module("experiments.convert", run_name="__main__")
"""
    arguments = [f"--checkpoint={directory}", f"--output={tmp_path / 'out'}"]
    command = [sys.executable, "-c", child, f"--format={target}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 128 + number
    assert (done.stdout, done.stderr) == ("", f"error: {word}\n")
    assert os.listdir(tmp_path) == ["in"]


# --- The script ---------------------------------------------------------------------


def test_convert_there_and_back(tmp_path, run_script):
    tensors = files.random_tensors(dtype=jnp.bfloat16)
    files.write(tmp_path / "a", tensors, num_shards=2)
    status, out, err = run_script(
        "convert", f"--checkpoint={tmp_path / 'a'}", f"--output={tmp_path / 'b'}"
    )
    num_params = sum(tensor.size for tensor in tensors.values())
    assert (status, err) == (0, "")
    assert f"parameters  {num_params:,}\nbytes       {2 * num_params:,}\n" in out
    status, out, err = run_script(
        "convert",
        f"--checkpoint={tmp_path / 'b'}",
        f"--output={tmp_path / 'c'}",
        "--format=hf",
    )
    assert (status, err) == (0, "")
    found = load_file(tmp_path / "c" / "model.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor)
    assert (tmp_path / "c" / "tokenizer.json").is_file()
    run_script(
        "convert",
        f"--checkpoint={tmp_path / 'a'}",
        f"--output={tmp_path / 'd'}",
        "--dtype=float32",
    )
    assert checkpoints.load(tmp_path / "d").wte[...].dtype == jnp.float32


def test_a_random_preset_is_written_and_converted(tmp_path, run_script):
    status, out, err = run_script(
        "convert",
        "--preset=tiny",
        "--dtype=bfloat16",
        "--format=hf",
        f"--output={tmp_path / 'hf'}",
    )
    assert (status, err) == (0, "")
    assert "seconds" in out
    status, _, err = run_script(
        "convert", f"--checkpoint={tmp_path / 'hf'}", f"--output={tmp_path / 'orbax'}"
    )
    assert (status, err) == (0, "")
    stored, restored = (checkpoints.load(tmp_path / x) for x in ("hf", "orbax"))
    assert stored.config == restored.config == tiny()
    weights, again = (jax.tree.leaves(nnx.state(x)) for x in (stored, restored))
    for weight, same in zip(weights, again, strict=True):
        assert weight.dtype == jnp.bfloat16
        np.testing.assert_array_equal(weight, same)
    assert float(jnp.std(stored.wte[...].astype(float))) == pytest.approx(0.02, 0.05)


@pytest.mark.parametrize(
    "damage",
    [
        files.remove,
        files.truncate,
        files.drop,
        files.add,
        files.reshape,
        files.use_alibi,
        files.damage_index,
    ],
)
def test_convert_answers_damage_with_one_line(tmp_path, run_script, damage):
    directory = files.write(tmp_path / "in", files.random_tensors(), num_shards=3)
    damage(directory)
    status, out, err = run_script(
        "convert", f"--checkpoint={directory}", f"--output={tmp_path / 'out'}"
    )
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"error: {directory}: {files.DAMAGES[damage][0]}")
    assert os.listdir(tmp_path) == ["in"]


@pytest.mark.parametrize(
    ("output", "message"),
    [("in", "already exists"), ("in/config.json/out", "cannot be written")],
)
def test_convert_refuses_bad_outputs(tmp_path, run_script, output, message):
    directory = files.write(tmp_path / "in", files.random_tensors())
    before = {path: path.read_bytes() for path in directory.iterdir()}
    status, out, err = run_script(
        "convert", f"--checkpoint={directory}", f"--output={tmp_path / output}"
    )
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"error: output ({tmp_path / output}) {message}")
    assert {path: path.read_bytes() for path in directory.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint=x"], "--output must have a value"),
        (["--checkpoint=x", "--output=y", "--dtype=int4"], "--dtype=int4"),
        (["--checkpoint=x", "--output=y", "--fromat=hf"], "fromat"),
        (["--checkpoint=x", "--output=y", "z"], "unexpected arguments: z"),
        (["--checkpoint=x", "--output=y"], "checkpoint (x) is not a directory"),
        (["--output=y"], "one of checkpoint and preset must be given"),
        (
            ["--output=y", "--checkpoint=x", "--preset=tiny"],
            "one of checkpoint and preset must be given",
        ),
    ],
)
def test_convert_refuses_bad_flags(
    tmp_path, monkeypatch, run_script, arguments, message
):
    monkeypatch.chdir(tmp_path)
    status, _, err = run_script("convert", *arguments)
    assert status == 1
    assert message in err
    assert "Traceback" not in err
    assert not os.listdir(tmp_path)
