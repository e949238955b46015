"""LLaDA's shape, read from a config.json and written to one."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from dlm_jax.errors import InputError
from dlm_jax.models import hf_options

ARCHITECTURE = "LLaDAModelLM"

# Fields that are at least 1.
_SIZES = (
    "d_model",
    "n_heads",
    "n_kv_heads",
    "n_layers",
    "mlp_hidden_size",
    "vocab_size",
    "max_sequence_length",
)
# Options of LLaDA's configuration class that no released checkpoint uses, with the
# value that this module implements. Anything else is refused by name: silently
# ignoring one of them would give a model that runs and is wrong.
_SUPPORTED = {
    "model_type": ("llada",),
    "block_type": ("llama",),
    "activation_type": ("silu",),
    "layer_norm_type": ("rms",),
    "rope": (True,),
    "rope_full_precision": (True,),
    "alibi": (False,),
    "include_bias": (False,),
    "include_qkv_bias": (False,),
    "bias_for_layer_norm": (False, None),
    "layer_norm_with_affine": (True,),
    "attention_layer_norm": (False,),
    "multi_query_attention": (None, False),
    "scale_logits": (False,),
    "input_emb_norm": (False,),
    "block_group_size": (1,),
    "clip_qkv": (None,),
}
# What that class takes for an option that a config.json leaves out, where this module
# does not implement it. (Its other defaults are supported values.)
_REFUSED_DEFAULTS = {
    "block_type": "sequential",
    "activation_type": "swiglu",
    "layer_norm_type": "default",
    "rope": False,
}
# Transformers' names of fields that the class has under its own: where a file has both,
# they must agree. `tie_word_embeddings` is not among them: transformers writes its own
# default, and the released code reads `weight_tying` only.
_SYNONYMS = {
    "hidden_size": "d_model",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "num_hidden_layers": "n_layers",
    "intermediate_size": "mlp_hidden_size",
    "head_dim": "head_dim",
}
# Fields of other configuration classes whose names do not tell, with the values that
# mean what this module computes.
_FOREIGN = {
    "hidden_act": ("silu", None),
    "hidden_activation": ("silu", None),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
}


@dataclasses.dataclass(frozen=True)
class LLaDAConfig:
    """The shape of a LLaDA model; field names are those of its config.json."""

    d_model: int
    n_heads: int
    n_kv_heads: int
    n_layers: int
    mlp_hidden_size: int
    vocab_size: int
    embedding_size: int
    max_sequence_length: int
    rope_theta: float
    rms_norm_eps: float
    weight_tying: bool
    mask_token_id: int
    eos_token_id: int
    pad_token_id: int

    def __post_init__(self):
        for name in _SIZES:
            if getattr(self, name) < 1:
                raise InputError(f"{name} ({getattr(self, name)}) must be at least 1")
        if self.d_model % self.n_heads or (self.d_model // self.n_heads) % 2:
            raise InputError(
                f"d_model ({self.d_model}) must be n_heads ({self.n_heads}) times an "
                "even head dimension"
            )
        if self.n_heads % self.n_kv_heads:
            raise InputError(
                f"n_heads ({self.n_heads}) must be a multiple of n_kv_heads "
                f"({self.n_kv_heads})"
            )
        if self.embedding_size < self.vocab_size:
            raise InputError(
                f"embedding_size ({self.embedding_size}) must be at least vocab_size "
                f"({self.vocab_size})"
            )
        for name in ("mask_token_id", "eos_token_id", "pad_token_id"):
            if not 0 <= getattr(self, name) < self.embedding_size:
                raise InputError(
                    f"{name} ({getattr(self, name)}) must be in "
                    f"[0, embedding_size={self.embedding_size})"
                )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_heads

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "LLaDAConfig":
        """Reads the contents of a checkpoint's config.json.

        An option that the file leaves out has the default of the released configuration
        class, and is refused if that is not implemented. A missing field is an error:
        those defaults are GPT-2's and wrong for every released checkpoint.

        Raises:
          InputError: naming every option this module does not implement, or every
            field that is missing.
        """
        rope_theta, refused = hf_options.read_rope(config)
        refused += hf_options.unsupported(
            config,
            supported=_SUPPORTED | _FOREIGN,
            defaults=_REFUSED_DEFAULTS,
            own={field.name for field in dataclasses.fields(cls)},
            architecture=ARCHITECTURE,
        )
        if refused:
            raise InputError("config.json: not supported: " + ", ".join(refused))
        values: dict[str, Any] = {
            field.name: config.get(field.name) for field in dataclasses.fields(cls)
        }
        values["rope_theta"] = rope_theta
        values["eos_token_id"] = hf_options.first_id(values["eos_token_id"])
        # null means as many as there are tokens; left out, it would be GPT-2's number.
        if values["embedding_size"] is None and "embedding_size" in config:
            values["embedding_size"] = values["vocab_size"]
        if values["n_kv_heads"] is None:
            values["n_kv_heads"] = values["n_heads"]
        ratio, width = config.get("mlp_ratio"), values["d_model"]
        # Of other types, a product may be a text of any length.
        if values["mlp_hidden_size"] is None and {type(ratio), type(width)} == {int}:
            values["mlp_hidden_size"] = ratio * width
        shape = cls(**hf_options.typed(values, typing.get_type_hints(cls)))
        for name, own in _SYNONYMS.items():
            value = getattr(shape, own)
            if config.get(name) not in (None, value):
                raise InputError(
                    f"config.json: {name} ({config[name]!r}) must be {value}, as "
                    "the other fields say"
                )
        return shape

    def to_hf(self) -> dict[str, Any]:
        """The contents of a config.json that LLaDA's released code accepts."""
        fixed = {name: accepted[0] for name, accepted in _SUPPORTED.items()}
        return {
            **fixed,
            "architectures": [ARCHITECTURE],
            "bias_for_layer_norm": False,
            **dataclasses.asdict(self),
            "attention_dropout": 0.0,
            "residual_dropout": 0.0,
            "embedding_dropout": 0.0,
            "flash_attention": False,
            "init_fn": "mitchell",
            "init_std": 0.02,
            "mlp_ratio": 4,
            "use_cache": False,
        }
