"""Hugging Face checkpoint files: which tensor is which parameter, read and written.

Layers are stacked in memory ([n_layers, in, out]) and apart in the files, one (out, in)
matrix per layer. A family's `weights` say which tensor is which, for both directions.
Files and numpy only: `checkpoints` makes modules of it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from dlm_jax import files
from dlm_jax.checkpoints.weight_names import misnamed_weights
from dlm_jax.errors import InputError
from dlm_jax.models import registry
from dlm_jax.models.family import Family, ModelConfig, Weight

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Files that change the weights beside them, or hold what is to be added to them: of
# PEFT, of MLX and of diffusers.
_ADAPTERS = (
    "adapter_config.json",
    "adapter_model*",
    "adapters.*",
    "non_lora_trainables.bin",
    "pytorch_lora_weights.*",
)
DTYPES = {
    "BF16": np.dtype(jnp.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
}
# With fewer layers, errors name each tensor that is missing.
_NUM_LAYERS = 1000
# Problems that an error message lists.
_NUM_TOLD = 12
# Rows of a matrix read at a time: a whole one would be held twice, and transposing
# narrow slabs is twice as fast because they stay in cache.
_ROWS = 64


class CheckpointError(InputError):
    """A checkpoint that is damaged or does not fit its config: all that is wrong.

    Attributes:
      problems: one text for each.
    """

    def __init__(self, directory: Path, problems: Sequence[str]):
        # Nobody reads hundreds of names in one line.
        told = list(problems[:_NUM_TOLD])
        if len(problems) > len(told):
            told.append(f"and {len(problems) - len(told)} more problems")
        super().__init__(f"{directory}: " + "; ".join(told))
        self.problems = tuple(problems)


@dataclasses.dataclass(frozen=True)
class Slot:
    """One tensor of the files and the place in the module that it fills."""

    name: str
    path: str
    layer: int | None
    shape: tuple[int, ...]
    is_transposed: bool


@dataclasses.dataclass(frozen=True)
class Stored:
    """One tensor as a file's header describes it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Survey:
    """What the files of a checkpoint hold.

    Attributes:
      tensors: by name.
      problems: what is wrong with files and index.
      reported: names that the problems account for, though no tensor was found.
    """

    tensors: Mapping[str, Stored]
    problems: tuple[str, ...]
    reported: frozenset[str]


