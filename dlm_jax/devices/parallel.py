"""The base class of everything that runs batches on devices."""

import abc
import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int, Key, PyTree

from dlm_jax.core.canvas import Generation, HostArray, Prompts
from dlm_jax.core.checks import check_keys, check_tokens, prepare
from dlm_jax.core.denoiser import Denoiser
from dlm_jax.core.loop import FOREVER, finish
from dlm_jax.core.options import Options
from dlm_jax.core.sampler import Sampler


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
        self._applied: dict[Callable, Any] = {}

    @abc.abstractmethod
    def _split(self, rows: HostArray) -> HostArray:
        """Rows, group after group, as the mapped program takes them."""

    @abc.abstractmethod
    def _map(self, function: Callable) -> Any:
        """The jitted form of what `apply` takes: (params, rows, options) -> results.

        Results have an axis of groups before all others.
        """

    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary, rows that only pad the head included."""
        return self._vocab_size

    def shards(self) -> PyTree:
        """The shapes of what a device holds of the parameters.

        Where each device has all of them, an axis of one device comes first.
        """
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.sharding.shard_shape(x.shape), x.dtype),
            self._params,
        )

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
        """Fills the blanks of a batch, and yields finished rows while others still run.

        The loop pauses on all devices about every `period` seconds, then continues
        exactly where it stopped. Pauses change no result.

        Args:
          sampler: the rule.
          prompts: the batch.
          keys: one random key per row.
          options: lengths, temperature, guidance, stops.
          period: seconds between pauses; none by default: all rows come together.

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

    def apply(self, function: Callable, rows: PyTree, options: Options) -> PyTree:
        """Applies a function of rows to each group's share, without a loop.

        Args:
          function: traceable, (denoiser, params, rows, options) -> arrays [b, ...]. It
            is compiled once for each shape, if it is the same object.
          rows: arrays [b, ...] on the host; num_groups divides b.
          options: of canonical types, as `prepare` gives them.

        Returns:
          Arrays [num_groups, b / num_groups, ...] in the order of rows. They may not
          be there yet: reading them waits.
        """
        if function not in self._applied:
            self._applied[function] = self._map(function)
        split = jax.tree.map(self._split, rows)
        return self._applied[function](self._params, split, options)

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
        # rows come last, so contiguous pieces would give one group all of them.
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
        weights = jax.tree.leaves(self._params)
        for weight in weights[:1]:
            _warn_of_copies(next(iter(weight.sharding.device_set)).platform)
        is_abstract = any(isinstance(x, jax.ShapeDtypeStruct) for x in weights)
        if is_abstract:
            # Devices of a topology cannot hold arrays.
            arguments = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), arguments
            )
        lowered = self._begin.lower(self._params, *arguments)
        begin = lowered.compile()
        # What the first gives is what the second takes, where it will lie. It is run if
        # that is possible: with several processes, pmap's shapes are not a device's.
        if is_abstract:
            given = jax.tree.map(_shape, lowered.out_info, begin.output_shardings)
        else:
            given = begin(self._params, *arguments)
        *_, options = arguments
        rest = options, *given, np.int32(0)
        proceed = self._proceed.lower(self._params, *rest).compile()
        self._compiled[signature] = programs = Programs(begin, proceed)
        return programs, time.perf_counter() - start


def _warn_of_copies(backend: str) -> None:
    """Warns of a JAX whose programs for GPUs copy every weight in every step.

    Args:
      backend: "cpu", "gpu" or "tpu".
    """
    if backend == "gpu" and jax.__version_info__ < (0, 11, 1):
        warnings.warn(
            f"jax {jax.__version__} copies all weights in every step on GPUs, by its "
            "compiler; use 0.11.1 or newer, with Python 3.12 or newer (docs/aot.md)",
            stacklevel=2,
        )


class Programs(NamedTuple):
    """What a call runs: `loop.begin` once, then `proceed`."""

    begin: jax.stages.Compiled
    proceed: jax.stages.Compiled


def _shape(x: Any, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
