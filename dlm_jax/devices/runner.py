"""Batches over local devices: one on a laptop, eight on a TPU host.

`DataParallel` maps rows with `jax.pmap`, each device with all of the weights.
`ModelParallel` is for weights that do not fit: a mesh of groups of devices that share
them. Either way a device, or group, runs its own while_loop on its own rows and ends by
itself; no collective crosses from one to another.

Weights may be `jax.ShapeDtypeStruct`s, and devices those of a topology that is not at
hand: `programs` then compiles what would run there.
"""

import abc
import dataclasses
import functools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int, Key, PyTree

from dlm_jax import checkpoints
from dlm_jax.core.canvas import Generation, HostArray, Prompts
from dlm_jax.core.checks import check_keys, check_tokens, prepare
from dlm_jax.core.denoiser import Denoiser
from dlm_jax.core.loop import FOREVER, begin, finish, proceed
from dlm_jax.core.options import Options
from dlm_jax.core.sampler import Sampler
from dlm_jax.core.slots import Queue
from dlm_jax.devices.mesh import make_mesh, place, shardings
from dlm_jax.models import ModuleDenoiser, as_denoiser, registry
from dlm_jax.models.family import ModelConfig


class Loaded(NamedTuple):
    """A checkpoint on its devices."""

    parallel: "Parallel"
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


class Parallel(abc.ABC):
    """Generates batches on several devices, with the weights placed once.

    Attributes:
      denoiser: the model.
      num_groups: devices, or groups of them, that run rows on their own.
    """

    denoiser: Denoiser
    num_groups: int
    _params: PyTree
    _vocab_size: int
    # Jitted `loop.begin` and `proceed`, mapped over groups: what the one returns,
    # and the other takes, has an axis of groups before all others.
    _begin: Any  # (params, sampler, prompts, keys, options) -> todo, queue
    _proceed: Any  # (params, options, todo, queue, until) -> queue

    def __init__(self):
        self._compiled: dict[Any, Programs] = {}

    @abc.abstractmethod
    def _split(self, rows: HostArray) -> HostArray:
        """Rows, group after group, as the mapped program takes them."""

    def num_slots(self, batch_size: int) -> int:
        """Slots of a group, so that all together hold a batch."""
        return -(-batch_size // self.num_groups)

    def __call__(
        self,
        sampler: Sampler,
        prompts: Prompts,
        keys: Key[Array, "b"],
        options: Options,
    ) -> Generation:
        """Fills the blanks of a batch; see `loop.generate`.

        A batch that num_groups does not divide is filled up with empty rows, which take
        no step and are dropped again.

        Returns:
          The filled rows, as arrays on the host.

        Raises:
          InputError: naming the argument that does not fit.
        """
        ((_, generation),) = self.stream(sampler, prompts, keys, options)
        return generation

    def stream(
        self,
        sampler: Sampler,
        prompts: Prompts,
        keys: Key[Array, "b"],
        options: Options,
        period: float = math.inf,
    ) -> Iterator[tuple[Int[np.ndarray, "m"], Generation]]:
        """As a call, but hands over rows while others still run.

        The loop stops on all devices, at iterations that are chosen so that it runs
        about `period` seconds between two of them, and goes on where it was: what a row
        becomes does not depend on that.

        Args:
          sampler: the rule.
          prompts: the batch.
          keys: one random key per row.
          options: as of a call.
          period: seconds; without end by default, so that all rows come together.

        Yields:
          Places of rows that are done, ascending, and those rows, on the host; every
          row once.

        Raises:
          InputError: naming the argument that does not fit.
        """
        arguments = self._prepare(sampler, prompts, keys, options)
        programs, _ = self._compile(arguments)
        *_, options = arguments
        todo, queue = programs.begin(self._params, *arguments)
        is_known = np.zeros(prompts.tokens.shape[0], bool)
        until, stride = 0, 1 if period < math.inf else FOREVER
        while not is_known.all():
            start = time.perf_counter()
            until = min(until + stride, FOREVER)
            queue = programs.proceed(
                self._params, options, todo, queue, np.int32(until)
            )
            # A copy, for the next run is given the queue's own memory.
            is_done = np.array(self._on_host(queue.rows.is_done, is_known.size))
            elapsed = time.perf_counter() - start
            # At most twice as many, for the first iterations of a program are slow.
            stride = max(1, int(stride * min(2.0, period / elapsed)))
            (new,) = np.nonzero(is_done & ~is_known)
            if new.size:
                # On the host, where nothing has to be compiled.
                done = dataclasses.replace(queue.rows, state=()), queue.ends
                generation = finish(*self._on_host(done, is_known.size))
                yield new, jax.tree.map(lambda x, new=new: x[new], generation)
            is_known = is_done

    def _on_host(self, rows: PyTree, num_rows: int) -> PyTree:
        """Rows of all groups in the batch's order, without those that filled it up."""

        def join(x: np.ndarray) -> np.ndarray:
            return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])[:num_rows]

        return jax.tree.map(join, jax.device_get(rows))

    def compile(
        self,
        sampler: Sampler,
        prompts: Prompts,
        keys: Key[Array, "b"],
        options: Options,
    ) -> float:
        """Compiles the programs of a call ahead of it.

        Returns:
          Seconds spent compiling; 0 if the program was there already.

        Raises:
          InputError: naming the argument that does not fit.
        """
        return self._compile(self._prepare(sampler, prompts, keys, options))[1]

    def programs(
        self,
        sampler: Sampler,
        prompts: Prompts,
        keys: Key[Array, "b"],
        options: Options,
    ) -> "Programs":
        """The compiled programs of a call; arguments as there.

        Raises:
          InputError: naming the argument that does not fit.
        """
        return self._compile(self._prepare(sampler, prompts, keys, options))[0]

    def memory(
        self,
        sampler: Sampler,
        prompts: Prompts,
        keys: Key[Array, "b"],
        options: Options,
    ) -> int:
        """Bytes that a call takes on each device, weights included.

        They are the compiler's; 0 on a backend whose compiler does not say.
        """
        programs = self.programs(sampler, prompts, keys, options)
        found = programs.proceed.memory_analysis()

        def size(*parts: str) -> int:
            return sum(getattr(found, f"{part}_size_in_bytes", 0) for part in parts)

        # What is given away is argument and output at once.
        return size("argument", "output", "temp") - size("alias")

    def _prepare(
        self, sampler: Sampler, prompts: Prompts, keys: Array, options: Options
    ) -> tuple[Sampler, Prompts, Array, Options]:
        """Checks the arguments, and fills up and deals out those with rows."""
        sampler, prompts, options = prepare(self.denoiser, sampler, prompts, options)
        num_rows = prompts.tokens.shape[0]
        check_keys(keys, num_rows)
        check_tokens(prompts, self._vocab_size)
        missing = -num_rows % self.num_groups
        # Dealt like cards, g to group g % num_groups: neighbours are alike, and empty
        # rows stand last, so that in one piece one group would have all of them.
        places = np.arange(num_rows + missing).reshape(-1, self.num_groups).T.ravel()

        # On the host: eager JAX operations would take longer than a small model's step.
        def deal(x: HostArray) -> HostArray:
            # Repeating the last row keeps values legal; it is made blank-free below.
            return x[np.minimum(places, num_rows - 1)] if self.num_groups > 1 else x

        sampler, prompts, keys = jax.tree.map(deal, (sampler, prompts, keys))
        is_real = (places < num_rows)[:, None]
        prompts = prompts.replace(is_blank=prompts.is_blank & is_real)
        rows = jax.tree.map(self._split, (sampler, prompts, keys))
        return *rows, options

    def _compile(self, arguments: tuple) -> tuple["Programs", float]:
        """The compiled programs for these arguments, and the seconds they took."""
        leaves, structure = jax.tree.flatten(arguments)
        signature = (structure, tuple((x.shape, x.dtype) for x in leaves))
        if signature in self._compiled:
            return self._compiled[signature], 0.0
        start = time.perf_counter()
        lowered = self._begin.lower(self._params, *arguments)
        begin = lowered.compile()
        # What the first gives is what the second takes, where it will lie.
        given = jax.tree.map(_shape, lowered.out_info, begin.output_shardings)
        *_, options = arguments
        rest = options, *given, np.int32(0)
        proceed = self._proceed.lower(self._params, *rest).compile()
        self._compiled[signature] = programs = Programs(begin, proceed)
        return programs, time.perf_counter() - start


