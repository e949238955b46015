"""Checks jaxtyping annotations while tests run, and runs scripts in this process."""

import gc
import importlib.metadata
import itertools
import os
import pathlib
import runpy
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator

import pytest
from absl import app, flags
from hypothesis import settings
from jaxtyping import install_import_hook

# How long an example takes says more about the machine than about the code.
settings.register_profile("patient", deadline=None, derandomize=True)
settings.load_profile("patient")
# Tests have a cache of compiled programs of their own, which pytest's workers and the
# processes that tests start share: many of them compile the same. `mutations.py` keeps
# one from run to run.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _programs = tempfile.TemporaryDirectory(prefix="dlm_jax_tests_")
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": os.environ.get(
            "DLM_JAX_TEST_PROGRAMS", _programs.name
        ),
        # With a bound, every new program would read the times of all others.
        "JAX_COMPILATION_CACHE_MAX_SIZE": "-1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
# They compile hundreds of small programs and run each for milliseconds. The flags leave
# out XLA's newer compiler of fused code, and its division of programs among threads:
# together more than half of the compiler's time. jaxlib 0.11 and later no longer know
# the first, and end a process that names it.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"
_FLAGS = "--xla_cpu_parallel_codegen_split_count=1"
if importlib.metadata.version("jaxlib").split(".")[:2] == ["0", "10"]:
    _FLAGS = f"--xla_cpu_use_fusion_emitters=false {_FLAGS}"
if _FLAGS not in os.environ.get("XLA_FLAGS", ""):  # Workers inherit it.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}".strip()
# Workers share the processors. XLA's threads spin while they wait for each other: two
# processes of two threads each on two processors took eight times as long as of one.
_num_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
if _num_workers > 1:
    os.environ["NPROC"] = str(max(1, (os.cpu_count() or 1) // _num_workers))
# A shell lets what it starts in the background ignore these; tests send them.
for _number, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)
# Modules of functions, whose annotated shapes and dtypes are then checked on each call.
# The hook must be in place before any of them is imported.
install_import_hook(
    [
        "dlm_jax.checkpoints",
        "dlm_jax.core.noise",
        "dlm_jax.core.predict",
        "dlm_jax.core.summary",
        "dlm_jax.devices.batches",
        "dlm_jax.models",
        "dlm_jax.parity.traces",
        "dlm_jax.samplers.select",
        "dlm_jax.sandbox",
        "dlm_jax.tasks",
        "dlm_jax.text",
        "dlm_jax.training.loop",
    ],
    "beartype.beartype",
)
# What scripts change of JAX's configuration.
_CONFIGURED = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_platforms",
    "jax_enable_x64",
)


# Counts the tests of this process.
_TESTS = itertools.count()


@pytest.fixture(autouse=True)
def forget_compiled_programs() -> Iterator[None]:
    """Drops compiled programs before a process has more than Linux lets it map.

    Each takes a few of the 65,530 memory maps that a process may have by default; XLA
    crashes when there is none left.
    """
    yield
    maps = pathlib.Path("/proc/self/maps")
    # Reading them takes longer than many a test.
    if next(_TESTS) % 10 or not maps.exists():
        return
    if maps.read_bytes().count(b"\n") > 40_000:
        import jax

        jax.clear_caches()
        gc.collect()


@pytest.fixture
def float64() -> Iterator[None]:
    """Computes in float64."""
    import jax

    with jax.enable_x64(True):
        yield


@pytest.fixture
def optimized() -> Iterator[None]:
    """Undoes what is set above, where the compiler's work is what is tested."""
    import jax

    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def run_script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs `python -m experiments.NAME ARGUMENTS` here: status, stdout and stderr.

    A process of its own would spend seconds on imports each time. Scripts define flags
    of the same names, so those are forgotten afterwards, and JAX's configuration is put
    back.
    """
    import jax  # Not before the environment above is set.

    def run(name: str, *arguments: str) -> tuple[int, str, str]:
        configured = {x: getattr(jax.config, x) for x in _CONFIGURED}
        app.define_help_flags()  # absl's own, once per process
        known = set(flags.FLAGS)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        # On a slow machine too, stderr has what a script has to tell and nothing else.
        monkeypatch.setattr("experiments._progress.PERIOD", 3600)
        capsys.readouterr()
        status = 0
        try:
            runpy.run_module(f"experiments.{name}", run_name="__main__")
        except SystemExit as stop:
            status = stop.code or 0
        finally:
            for flag in set(flags.FLAGS) - known:
                delattr(flags.FLAGS, flag)
            for option, value in configured.items():
                jax.config.update(option, value)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run
