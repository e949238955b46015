"""NVIDIA's GPUs as XLA's compiler describes them, to compile where there is none."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Gpu:
    """Numbers in which these GPUs differ; the others are in `_HOPPER`.

    Attributes:
      name: as the GPU gives it, which the compiler repeats.
      memory: bytes, as the GPU tells them.
      bandwidth: of the memory, bytes per second.
      source: of these numbers, and of those in `target`.
    """

    name: str
    memory: int
    bandwidth: int
    source: str


# Both have the same cores.
GPUS = {
    "h100": Gpu(
        name="NVIDIA H100 80GB HBM3",
        memory=84_929_347_584,
        bandwidth=3_352_320_000_000,
        source="NVIDIA H100 (SXM5) data sheet; CUDA C++ Programming Guide, compute "
        "capability 9.0; github.com/openxla/xla/pull/25919",
    ),
    "h200": Gpu(
        name="NVIDIA H200",
        memory=150_114_402_304,
        bandwidth=4_800_000_000_000,
        source="NVIDIA H200 data sheet; otherwise as an H100",
    ),
}

# Compute capability 9.0, 132 multiprocessors.
_HOPPER = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "threads_per_core_limit": 2048,
    "core_count": 132,
    "fpus_per_core": 128,
    "clock_rate_ghz": 1.98,
    "l2_cache_size": 50 * 2**20,
    "shared_memory_per_block": 48 * 2**10,
    "shared_memory_per_block_optin": 227 * 2**10,
    "shared_memory_per_core": 228 * 2**10,
    "registers_per_core_limit": 65536,
    "registers_per_block_limit": 65536,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 65535,
    "block_dim_limit_z": 65535,
}


def target(gpu: Gpu) -> str:
    """A GPU as XLA's `GpuTargetConfigProto` in text."""
    numbers = _HOPPER | {
        "device_memory_size": gpu.memory,
        "memory_bandwidth": gpu.bandwidth,
    }
    return "\n".join(
        [
            "gpu_device_info {",
            *(f"  {name}: {value}" for name, value in numbers.items()),
            "  cuda_compute_capability { major: 9 }",
            "}",
            'platform_name: "CUDA"',
            # Any version of cuDNN that has the kernels of `models.attention`.
            "dnn_version_info { major: 9 minor: 10 }",
            "runtime_version { major: 12 minor: 9 }",
            f'device_description_str: "{gpu.name}"',
        ]
    )
