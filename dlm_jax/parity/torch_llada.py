"""The PyTorch side: an eager LLaDA.

Only this module, `recorder` and what times PyTorch import torch, which is needed for
comparisons alone.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from dlm_jax.checkpoints import hf_format
from dlm_jax.errors import InputError
from dlm_jax.models.llada import LLaDAConfig

# Sine and cosine of the rotary angles, float32 [length, head_dim / 2] or, of columns
# that differ from row to row, [b, 1, w, head_dim / 2].
_Rotation = tuple[torch.Tensor, torch.Tensor]
# (key, value) of what goes through the model -> those that its queries attend to.
_Remember = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclasses.dataclass(frozen=True)
class Output:
    """What a forward returns; `logits` as in transformers' models.

    Attributes:
      logits: [b, l, embedding_size].
    """

    logits: torch.Tensor


class Cache:
    """Keys and values of every layer, for forwards of a part of the columns.

    Attributes:
      keys: for each layer [b, length + 1, g, k], rotated. Nobody reads the last column:
        columns past a row's end are written there.
      values: likewise.
    """

    def __init__(self, model: "TorchLLaDA", batch_size: int, length: int):
        config = model.config
        weight = model.wte.weight
        shape = batch_size, length + 1, config.n_kv_heads, config.head_dim

        def empty() -> list[torch.Tensor]:
            return [weight.new_zeros(shape) for _ in range(config.n_layers)]

        self.keys, self.values = empty(), empty()

    def write(
        self,
        layer: int,
        rows: torch.Tensor | None,
        columns: torch.Tensor | None,
        *new: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes keys and values of a layer, and returns those of all columns.

        Args:
          layer: from 0.
          rows: [n], of the cache; None for all of them in order.
          columns: [n, w], length where there are fewer than w; None for all columns.
          *new: keys, then values, [n, g, w, k].

        Returns:
          Keys and values, [n, g, length, k].
        """
        found = []
        for layers, own in zip((self.keys, self.values), new, strict=True):
            cached = layers[layer]
            if columns is None:
                cached[slice(None) if rows is None else rows, :-1] = own.transpose(1, 2)
                found.append(own)
                continue
            ids = torch.arange(len(own), device=own.device) if rows is None else rows
            cached[ids[:, None], columns] = own.transpose(1, 2)
            whole = cached if rows is None else cached[rows]
            found.append(whole[:, :-1].transpose(1, 2))
        key, value = found
        return key, value


def wide(x: torch.Tensor) -> torch.Tensor:
    """A tensor in float32, or in float64 if that is what it has."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class RMSNorm(torch.nn.Module):
    """Unit root mean square, `wide`, cast back, then the weight: LLaDA's order."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalises the last axis."""
        whole = wide(x)
        mean_square = whole.square().mean(-1, keepdim=True)
        return self.weight * (whole * torch.rsqrt(mean_square + self.eps)).to(x.dtype)


