"""SDAR (arXiv:2510.06303): block diffusion on the layers of Qwen3."""

from dlm_jax.models.family import Family, Weight
from dlm_jax.models.sdar.config import ARCHITECTURE, SDARConfig
from dlm_jax.models.sdar.module import SDAR, partition
from dlm_jax.models.sdar.presets import sdar_8b, sdar_tiny

__all__ = [
    "FAMILY",
    "SDAR",
    "SDARConfig",
    "partition",
    "sdar_8b",
    "sdar_tiny",
]

_NORMS = ("input_layernorm", "post_attention_layernorm")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_ATTENTION_NORMS = ("q_norm", "k_norm")
_MLP = ("gate_proj", "up_proj", "down_proj")


def _block_weight(name: str) -> Weight:
    """Where a parameter of the blocks lies."""
    part = name
    if name in _ATTENTION + _ATTENTION_NORMS:
        part = f"self_attn.{name}"
    elif name in _MLP:
        part = f"mlp.{name}"
    is_matrix = name in _ATTENTION + _MLP
    return Weight(f"model.layers.{{layer}}.{part}.weight", is_transposed=is_matrix)


FAMILY = Family(
    architecture=ARCHITECTURE,
    model_type="sdar",
    config=SDARConfig,
    module=SDAR,
    weights={
        "embed_tokens": Weight("model.embed_tokens.weight"),
        "norm": Weight("model.norm.weight"),
        "lm_head": Weight("lm_head.weight"),
        **{
            f"blocks.{name}": _block_weight(name)
            for name in _NORMS + _ATTENTION + _ATTENTION_NORMS + _MLP
        },
    },
    partition=partition,
    presets={"sdar_8b": sdar_8b, "sdar_tiny": sdar_tiny},
    end_of_turn=("<|im_end|>", "<|endoftext|>"),
)
