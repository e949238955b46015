"""A recorder of other people's PyTorch samplers.

`record` watches the forward of any PyTorch model while a sampler runs on it, and makes
a trace (see `traces`) of what the model was shown.
"""

import ast
import importlib
import importlib.util
import inspect
import pathlib
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from dlm_jax import files
from dlm_jax.checkpoints import hf_format
from dlm_jax.errors import NOT_PYTHON, InputError
from dlm_jax.parity.traces import ALL_CANVASES, FINAL_ONLY, Trace, checked
from dlm_jax.text.codec import Codec


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
    except NOT_PYTHON:
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
            row = files.parse_json(prompt)
        except ValueError:
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