class Block(torch.nn.Module):
    """A transformer block with grouped key-value heads; not causal."""

    def __init__(self, config: LLaDAConfig):
        super().__init__()
        self.head_dim = config.head_dim
        self.repeats = config.n_heads // config.n_kv_heads
        d, kv = config.d_model, config.n_kv_heads * config.head_dim
        self.attn_norm = RMSNorm(d, config.rms_norm_eps)
        self.q_proj = torch.nn.Linear(d, d, bias=False)
        self.k_proj = torch.nn.Linear(d, kv, bias=False)
        self.v_proj = torch.nn.Linear(d, kv, bias=False)
        self.attn_out = torch.nn.Linear(d, d, bias=False)
        self.ff_norm = RMSNorm(d, config.rms_norm_eps)
        self.ff_proj = torch.nn.Linear(d, config.mlp_hidden_size, bias=False)
        self.up_proj = torch.nn.Linear(d, config.mlp_hidden_size, bias=False)
        self.ff_out = torch.nn.Linear(config.mlp_hidden_size, d, bias=False)

    def forward(
        self,
        x: torch.Tensor,
        rotation: _Rotation,
        bias: torch.Tensor | None,
        remember: _Remember | None = None,
    ) -> torch.Tensor:
        """Maps [b, l, d] to the same; `bias` is added to attention scores."""
        h = self.attn_norm(x)
        query, key, value = (
            projection(h).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        key = _rotate(key, rotation)
        if remember is not None:
            key, value = remember(key, value)
        if self.repeats > 1:
            key, value = (
                x.repeat_interleave(self.repeats, dim=1) for x in (key, value)
            )
        attended = F.scaled_dot_product_attention(
            _rotate(query, rotation), key, value, attn_mask=bias
        )
        x = x + self.attn_out(attended.transpose(1, 2).flatten(2))
        h = self.ff_norm(x)
        return x + self.ff_out(F.silu(self.ff_proj(h)) * self.up_proj(h))


def _rotate(x: torch.Tensor, rotation: _Rotation) -> torch.Tensor:
    """Rotates the first half of each head with its second half, `wide`."""
    first, second = wide(x).chunk(2, dim=-1)
    sin, cos = rotation
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
    return rotated.to(x.dtype)


class TorchLLaDA(torch.nn.Module):
    """LLaDA (arXiv:2502.09992) in eager PyTorch, written from its architecture.

    Parameter names are those of the checkpoints under `model.transformer.`.

    Attributes:
      config: its shape.
    """

    def __init__(self, config: LLaDAConfig):
        super().__init__()
        self.config = config
        self.wte = torch.nn.Embedding(config.embedding_size, config.d_model)
        self.blocks = torch.nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.ln_f = RMSNorm(config.d_model, config.rms_norm_eps)
        self.ff_out = torch.nn.Linear(config.d_model, config.embedding_size, bias=False)
        if config.weight_tying:
            self.ff_out.weight = self.wte.weight

    @property
    def device(self) -> torch.device:
        """Where its parameters are; samplers written for transformers ask for it."""
        return self.wte.weight.device

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        rows: torch.Tensor | None = None,
        columns: torch.Tensor | None = None,
        region: torch.Tensor | None = None,
    ) -> Output:
        """Logits of every position, or of a region.

        Args:
          input_ids: [b, l]; with `columns` [b, w], their tokens.
          attention_mask: [b, l]; 0 at keys that nobody may attend to. Positions are
            not shifted by it.
          cache: keys and values are written to it; None runs without one.
          rows: [b], of the cache; all of them by default.
          columns: [b, w], the columns that go through the model, and attend to keys and
            values of the others as they are in the cache; all columns by default. The
            length of a row means no column.
          region: [b, r], indices into axis 1 of `input_ids` that logits are wanted of;
            of all by default.
        """
        x = self.wte(input_ids)
        bias = None
        if attention_mask is not None:
            bias = torch.zeros(attention_mask.shape, dtype=x.dtype, device=x.device)
            bias.masked_fill_(attention_mask == 0, torch.finfo(x.dtype).min)
            bias = bias[:, None, None]
        positions = columns
        if positions is None:
            positions = torch.arange(input_ids.shape[1], device=self.device)
        rotation = self._rotation(positions)
        for layer, block in enumerate(self.blocks):
            remember = None
            if cache is not None:
                remember = functools.partial(cache.write, layer, rows, columns)
            x = block(x, rotation, bias, remember)
        if region is not None:
            x = x.gather(1, region[:, :, None].expand(-1, -1, x.shape[2]))
        return Output(self.ff_out(self.ln_f(x)))

    def _rotation(self, positions: torch.Tensor) -> _Rotation:
        """Sine and cosine of the rotary angles, once for all layers."""
        dtype = wide(self.wte.weight[:0]).dtype
        exponent = torch.arange(
            0, self.config.head_dim, 2, dtype=dtype, device=self.device
        )
        frequency = self.config.rope_theta ** (-exponent / self.config.head_dim)
        if positions.ndim == 2:  # An axis for the heads.
            positions = positions[:, None]
        angles = positions[..., None] * frequency
        return angles.sin(), angles.cos()


def load_llada(directory: str | pathlib.Path) -> TorchLLaDA:
    """Loads a LLaDA checkpoint in Hugging Face format, one file or shards.

    The model is put on a GPU if there is one.

    Raises:
      InputError: if a file is missing or the weights are not the config's.
    """
    directory = pathlib.Path(directory)
    _, config = hf_format.read_config(directory)
    if not isinstance(config, LLaDAConfig):
        raise InputError(f"checkpoint ({directory}) must be of LLaDAModelLM")
    weights = {}
    paths = sorted(directory.glob("*.safetensors"))
    if not paths:
        raise InputError(f"{directory} holds no safetensors file")
    for path in paths:
        weights |= load_file(path, device=device())
    try:
        return with_weights(config, weights)
    except RuntimeError as error:
        raise InputError(f"{directory}: {' '.join(str(error).split())}") from None


def with_weights(
    config: LLaDAConfig, weights: Mapping[str, torch.Tensor]
) -> TorchLLaDA:
    """A LLaDA of these weights, which are not copied.

    Args:
      config: its shape.
      weights: by their names in Hugging Face files, on one device.

    Raises:
      RuntimeError: if they are not the config's.
    """
    # Weights that are replaced need neither memory nor time to be drawn.
    with torch.device("meta"):
        model = TorchLLaDA(config)
    prefix = "model.transformer."
    weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    if config.weight_tying and "wte.weight" in weights:
        weights.setdefault("ff_out.weight", weights["wte.weight"])
    model.load_state_dict(weights, assign=True)
    if config.weight_tying:  # Assigned, they would be two parameters.
        model.ff_out.weight = model.wte.weight
    return model.to(next(iter(weights.values())).dtype).eval()


def load_transformers(directory: str | pathlib.Path) -> torch.nn.Module:
    """Loads a checkpoint with the modelling code in its directory.

    That code is run: use it on checkpoints you trust. The model is put on a GPU if
    there is one.

    Raises:
      InputError: if the directory does not exist or does not load.
    """
    from transformers import AutoModel

    if not pathlib.Path(directory).is_dir():
        raise InputError(f"checkpoint ({directory}) is not a directory")
    try:
        model = AutoModel.from_pretrained(
            str(directory), trust_remote_code=True, dtype="auto"
        )
    except (OSError, ValueError) as error:
        raise InputError(f"{directory}: {' '.join(str(error).split())}") from None
    return model.to(device()).eval()


def device() -> str:
    """A GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"
