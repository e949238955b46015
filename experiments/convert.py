r"""Converts a checkpoint: Hugging Face to Orbax, or back.

    python -m experiments.convert --checkpoint=LLaDA-8B-Instruct --output=llada-bf16 \
        --dtype=bfloat16
    python -m experiments.convert --checkpoint=llada-bf16 --output=llada-hf --format=hf

The input format is recognised by the files. Tokenizer files, licences, the fields of
config.json and the code that it names are copied; the code is never run. To measure
time alone, write random weights instead:

    python -m experiments.convert --preset=llada_8b --dtype=bfloat16 --format=hf \
        --output=random-hf

Several hosts that see the same files share the work; none holds the whole model:

    python -m experiments.convert ... --coordinator=HOST:PORT --num_processes=N \
        --process_id=I    # or --cluster
"""

import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags
from flax import nnx

from dlm_jax import checkpoints, files
from dlm_jax.checkpoints import staging
from dlm_jax.devices.mesh import make_mesh, shardings
from dlm_jax.errors import InputError
from dlm_jax.models import registry
from experiments import _app

_SAVERS = {"orbax": checkpoints.save_orbax, "hf": checkpoints.save_hf}

_CHECKPOINT = _app.define_path(
    "checkpoint",
    None,
    "Directory to read, in Hugging Face or Orbax format.",
)
_PRESET = flags.DEFINE_enum(
    "preset",
    None,
    registry.preset_names(),
    "Shape to fill with random weights, instead of reading a checkpoint.",
)
_OUTPUT = _app.define_path(
    "output", None, "Directory to write; must not exist.", required=True
)
_FORMAT = flags.DEFINE_enum("format", "orbax", list(_SAVERS), "Format to write.")
_DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["bfloat16", "float32"],
    "Dtype to write; default: as stored, float32 for a preset.",
)
_START = _app.define_hosts()


def main(argv: Sequence[str]) -> None:
    """Loads, saves and reports."""
    del argv
    # Parameters must pass through the host anyway, and may not fit the accelerator.
    jax.config.update("jax_platforms", "cpu")
    host = _START()
    files.check_output(_OUTPUT.value)
    given = [x for x in (_CHECKPOINT.value, _PRESET.value) if x is not None]
    if len(given) != 1:
        raise InputError("one of checkpoint and preset must be given")
    (source,) = given
    placements = None
    if host.count > 1:
        if _PRESET.value is not None:
            raise InputError(f"preset ({source}) must be written by one process")
        if _FORMAT.value != "orbax":
            raise InputError(f"format ({_FORMAT.value}) must be written by one process")
        devices = jax.devices()
        config = checkpoints.read_config(source)
        specs = registry.partition(config, len(devices), "model")
        # Before they read, for some take longer than others.
        staging.meet("begun")
        placements = shardings(specs, make_mesh(len(devices), devices))
    start = time.perf_counter()
    if _PRESET.value is not None:
        model, extra_files = registry.random_preset(source, _DTYPE.value), ()
        origin = None
    else:
        origin = checkpoints.read_origin(source)
        model = checkpoints.load(source, _DTYPE.value, placements)
        extra_files = checkpoints.companions(source)
    _SAVERS[_FORMAT.value](model, _OUTPUT.value, extra_files, origin=origin)
    seconds = time.perf_counter() - start
    params = jax.tree.leaves(nnx.state(model))
    print(f"Wrote {_OUTPUT.value} ({_FORMAT.value}, {params[0].dtype})")
    print(f"parameters  {sum(param.size for param in params):,}")
    print(f"bytes       {sum(param.nbytes for param in params):,}")
    print(f"seconds     {seconds:.1f}")
    print(f"peak memory {_peak_memory():,} bytes")


def _peak_memory() -> int:
    """Largest resident size of this process so far, file-backed pages included."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the parent's memory before exec.
        kilobytes = status.read_text().partition("VmHWM:")[2].split()[0]
        return int(kilobytes) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    _app.run(main)
