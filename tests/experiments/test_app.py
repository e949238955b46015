"""What the user writes on the command line is answered with one line."""

import contextlib
import gc
import importlib.metadata
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import warnings

import jax
import jax.numpy as jnp
import pytest
from absl import app, flags

from dlm_jax import samplers
from dlm_jax.evaluation import provenance
from dlm_jax.sandbox import process, sandbox
from experiments import _app, _programs

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

    monkeypatch.setattr(_programs, "keep", lambda: None)
    return run


def test_overrides_reach_main(run):
    assert run() == (0, [3], "")
    assert run("--config=good.py", "--config.num_examples=5") == (0, [5], "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.absent=1"], "--config.absent is no field of the config: 'absent'"),
        (["--config.num_example=1"], 'Did you mean "num_examples"'),
        (["--config.model.depth=1"], "--config.model.depth is no field of the config"),
        (["--config.model.width=2", "--config.x=1"], "error: --config.x is no field"),
        (["--config.stages[3].a=1"], "--config.stages[3].a is no field of the config"),
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
    # Else it may be ready before it is looked at, where this process had to wait.
    monkeypatch.setattr(process, "_STUB", "import time; time.sleep(60)")
    tests = [((2,), 4)]
    status, _, error = run(
        main=lambda _: sandbox.run_tests("f = abs", "f", tests, layers=())
    )
    assert status == 1
    assert error == (
        "error: a sandbox did not start: not done after 0.001 s of wall time\n"
    )


def _raise(error):
    def main(_):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (PermissionError(13, "Permission denied", "a"), "[Errno 13] Permission denied"),
        (MemoryError(), "too little memory on this machine: none is left"),
        (MemoryError("Unable\nto allocate"), "machine: Unable to allocate"),
        (ModuleNotFoundError("x", name="torch"), "the package torch is not installed"),
        (RuntimeError("Unable to initialize backend 'x': y\nz"), "JAX_PLATFORMS ("),
        (RuntimeError("Unknown backend x"), ") cannot be used: Unknown backend x"),
    ],
)
def test_what_the_machine_refuses_is_one_line(run, error, message):
    status, _, said = run(main=_raise(error))
    assert status == 1 and said.startswith("error: ") and said.count("\n") == 1
    assert message in said


@pytest.mark.parametrize(
    "error", [RuntimeError("else"), ModuleNotFoundError("x", name="dlm_jax.cor")]
)
def test_defects_keep_their_tracebacks(run, error):
    with pytest.raises(type(error)):
        run(main=_raise(error))


def test_a_strict_mode_of_jax_is_named(run):
    with jax.numpy_rank_promotion("raise"):
        status, _, said = run(main=lambda _: jnp.ones((2, 2)) + jnp.ones(2))
    assert status == 1 and said.count("\n") == 1
    assert "does not run with JAX_NUMPY_RANK_PROMOTION=raise: ValueError: " in said


@pytest.mark.parametrize(
    ("number", "word"),
    [
        (signal.SIGINT, "interrupted"),
        (signal.SIGTERM, "ended by SIGTERM"),
        (signal.SIGHUP, "the terminal was closed"),
    ],
)
def test_a_signal_is_one_line_and_lets_clean_up(run, number, word):
    before = signal.getsignal(number)
    cleaned = []

    def main(_):
        try:
            os.kill(os.getpid(), number)
            time.sleep(60)
        finally:
            cleaned.append(signal.getsignal(number))

    # It is written past Python's buffers, by which a handler may be called.
    with capture_descriptor(2) as said:
        assert run(main=main)[0] == 128 + number
        assert said() == f"error: {word}\n"
    # Once more ends the process, whatever hangs.
    assert cleaned == [signal.SIG_DFL]
    assert signal.getsignal(number) == before


def test_a_signal_in_a_callback_that_drops_exceptions_is_not_lost(run):
    """JAX has a callback of the garbage collector, in which one may come."""

    def kill(phase, _):
        if phase == "stop" and gc.callbacks.count(kill):
            gc.callbacks.remove(kill)
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(1000):
                pass  # Here it is handled.

    def main(_):
        gc.callbacks.append(kill)
        gc.collect()
        time.sleep(60)

    with capture_descriptor(2) as said:
        assert run(main=main)[0] == 143
        assert said() == "error: ended by SIGTERM\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_script_is_imported_is_one_line_too(tmp_path, number):
    # Stands for something big, whose import does not let an exception pass.
    (tmp_path / "jax.py").write_text(
        "import os\n"
        "try:\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "finally:\n"
        "    raise ImportError\n"
    )
    root = pathlib.Path(_app.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "experiments.generate"],
        cwd=root,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 128 + number
    assert done.stderr in ("error: interrupted\n", "error: ended by SIGTERM\n")


def test_an_ignored_signal_stays_ignored(run):
    """As nohup has it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run(main=lambda _: os.kill(os.getpid(), signal.SIGHUP))[0] == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@contextlib.contextmanager
def capture_descriptor(number):
    """What is written to a file descriptor in a block."""
    with tempfile.TemporaryFile() as file:
        saved = os.dup(number)
        os.dup2(file.fileno(), number)

        def said():
            file.seek(0)
            return file.read().decode()

        try:
            yield said
        finally:
            os.dup2(saved, number)
            os.close(saved)


def test_a_user_without_a_home_keeps_no_programs(monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr(jax.config, "update", seen.__setitem__)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    _programs.keep()
    # Nor one whose home is read-only.
    monkeypatch.setattr(os.path, "expanduser", lambda path: "/proc/home/.cache")
    _programs.keep()
    assert not seen
    monkeypatch.setattr(os.path, "expanduser", lambda path: str(tmp_path / ".cache"))
    _programs.keep()
    assert seen == {
        "jax_compilation_cache_dir": str(tmp_path / ".cache" / "dlm_jax" / "programs"),
        "jax_compilation_cache_max_size": 2**31,
    }


@pytest.mark.parametrize(
    "spec",
    [
        f"saber(n={'-' * 30_000}1)",
        f"saber(n={'[' * 30_000}",
        f"{'a.' * 30_000}a",
        f"saber(n={'1+' * 30_000}1)",
        f"low_confidence(schedule={'f(x=' * 3_000}1{')' * 3_000})",
    ],
)
def test_a_very_deep_spec_is_one_line(run, spec):
    status, _, said = run(main=lambda _: samplers.parse(spec))
    assert status == 1 and said.count("\n") == 1 and len(said) < 500
    assert said.startswith("error: ")


def test_records_need_no_package_metadata(monkeypatch):
    def absent(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    found = provenance.environment()
    assert found["dlm_jax"] is None and found["jax"] is None
    assert "jax None" in provenance.describe(found)


@pytest.mark.parametrize("arguments", [[], ["--config.num_examples=5"]])
def test_a_defect_of_the_config_file_keeps_its_traceback(run, arguments):
    with pytest.raises(AttributeError, match="absent"):
        run("--config=faulty.py", *arguments)
