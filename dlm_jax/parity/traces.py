"""Recorded runs, canvas by canvas: load, save, record.

A trace is two files: `RUN.json` (sampler, params, checkpoint, nfe, batch, origin,
canvases) and `RUN.npz` with `prompt` [1, p] and `canvas` [nfe + 1, l], int32, where l
is p + gen_length or, for block diffusion, what fills whole blocks. `canvas[k]`
is the row before forward k, the last one the output. Some runs with a cache hold
the output only.

Runs of the released PyTorch samplers in this format (made by `torch_llada`) are what
the samplers here are checked against (by `replay`).
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from dlm_jax import caches, files, samplers
from dlm_jax.core.canvas import Generation, Prompts
from dlm_jax.core.options import Options
from dlm_jax.core.sampler import Sampler
from dlm_jax.errors import InputError

ALL_CANVASES = "before every forward, then final"
# How that of programs begins whose output may be cut.
ALL_THEN_OUTPUT = "before every forward, then the output"
FINAL_ONLY = "final only"


@dataclasses.dataclass(frozen=True)
class Trace:
    """One recorded run.

    Attributes:
      name: of its files.
      sampler: name of the rule.
      params: arguments of the recorded call; `gen_length` is always there. A run of
        this package has the sampler's `spec` and the fields of `Options` instead.
      checkpoint: directory of the model, relative to the parent of the trace's.
      nfe: forwards of the model.
      batch: rows of the recorded call; always 1.
      origin: which code made it.
      canvases: ALL_CANVASES, FINAL_ONLY, or a text that begins as ALL_THEN_OUTPUT.
      prompt: int32 [1, p].
      canvas: int32 [nfe + 1, l], l = p + gen_length or of whole blocks; [1, l] if
        final only.
    """

    name: str
    sampler: str
    params: Mapping[str, Any]
    checkpoint: str
    nfe: int
    batch: int
    origin: str
    canvases: str
    prompt: Int[np.ndarray, "1 p"]
    canvas: Int[np.ndarray, "s l"]


_KINDS = {
    "params": Mapping,
    "nfe": int,
    "batch": int,
    "prompt": np.ndarray,
    "canvas": np.ndarray,
}
_ARRAYS = ("prompt", "canvas")
# Arguments of a call that any of them may have, and are read before its rule's own.
_TEXT = ("a text", lambda x: isinstance(x, str))
_DTYPE = (
    "the name of a floating dtype",
    lambda x: x in ("bfloat16", "float16", "float32", "float64"),
)
_NUMBER = (
    "a number",
    lambda x: type(x) in (int, float) and abs(x) < float("inf"),
)
_FLAG = ("true or false", lambda x: isinstance(x, bool))
_IDS = (
    "a list of integers",
    lambda x: isinstance(x, list) and all(type(token) is int for token in x),
)
_PARAMS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "block_length": ("a positive integer", lambda x: type(x) is int and x > 0),
    "mask_id": ("an integer", lambda x: type(x) is int),
    **dict.fromkeys(("spec", "cache"), _TEXT),
    **dict.fromkeys(("logits_dtype", "probability_dtype", "confidence_dtype"), _DTYPE),
    **dict.fromkeys(("temperature", "guidance", "cfg_scale"), _NUMBER),
    **dict.fromkeys(("early_stop", "logits_eos_inf"), _FLAG),
    **dict.fromkeys(("stop_ids", "suppressed_ids", "deferred_ids"), _IDS),
}
# Of the arrays of a trace: 1,000 forwards of 32,768 tokens are an eighth of it.
_MOST_BYTES = 2**30


def checked(**fields: Any) -> Trace:
    """A trace from fields that may be wrong.

    Raises:
      InputError: naming the field that is.
    """
    name = fields["name"]
    for field, value in fields.items():
        kind = _KINDS.get(field, str)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise InputError(
                f"trace {name}: {field} must be of type {kind.__name__}, got "
                f"{type(value).__name__}"
            )
    kinds = (ALL_CANVASES, ALL_THEN_OUTPUT, FINAL_ONLY)
    # Block diffusion fills whole blocks, which may be more or less than gen_length.
    is_of_blocks = fields["canvases"].startswith(ALL_THEN_OUTPUT)
    if fields["canvases"] not in kinds and not is_of_blocks:
        raise InputError(
            f"trace {name}: canvases ({fields['canvases']!r}) must be "
            + " or ".join(map(repr, kinds))
        )
    if fields["batch"] != 1:
        raise InputError(f"trace {name}: batch ({fields['batch']}) must be 1")
    gen_length = fields["params"].get("gen_length")
    if not isinstance(gen_length, int) or gen_length < 1:
        raise InputError(
            f"trace {name}: params.gen_length ({gen_length!r}) must be a positive "
            "integer"
        )
    _check_params(name, fields["params"])
    for field in _ARRAYS:
        array = fields[field]
        if array.dtype != np.int32 or array.ndim != 2:
            raise InputError(
                f"trace {name}: {field} must be an int32 matrix, got {array.dtype} "
                f"{list(array.shape)}"
            )
    prompt, canvas = fields["prompt"], fields["canvas"]
    num_rows = 1 if fields["canvases"] == FINAL_ONLY else fields["nfe"] + 1
    num_new = canvas.shape[1] - prompt.shape[1]
    is_wrong = num_new < 1 if is_of_blocks else num_new != gen_length
    is_wrong |= canvas.shape[0] != num_rows
    if prompt.shape[0] != 1 or is_wrong:
        raise InputError(
            f"trace {name}: prompt {list(prompt.shape)} and canvas "
            f"{list(canvas.shape)} must be [1, p] and [{num_rows}, p + "
            + ("1 or more]" if is_of_blocks else f"{gen_length}]")
        )
    if (canvas[:, : prompt.shape[1]] != prompt).any():
        raise InputError(f"trace {name}: every canvas must start with the prompt")
    return Trace(**fields)


def _check_params(name: str, params: Mapping[str, Any]) -> None:
    """Raises InputError for an argument of another type than it can have."""
    for field, (takes, is_right) in _PARAMS.items():
        if field in params and not is_right(params[field]):
            raise InputError(
                f"trace {name}: params.{field} ({params[field]!r}) must be {takes}"
            )


def load(path: str | os.PathLike) -> Trace:
    """Reads one trace.

    Args:
      path: its json file; the npz file lies beside it.

    Raises:
      InputError: naming the file and what is wrong with it.
    """
    path = pathlib.Path(path)
    try:
        fields = files.parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise InputError(f"{path} must hold a JSON object")
    arrays_path = path.with_name(path.name.removesuffix(".json") + ".npz")
    arrays = {}
    try:
        with np.load(arrays_path, allow_pickle=False) as file:
            # Zeros are compressed to a thousandth.
            num_bytes = sum(member.file_size for member in file.zip.infolist())
            if num_bytes > _MOST_BYTES:
                raise ValueError(f"{num_bytes} bytes, takes at most {_MOST_BYTES}")
            arrays = {name: file[name] for name in _ARRAYS if name in file}
    except FileNotFoundError:
        raise InputError(f"{arrays_path} does not exist") from None
    except Exception as error:  # numpy raises many kinds for a damaged file
        raise InputError(f"{arrays_path} is not an npz file: {error}") from None
    wanted = [field.name for field in dataclasses.fields(Trace)][1:]
    for source, names in (
        (path, [name for name in wanted if name not in (*_ARRAYS, *fields)]),
        (arrays_path, [name for name in _ARRAYS if name not in arrays]),
    ):
        if names:
            raise InputError(f"{source}: missing: {', '.join(names)}")
    fields = {name: fields[name] for name in wanted if name not in _ARRAYS}
    return checked(name=path.name.removesuffix(".json"), **fields, **arrays)


def load_directory(directory: str | os.PathLike) -> list[Trace]:
    """Reads all traces of a directory, sorted by name.

    Raises:
      InputError: if there is none, or one that is damaged.
    """
    directory = pathlib.Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory")
    paths = sorted(directory.glob("*.json"))
    alone = {path.stem for path in directory.glob("*.npz")} - {p.stem for p in paths}
    if alone:
        raise InputError(f"{directory / min(alone)}.npz has no json file beside it")
    if not paths:
        raise InputError(f"{directory} holds no trace (RUN.json with RUN.npz)")
    return [load(path) for path in paths]


def save(trace: Trace, directory: str | os.PathLike) -> pathlib.Path:
    """Writes a trace; a file appears whole or not at all, the json file last.

    Args:
      trace: what is written.
      directory: for its two files, which must not exist; it is made if it is missing.

    Returns:
      The path of its json file.

    Raises:
      InputError: as `check_output`.
    """
    fields = {
        field.name: getattr(trace, field.name)
        for field in dataclasses.fields(trace)
        if field.name not in ("name", *_ARRAYS)
    }
    path, arrays_path = _paths(directory, trace.name)
    with files.staged(path) as partial, files.staged(arrays_path) as partial_arrays:
        partial.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")
        with partial_arrays.open("wb") as file:
            np.savez_compressed(file, prompt=trace.prompt, canvas=trace.canvas)
    return path


def check_output(directory: str | os.PathLike, names: Iterable[str]) -> None:
    """Checks, before any work is done, that traces of these names can be saved.

    Raises:
      InputError: if a file of them exists, or the directory cannot be written.
    """
    for name in names:
        for path in _paths(directory, name):
            files.check_output(path)


def _paths(
    directory: str | os.PathLike, name: str
) -> tuple[pathlib.Path, pathlib.Path]:
    """The json and the npz file of a trace."""
    directory = pathlib.Path(directory)
    return directory / f"{name}.json", directory / f"{name}.npz"


def record(
    generation: Generation,
    prompts: Prompts,
    sampler: Sampler,
    options: Options,
    *,
    name: str,
    checkpoint: str,
    mask_id: int,
    row: int = 0,
) -> Trace:
    """Makes a trace of one row of a run of this package.

    Args:
      generation: the run; with its trajectory, or only the output is recorded.
      prompts: what it started from; the row's blanks must follow its prompt.
      sampler: the rule, with the row's own hyper-parameters.
      options: of the run.
      name: of the trace.
      checkpoint: directory of the model, relative to the parent of the trace's.
      mask_id: the mask token.
      row: index in the batch.

    Raises:
      InputError: if the row is an infilling, which the format cannot hold.
    """
    is_blank = np.asarray(prompts.is_blank)[row]
    length = int(np.asarray(prompts.is_valid)[row].sum())
    start = length - int(is_blank.sum())
    if is_blank[:start].any() or not is_blank[start:length].any():
        raise InputError(f"row {row}: a trace needs a prompt followed by its blanks")
    nfe = int(np.asarray(generation.num_steps)[row])
    if generation.trajectory is None:
        canvas = np.asarray(generation.tokens)[row : row + 1, :length]
    else:
        canvas = np.asarray(generation.trajectory.canvas)[row, : nfe + 1, :length]
    spec = samplers.to_spec(sampler)
    params: dict[str, Any] = {
        "spec": spec,
        "gen_length": length - start,
        "cache": caches.to_spec(options.cache),
        "early_stop": options.early_stop,
        "block_length": options.block_length or options.gen_length,
        "temperature": float(options.temperature or 0),
        "guidance": float(options.guidance or 0),
        "mask_id": mask_id,
    }
    for field in ("stop_ids", "suppressed_ids", "deferred_ids"):
        params[field] = list(getattr(options, field))
    for field in ("logits_dtype", "probability_dtype"):
        if (dtype := getattr(options, field)) is not None:
            params[field] = jnp.dtype(dtype).name
    return Trace(
        name=name,
        sampler=spec.partition("(")[0],
        params=params,
        checkpoint=checkpoint,
        nfe=nfe,
        batch=1,
        origin="dlm_jax",
        canvases=FINAL_ONLY if generation.trajectory is None else ALL_CANVASES,
        prompt=np.asarray(prompts.tokens, np.int32)[row : row + 1, :start],
        canvas=np.asarray(canvas, np.int32),
    )
