"""What the user writes on the command line is answered with one line."""

import sys

import jax
import jax.numpy as jnp
import pytest
from absl import app, flags

from dlm_jax.sandbox import process, sandbox
from experiments import _app

CONFIG = """
from ml_collections import ConfigDict


def get_config():
    return ConfigDict({"num_examples": 3, "model": {"width": 2}, "stages": ({"a": 1},)})
"""


CHOOSY = """
from dlm_jax.errors import InputError


def get_config(size):
    raise InputError(f"size ({size}) must be 3")
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a script with a config file: status, what main saw, stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.py").write_text(CONFIG)
    (tmp_path / "faulty.py").write_text("def get_config():\n    return {}.absent\n")
    (tmp_path / "choosy.py").write_text(CHOOSY)

    def run(*arguments, main=None):
        app.define_help_flags()
        known = set(flags.FLAGS)
        monkeypatch.setattr(sys, "argv", ["script", *arguments])
        seen = []
        try:
            config = _app.define_config("good.py", "Values.")
            _app.run(main or (lambda _: seen.append(config.value.num_examples)))
        except SystemExit as stop:
            status = stop.code or 0
        finally:
            for flag in set(flags.FLAGS) - known:
                delattr(flags.FLAGS, flag)
        return status, seen, capsys.readouterr().err

    monkeypatch.setattr(_app, "_keep_compiled_programs", lambda: None)
    return run


def test_overrides_reach_main(run):
    assert run() == (0, [3], "")
    assert run("--config=good.py", "--config.num_examples=5") == (0, [5], "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.absent=1"], "--config.absent is no field of it: 'absent'"),
        (["--config.num_example=1"], 'Did you mean "num_examples"'),
        (["--config.model.depth=1"], "--config.model.depth is no field of it"),
        (["--config.model.width=2", "--config.x=1"], "error: --config.x is no field"),
        (["--config.stages[3].a=1"], "--config.stages[3].a is no field of it"),
        (["--config.num_examples=many"], "flag --config.num_examples=many: invalid"),
        (["--config=none.py"], "--config cannot be read: [Errno 2] No such file"),
        (["--config=none.py", "--config.x=1"], "--config cannot be read: [Errno 2] No"),
        (["--config.num_examples=5", "--config=good.py"], "--config"),
        (["--config=choosy.py:4"], "error: size (4) must be 3"),
        (["--config=choosy.py:4", "--config.x=1"], "error: size (4) must be 3"),
        (["--confg=good.py"], "Unknown command line flag 'confg'"),
        (["stray"], "unexpected arguments: stray"),
    ],
)
def test_a_slip_is_one_line(run, arguments, message):
    status, seen, error = run(*arguments)
    assert (status, seen) == (1, [])
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error


def test_too_little_memory_is_one_line_and_a_defect_is_not(run):
    status, _, error = run(main=lambda _: jnp.zeros(1 << 55).block_until_ready())
    assert status == 1 and error.count("\n") == 1
    assert error.startswith("error: too little memory for this batch and model: RESO")

    def fail(_):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        run(main=fail)


def test_a_sandbox_that_does_not_start_is_one_line(run, monkeypatch):
    monkeypatch.setattr(process, "_START_SECONDS", 1e-3)
    tests = [((2,), 4)]
    status, _, error = run(
        main=lambda _: sandbox.run_tests("f = abs", "f", tests, layers=())
    )
    assert status == 1
    assert error == (
        "error: a sandbox did not start: not done after 0.001 s of wall time\n"
    )


@pytest.mark.parametrize("arguments", [[], ["--config.num_examples=5"]])
def test_a_defect_of_the_config_file_keeps_its_traceback(run, arguments):
    with pytest.raises(AttributeError, match="absent"):
        run("--config=faulty.py", *arguments)
