"""The cost of a forward, and the shortest time that a machine could take.

Counts, not measurements: the operations and bytes of a forward, and the time in
which a machine's published peaks allow them. Benchmarks divide by these counts, and
plans for machines that are not available use them.
"""

import dataclasses
from typing import Protocol

from dlm_jax.errors import InputError
from dlm_jax.models import registry
from dlm_jax.models.family import ModelConfig
from experiments.timing import gpus


class Dense(ModelConfig, Protocol):
    """The shape of a model whose forward can be counted: no experts, a gated MLP.

    Attributes:
      d_model: width of the residual stream, and of all query heads.
      head_dim: width of a head.
      n_kv_heads: heads of keys and values.
      mlp_hidden_size: units of the MLP.
      weight_tying: whether the head is the embedding.
    """

    @property
    def d_model(self) -> int: ...

    @property
    def head_dim(self) -> int: ...

    @property
    def n_kv_heads(self) -> int: ...

    @property
    def mlp_hidden_size(self) -> int: ...

    @property
    def weight_tying(self) -> bool: ...


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device, by its published peaks.

    Attributes:
      name: as in the names of topologies.
      flops: dense bfloat16 operations a second.
      memory: bytes.
      usable: bytes of it that libtpu 0.0.42's compiler gives to a program; of a GPU
        three quarters of what its driver tells, as JAX takes by default.
      bandwidth: bytes a second between the chip and its memory.
      link: bytes a second that a chip sends to the others of its group.
      source: where the numbers stand.
    """

    name: str
    flops: float
    memory: float
    usable: float
    bandwidth: float
    link: float
    source: str


@dataclasses.dataclass(frozen=True)
class Machine:
    """Devices of one kind.

    Attributes:
      name: of the machine.
      num_devices: in all.
      chip: one of them.
    """

    name: str
    num_devices: int
    chip: Chip


# Chips by the names that their compiler gives them.
CHIPS = {
    "TPU v5 lite": Chip(
        name="v5e",
        flops=197e12,
        memory=16e9,
        usable=15.75 * 2**30,
        bandwidth=819e9,
        link=100e9,
        source="cloud.google.com/tpu/docs/v5e; two of four 50 GB/s links per group",
    ),
    "TPU v5": Chip(
        name="v5p",
        flops=459e12,
        memory=95e9,
        usable=95.74 * 2**30,
        bandwidth=2765e9,
        link=200e9,
        source="cloud.google.com/tpu/docs/v5p; two of six 100 GB/s links per group",
    ),
    "TPU v6 lite": Chip(
        name="v6e",
        flops=918e12,
        memory=32e9,
        usable=31.25 * 2**30,
        bandwidth=1638e9,
        link=200e9,
        source="cloud.google.com/tpu/docs/v6e; two of four 100 GB/s links per group",
    ),
}


def _of_gpu(gpu: gpus.Gpu, name: str, memory: float) -> Chip:
    """A GPU with the cores of an H100; `memory` is what it is sold with."""
    return Chip(
        name=name,
        flops=989e12,
        memory=memory,
        usable=0.75 * gpu.memory,
        bandwidth=gpu.bandwidth,
        link=450e9,
        source=f"NVIDIA {name} data sheet; NVLink 900 GB/s in both directions",
    )


_H100, _H200 = gpus.GPUS["h100"], gpus.GPUS["h200"]
CHIPS |= {
    _H100.name: _of_gpu(_H100, "H100", 80e9),
    _H200.name: _of_gpu(_H200, "H200", 141e9),
}


# A name such as v5p-64 counts cores, of which a v5p chip has two and runs them as one
# device; v5e-16 counts chips of one core.
MACHINES = (
    Machine("v5e-16", 16, CHIPS["TPU v5 lite"]),
    Machine("v5p-64", 32, CHIPS["TPU v5"]),
    Machine(
        name="8x H200",
        num_devices=8,
        chip=CHIPS[_H200.name],
    ),
)


@dataclasses.dataclass(frozen=True)
class Forward:
    """One forward of a batch through a model.

    Attributes:
      flops: of its matrix products, two for each multiplication with addition.
      weight_bytes: that it reads once.
      activation_bytes: that go to memory and back, if what is between two matrix
        products is fused, and attention's scores stay on the chip.
      sum_bytes: of one device's activations that its group sums, per forward.
      cache_bytes: of cached keys and values that it reads.
    """

    flops: float
    weight_bytes: float
    activation_bytes: float
    sum_bytes: float
    cache_bytes: float = 0.0


def block_parameters(config: Dense) -> int:
    """Parameters in the matrices of all blocks; every token uses all of them."""
    width, kv = config.d_model, config.n_kv_heads * config.head_dim
    attention = 2 * width * width + 2 * width * kv
    return config.n_layers * (attention + 3 * width * config.mlp_hidden_size)


def num_parameters(config: Dense) -> int:
    """All parameters of a model."""
    tables = 1 if config.weight_tying else 2
    embeddings = tables * config.embedding_size * config.d_model
    return (
        block_parameters(config)
        + embeddings
        + (2 * config.n_layers + 1) * config.d_model
    )


def forward(
    config: Dense,
    batch_size: int,
    length: int,
    region: int,
    itemsize: int = 2,
    window: int | None = None,
) -> Forward:
    """Counts a forward.

    Args:
      config: the model.
      batch_size: rows.
      length: tokens of a row.
      region: positions of a row whose predictions are needed; the head runs there only.
      itemsize: bytes of a parameter and of an activation.
      window: tokens of a row that go through the model, against cached keys and values
        of the whole row; None for all, without a cache.
    """
    tokens = batch_size * (length if window is None else window)
    width = config.d_model
    head = config.embedding_size * width
    kv = config.n_kv_heads * config.head_dim
    attention = 4 * config.n_layers * tokens * length * width
    # Written and read: the stream and its norm twice, queries, keys, values, what
    # attention gives, the two branches of the MLP and their product.
    widths = 4 * width + 2 * width + 2 * kv + 3 * config.mlp_hidden_size
    return Forward(
        flops=2 * block_parameters(config) * tokens
        + attention
        + 2 * head * batch_size * region,
        weight_bytes=itemsize * (block_parameters(config) + head),
        activation_bytes=2 * itemsize * config.n_layers * tokens * widths,
        sum_bytes=2 * config.n_layers * tokens * width * itemsize,
        cache_bytes=0.0
        if window is None
        else 2 * itemsize * config.n_layers * batch_size * length * kv,
    )


@dataclasses.dataclass(frozen=True)
class Times:
    """The least seconds that the parts of a forward take on a device of a group.

    Attributes:
      compute: for the operations.
      memory: for weights, activations and the cache.
      network: for the sums within the group.
    """

    compute: float
    memory: float
    network: float

    @property
    def seconds(self) -> float:
        """Of the forward, if computing and reading overlap and sums do not."""
        return max(self.compute, self.memory) + self.network


def times(cost: Forward, device: Chip, num_sharing: int) -> Times:
    """The roofline of a forward that num_sharing devices share."""
    moved = cost.weight_bytes + cost.activation_bytes + cost.cache_bytes
    return Times(
        compute=cost.flops / num_sharing / device.flops,
        memory=moved / num_sharing / device.bandwidth,
        # A ring: every device sends twice (n - 1) / n of what is summed.
        network=2 * (num_sharing - 1) / num_sharing * cost.sum_bytes / device.link,
    )


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The best case for a group of devices that share a model.

    Attributes:
      machine: its name.
      num_sharing: devices of a group.
      batch_size: rows of a group.
      bytes_per_device: weights and activations that are alive at once.
      compute: seconds of a forward that the operations take.
      memory: seconds that weights and activations take.
      network: seconds that the sums within the group take.
      seconds: of a forward, if computing and reading overlap and sums do not.
      tokens_per_second: of all groups, with one token committed per forward and row.
      limit: what takes longest.
    """

    machine: str
    num_sharing: int
    batch_size: int
    bytes_per_device: float
    compute: float
    memory: float
    network: float
    seconds: float
    tokens_per_second: float
    limit: str


