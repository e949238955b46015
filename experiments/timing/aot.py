"""Compiles the loop for devices that this machine lacks; reads the compiler's report.

PyPI's libtpu compiles for any TPU on a Linux x86 machine, JAX's CUDA plugin for any
GPU; neither runs what it compiled. What is compiled is what `devices.runner` would run
there, from the shapes of the weights.
"""

import collections
import dataclasses
import importlib.util
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies

from dlm_jax.checkpoints import common
from dlm_jax.core.canvas import Prompts
from dlm_jax.core.checks import num_refreshed
from dlm_jax.core.keys import row_keys
from dlm_jax.core.options import Options
from dlm_jax.core.sampler import Sampler
from dlm_jax.devices.mesh import make_mesh
from dlm_jax.devices.parallel import Parallel
from dlm_jax.devices.runner import DataParallel, ModelParallel
from dlm_jax.errors import InputError
from dlm_jax.evaluation import tables
from dlm_jax.models import as_denoiser, attention, registry, stack
from dlm_jax.models.family import ModelConfig
from experiments.timing import compiled, gpus, roofline, steps

# Packages of which one must be installed.
GPU_COMPILERS = ("jax_cuda12_plugin", "jax_cuda13_plugin")


def devices_of(
    topology: str, chips_per_host: Sequence[int] | None = None
) -> list[jax.Device]:
    """The devices of a topology, all hosts together.

    Args:
      topology: of TPUs, such as "v5e:4x4"; GPUs of one host, such as "h100:2"; or
        "cpu", this machine's own.
      chips_per_host: of TPUs, such as (2, 4, 1); 2 x 2 x 1 by default.

    Raises:
      InputError: if the compiler is missing or does not know the topology.
    """
    if topology == "cpu":
        return jax.local_devices(backend="cpu")
    name, colon, num = topology.partition(":")
    if gpu := gpus.GPUS.get(name.lower()):
        if chips_per_host is not None:
            raise InputError(f"chips_per_host is for TPUs, not for topology {topology}")
        return _gpus(topology, gpu, num if colon else "1")
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            f"topology ({topology}) needs the TPU's compiler: pip install -e '.[aot]'"
        )
    bounds = {} if chips_per_host is None else {"chips_per_host_bounds": chips_per_host}
    try:
        found = topologies.get_topology_desc(topology, "tpu", **bounds)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).partition(": ")[2].splitlines()[0]
        raise InputError(
            f"topology ({topology}) must be cpu, a number of GPUs such as h100:1 or "
            "h200:8, or one that the TPU's compiler knows, such as v5e:4x4, v5p:2x2x1 "
            f"or v6e:2x4 ({reason})"
        ) from None
    return list(found.devices)


def _gpus(topology: str, gpu: gpus.Gpu, num: str) -> list[jax.Device]:
    """So many GPUs of one host."""
    if not re.fullmatch(r"[1-9]\d?", num):
        raise InputError(f"topology ({topology}) must have 1 to 99 GPUs, as h100:8")
    if not any(map(importlib.util.find_spec, GPU_COMPILERS)):
        raise InputError(
            f"topology ({topology}) needs the GPU's compiler: pip install -e '.[cuda]'"
        )
    found = topologies.get_topology_desc(
        "", "cuda", target_config=gpus.target(gpu), topology=f"1x1x{num}"
    )
    return list(found.devices)


def abstract(
    config: ModelConfig,
    dtype: jax.typing.DTypeLike,
    devices: Sequence[jax.Device],
    num_sharing: int | None,
) -> Parallel:
    """A model on devices, with shapes in place of its weights.

    Args:
      config: its shape.
      dtype: of the weights.
      devices: what it is compiled for; all alike.
      num_sharing: devices that share one copy of the weights; None if none do.

    Raises:
      InputError: if the model or the devices do not divide.
    """
    model: Any = common.abstract(registry.of(config).module, config, np.dtype(dtype))
    # All ask for the backend of this machine by default.
    backend = devices[0].platform
    model.attention = attention.best_on(backend)
    model.way = stack.way_on(backend)
    denoiser, params = as_denoiser(model)
    if num_sharing is None:
        return DataParallel(denoiser, params, devices)
    specs = registry.partition(config, num_sharing, "model")
    return ModelParallel(denoiser, params, specs, make_mesh(num_sharing, devices))


def chosen_for(backend: str, options: Options) -> Options:
    """Options with what a backend that is not JAX's default would choose itself.

    Args:
      backend: "cpu", "gpu" or "tpu".
      options: num_slots must be given.
    """
    chosen = options.num_refreshed or num_refreshed(options.num_slots, backend)
    return dataclasses.replace(options, num_refreshed=chosen)


