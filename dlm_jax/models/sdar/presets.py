"""Shapes of SDAR models: a published one and one for tests."""

from dlm_jax.models.sdar.config import SDARConfig


def sdar_8b() -> SDARConfig:
    """SDAR-8B-Chat (8,190,735,360 parameters)."""
    return SDARConfig(
        d_model=4096,
        n_heads=32,
        n_kv_heads=8,
        head_dim=128,
        n_layers=36,
        mlp_hidden_size=12288,
        embedding_size=151936,
        max_sequence_length=32768,
        rope_theta=1000000.0,
        rms_norm_eps=1e-6,
        weight_tying=False,
        mask_token_id=151669,
        eos_token_id=151643,
        block_size=4,
    )


def sdar_tiny() -> SDARConfig:
    """A model of 0.03 M parameters for tests: heads wider than d_model / n_heads."""
    return SDARConfig(
        d_model=24,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        n_layers=3,
        mlp_hidden_size=64,
        embedding_size=120,
        max_sequence_length=128,
        rope_theta=10000.0,
        rms_norm_eps=1e-6,
        weight_tying=False,
        mask_token_id=119,
        eos_token_id=1,
        block_size=4,
    )
