"""Checkpoints in Hugging Face and Orbax format."""

from dlm_jax.checkpoints.hf import (
    astype,
    companions,
    load,
    load_hf,
    load_orbax,
    read_config,
    save_hf,
    save_orbax,
)
from dlm_jax.checkpoints.hf_format import CheckpointError

__all__ = [
    "CheckpointError",
    "astype",
    "companions",
    "load",
    "load_hf",
    "load_orbax",
    "read_config",
    "save_hf",
    "save_orbax",
]
