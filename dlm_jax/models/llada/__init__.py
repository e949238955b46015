"""LLaDA (arXiv:2502.09992): a bidirectional Llama-style transformer."""

from dlm_jax.models.family import Family, Weight
from dlm_jax.models.llada.config import ARCHITECTURE, LLaDAConfig
from dlm_jax.models.llada.module import LLaDA, deepen, partition
from dlm_jax.models.llada.presets import llada_8b, small, tiny

__all__ = [
    "FAMILY",
    "LLaDA",
    "LLaDAConfig",
    "deepen",
    "llada_8b",
    "partition",
    "small",
    "tiny",
]

_NORMS = ("attn_norm", "ff_norm")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "attn_out")
_MATRICES = (*_ATTENTION, "ff_proj", "up_proj", "ff_out")

FAMILY = Family(
    architecture=ARCHITECTURE,
    model_type="llada",
    config=LLaDAConfig,
    module=LLaDA,
    weights={
        "wte": Weight("model.transformer.wte.weight"),
        "ln_f": Weight("model.transformer.ln_f.weight"),
        "ff_out": Weight("model.transformer.ff_out.weight"),
        **{
            f"blocks.{name}": Weight(
                f"model.transformer.blocks.{{layer}}.{name}.weight",
                is_transposed=name in _MATRICES,
            )
            for name in _NORMS + _MATRICES
        },
    },
    partition=partition,
    presets={"llada_8b": llada_8b, "tiny": tiny},
    end_of_turn=("<|eot_id|>",),
    small=small,
    deepen=deepen,
)
