"""LLaDA: a bidirectional Llama-style transformer as a Flax NNX module.

Architecture and names follow the released checkpoints (arXiv:2502.09992 and the
`config.json` of GSAI-ML/LLaDA-8B). Position i's logits predict token i: nothing shifts.
"""

import dataclasses
import functools
import reprlib
import typing
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from dlm_jax.core.keys import check_seed
from dlm_jax.errors import InputError
from dlm_jax.models import attention, layers
from dlm_jax.models.attention import Attention

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
# How words begin in the names of options that change what a model computes: of other
# architectures, of quantized weights, of adapters. The released class stores any field,
# so that such an option reaches a config.json without an error.
_CHANGING = (
    *("adapter", "cap", "causal", "compress", "expert", "lora", "moe", "mrope"),
    *("peft", "pruned", "qk", "quant", "rope", "sliding", "softcap", "sparse"),
    *("window", "yarn"),
)
# The same of factors, which change nothing at 1.
_FACTORS = ("multiplier", "rotary", "scal")


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
        for name in ("d_model", "n_heads", "n_kv_heads", "n_layers", "mlp_hidden_size"):
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
        rope_theta, refused = _read_rope(config)
        refused += _unsupported(config)
        if refused:
            raise InputError("config.json: not supported: " + ", ".join(refused))
        values: dict[str, Any] = {
            field.name: config.get(field.name) for field in dataclasses.fields(cls)
        }
        values["rope_theta"] = rope_theta
        # null means as many as there are tokens; left out, it would be GPT-2's number.
        if values["embedding_size"] is None and "embedding_size" in config:
            values["embedding_size"] = values["vocab_size"]
        if values["n_kv_heads"] is None:
            values["n_kv_heads"] = values["n_heads"]
        if values["mlp_hidden_size"] is None and None not in (
            config.get("mlp_ratio"),
            values["d_model"],
        ):
            values["mlp_hidden_size"] = config["mlp_ratio"] * values["d_model"]
        missing = [name for name, value in values.items() if value is None]
        if missing:
            raise InputError("config.json: missing: " + ", ".join(missing))
        for name, kind in typing.get_type_hints(cls).items():
            accepted = (int, float) if kind is float else (kind,)
            if type(values[name]) not in accepted:
                raise InputError(
                    f"config.json: {name} ({values[name]!r}) must be of type "
                    f"{kind.__name__}"
                )
        shape = cls(**values)
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
            "architectures": ["LLaDAModelLM"],
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


