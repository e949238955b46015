r"""Compiles the loop for a TPU or GPU that is not there; prints what it would take.

    python -m experiments.aot --topology=v5e:4x4 --preset=llada_8b \
        --devices_per_model=2 --batch_size=4 --sampler=saber
    python -m experiments.aot --topology=v5p:2x2x1 --num_devices=1 --batch_size=8 \
        --cache=dual
    python -m experiments.aot --topology=h100 --batch_size=8 --cache=dual

Needs `pip install -e '.[aot]'` for TPUs, '.[cuda]' for GPUs. Compiles the program that
`generate` would run on all devices of the topology, and runs nothing. Prints the
compile time, the memory used and left per device, copies of weights, operations and
bytes as the compiler counts them (of a GPU kernels instead), the communication between
devices, and the shortest possible time of a step by the chip's published peaks. A
program that does not fit is an error.

On a GPU XLA measures kernels and chooses Triton's or cuBLAS's for each product. Here
there is none to measure on, and all products are cuBLAS's, unless XLA_FLAGS names
--xla_gpu_autotune_level or --xla_gpu_enable_triton_gemm.
"""

import os

# Before JAX is imported: the compiler must not look for chips, or ask for the machine
# that it runs on.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
# Several may compile at once: none of them uses a chip.
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
# No GPU is there to measure kernels on, and without measuring XLA would guess at
# Triton's. Flags that a user gives come last and win.
os.environ["XLA_FLAGS"] = " ".join(
    dict.fromkeys(
        [
            "--xla_gpu_autotune_level=0",
            "--xla_gpu_enable_triton_gemm=false",
            *os.environ.get("XLA_FLAGS", "").split(),
        ]
    )
)

import dataclasses
import pathlib
import re
from collections.abc import Sequence
from typing import cast

import jax
from absl import flags

from dlm_jax import caches, files, samplers
from dlm_jax.core.options import Options
from dlm_jax.devices.runner import ModelParallel
from dlm_jax.errors import InputError
from dlm_jax.models import registry
from experiments import _app
from experiments.timing import aot, roofline, steps

_TOPOLOGY = flags.DEFINE_string(
    "topology",
    None,
    "TPUs to compile for, as v5e:4x4, v5p:2x2x1 or v6e:2x4, or GPUs of one host, as "
    "h100 or h200:8; cpu is this machine.",
    required=True,
)
_CHIPS_PER_HOST = flags.DEFINE_string(
    "chips_per_host", None, "TPUs of one host, such as 2x4; default: 2x2."
)
_NUM_DEVICES = flags.DEFINE_integer(
    "num_devices", None, "Number of devices: the topology's first ones; default: all."
)
_SHARING = _app.define_sharing()
_PRESET = flags.DEFINE_enum(
    "preset", "llada_8b", registry.preset_names(), "Model shape to compile for."
)
_LAYERS = flags.DEFINE_integer(
    "layers", None, "Number of transformer blocks; default: the preset's."
)
_DTYPE = flags.DEFINE_enum(
    "dtype", "bfloat16", ["bfloat16", "float32"], "Dtype of the weights."
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 8, "Rows in flight in each group of devices that share weights."
)
_SAMPLER = flags.DEFINE_string(
    "sampler", "low_confidence", "Sampler spec, such as saber(n=2, mu=8)."
)
_CACHE = flags.DEFINE_string(
    "cache", "none", "Cache plan, such as dual(refresh_every=8)."
)
_PROMPT_LENGTH = flags.DEFINE_integer("prompt_length", 256, "Prompt tokens per row.")
_GEN_LENGTH = flags.DEFINE_integer("gen_length", 256, "Tokens to generate per row.")
_BLOCK_LENGTH = flags.DEFINE_integer("block_length", 32, "Tokens per block.")
_TEMPERATURE = flags.DEFINE_float(
    "temperature", 0.0, "Sampling temperature; above 0, the program draws noise."
)
_TEXT = _app.define_path(
    "text", None, "File to write the compiled program's text to; must not exist."
)

# Rows of a call and slot, as in `batches.stream`.
_ROWS_PER_SLOT = 8


def main(argv: Sequence[str]) -> None:
    """Compiles and prints."""
    del argv
    # A program that is read back from the cache would cost no compile time.
    jax.config.update("jax_enable_compilation_cache", False)
    _check()
    sampler, cache = samplers.parse(_SAMPLER.value), caches.parse(_CACHE.value)
    config = registry.preset(_PRESET.value)
    if _LAYERS.value is not None:
        # Every config is a dataclass with this field.
        config = dataclasses.replace(config, n_layers=_LAYERS.value)
    devices = aot.devices_of(_TOPOLOGY.value, _bounds())
    if not 1 <= (_NUM_DEVICES.value or 1) <= len(devices):
        raise InputError(
            f"num_devices ({_NUM_DEVICES.value}) must be from 1 to {len(devices)}"
        )
    devices = devices[: _NUM_DEVICES.value]
    parallel = aot.abstract(config, _DTYPE.value, devices, _SHARING.value)
    prompts = steps.synthetic(
        num_rows=_ROWS_PER_SLOT * _BATCH_SIZE.value * parallel.num_groups,
        prompt_length=_PROMPT_LENGTH.value,
        gen_length=_GEN_LENGTH.value,
        vocab_size=config.vocab_size,
        seed=0,
    )
    options = Options(
        _GEN_LENGTH.value,
        _BLOCK_LENGTH.value,
        _TEMPERATURE.value,
        cache=cache,
        num_slots=_BATCH_SIZE.value,
    )
    # The count of operations is written for this shape.
    shape = cast(roofline.Dense, config)
    report, text = aot.compile_loop(
        parallel, shape, _DTYPE.value, devices, sampler, prompts, options
    )
    if _TEXT.value:
        pathlib.Path(_TEXT.value).write_text(text)
    print(aot.describe(report))
    if isinstance(parallel, ModelParallel):
        print("", aot.where(parallel.mesh), sep="\n")


def _bounds() -> tuple[int, ...] | None:
    """--chips_per_host as the compiler takes it."""
    given = _CHIPS_PER_HOST.value
    if given is None:
        return None
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", given):
        raise InputError(f"chips_per_host ({given}) must be such as 2x4 or 2x2x1")
    sizes = [int(x) for x in given.split("x")]
    return (*sizes, 1)[:3]


def _check() -> None:
    """Refuses, before anything is compiled, what cannot be."""
    if _TEXT.value:
        files.check_output(pathlib.Path(_TEXT.value))
    for flag in (_LAYERS, _BATCH_SIZE, _GEN_LENGTH, _BLOCK_LENGTH):
        if flag.value is not None and flag.value < 1:
            raise InputError(f"{flag.name} ({flag.value}) must be at least 1")
    if _PROMPT_LENGTH.value < 0:
        raise InputError(f"prompt_length ({_PROMPT_LENGTH.value}) must be at least 0")


if __name__ == "__main__":
    _app.run(main)
