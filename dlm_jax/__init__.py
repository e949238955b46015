"""Masked diffusion language models sampled in JAX."""
