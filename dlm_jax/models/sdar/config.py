"""SDAR's shape, read from a config.json and written to one."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from dlm_jax.errors import InputError
from dlm_jax.models import hf_options

ARCHITECTURE = "SDARForCausalLM"

# What a config.json calls the fields that have another name here.
_NAMES = {
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "n_layers": "num_hidden_layers",
    "mlp_hidden_size": "intermediate_size",
    "embedding_size": "vocab_size",
    "max_sequence_length": "max_position_embeddings",
    "weight_tying": "tie_word_embeddings",
}
# Fields that are at least 1.
_SIZES = (
    "head_dim",
    "block_size",
    *(name for name in _NAMES if name != "weight_tying"),
)
# Options of SDAR's configuration class, with the values that this module implements.
_SUPPORTED = {
    "model_type": ("sdar",),
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
}
# The same of options that the class does not have.
_FOREIGN = {"mlp_bias": (False, None)}
# What the released code takes for fields that a config.json leaves out. Its other
# defaults are the shape of one model, and wrong for most.
_DEFAULTS = {"head_dim": 128, "tie_word_embeddings": False}
# The mask token of all released checkpoints; not every config.json names it.
_MASK_TOKEN_ID = 151669


@dataclasses.dataclass(frozen=True)
class SDARConfig:
    """The shape of a SDAR model.

    Attributes:
      block_size: columns per block in training, and in sampling unless another length
        is given; None if config.json does not say.
    """

    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_layers: int
    mlp_hidden_size: int
    embedding_size: int
    max_sequence_length: int
    rope_theta: float
    rms_norm_eps: float
    weight_tying: bool
    mask_token_id: int
    eos_token_id: int
    block_size: int | None = None

    def __post_init__(self):
        for field in _SIZES:
            value = getattr(self, field)
            if value is not None and value < 1:
                raise InputError(f"{_name(field)} ({value}) must be at least 1")
        if self.head_dim % 2:
            raise InputError(f"head_dim ({self.head_dim}) must be even")
        if self.n_heads % self.n_kv_heads:
            raise InputError(
                f"num_attention_heads ({self.n_heads}) must be a multiple of "
                f"num_key_value_heads ({self.n_kv_heads})"
            )
        for field in ("mask_token_id", "eos_token_id"):
            if not 0 <= getattr(self, field) < self.embedding_size:
                raise InputError(
                    f"{field} ({getattr(self, field)}) must be in "
                    f"[0, vocab_size={self.embedding_size})"
                )

    @property
    def vocab_size(self) -> int:
        """As many as the embedding has rows: the file does not tell them apart."""
        return self.embedding_size

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "SDARConfig":
        """Reads the contents of a checkpoint's config.json.

        Raises:
          InputError: naming every option this module does not implement, or every
            field that is missing.
        """
        rope_theta, refused = hf_options.read_rope(config)
        fields = [field.name for field in dataclasses.fields(cls)]
        refused += hf_options.unsupported(
            # Windows are off where the file says nothing.
            {"use_sliding_window": False, **config},
            supported=_SUPPORTED | _FOREIGN,
            own={_name(field) for field in fields},
            architecture=ARCHITECTURE,
        )
        if refused:
            raise InputError("config.json: not supported: " + ", ".join(refused))
        found = {**_DEFAULTS, **config}
        values = {field: found.get(_name(field)) for field in fields}
        values["rope_theta"] = rope_theta
        values["eos_token_id"] = hf_options.first_id(values["eos_token_id"])
        if values["mask_token_id"] is None:
            values["mask_token_id"] = _MASK_TOKEN_ID
        # null means one for each head; left out, it would be another model's number.
        if values["n_kv_heads"] is None and _name("n_kv_heads") in config:
            values["n_kv_heads"] = values["n_heads"]
        kinds = typing.get_type_hints(cls)
        return cls(**hf_options.typed(values, kinds, _NAMES))

    def to_hf(self) -> dict[str, Any]:
        """The contents of a config.json that SDAR's released code accepts."""
        shape = dataclasses.asdict(self).items()
        return {
            **{name: accepted[0] for name, accepted in _SUPPORTED.items()},
            "architectures": [ARCHITECTURE],
            **{_name(field): x for field, x in shape if x is not None},
            "attention_dropout": 0.0,
            "fuse_cross_entropy": False,
            "initializer_range": 0.02,
            "max_window_layers": self.n_layers,
            "rope_scaling": None,
            "sliding_window": None,
            "use_cache": False,
            "use_sliding_window": False,
        }


def _name(field: str) -> str:
    """What a config.json calls a field."""
    return _NAMES.get(field, field)