@dataclasses.dataclass(frozen=True)
class Report:
    """What the compiler says of the loop on one device.

    Attributes:
      kind: of the device.
      num_devices: how many run the program together.
      num_groups: devices, or groups of them, that run rows on their own.
      seconds: that compiling took.
      arguments: bytes of weights, prompts and the queue.
      temporaries: bytes that are alive at once beside them, at most.
      outputs: bytes of results that do not take the place of an argument.
      code: bytes of the program.
      flops: operations, each loop's body counted once; None if the compiler tells none.
      bytes_accessed: bytes read and written, likewise.
      moved: see `compiled.moved`, of the blocks' matrices.
      launches: see `compiled.launches`; None for what is not a GPU.
      collectives: see `compiled.collectives`.
      forwards: the least seconds of each kind of forward of a group's rows, by its
        name, at the peak of bfloat16; empty for devices whose peaks are not known.
    """

    kind: str
    num_devices: int
    num_groups: int
    seconds: float
    arguments: int
    temporaries: int
    outputs: int
    code: int
    flops: float | None
    bytes_accessed: float | None
    moved: int
    launches: int | None
    collectives: list[compiled.Collective]
    forwards: dict[str, roofline.Times]

    @property
    def total(self) -> int:
        """Bytes of a device that the program takes."""
        return self.arguments + self.temporaries + self.outputs + self.code

    @property
    def chip(self) -> roofline.Chip | None:
        """The device's peaks, where they are known."""
        return roofline.CHIPS.get(self.kind)

    @property
    def left(self) -> float | None:
        """The part of the device's usable memory that is left; None if unknown."""
        return None if self.chip is None else 1 - self.total / self.chip.usable


def compile_loop(
    parallel: Parallel,
    config: roofline.Dense,
    dtype: jax.typing.DTypeLike,
    devices: Sequence[jax.Device],
    sampler: Sampler,
    prompts: Prompts,
    options: Options,
) -> tuple[Report, str]:
    """Compiles a sampler's loop and reads what the compiler says of it.

    Args:
      parallel: of `abstract`.
      config: the model's shape.
      dtype: of its weights.
      devices: what `parallel` is for.
      sampler: the rule.
      prompts: rows of all groups.
      options: num_slots are the rows in flight of a group.

    Returns:
      The report, and the text of the compiled program.

    Raises:
      InputError: if the program takes more memory than a device has, or naming the
        argument that does not fit.
    """
    options = chosen_for(devices[0].platform, options)
    keys = row_keys(0, np.arange(len(prompts.tokens)))
    start = time.perf_counter()
    try:
        loop = parallel.programs(sampler, prompts, keys, options).proceed
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(_too_large(str(error), devices[0])) from None
    seconds = time.perf_counter() - start

    memory: Any = loop.memory_analysis()
    # Not of a GPU.
    cost: Any = loop.cost_analysis() or {}
    text: Any = loop.as_text()
    report = Report(
        kind=devices[0].device_kind,
        num_devices=len(devices),
        num_groups=parallel.num_groups,
        seconds=seconds,
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        flops=cost.get("flops"),
        bytes_accessed=cost.get("bytes accessed"),
        moved=compiled.moved(text, _matrices(parallel)),
        launches=compiled.launches(text) if devices[0].platform == "gpu" else None,
        collectives=compiled.collectives(text),
        forwards={},
    )
    if report.chip is None:
        return report, text
    if report.total > report.chip.usable:
        # A GPU's compiler does not refuse it.
        needed, usable = (x / 2**30 for x in (report.total, report.chip.usable))
        sizes = f" ({needed:.1f}GB of {usable:.1f}GB)"
        raise InputError(_does_not_fit(sizes, devices[0]))
    itemsize = np.dtype(dtype).itemsize
    costs = _costs(parallel, config, itemsize, sampler, prompts, options)
    num_sharing = len(devices) // parallel.num_groups
    forwards = {
        name: roofline.times(cost, report.chip, num_sharing)
        for name, cost in costs.items()
    }
    return dataclasses.replace(report, forwards=forwards), text


def _matrices(parallel: Parallel) -> set[tuple[int, ...]]:
    """Shapes of what a device has of the blocks' matrices, stacked over layers."""
    shapes = [x.shape for x in jax.tree.leaves(parallel.shards())]
    if isinstance(parallel, DataParallel):
        # The axis of devices is no part of the program's arrays.
        shapes = [shape[1:] for shape in shapes]
    return {shape for shape in shapes if len(shape) == 3}


