"""The PyTorch side: an eager LLaDA, and a recorder of other people's samplers.

Only this module and `eager` import torch, which is needed for comparisons alone.
`record` watches the forward of any PyTorch model while a sampler runs on it, and makes
a trace (see `dlm_jax.parity.traces`) of what the model was shown.
"""

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import json
import pathlib
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from safetensors.torch import load_file

from dlm_jax.checkpoints import hf_format
from dlm_jax.errors import InputError
from dlm_jax.models.llada import LLaDAConfig
from dlm_jax.parity.traces import ALL_CANVASES, FINAL_ONLY, Trace, checked
from dlm_jax.text.codec import Codec

# Sine and cosine of the rotary angles, float32 [length, head_dim / 2].
_Rotation = tuple[torch.Tensor, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Output:
    """What a forward returns; `logits` as in transformers' models.

    Attributes:
      logits: [b, l, embedding_size].
    """

    logits: torch.Tensor


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
        self, x: torch.Tensor, rotation: _Rotation, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Maps [b, l, d] to the same; `bias` is added to attention scores."""
        h = self.attn_norm(x)
        query, key, value = (
            projection(h).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        key = _rotate(key, rotation)
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
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> Output:
        """Logits of every position.

        Args:
          input_ids: [b, l].
          attention_mask: [b, l]; 0 at keys that nobody may attend to. Positions are
            not shifted by it.
        """
        x = self.wte(input_ids)
        bias = None
        if attention_mask is not None:
            bias = torch.zeros(attention_mask.shape, dtype=x.dtype, device=x.device)
            bias.masked_fill_(attention_mask == 0, torch.finfo(x.dtype).min)
            bias = bias[:, None, None]
        rotation = self._rotation(input_ids.shape[1])
        for block in self.blocks:
            x = block(x, rotation, bias)
        return Output(self.ff_out(self.ln_f(x)))

    def _rotation(self, length: int) -> _Rotation:
        """Sine and cosine of the rotary angles, once for all layers."""
        dtype = wide(self.wte.weight[:0]).dtype
        exponent = torch.arange(
            0, self.config.head_dim, 2, dtype=dtype, device=self.device
        )
        frequency = self.config.rope_theta ** (-exponent / self.config.head_dim)
        angles = torch.arange(length, device=self.device)[:, None] * frequency
        return angles.sin(), angles.cos()


def load_llada(directory: str | pathlib.Path) -> TorchLLaDA:
    """Loads a LLaDA checkpoint in Hugging Face format, one file or shards.

    The model is put on a GPU if there is one.

    Raises:
      InputError: if a file is missing or the weights are not the config's.
    """
    directory = pathlib.Path(directory)
    _, config = hf_format.read_config(directory)
    # Weights that are replaced need neither memory nor time to be drawn.
    with torch.device("meta"):
        model = TorchLLaDA(config)
    weights = {}
    paths = sorted(directory.glob("*.safetensors"))
    if not paths:
        raise InputError(f"{directory} holds no safetensors file")
    for path in paths:
        weights |= load_file(path, device=_device())
    prefix = "model.transformer."
    weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    if config.weight_tying and "wte.weight" in weights:
        weights.setdefault("ff_out.weight", weights["wte.weight"])
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise InputError(f"{directory}: {' '.join(str(error).split())}") from None
    if config.weight_tying:  # Assigned, they would be two parameters.
        model.ff_out.weight = model.wte.weight
    return model.to(next(iter(weights.values())).dtype).eval()


def load_transformers(directory: str | pathlib.Path) -> torch.nn.Module:
    """Loads a checkpoint with the modelling code that lies in its directory.

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
    return model.to(_device()).eval()


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def resolve(spec: str) -> Callable[..., Any]:
    """The function that `path/to/file.py:name` or `package.module:name` names.

    The directory of a file becomes importable, as if the file were run.

    Raises:
      InputError: if there is no such file, module or function.
    """
    place, _, name = spec.rpartition(":")
    if not place:
        raise InputError(
            f"{spec!r} must be file.py:function or package.module:function"
        )
    try:
        if place.endswith(".py"):
            module = _import_file(pathlib.Path(place).resolve())
        else:
            module = importlib.import_module(place)
    except (ImportError, FileNotFoundError) as error:
        raise InputError(f"{spec!r}: {error}") from None
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"{spec!r}: {place} has no function {name}")
    return function


