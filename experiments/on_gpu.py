r"""Measures LLaDA-8B's shape on one GPU, and says which aims are met: one command.

    python -m experiments.on_gpu

It needs a GPU with 80 GB, `pip install -e '.[cuda,test]'` and a CUDA build of PyTorch.
Weights are random and made once. What is measured comes in parts, the most important
first. Each has a limit of minutes, and none is begun that may not end within --minutes
of all. A part's records are in OUTPUT/PART.jsonl as soon as it is done. One that fails
or takes too long is left out, with a line that says why. The same command goes on with
what is missing:

    python -m experiments.on_gpu --minutes=5
    python -m experiments.on_gpu --only=predict,traces_sdar
    python -m experiments.on_gpu --report_only

The table of aims at the end is made of all records in OUTPUT. Parts:

    steps_N        steps of full forwards beside eager PyTorch
    windows_N      a cached block step against reading the blocks' weights once
    generations_N  whole generations, three tokens a step: dual cache, none, and an
                   eager PyTorch loop with a dual cache
    predict        head and statistics against one plain einsum; at temperature 1
    traces_X       recorded float32 runs of a small model, replayed; no weights are made
    masks_N        a forward that is given a mask beside one given the number of keys
    compiled_N     as steps_N, beside torch.compile
    refreshed_N    generations with 1, 2, 4 and 8 rows refreshed together

N is the batch size. --preset=tiny runs all of it in minutes on a CPU, where the numbers
mean nothing.
"""

import contextlib
import gc
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags

from dlm_jax import files
from dlm_jax.errors import InputError
from dlm_jax.evaluation import provenance
from experiments import _app, _signals
from experiments.timing import aims, parts, torch_loops

_PRESET = flags.DEFINE_enum(
    "preset", "llada_8b", ["llada_8b", "tiny"], "Random weights of this shape."
)
_DTYPE = flags.DEFINE_enum(
    "dtype", "bfloat16", ["bfloat16", "float32"], "Of the weights."
)
_OUTPUT = _app.define_path("output", "runs/on_gpu", "Directory of the records.")
_MINUTES = flags.DEFINE_float(
    "minutes", 9, "Of all; no part is begun that may take longer.", lower_bound=0
)
_NUM_PAIRS = flags.DEFINE_integer("num_pairs", 3, "Runs of each loop.", lower_bound=1)
_ONLY = flags.DEFINE_list("only", [], "Parts to measure; all by default.")
_REPORT_ONLY = flags.DEFINE_bool("report_only", False, "Print OUTPUT's table again.")


def main(argv: Sequence[str]) -> None:
    """Measures what is missing, and prints the table."""
    del argv
    for name in _ONLY.value:
        if name not in parts.PARTS:
            raise InputError(f"only ({name}) must be among {', '.join(parts.PARTS)}")
    output = pathlib.Path(_OUTPUT.value)
    wanted = _ONLY.value or list(parts.PARTS)
    if not _REPORT_ONLY.value:
        with files.locked(output, is_directory=True):
            _check_same(_read(output))
            _measure(output, [x for x in parts.PARTS if x in wanted])
    records = _read(output)
    if not records:
        raise InputError(f"output ({output}) holds no records")
    _print(records)
    missing = [name for name in wanted if name not in records]
    if missing:
        print(f"Not measured: {', '.join(missing)}. The same command goes on.")
        sys.exit(1)


def _measure(output: pathlib.Path, wanted: Sequence[str]) -> None:
    """Runs the parts that have no records yet, and writes those."""
    start = time.perf_counter()
    todo = [name for name in wanted if not (output / f"{name}.jsonl").exists()]
    if not todo:
        return
    # A program that is read back from the cache would cost no compile time.
    jax.config.update("jax_enable_compilation_cache", False)
    torch_loops.leave_room()
    bench = None
    if any(parts.PARTS[name].needs_model for name in todo):
        bench, setup = parts.setup(_PRESET.value, _DTYPE.value, _NUM_PAIRS.value)
        setup["total_seconds"] = time.perf_counter() - start
        if setup["handing_seconds"] is not None:
            setup["seconds"] = setup["total_seconds"]
        if not (output / "setup.jsonl").exists():
            _write(output, "setup", [setup], _identity() | _environment())
        print(f"setup: {setup['total_seconds']:.0f} s", flush=True)
    common = _identity() | _environment()
    for name in todo:
        part = parts.PARTS[name]
        began = time.perf_counter()
        left = 60 * _MINUTES.value - (began - start)
        if left < 60 * part.minutes:
            print(
                f"{name}: not begun, for it may take {part.minutes:g} min of "
                f"{max(left, 0) / 60:.1f}",
                flush=True,
            )
            continue
        try:
            with _signals.limited(60 * part.minutes, _OutOfTime()):
                records = part.run(bench)
            _write(output, name, records, common)
            print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
        except _OutOfTime:
            print(f"{name} failed: more than {part.minutes:g} min", flush=True)
        # Whatever it is, the other parts may work, and device time is scarce.
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            print(f"{name} failed: {reason}", flush=True)
        gc.collect()
        torch_loops.free()


class _OutOfTime(BaseException):
    """A part took too long. No Exception: nothing on the way takes it for its own."""


def _identity() -> dict[str, Any]:
    """What all records of a directory have in common."""
    lengths = parts.LENGTHS[_PRESET.value]._asdict()
    return {"preset": _PRESET.value, "dtype": _DTYPE.value, **lengths}


def _environment() -> dict[str, Any]:
    """The card, the versions and the commit."""
    torch = sys.modules.get("torch")
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = None
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        driver = done.stdout.split("\n")[0].strip() or None
    own = {"driver": driver, "torch": str(torch.__version__) if torch else None}
    return provenance.environment() | own


def _write(
    output: pathlib.Path,
    name: str,
    records: Sequence[Mapping[str, Any]],
    common: Mapping[str, Any],
) -> None:
    """Writes a part's records."""
    path = output / f"{name}.jsonl"
    files.write_jsonl(path, [{"part": name, **x, **common} for x in records])


def _read(output: pathlib.Path) -> dict[str, list[dict[str, Any]]]:
    """The records of a directory, by part.

    Raises:
      InputError: if a file is damaged.
    """
    found = {}
    for name in ("setup", *parts.PARTS):
        path = output / f"{name}.jsonl"
        if path.exists():
            try:
                lines = path.read_text().splitlines()
                found[name] = [dict(json.loads(line)) for line in lines]
            except (TypeError, ValueError) as error:
                raise InputError(f"{path} is damaged, remove it: {error}") from None
    return found


def _check_same(records: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Refuses to add records to those of another shape."""
    for name, value in _identity().items():
        for known in {one.get(name) for own in records.values() for one in own}:
            if known != value:
                raise InputError(
                    f"{name} ({value}) must be {known}, as in {_OUTPUT.value}"
                )


def _print(records: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Prints where the records come from, and the table of aims."""
    every = [one for own in records.values() for one in own]
    lines = {
        f"{provenance.describe(one)}, driver {one.get('driver')}, PyTorch "
        f"{one.get('torch')}; {one.get('preset')} in {one.get('dtype')}, prompt "
        f"{one.get('prompt_length')} + {one.get('gen_length')}, blocks of "
        f"{one.get('block_length')}"
        for one in every
    }
    print(*sorted(lines), sep="\n")
    if any(x.get("preset") != "llada_8b" or x.get("device") == "cpu" for x in every):
        print("The aims are for LLaDA-8B's shape on a GPU with 80 GB: not for this.")
    print(f"\n{aims.table(records)}\n")


if __name__ == "__main__":
    _app.run(main)