def _costs(
    parallel: Parallel,
    config: roofline.Dense,
    itemsize: int,
    sampler: Sampler,
    prompts: Prompts,
    options: Options,
) -> dict[str, roofline.Forward]:
    """What is counted of each kind of forward of a group's rows."""
    denoiser = parallel.denoiser
    sizes = steps.sizes(denoiser, sampler, prompts, options)
    num_rows, length = options.num_slots, prompts.tokens.shape[1]

    def cost(num_rows: int, window: int | None) -> roofline.Forward:
        return roofline.forward(
            config, num_rows, length, sizes.region, itemsize, window
        )

    if sizes.window is None:
        return {"a step": cost(num_rows, None)}
    at_once = min(options.num_refreshed, num_rows)
    return {
        "a step of all rows": cost(num_rows, sizes.window),
        f"a refresh of {at_once}": cost(at_once, None),
    }


def describe(report: Report) -> str:
    """A report as text: what one device takes, and what devices exchange."""
    gigabytes = {
        "arguments": report.arguments,
        "temporaries": report.temporaries,
        "outputs": report.outputs,
        "code": report.code,
    }
    rows = [["one device", report.kind]]
    rows += [["devices, groups", f"{report.num_devices}, {report.num_groups}"]]
    rows += [["compiled in, s", f"{report.seconds:.1f}"]]
    rows += [[f"{name}, GB", f"{x / 1e9:.2f}"] for name, x in gigabytes.items()]
    if report.chip is not None:
        rows += [["memory left", f"{report.left:.1%}"]]
    if report.flops is not None and report.bytes_accessed is not None:
        accessed = f"{report.bytes_accessed / 1e9:.2f}"
        rows += [
            ["TFLOP, loop bodies counted once", f"{report.flops / 1e12:.2f}"],
            ["GB accessed, loop bodies counted once", accessed],
        ]
    rows += [["copies of weights in a step, GB", f"{report.moved / 1e9:.2f}"]]
    if report.launches is not None:
        rows += [["kernels in a step, at most", f"{report.launches}"]]
    for name, times in report.forwards.items():
        parts = {"compute": times.compute, "memory": times.memory}
        limit = max(parts, key=lambda part: parts[part])
        rows += [
            [f"{name}, lower bound, ms", f"{1e3 * times.seconds:.2f}"],
            ["  compute, ms", f"{1e3 * times.compute:.2f}"],
            ["  memory, ms", f"{1e3 * times.memory:.2f}"],
            ["  sums in the group, ms", f"{1e3 * times.network:.2f}"],
            ["  limit", limit],
        ]
    return "\n".join([tables.markdown(rows), "", _exchanges(report)])


def _exchanges(report: Report) -> str:
    """The collectives, alike ones together."""
    if not report.collectives:
        return "No device waits for another: there are no collectives."
    found: collections.Counter = collections.Counter()
    for x in report.collectives:
        found[x.opcode, ", ".join(x.types), x.groups] += x.times
    rows = [["collective", "result", "most per step", "groups"]]
    rows += [
        [opcode, types, str(times), _groups(groups)]
        for (opcode, types, groups), times in found.items()
    ]
    return tables.markdown(rows, num_text_columns=2)


def _groups(groups: tuple[tuple[int, ...], ...] | None) -> str:
    if groups is None:
        return "all"
    some = " ".join("{" + ",".join(map(str, group)) + "}" for group in groups[:2])
    rest = " ..." if len(groups) > 2 else ""
    return f"{len(groups)} of {len(groups[0])}: {some}{rest}"


def where(mesh: jax.sharding.Mesh) -> str:
    """Where the devices of a group are, and whether `devices.runner` can use them."""
    groups = mesh.devices.tolist()
    hosts = max(len({device.process_index for device in group}) for group in groups)
    first = " ".join(str(getattr(x, "coords", x.id)) for x in groups[0])
    if hosts == 1:
        return f"Every group is on one host; the first at {first}."
    return (
        f"A group spans {hosts} hosts, the first at {first}: it compiles, but "
        "dlm_jax runs groups within a host only."
    )


def _too_large(error: str, device: jax.Device) -> str:
    """The compiler's refusal in one line."""
    found = re.search(r"\((?:Used )?([\d.]+\w) ?\).*?\(([\d.]+\w)\)", error)
    found = found or re.search(r"Used ([\d.]+\w) of ([\d.]+\w)", error)
    sizes = f" ({found[1]}B of {found[2]}B)" if found else f": {error[:200]}"
    return _does_not_fit(sizes, device)


def _does_not_fit(sizes: str, device: jax.Device) -> str:
    """The line for a program that takes more memory than there is."""
    return (
        f"the program does not fit the memory of one {device.device_kind}{sizes}: more "
        "devices must share the model (--devices_per_model), or fewer rows be in "
        "flight (--batch_size)"
    )
