"""A second family of models: one file, and one entry in the registry.

Its names in config.json and in the files are Qwen's, its layers are no transformer's: a
position reads the mean of what it sees. With a cache, it reads it there.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from dlm_jax.errors import InputError
from dlm_jax.models import hf_options, layers, stack
from dlm_jax.models.family import Family, Module, Weight

_NAMES = {
    "n_layers": "num_hidden_layers",
    "max_sequence_length": "max_position_embeddings",
    "embedding_size": "vocab_size",
}


@dataclasses.dataclass(frozen=True)
class PlainConfig:
    hidden_size: int
    n_layers: int
    embedding_size: int
    max_sequence_length: int
    mask_token_id: int
    eos_token_id: int

    @property
    def vocab_size(self):
        return self.embedding_size

    @classmethod
    def from_hf(cls, config):
        names = [field.name for field in dataclasses.fields(cls)]
        own = {*names, *_NAMES.values(), "model_type", "architectures"}
        if refused := hf_options.changing(config, own):
            raise InputError("config.json: not supported: " + ", ".join(refused))
        return cls(**{name: config[_NAMES.get(name, name)] for name in names})

    def to_hf(self):
        fields = dataclasses.asdict(self).items()
        return {
            "architectures": [FAMILY.architecture],
            "model_type": FAMILY.model_type,
            **{_NAMES.get(name, name): value for name, value in fields},
        }


class Blocks(nnx.Module):
    def __init__(self, config, *, dtype, rngs):
        n, d = config.n_layers, config.hidden_size
        self.norm = nnx.Param(jnp.ones((n, d), dtype))
        self.up_proj = nnx.Param(jax.random.normal(rngs.params(), (n, d, 2 * d), dtype))
        self.down_proj = nnx.Param(
            jax.random.normal(rngs.params(), (n, 2 * d, d), dtype)
        )


class Plain(Module):
    def __init__(self, config, *, rngs, dtype=jnp.float32):
        self.config = config
        shape = config.embedding_size, config.hidden_size
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), shape, dtype))
        self.blocks = Blocks(config, dtype=dtype, rngs=rngs)
        self.lm_head = nnx.Param(jax.random.normal(rngs.params(), shape, dtype))

    @property
    def head(self):
        return self.lm_head[...]

    def hidden(
        self,
        tokens,
        positions,
        visibility,
        region=None,
        model_axis=None,
        cache=None,
        columns=None,
        sees_first=False,
    ):
        x = layers.embed(self.embedding[...], tokens, model_axis)
        x = x * (1 + positions[..., None]).astype(x.dtype)
        seen = visibility / jnp.maximum(visibility.sum(-1, keepdims=True), 1)

        def block(x, w, remember):
            h = layers.rms_norm(x, w["norm"], 1e-6)
            # One head, whose keys nobody reads.
            _, values = remember(h[:, :, None], h[:, :, None])
            h = x + (seen.astype(x.dtype) @ values[:, :, 0])
            h = jax.nn.silu(h @ w["up_proj"])
            return x + layers.sum_over(model_axis, h @ w["down_proj"])

        weights = nnx.to_pure_dict(nnx.state(self.blocks))
        x, cache = stack.run(block, x, weights, cache=cache, columns=columns)
        if region is not None:
            x = jnp.take_along_axis(x, region[..., None], axis=1, mode="clip")
        return layers.rms_norm(x, jnp.ones(x.shape[-1], x.dtype), 1e-6), cache

    def init_cache(self, batch_size, length, model_axis=None):
        shape = (batch_size, length, 1, self.config.hidden_size)
        return stack.empty(self.config.n_layers, shape, self.embedding.dtype)


def partition(config, num_parts, axis):
    if config.hidden_size % num_parts:
        raise InputError(f"hidden_size ({config.hidden_size}) has no {num_parts} parts")
    return {
        "embedding": jax.P(axis, None),
        "lm_head": jax.P(axis, None),
        "blocks": {
            "norm": jax.P(),
            "up_proj": jax.P(None, None, axis),
            "down_proj": jax.P(None, axis, None),
        },
    }


def plain_tiny():
    return PlainConfig(
        hidden_size=8,
        n_layers=2,
        embedding_size=32,
        max_sequence_length=64,
        mask_token_id=31,
        eos_token_id=1,
    )


FAMILY = Family(
    architecture="PlainForCausalLM",
    model_type="plain",
    config=PlainConfig,
    module=Plain,
    weights={
        "embedding": Weight("model.embed_tokens.weight"),
        "lm_head": Weight("lm_head.weight"),
        "blocks.norm": Weight("model.layers.{layer}.input_layernorm.weight"),
        **{
            f"blocks.{name}": Weight(
                f"model.layers.{{layer}}.mlp.{name}.weight", is_transposed=True
            )
            for name in ("up_proj", "down_proj")
        },
    },
    partition=partition,
    presets={"plain_tiny": plain_tiny},
    end_of_turn=("<|im_end|>",),
)
