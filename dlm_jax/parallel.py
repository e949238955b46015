"""Batches over local devices with `jax.pmap`: one on a laptop, eight on a TPU host.

Every device runs its own while_loop on its own rows and ends by itself; the compiled
loop holds no collective.
"""

import functools
import time
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Key, PyTree

from dlm_jax.generate import check_keys, check_tokens, prepare, sample
from dlm_jax.types import (
    Denoiser,
    Generation,
    HostArray,
    Options,
    Prompts,
    Sampler,
)


class DataParallel:
    """Generates batches on all local devices, with the weights placed once.

    Attributes:
      denoiser: the model.
      devices: where rows run.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        params: PyTree,
        devices: Sequence[jax.Device] | None = None,
    ):
        """Copies the parameters to every device.

        Args:
          denoiser: the model.
          params: its parameters.
          devices: local devices to use; all by default.
        """
        self.denoiser = denoiser
        self.devices = tuple(devices or jax.local_devices())
        # pmap with in_axes=None would copy the weights at every call; a leading device
        # axis that already lies where it is needed copies nothing.
        mesh = jax.sharding.Mesh(np.array(self.devices), ("rows",))
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows"))
        num_devices = len(self.devices)

        def replicate(weight: Array) -> Array:
            shards = [jax.device_put(weight[None], device) for device in self.devices]
            return jax.make_array_from_single_device_arrays(
                (num_devices, *weight.shape), sharding, shards
            )

        self._vocab_size = jax.eval_shape(denoiser.head, params).shape[0]
        self._params = jax.tree.map(replicate, params)
        self._sample = jax.pmap(
            functools.partial(sample, denoiser),
            axis_name="rows",
            in_axes=(0, 0, 0, 0, None),
            devices=self.devices,
        )
        self._compiled = {}

    def __call__(
        self,
        sampler: Sampler,
        prompts: Prompts,
        keys: Key[Array, "b"],
        options: Options,
    ) -> Generation:
        """Fills the blanks of a batch; see `generate.generate`.

        A batch that the devices do not divide is filled up with empty rows, which take
        no step and are dropped again.

        Returns:
          The filled rows, as arrays on the host.

        Raises:
          InputError: naming the argument that does not fit.
        """
        arguments = self._prepare(sampler, prompts, keys, options)
        compiled, _ = self._compile(arguments)
        generation = jax.device_get(compiled(self._params, *arguments))
        b = prompts.tokens.shape[0]
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:b], generation)

    def compile(
        self,
        sampler: Sampler,
        prompts: Prompts,
        keys: Key[Array, "b"],
        options: Options,
    ) -> float:
        """Compiles the program of a call ahead of it.

        Returns:
          Seconds spent compiling; 0 if the program was there already.

        Raises:
          InputError: naming the argument that does not fit.
        """
        return self._compile(self._prepare(sampler, prompts, keys, options))[1]

    def _prepare(
        self, sampler: Sampler, prompts: Prompts, keys: Array, options: Options
    ) -> tuple[Sampler, Prompts, Array, Options]:
        """Checks the arguments and gives those with rows a leading device axis."""
        sampler, prompts, options = prepare(self.denoiser, sampler, prompts, options)
        num_devices, num_rows = len(self.devices), prompts.tokens.shape[0]
        check_keys(keys, num_rows)
        check_tokens(prompts, self._vocab_size)
        missing = -num_rows % num_devices
        places = np.arange(num_rows + missing)

        # On the host: eager JAX operations would take longer than a small model's step.
        def split(x: HostArray) -> HostArray:
            # Repeating the last row keeps values legal; it is made blank-free below.
            x = x[np.minimum(places, num_rows - 1)] if missing else x
            return x.reshape(num_devices, -1, *x.shape[1:])

        sampler, prompts, keys = jax.tree.map(split, (sampler, prompts, keys))
        is_real = (places < num_rows).reshape(num_devices, -1, 1)
        prompts = prompts.replace(is_blank=prompts.is_blank & is_real)
        return sampler, prompts, keys, options

    def _compile(self, arguments: tuple) -> tuple[jax.stages.Compiled, float]:
        """The compiled program for these arguments, and the seconds it took."""
        leaves, structure = jax.tree.flatten(arguments)
        signature = (structure, tuple((x.shape, x.dtype) for x in leaves))
        if signature in self._compiled:
            return self._compiled[signature], 0.0
        start = time.perf_counter()
        compiled = self._sample.lower(self._params, *arguments).compile()
        self._compiled[signature] = compiled
        return compiled, time.perf_counter() - start