class Programs(NamedTuple):
    """What a call runs: `loop.begin` once, then `proceed`."""

    begin: jax.stages.Compiled
    proceed: jax.stages.Compiled


def _shape(x: Any, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


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
        devices = tuple(devices or jax.local_devices())
        self.num_groups = len(devices)
        # pmap with in_axes=None would copy the weights at every call; a leading device
        # axis that already lies where it is needed copies nothing.
        mesh = jax.sharding.Mesh(np.array(devices), ("rows",))
        sharding = jax.NamedSharding(mesh, jax.P("rows"))

        def replicate(path: tuple[Any, ...], weight: Array) -> Any:
            whole = (len(devices), *weight.shape)
            if isinstance(weight, jax.ShapeDtypeStruct):
                shape = jax.ShapeDtypeStruct(whole, weight.dtype)
                return place(path, shape, sharding)
            shards = [
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
        parts = dict.fromkeys((field.name for field in dataclasses.fields(Queue)), rows)
        queue_specs = Queue(**{**parts, "cache": jax.P("data", None, None, "model")})

        def mapped(
            function: Callable, in_specs: tuple, out_specs: Any, donated: tuple = ()
        ) -> Any:
            return jax.jit(
                jax.shard_map(
                    function,
                    mesh=mesh,
                    in_specs=in_specs,
                    out_specs=out_specs,
                    # The loop's carry is the same on all devices of a group, but only
                    # because they compute the same: nothing that could be checked.
                    check_vma=False,
                ),
                donate_argnums=donated,
            )

        def begin_group(*arguments: Any) -> Any:
            return _with_axis(begin(own, *arguments))

        def proceed_group(
            params: PyTree, options: Options, todo: PyTree, queue: PyTree, until: Array
        ) -> Any:
            todo, queue = without_axis((todo, queue))
            return _with_axis(proceed(own, params, options, todo, queue, until))

        one = jax.P()
        self._begin = mapped(
            begin_group, (specs, rows, rows, rows, one), (rows, queue_specs)
        )
        self._proceed = mapped(
            proceed_group, (specs, one, rows, queue_specs, one), queue_specs, (3,)
        )

    def _split(self, rows: HostArray) -> HostArray:
        return rows