def _read_rope(config: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """The base of the rotary embedding, and the fields that change the embedding.

    Transformers 5 writes `rope_parameters`, before it was `rope_scaling`: a dict with
    the type of the embedding, which must be the default, and from version 5 on with its
    base.

    Args:
      config: contents of a config.json.

    Returns:
      `rope_theta`, None if there is none, and a text for each field that is refused.
    """
    theta = config.get("rope_theta")
    refused = []
    for name in ("rope_parameters", "rope_scaling"):
        value = config.get(name)
        if not value:
            continue
        found = value if isinstance(value, Mapping) else {"rope_type": value}
        if theta is None:
            theta = found.get("rope_theta")
        neutral = {
            "rope_type": "default",
            "type": "default",
            "rope_theta": theta,
            "partial_rotary_factor": 1,
        }
        if any(key not in neutral or x != neutral[key] for key, x in found.items()):
            supported = {"rope_type": "default", "rope_theta": theta}
            refused.append(f"{name}={value!r} (supported: {supported!r})")
    return theta, refused


def _unsupported(config: Mapping[str, Any]) -> list[str]:
    """A text for each option of a config.json that this module does not implement."""
    refused = []
    for name, accepted in (_SUPPORTED | _FOREIGN).items():
        value = config.get(name, _REFUSED_DEFAULTS.get(name, accepted[0]))
        if value not in accepted:
            absent = "" if name in config else "the default; "
            refused.append(f"{name}={value!r} ({absent}supported: {accepted[0]!r})")
    # Other classes have other heads, such as those of classifiers.
    names = config.get("architectures")
    if names and not any(str(name).endswith("LLaDAModelLM") for name in names):
        refused.append(f"architectures={names!r} (supported: ['LLaDAModelLM'])")
    own = {field.name for field in dataclasses.fields(LLaDAConfig)}
    own |= {*_SUPPORTED, "rope_parameters", "rope_scaling"}
    is_sliding = config.get("use_sliding_window") is not False
    for name, value in config.items():
        words = name.lower().split("_")
        # What begins with an underscore is transformers' own bookkeeping.
        if name in own or not words[0] or ("window" in words and not is_sliding):
            continue
        if any(word.startswith(_FACTORS) for word in words):
            is_one = type(value) in (int, float) and value == 1
            is_neutral = value is None or value is False or is_one
        elif name == "layer_types":
            is_neutral = not value or {*map(str, value)} == {"full_attention"}
        else:
            is_neutral = not value or not any(w.startswith(_CHANGING) for w in words)
        if not is_neutral:
            # Such values may be long.
            refused.append(f"{name}={reprlib.repr(value)} (supported: left out)")
    return refused


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


# Shapes that can be tried with random weights.
PRESETS = {"llada_8b": llada_8b, "tiny": tiny}


class Blocks(nnx.Module):
    """The weights of all transformer blocks, stacked over layers.

    Matrices are [n_layers, in, out]. Stacking lets one traced block serve every layer,
    so compile time does not grow with depth.
    """

    def __init__(
        self, config: LLaDAConfig, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs
    ):
        n, d, f = config.n_layers, config.d_model, config.mlp_hidden_size
        q, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        # Residual branches start small, so that depth does not change the scale of
        # the residual stream at initialisation.
        residual = 0.02 / (2 * n) ** 0.5

        def normal(*shape: int, std: float = 0.02) -> nnx.Param:
            return nnx.Param(std * jax.random.normal(rngs.params(), shape, dtype))

        self.attn_norm = nnx.Param(jnp.ones((n, d), dtype))
        self.q_proj = normal(n, d, q)
        self.k_proj = normal(n, d, kv)
        self.v_proj = normal(n, d, kv)
        self.attn_out = normal(n, q, d, std=residual)
        self.ff_norm = nnx.Param(jnp.ones((n, d), dtype))
        self.ff_proj = normal(n, d, f)
        self.up_proj = normal(n, d, f)
        self.ff_out = normal(n, f, d, std=residual)


class LLaDA(nnx.Module):
    """A LLaDA denoiser.

    Attributes:
      config: its shape.
      wte: token embeddings [embedding_size, d_model].
      blocks: the stacked transformer blocks.
      ln_f: weight of the final norm [d_model].
      ff_out: the language-model head [embedding_size, d_model]; None if tied to wte.
        Rows are tokens, so that a slice of the vocabulary is contiguous.
      attention: one of `dlm_jax.models.attention`.
    """

    def __init__(
        self,
        config: LLaDAConfig,
        *,
        rngs: nnx.Rngs,
        dtype: jax.typing.DTypeLike = jnp.float32,
    ):
        self.config = config
        self.attention: Attention = attention.best
        shape = (config.embedding_size, config.d_model)
        self.wte = nnx.Param(0.02 * jax.random.normal(rngs.params(), shape, dtype))
        self.blocks = Blocks(config, dtype=dtype, rngs=rngs)
        self.ln_f = nnx.Param(jnp.ones(config.d_model, dtype))
        self.ff_out = (
            None
            if config.weight_tying
            else nnx.Param(0.02 * jax.random.normal(rngs.params(), shape, dtype))
        )

    @property
    def head(self) -> Float[Array, "v d"]:
        """The language-model head, [embedding_size, d_model]."""
        return (self.wte if self.ff_out is None else self.ff_out)[...]

    def hidden(
        self,
        tokens: Int[Array, "b l"],
        positions: Int[Array, "b l"],
        visibility: Bool[Array, "b #l l"],
        region: Int[Array, "b r"] | None = None,
        model_axis: str | None = None,
    ) -> Float[Array, "b r d"]:
        """Runs the transformer and returns the normed outputs that the head reads.

        Args:
          tokens: token ids.
          positions: rotary positions.
          visibility: True where a query (axis 1) may attend to a key (axis 2).
          region: indices of the tokens whose output is wanted; all by default.
            Indices past the end are clipped, their output is meaningless.
          model_axis: mapped axis that the parameters are split over, see `partition`;
            None if they are whole. The output is whole on every device.
        """
        x = layers.embed(self.wte[...], tokens, model_axis)
        sin, cos = layers.rotary_angles(
            positions, self.config.head_dim, self.config.rope_theta, x.dtype
        )
        weights = nnx.to_pure_dict(nnx.state(self.blocks))

        # A gradient computes each block again instead of keeping what is inside it,
        # which on a CPU is faster too: memory is slower than arithmetic.
        @functools.partial(jax.checkpoint, prevent_cse=False)
        def block(x: Array, w: dict[str, Array]) -> tuple[Array, None]:
            fixed = (sin, cos, visibility, self.config, self.attention, model_axis)
            return _block(x, w, *fixed), None

        x, _ = jax.lax.scan(block, x, weights)
        if region is not None:
            x = jnp.take_along_axis(x, region[..., None], axis=1, mode="clip")
        return layers.rms_norm(x, self.ln_f[...], self.config.rms_norm_eps)

    def __call__(
        self, tokens: Int[Array, "b l"], is_valid: Bool[Array, "b l"] | None = None
    ) -> Float[Array, "b l v"]:
        """Logits of every position, for training and tests.

        Args:
          tokens: token ids.
          is_valid: False at padding, which no token attends to; all valid by default.

        Returns:
          Logits over embedding_size entries, in the parameters' dtype.
        """
        if is_valid is None:
            is_valid = jnp.ones(tokens.shape, bool)
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        return self.hidden(tokens, positions, is_valid[:, None, :]) @ self.head.T


def partition(config: LLaDAConfig, num_parts: int, axis: str) -> dict[str, Any]:
    """How the parameters are split over a mesh axis, for models too big for a device.

    Attention heads, MLP units and the vocabulary are split, norms are whole
    (arXiv:1909.08053, section 3). A block then needs two sums over the axis.

    Args:
      config: the shape of the whole model.
      num_parts: devices along the axis.
      axis: its name.

    Returns:
      A `jax.P` for each parameter, as the nested dict of the module's parameters.

    Raises:
      InputError: naming what num_parts does not divide.
    """
    if num_parts < 1:
        raise InputError(f"devices that share a model ({num_parts}) must be at least 1")
    for name in ("n_heads", "n_kv_heads", "mlp_hidden_size", "embedding_size"):
        if getattr(config, name) % num_parts:
            raise InputError(
                f"{name} ({getattr(config, name)}) must be a multiple of the devices "
                f"that share a model ({num_parts})"
            )
    by_column = ("q_proj", "k_proj", "v_proj", "ff_proj", "up_proj")
    whole = ("attn_norm", "ff_norm")
    blocks = dict.fromkeys(by_column, jax.P(None, None, axis))
    blocks |= dict.fromkeys(("attn_out", "ff_out"), jax.P(None, axis, None))
    blocks |= dict.fromkeys(whole, jax.P())
    specs = {"wte": jax.P(axis, None), "blocks": blocks, "ln_f": jax.P()}
    return specs if config.weight_tying else {**specs, "ff_out": jax.P(axis, None)}


def deepen(model: LLaDA) -> LLaDA:
    """A model of twice the depth that computes the same, to be trained on.

    Every block is followed by a copy of it whose two output matrices are zero: it adds
    nothing yet, and sees at once what its original has learned to look at. (Net2Net's
    idea of growth that keeps the function, arXiv:1511.05641.)

    Args:
      model: is not changed.

    Returns:
      A model with 2 * n_layers blocks.
    """
    config = dataclasses.replace(model.config, n_layers=2 * model.config.n_layers)

    def double(name: str, weight: Array) -> Array:
        copy = jnp.zeros_like(weight) if name in ("attn_out", "ff_out") else weight
        both = jnp.stack([weight, copy], axis=1)
        return both.reshape(-1, *weight.shape[1:])

    state = nnx.to_pure_dict(nnx.state(model))
    state["blocks"] = {name: double(name, w) for name, w in state["blocks"].items()}
    graph, abstract = nnx.split(nnx.eval_shape(lambda: LLaDA(config, rngs=nnx.Rngs(0))))
    nnx.replace_by_pure_dict(abstract, state)
    return nnx.merge(graph, abstract)


def random_preset(
    name: str, dtype: jax.typing.DTypeLike | None = None, seed: int = 0
) -> LLaDA:
    """Random weights of a shape, for where only time or memory is to be measured.

    Args:
      name: in PRESETS.
      dtype: of the weights, float32 by default.
      seed: of the weights.

    Raises:
      InputError: for a seed out of range.
    """
    check_seed(seed)
    return LLaDA(PRESETS[name](), rngs=nnx.Rngs(seed), dtype=dtype or jnp.float32)


def _block(
    x: Float[Array, "b l d"],
    w: dict[str, Array],
    sin: Float[Array, "b l 1 k"],
    cos: Float[Array, "b l 1 k"],
    visibility: Bool[Array, "b #l l"],
    config: LLaDAConfig,
    attend: Attention,
    model_axis: str | None,
) -> Float[Array, "b l d"]:
    """One transformer block. Products run over [b * l, d]: faster to train on CPU.

    With a `model_axis`, w holds this device's heads and MLP units, and what they add to
    the residual stream is summed over the axis.
    """
    b, length, d = x.shape
    x = x.reshape(b * length, d)
    h = layers.rms_norm(x, w["attn_norm"], config.rms_norm_eps)
    query, key, value = (
        (h @ w[name]).reshape(b, length, -1, config.head_dim)
        for name in ("q_proj", "k_proj", "v_proj")
    )
    attended = attend(
        layers.rotate(query, sin, cos), layers.rotate(key, sin, cos), value, visibility
    )
    added = attended.reshape(b * length, -1) @ w["attn_out"]
    x = x + layers.sum_over(model_axis, added)
    h = layers.rms_norm(x, w["ff_norm"], config.rms_norm_eps)
    added = (jax.nn.silu(h @ w["ff_proj"]) * (h @ w["up_proj"])) @ w["ff_out"]
    x = x + layers.sum_over(model_axis, added)
    return x.reshape(b, length, d)
