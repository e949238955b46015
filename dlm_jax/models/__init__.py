"""Denoisers as Flax NNX modules, and their adapter to the generation loop."""

from dlm_jax.models.denoiser import ModuleDenoiser, as_denoiser

__all__ = ["ModuleDenoiser", "as_denoiser"]
