"""Batches over local devices: one on a laptop, eight on a TPU host.

`DataParallel` maps rows with `jax.pmap`, each device with all of the weights.
`ModelParallel` is for weights that do not fit: a mesh of groups of devices that share
them. Either way a device, or group, runs its own while_loop on its own rows and ends by
itself; no collective crosses from one to another.

Weights may be `jax.ShapeDtypeStruct`s, and devices those of a topology that is not at
hand: `programs` then compiles what would run there.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, PyTree

from dlm_jax import checkpoints
from dlm_jax.core.canvas import HostArray
from dlm_jax.core.denoiser import Denoiser
from dlm_jax.core.loop import begin, proceed
from dlm_jax.core.options import Options
from dlm_jax.core.slots import Queue
from dlm_jax.devices.mesh import make_mesh, place, shardings
from dlm_jax.devices.parallel import Parallel
from dlm_jax.models import ModuleDenoiser, as_denoiser, registry
from dlm_jax.models.family import ModelConfig


class Loaded(NamedTuple):
    """A checkpoint on its devices."""

    parallel: Parallel
    config: ModelConfig
    dtype: np.dtype


def load(
    checkpoint: str | os.PathLike,
    dtype: jax.typing.DTypeLike | None = None,
    num_sharing: int | None = None,
) -> Loaded:
    """Loads a checkpoint onto all local devices.

    Args:
      checkpoint: Hugging Face or Orbax directory.
      dtype: of the parameters, see `checkpoints.load`.
      num_sharing: devices that share one copy of the weights, each of which reads its
        part only; by default every device has all of them.

    Raises:
      InputError: as `checkpoints.load`, or if the model or the devices do not divide.
    """
    if num_sharing is None:
        model = checkpoints.load(checkpoint, dtype)
        denoiser, params = as_denoiser(model)
        parallel: Parallel = DataParallel(denoiser, params, frees_params=True)
    else:
        config = checkpoints.read_config(checkpoint)
        specs = registry.partition(config, num_sharing, "model")
        mesh = make_mesh(num_sharing)
        model = checkpoints.load(checkpoint, dtype, shardings(specs, mesh))
        parallel = ModelParallel(*as_denoiser(model), specs, mesh)
    return Loaded(parallel, model.config, np.dtype(model.head.dtype))


class DataParallel(Parallel):
    """Rows over devices that each have all of the weights (`jax.pmap`)."""

    def __init__(
        self,
        denoiser: Denoiser,
        params: PyTree,
        devices: Sequence[jax.Device] | None = None,
        frees_params: bool = False,
    ):
        """Copies the parameters to every device.

        Args:
          denoiser: the model.
          params: its parameters, or their shapes.
          devices: local devices to use; all by default.
          frees_params: delete each array of `params` once it is copied, so that no
            device holds the weights twice; nobody else can use them afterwards.
        """
        super().__init__()
        self.denoiser = denoiser
        self._devices = devices = tuple(devices or jax.local_devices())
        self.num_groups = len(devices)
        # pmap with in_axes=None would copy the weights at every call; a leading device
        # axis that already lies where it is needed copies nothing.
        mesh = jax.sharding.Mesh(np.array(devices), ("rows",))
        sharding = jax.NamedSharding(mesh, jax.P("rows"))

        def replicate(path: tuple[Any, ...], weight: Any) -> Any:
            whole = (len(devices), *weight.shape)
            if isinstance(weight, jax.ShapeDtypeStruct):
                shape = jax.ShapeDtypeStruct(whole, weight.dtype)
                return place(path, shape, sharding)
            shards: list[Any] = [
                place(path, weight[None], jax.sharding.SingleDeviceSharding(device))
                for device in devices
            ]
            if frees_params:
                # Or the copies of all weights would be made before one is freed.
                jax.block_until_ready(shards)
                weight.delete()
            return jax.make_array_from_single_device_arrays(whole, sharding, shards)

        self._vocab_size = jax.eval_shape(denoiser.head, params).shape[0]
        self._params = jax.tree_util.tree_map_with_path(replicate, params)
        self._begin = jax.pmap(
            functools.partial(begin, denoiser),
            axis_name="rows",
            in_axes=(0, 0, 0, 0, None),
            devices=devices,
        )
        self._proceed = jax.pmap(
            functools.partial(proceed, denoiser),
            axis_name="rows",
            in_axes=(0, None, 0, 0, None),
            devices=devices,
            donate_argnums=3,
        )

    def first_shard(self) -> PyTree:
        """The first device's own parameters, behind an axis of length 1; no copy.

        A jitted function drops that axis for nothing, see `without_axis`.
        """
        return jax.tree.map(lambda x: x.addressable_shards[0].data, self._params)

    def _split(self, rows: HostArray) -> HostArray:
        return rows.reshape(self.num_groups, -1, *rows.shape[1:])

    def _map(self, function: Callable) -> Any:
        return jax.pmap(
            functools.partial(function, self.denoiser),
            axis_name="rows",
            in_axes=(0, 0, None),
            devices=self._devices,
        )


def without_axis(shard: PyTree) -> PyTree:
    """Drops the leading axis of a shard, inside a jitted function or it copies."""
    return jax.tree.map(lambda x: x.reshape(x.shape[1:]), shard)


def _with_axis(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x[None], tree)


class ModelParallel(Parallel):
    """Rows over groups of devices that share the weights (`jax.shard_map`).

    Inside a group all devices run the same loop, and sum or gather over 'model' only.

    Attributes:
      mesh: the devices, a row for each group.
    """

    def __init__(
        self,
        denoiser: ModuleDenoiser,
        params: PyTree,
        specs: PyTree,
        mesh: jax.sharding.Mesh,
    ):
        """Places the parameters; what already lies there is not copied.

        Args:
          denoiser: the model, whole.
          params: its parameters, whole or sharded, or their shapes.
          specs: a `jax.P` for each, such as `registry.partition` gives.
          mesh: with axes 'data' and 'model', see `make_mesh`.
        """
        super().__init__()
        self.denoiser = denoiser
        self.mesh = mesh
        self.num_groups = mesh.shape["data"]
        self._vocab_size = jax.eval_shape(denoiser.head, params).shape[0]
        # A module's state and its nested dict list parameters in the same order.
        specs = jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(specs))
        self._params = jax.tree_util.tree_map_with_path(
            place, params, shardings(specs, mesh)
        )
        rows = jax.P("data")
        own = dataclasses.replace(denoiser, model_axis="model")
        # Of a cache, each device of a group has its own heads.
        names = [field.name for field in dataclasses.fields(Queue)]
        parts: dict[str, Any] = dict.fromkeys(names, rows)
        parts["cache"] = jax.P("data", None, None, "model")
        queue_specs = Queue(**parts)

        def begin_group(*arguments: Any) -> Any:
            return _with_axis(begin(own, *arguments))

        def proceed_group(
            params: PyTree, options: Options, todo: PyTree, queue: PyTree, until: Array
        ) -> Any:
            todo, queue = without_axis((todo, queue))
            return _with_axis(proceed(own, params, options, todo, queue, until))

        one = jax.P()
        self._own, self._specs, self._mesh = own, specs, mesh
        self._begin = self._shared(
            begin_group, (specs, rows, rows, rows, one), (rows, queue_specs)
        )
        self._proceed = self._shared(
            proceed_group, (specs, one, rows, queue_specs, one), queue_specs, (3,)
        )

    def _shared(
        self, function: Callable, in_specs: tuple, out_specs: Any, donated: tuple = ()
    ) -> Any:
        """A function that the devices of a group run together, jitted."""
        return jax.jit(
            jax.shard_map(
                function,
                mesh=self._mesh,
                in_specs=in_specs,
                out_specs=out_specs,
                # What comes out is the same on all devices of a group, but only because
                # they compute the same: nothing that could be checked.
                check_vma=False,
            ),
            donate_argnums=donated,
        )

    def _split(self, rows: HostArray) -> HostArray:
        return rows

    def _map(self, function: Callable) -> Any:
        def group(*arguments: Any) -> Any:
            return _with_axis(function(self._own, *arguments))

        rows = jax.P("data")
        return self._shared(group, (self._specs, rows, jax.P()), rows)
