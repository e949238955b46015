"""Where weights lie that several devices share."""

import functools
from collections.abc import Sequence

import jax
from jax.experimental import mesh_utils
from jaxtyping import PyTree

from dlm_jax.errors import InputError


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