def estimate(
    config: Dense,
    machine: Machine,
    num_sharing: int,
    batch_size: int,
    length: int,
    region: int,
) -> Estimate:
    """The roofline of a forward in bfloat16.

    Raises:
      InputError: if the model or the machine does not divide, or it does not fit.
    """
    registry.partition(config, num_sharing, "model")
    if machine.num_devices % num_sharing:
        raise InputError(
            f"num_sharing ({num_sharing}) must divide the devices of {machine.name} "
            f"({machine.num_devices})"
        )
    cost = forward(config, batch_size, length, region)
    # One layer's activations are alive at once.
    alive = cost.activation_bytes / config.n_layers / 2
    held = (2 * num_parameters(config) + alive) / num_sharing
    if held > machine.chip.memory:
        raise InputError(
            f"{machine.name} has {machine.chip.memory / 1e9:.0f} GB a device, "
            f"{held / 1e9:.1f} are needed: more devices must share the model"
        )
    least = times(cost, machine.chip, num_sharing)
    parts = dataclasses.asdict(least)
    num_groups = machine.num_devices // num_sharing
    return Estimate(
        machine=machine.name,
        num_sharing=num_sharing,
        batch_size=batch_size,
        bytes_per_device=held,
        compute=least.compute,
        memory=least.memory,
        network=least.network,
        seconds=least.seconds,
        tokens_per_second=num_groups * batch_size / least.seconds,
        limit=max(parts, key=lambda name: parts[name]),
    )
