"""Where weights lie that several devices share."""

import functools
from collections.abc import Sequence

import jax
from jaxtyping import PyTree

from dlm_jax.errors import InputError


def make_mesh(
    num_sharing: int, devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh:
    """A mesh with axes 'data' and 'model' over local devices.

    Args:
      num_sharing: devices that share one copy of the weights, the axis 'model'.
      devices: what to lay out; all local ones by default.

    Raises:
      InputError: if the devices do not divide into such groups.
    """
    devices = tuple(devices or jax.local_devices())
    if num_sharing < 1 or len(devices) % num_sharing:
        raise InputError(
            f"devices that share a model ({num_sharing}) must divide the local devices "
            f"({len(devices)})"
        )
    shape = (len(devices) // num_sharing, num_sharing)
    return jax.make_mesh(
        shape,
        ("data", "model"),
        axis_types=(jax.sharding.AxisType.Auto,) * 2,
        devices=devices,
    )


def shardings(specs: PyTree, mesh: jax.sharding.Mesh) -> PyTree:
    """Where the parameters of a `partition` lie, as `checkpoints.load` takes it."""
    return jax.tree.map(functools.partial(jax.NamedSharding, mesh), specs)
