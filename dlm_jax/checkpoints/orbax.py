"""Checkpoints in Orbax format, whole or with shardings.

Orbax is imported by what uses it: it takes a while.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from dlm_jax.checkpoints import common, hf_format
from dlm_jax.checkpoints.hf_format import CheckpointError
from dlm_jax.checkpoints.staging import staged
from dlm_jax.errors import InputError
from dlm_jax.models.family import Module

PARAMS = "params"
_INVENTORY = "files.json"
_CHUNK_BYTES = 2**25


def save_orbax(
    model: Module,
    directory: str | os.PathLike,
    extra_files: Iterable[str | Path] = (),
    origin: Mapping[str, Any] | None = None,
) -> None:
    """Writes a model in Orbax format; arguments and errors are those of `save_hf`.

    Of a model that is sharded over several hosts, each writes its own part; all of them
    call this, and see the same file system.

    Parameters are written uncompressed, in chunks of at most 32 MiB and one file each:
    Orbax's defaults (one database, compressed) hold them in memory almost twice.
    """
    import orbax.checkpoint as ocp

    config = common.hf_config(model, origin)
    params = nnx.to_pure_dict(nnx.state(model))
    save_args = jax.tree.map(
        lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), params
    )
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False)
    num_bytes = sum(param.nbytes for param in jax.tree.leaves(params))
    with staged(directory, num_bytes) as staging:
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(
                staging.absolute() / PARAMS,
                args=ocp.args.PyTreeSave(params, save_args=save_args),
            )
        if jax.process_index():
            return
        common.copy(extra_files, staging)
        common.write_json(staging / hf_format.CONFIG, config)
        # Last: what is left of a killed process has no inventory and does not load.
        common.write_json(staging / _INVENTORY, _inventory(staging / PARAMS))


def load_orbax(
    directory: str | os.PathLike,
    dtype: jax.typing.DTypeLike | None = None,
    shardings: PyTree = None,
) -> Module:
    """Loads an Orbax directory; arguments and errors are those of `load`.

    For each device the chunks that its part of a sharded parameter touches are read,
    whole, so that one at a border is read more than once. Processes do not wait for
    each other, so that one whose reading fails leaves none behind.
    """
    import orbax.checkpoint as ocp

    directory = Path(directory)
    family, config = hf_format.read_config(directory)
    _check_inventory(directory)
    path = directory.absolute() / PARAMS
    # By default Orbax ends with a collective over all processes. But nothing is written
    # that another would have to wait for.
    process = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=process,
        active_processes={process},
        barrier_sync_key_prefix=str(process),
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    with (
        ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer,
        _told(directory),
    ):
        stored = common.flatten_dict(checkpointer.metadata(path).item_metadata.tree)
        dtype = common.choose_dtype(
            dtype, [np.dtype(item.dtype) for item in stored.values()]
        )
        abstract = common.abstract(family.module, config, dtype)
        specs = common.flatten(abstract)
        expected, found = common.shapes(specs), common.shapes(stored)
        problems = [
            f"{name} is {found.get(name, 'missing')}, must be "
            f"{expected.get(name, 'left out')}"
            for name in sorted(expected.keys() | found.keys())
            if expected.get(name) != found.get(name)
        ]
        if problems:
            raise CheckpointError(directory, problems)
        placements = common.broadcast(shardings, specs)
        target = common.unflatten_dict(
            {
                name: jax.ShapeDtypeStruct(spec.shape, dtype, sharding=placements[name])
                for name, spec in specs.items()
            }
        )
        restore_args = ocp.checkpoint_utils.construct_restore_args(target)
        params = checkpointer.restore(
            path, args=ocp.args.PyTreeRestore(target, restore_args=restore_args)
        )
    return common.merge(abstract, common.flatten_dict(params))


@contextlib.contextmanager
def _told(directory: Path) -> Iterator[None]:
    """Makes a CheckpointError of what Orbax and TensorStore raise for damaged files.

    They have no class for it. What this module raises, what the system or the device
    refuses and too little memory stay what they are.
    """
    kept = (InputError, OSError, MemoryError, jax.errors.JaxRuntimeError)
    try:
        yield
    except kept:
        raise
    except Exception as error:
        kind = type(error).__name__
        problem = f"{PARAMS} is damaged ({kind}: {error})"
        raise CheckpointError(directory, [problem]) from error


def weight_files(directory: Path) -> list[Path]:
    """The inventory and the files that it lists, there or not."""
    names = _read_inventory(directory)
    return [directory / _INVENTORY, *(directory / PARAMS / name for name in names)]


def _inventory(params: Path) -> dict[str, int]:
    return {
        path.relative_to(params).as_posix(): path.stat().st_size
        for path in sorted(params.rglob("*"))
        if path.is_file()
    }


def _read_inventory(directory: Path) -> dict[str, Any]:
    """The sizes of files by their names, which are paths below the parameters.

    Raises:
      CheckpointError: if it is missing, damaged or names a file elsewhere.
    """
    expected = hf_format.read_json(directory, _INVENTORY)
    foreign = [name for name in expected if not hf_format.is_inside(name)]
    if foreign:
        problem = (
            f"{_INVENTORY}: {foreign[0]!r} must be the path of a file in {PARAMS}/"
        )
        raise CheckpointError(directory, [problem])
    return expected


def _check_inventory(directory: Path) -> None:
    expected = _read_inventory(directory)
    found = _inventory(directory / PARAMS)
    problems = [
        f"{PARAMS}/{name} has {found[name]} bytes, must have {size}"
        if name in found
        else f"{PARAMS}/{name} is missing"
        for name, size in expected.items()
        if found.get(name) != size
    ]
    if problems:
        raise CheckpointError(directory, problems)
