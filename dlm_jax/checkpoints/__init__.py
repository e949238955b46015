"""Checkpoints in Hugging Face and Orbax format."""

from dlm_jax.checkpoints.common import astype, companions
from dlm_jax.checkpoints.hf import (
    essential_files,
    load,
    load_hf,
    read_config,
    read_origin,
    save_hf,
)
from dlm_jax.checkpoints.hf_format import CheckpointError
from dlm_jax.checkpoints.orbax import load_orbax, save_orbax

__all__ = [
    "CheckpointError",
    "astype",
    "companions",
    "essential_files",
    "load",
    "load_hf",
    "load_orbax",
    "read_config",
    "read_origin",
    "save_hf",
    "save_orbax",
]
