"""Where weights lie that several devices share."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.experimental.layout import Format, Layout
from jaxtyping import PyTree

from dlm_jax.errors import InputError
from dlm_jax.models import stack


def make_mesh(
    num_sharing: int, devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh:
    """A mesh with axes 'data' and 'model', groups of neighbours where there are any.

    Args:
      num_sharing: devices that share one copy of the weights, the axis 'model'.
      devices: what to lay out; all local ones by default.

    Raises:
      InputError: if the devices do not divide into such groups.
    """
    is_local = devices is None
    devices = tuple(jax.local_devices() if is_local else devices)
    if num_sharing < 1 or len(devices) % num_sharing:
        raise InputError(
            f"devices that share a model ({num_sharing}) must divide the "
            f"{'local ' if is_local else ''}devices ({len(devices)})"
        )
    grid = mesh_utils.create_device_mesh(
        (len(devices) // num_sharing, num_sharing),
        devices,
        # `jax.make_mesh` allows it on a TPU v5e only, and finds no pairs in a v6e:4x4.
        allow_split_physical_axes=True,
    )
    axis_types = (jax.sharding.AxisType.Auto,) * 2
    return jax.sharding.Mesh(grid, ("data", "model"), axis_types=axis_types)


def shardings(specs: PyTree, mesh: jax.sharding.Mesh) -> PyTree:
    """Where the parameters of a `partition` lie, as `checkpoints.load` takes it."""
    return jax.tree.map(functools.partial(jax.NamedSharding, mesh), specs)


def place(
    path: tuple[Any, ...],
    weight: jax.Array | jax.ShapeDtypeStruct,
    sharding: jax.sharding.Sharding,
) -> Any:
    """Puts a parameter where it lies, in the order of axes that its backend reads.

    Args:
      path: of the parameter among all, as `jax.tree_util` gives it.
      weight: the parameter, or its shape.
      sharding: on which devices.

    Returns:
      The parameter, itself if it lies there already; or its shape there.
    """
    platform = next(iter(sharding.device_set)).platform
    where: Any = sharding
    if stack.is_transposed(path, platform):
        *outer, last, second = range(weight.ndim)
        where = Format(Layout((*outer, second, last)), sharding)
    if isinstance(weight, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(weight.shape, weight.dtype, sharding=where)
    return jax.device_put(weight, where)