def _import_file(path: pathlib.Path) -> types.ModuleType:
    """Runs a file as a module of its own; what lies beside it can be imported."""
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parse_params(params: str) -> dict[str, Any]:
    """Reads `steps=16,remasking=low_confidence`: literals, or bare words for strings.

    Raises:
      InputError: if it has another form.
    """
    values = {}
    try:
        call = ast.parse(f"f({params})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or ast.unparse(call.func) != "f":
            raise ValueError
        for keyword in call.keywords:
            if keyword.arg is None or keyword.arg in values:
                raise ValueError
            value = keyword.value
            values[keyword.arg] = (
                value.id if isinstance(value, ast.Name) else ast.literal_eval(value)
            )
    except (SyntaxError, ValueError):
        raise InputError(
            f"params ({params!r}) must be name=literal,name=literal,..."
        ) from None
    return values


def encode_prompts(
    prompts: Sequence[str], directory: str | pathlib.Path
) -> list[Int[np.ndarray, "1 p"]]:
    """Turns prompts into token ids.

    Args:
      prompts: each a JSON list of token ids, or a user's message, which goes through
        the chat template of the checkpoint (if it has one).
      directory: of the checkpoint; only read for a message.

    Raises:
      InputError: naming the prompt that is empty, or what the checkpoint lacks.
    """
    codec = None
    rows = []
    for i, prompt in enumerate(prompts):
        try:
            row = json.loads(prompt)
        except json.JSONDecodeError:
            row = None
        if not isinstance(row, list):
            if codec is None:
                _, config = hf_format.read_config(pathlib.Path(directory))
                codec = Codec.load(directory, config)
            encode = codec.encode_chat if codec.has_chat_template else codec.encode
            (encoded,) = encode([prompt], 1)
            row = encoded.tokens[~encoded.is_blank].tolist()
        if not row or not all(type(token) is int for token in row):
            raise InputError(f"prompt {i} must be a list of token ids, or a text")
        rows.append(np.array([row], np.int32))
    return rows


def record(
    generate: Callable[..., Any],
    model: torch.nn.Module,
    prompt: Int[np.ndarray, "1 p"],
    arguments: Mapping[str, Any],
    *,
    name: str,
    sampler: str,
    checkpoint: str,
    origin: str,
) -> Trace:
    """Runs a PyTorch sampler and records what the model was shown at every forward.

    Args:
      generate: called as generate(model, prompt, **arguments); returns the tokens
        [1, p + gen_length], or a tuple or an object with `sequences` that starts with
        them. An argument `attention_mask` that it takes and `arguments` lacks is filled
        with ones: LLaDA's released code needs it under guidance.
      model: its forward takes the tokens first or as `input_ids`.
      prompt: token ids, one row.
      arguments: of the call; must hold gen_length, and nothing that JSON cannot hold.
      name: of the trace.
      sampler: the trace's name of the rule, a key of `dlm_jax.parity.replay.RULES`.
      checkpoint: directory of the model, relative to the parent of the trace's.
      origin: which code ran.

    Returns:
      The trace. A forward on a doubled batch (guidance) counts once and shows its first
      row, the conditional one; columns past the output (such as WINO's shadow block)
      are left out; if a forward did not see the whole row, only the output is kept.
    """
    if "gen_length" not in arguments:
        raise InputError("params must hold gen_length")
    tokens = torch.tensor(prompt, dtype=torch.long)
    tokens = tokens.to(next(model.parameters()).device)
    call = dict(arguments)
    if "attention_mask" in inspect.signature(generate).parameters:
        call.setdefault("attention_mask", torch.ones_like(tokens))
    seen = []

    def watch(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]):
        shown = args[0] if args else kwargs["input_ids"]
        # A copy: samplers write into the canvas they pass.
        seen.append(shown[0].cpu().numpy().astype(np.int32))

    handle = model.register_forward_pre_hook(watch, with_kwargs=True)
    try:
        with torch.no_grad():
            result = generate(model, tokens, **call)
    finally:
        handle.remove()
    result = getattr(result, "sequences", result)
    if isinstance(result, (tuple, list)):
        result = result[0]
    final = result.cpu().numpy().astype(np.int32).reshape(-1)
    length = final.shape[0]
    is_whole = all(row.shape[0] >= length for row in seen)
    canvas = [row[:length] for row in seen] if is_whole else []
    return checked(
        name=name,
        sampler=sampler,
        params=dict(arguments),
        checkpoint=checkpoint,
        nfe=len(seen),
        batch=1,
        origin=origin,
        canvases=ALL_CANVASES if is_whole else FINAL_ONLY,
        prompt=np.asarray(prompt, np.int32),
        canvas=np.stack([*canvas, final]),
    )
