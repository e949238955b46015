"""Shapes of LLaDA models: published ones, one for tests, one for small tasks."""

from typing import Any

from dlm_jax.models.llada.config import LLaDAConfig


def llada_8b() -> LLaDAConfig:
    """LLaDA-8B-Base, LLaDA-8B-Instruct and LLaDA-1.5 (8,015,581,184 parameters)."""
    return LLaDAConfig(
        d_model=4096,
        n_heads=32,
        n_kv_heads=32,
        n_layers=32,
        mlp_hidden_size=12288,
        vocab_size=126464,
        embedding_size=126464,
        max_sequence_length=4096,
        rope_theta=500000.0,
        rms_norm_eps=1e-5,
        weight_tying=False,
        mask_token_id=126336,
        eos_token_id=126081,
        pad_token_id=126081,
    )


def tiny() -> LLaDAConfig:
    """A model of 0.2 M parameters for tests: grouped heads, padded embedding."""
    return LLaDAConfig(
        d_model=64,
        n_heads=4,
        n_kv_heads=2,
        n_layers=3,
        mlp_hidden_size=160,
        vocab_size=300,
        embedding_size=320,
        max_sequence_length=256,
        rope_theta=500000.0,
        rms_norm_eps=1e-5,
        weight_tying=False,
        mask_token_id=299,
        eos_token_id=2,
        pad_token_id=2,
    )


def small(**shape: Any) -> LLaDAConfig:
    """A shape to be trained from nothing; see `Family.small`."""
    return LLaDAConfig(
        **shape,
        n_kv_heads=shape["n_heads"],
        rms_norm_eps=1e-5,
        weight_tying=False,
        pad_token_id=shape["eos_token_id"],
    )