def read_json(directory: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint; a key that occurs twice is refused.

    Raises:
      CheckpointError: if it is missing, damaged or no object.
    """
    try:
        # Some editors begin a file with a byte order mark.
        text = (directory / name).read_text(encoding="utf-8-sig")
        value = files.parse_json(text, is_unique=True)
    except FileNotFoundError:
        raise CheckpointError(directory, [f"{name} is missing"]) from None
    except ValueError as error:
        problem = f"{name} is damaged ({error}){files.nature(directory / name)}"
        raise CheckpointError(directory, [problem]) from None
    if not isinstance(value, dict):
        raise CheckpointError(directory, [f"{name} does not hold an object"])
    return value


def is_inside(name: str) -> bool:
    """Whether what a file calls another is a path below a directory, and no other.

    Such as `..`, an absolute path, or characters that no path has.
    """
    path = PurePosixPath(name)
    is_below = not path.is_absolute() and ".." not in path.parts
    return is_below and bool(path.parts) and name.isprintable()


def read_config(directory: Path) -> tuple[Family, ModelConfig]:
    """Reads config.json and finds the family of its model.

    Raises:
      InputError: for an architecture or an option that is not implemented, or an
        adapter beside the model.
    """
    # First, for where only an adapter was saved there is no config.
    found = {path.name for name in _ADAPTERS for path in directory.glob(name)}
    if found:
        raise CheckpointError(
            directory,
            [
                f"{', '.join(sorted(found))}: adapters are not applied; merge it into "
                "the model (PEFT: merge_and_unload), and save that without it"
            ],
        )
    values = read_json(directory, CONFIG)
    try:
        family = registry.find(values)
        return family, family.config.from_hf(values)
    except InputError as error:
        raise CheckpointError(directory, [str(error)]) from None


def weight_files(directory: Path) -> list[Path]:
    """The index and the files with weights that `survey` reads, there or not."""
    weight_map = _read_index(directory)
    names = [SINGLE] if weight_map is None else [INDEX, *set(weight_map.values())]
    return [directory / name for name in sorted(names)]


def slots(
    weights: Mapping[str, Weight], shapes: Mapping[str, tuple[int, ...]]
) -> list[Slot]:
    """All tensors of a model.

    Args:
      weights: where each parameter lies, by its path; see `Family.weights`.
      shapes: of the parameters that the model has.
    """
    found = []
    for path, shape in shapes.items():
        weight = weights[path]
        is_stacked = "{layer}" in weight.name
        own = shape[1:] if is_stacked else shape
        own = own[::-1] if weight.is_transposed else own
        for layer in range(shape[0]) if is_stacked else (None,):
            name = weight.name.format(layer=layer)
            found.append(Slot(name, path, layer, own, weight.is_transposed))
    return found


def survey(directory: Path) -> Survey:
    """Reads index and headers, and lists everything in which they disagree."""
    weight_map = _read_index(directory)
    shards = [SINGLE] if weight_map is None else sorted(set(weight_map.values()))
    problems = [
        f"{path.name} is not in {INDEX}"
        for path in sorted(directory.glob("model*.safetensors"))
        if path.name not in shards
    ]
    places: dict[str, list[Stored]] = {}
    readable = set()
    for shard in shards:
        try:
            for name, tensor in _read_header(directory / shard).items():
                places.setdefault(name, []).append(tensor)
            readable.add(shard)
        except FileNotFoundError:
            problems.append(f"{shard} is missing{_instead(directory)}")
        except (SafetensorError, OSError) as error:
            nature = files.nature(directory / shard)
            problems.append(f"{shard} is truncated or damaged ({error}){nature}")
    if weight_map is None:
        if not readable:  # Nothing more can be known.
            raise CheckpointError(directory, problems)
        weight_map = dict.fromkeys(places, SINGLE)
    for name, tensors in places.items():
        found = [tensor.file.name for tensor in tensors]
        if len(found) > 1:
            problems.append(f"{name} is in more than one shard ({', '.join(found)})")
        elif weight_map.get(name) != found[0]:
            problems.append(f"{name} is in {found[0]}, where {INDEX} does not place it")
    for name, shard in weight_map.items():
        if name not in places and shard in readable:
            problems.append(f"{name} is not in {shard}, where {INDEX} places it")
    return Survey(
        tensors={name: tensors[0] for name, tensors in places.items()},
        problems=tuple(problems),
        reported=frozenset(weight_map) - frozenset(places),
    )


def check_depth(
    directory: Path,
    weights: Mapping[str, Weight],
    shapes: Mapping[str, tuple[int, ...]],
    found: Survey,
) -> None:
    """Refuses a model with more layers than the files can have.

    A config.json may name any number, and `slots` makes a list of them.

    Args:
      directory: of the checkpoint.
      weights: of the family, see `Family.weights`.
      shapes: of the parameters that the model has.
      found: in its files.

    Raises:
      CheckpointError: if there are so many that no tensor of most is there.
    """
    stacked = [x[0] for path, x in shapes.items() if "{layer}" in weights[path].name]
    num_layers, num_found = max(stacked, default=0), len(found.tensors)
    if num_layers > max(num_found, _NUM_LAYERS):
        problem = (
            f"{CONFIG} names {num_layers} layers, the files hold {num_found} tensors"
        )
        raise CheckpointError(directory, [problem, *found.problems])


def compare(
    weights: Mapping[str, Weight], expected: Sequence[Slot], found: Survey
) -> list[str]:
    """Lists everything in which the files differ from what a model needs.

    A weight that the model shares with another one, such as a tied head, may be stored
    as well, if the values are the same.

    Args:
      weights: of the family, see `Family.weights`.
      expected: of the model.
      found: in its files.
    """
    names = {slot.name for slot in expected}
    foreign = [name for name in found.tensors if name not in names]
    problems = list(found.problems)
    misnamed, told = misnamed_weights(names - found.tensors.keys(), foreign)
    problems += told
    shared = {weight.name for weight in weights.values()} - names
    for name in foreign:
        tensor = found.tensors[name]
        if name in misnamed or (name in shared and _is_twin(name, expected, found)):
            continue
        own = " with values of its own: config.json ties it" if name in shared else ""
        problems.append(f"{name} (in {tensor.file.name}) is not a weight of it{own}")
    accounted = found.reported | set(misnamed.values())
    for slot in expected:
        tensor = found.tensors.get(slot.name)
        if tensor is None:
            if slot.name not in accounted:
                problems.append(f"{slot.name} is missing")
            continue
        if tensor.shape != slot.shape:
            problems.append(f"{slot.name} is {tensor.shape}, must be {slot.shape}")
        if tensor.dtype not in DTYPES:
            takes = ", ".join(DTYPES)
            problems.append(f"{slot.name} is {tensor.dtype}, must be one of {takes}")
    return problems


def _is_twin(name: str, expected: Sequence[Slot], found: Survey) -> bool:
    """Whether a tensor equals one of its shape that the model has, bit for bit."""
    own = found.tensors[name]
    for slot in expected:
        other = found.tensors.get(slot.name)
        # A scalar has no rows, and is no weight of any model.
        if other is None or slot.layer is not None or not own.shape:
            continue
        if (other.shape, other.dtype) == (own.shape, own.dtype):
            rows = range(0, own.shape[0], _ROWS)
            if all(
                np.array_equal(_rows(own, name, i), _rows(other, slot.name, i))
                for i in rows
            ):
                return True
    return False


def _rows(tensor: Stored, name: str, start: int) -> np.ndarray:
    """Some rows of a tensor, as bytes: NaN equals itself."""
    with safe_open(tensor.file, framework="numpy") as file:
        part = file.get_slice(name)[start : min(start + _ROWS, tensor.shape[0])]
    return np.ascontiguousarray(part).view(np.uint8)


def _instead(directory: Path) -> str:
    """What is in a directory without safetensors, as the end of a message."""
    pickles = sorted(
        path.name
        for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf")
        for path in directory.glob(pattern)
    )
    if not pickles:
        return ""
    return f" ({pickles[0]} is no substitute: save the model as safetensors)"


def read_into(
    tensor: Stored, slot: Slot, index: Sequence[slice], part: np.ndarray
) -> None:
    """Copies what a tensor holds of a part of its parameter, casting to its dtype.

    Nothing else of the tensor is read. The file is opened anew: its pages count as ours
    for as long as it stays mapped.

    Args:
      tensor: where it is stored.
      slot: its place in the (stacked) parameter.
      index: which part, a slice with start and stop for each axis of the parameter.
      part: the array to fill, `parameter[index]`.
    """
    if slot.layer is not None:
        layers, *index = index
        if slot.layer not in range(layers.start, layers.stop):
            return
        part = part[slot.layer - layers.start]
    if slot.is_transposed:
        index, part = index[::-1], part.T
    rows, *columns = index
    with safe_open(tensor.file, framework="numpy") as file:
        stored = file.get_slice(slot.name)
        for start in range(rows.start, rows.stop, _ROWS):
            stop = min(start + _ROWS, rows.stop)
            values = stored[(slice(start, stop), *columns)]
            part[start - rows.start : stop - rows.start] = values


def split(
    expected: Sequence[Slot], itemsize: int, max_shard_bytes: int
) -> list[list[Slot]]:
    """Divides tensors into shards, in order; one larger than a shard is alone in it."""
    shards: list[list[Slot]] = [[]]
    filled = 0
    for slot in expected:
        size = int(np.prod(slot.shape)) * itemsize
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(slot)
        filled += size
    return shards


def _read_index(directory: Path) -> dict[str, str] | None:
    if not (directory / INDEX).is_file():
        return None
    weight_map = read_json(directory, INDEX).get("weight_map")
    if isinstance(weight_map, dict):
        # Tensors are many, shards are few.
        names = weight_map.values()
        shards = set(names) if all(isinstance(name, str) for name in names) else {""}
        if all(is_inside(shard) and Path(shard).name == shard for shard in shards):
            return weight_map
    problem = f"{INDEX}: weight_map must map tensors to names of shards beside it"
    raise CheckpointError(directory, [problem])


def _read_header(file: Path) -> dict[str, Stored]:
    with safe_open(file, framework="numpy") as opened:
        tensors = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        return {
            name: Stored(file, tuple(tensor.get_shape()), tensor.get_dtype())
            for name, tensor in tensors.items()
        }
