"""More rows than slots: a slot whose row is done takes the next one that waits.

Samplers that decide for themselves how much to commit need very different numbers of
forwards. A batch that waited for its slowest row would lose most of what they save.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key, PyTree

from dlm_jax.core.row import Frame, Row
from dlm_jax.core.sampler import Sampler


@flax.struct.dataclass
class Job:
    """What stays fixed while a row is generated; n of all rows, or b in the slots."""

    sampler: Sampler
    keys: Key[Array, "n"]
    frames: Frame


@flax.struct.dataclass
class Todo:
    """What stays fixed while a queue runs.

    Attributes:
      jobs: of all rows.
      order: int32 [n]; rows in the order in which they get a slot.
      num_open: int32 []; how many of `order` need one at all.
    """

    jobs: Job
    order: Int[Array, "n"]
    num_open: Int[Array, ""]


@flax.struct.dataclass
class Queue:
    """The loop's carry: n rows, of which b are in slots.

    Attributes:
      rows: of all prompts: as they start or, once they are done, as they ended.
      ends: int32 [n]; iterations of the loop until the row was done.
      num_taken: int32 []; rows that have been given a slot.
      iteration: int32 []; forwards of the whole batch.
      ids: int32 [b]; which row is in a slot; n in an idle one.
      jobs: of the slots.
      slots: the rows in the slots; those in idle slots are done.
      cache: the model's, () without one; the batch is the leading axis of every leaf.
    """

    rows: Row
    ends: Int[Array, "n"]
    num_taken: Int[Array, ""]
    iteration: Int[Array, ""]
    ids: Int[Array, "b"]
    jobs: Job
    slots: Row
    cache: PyTree


def start(jobs: Job, rows: Row, num_slots: int) -> Queue:
    """A queue before its first forward, all slots idle."""
    n, zero = rows.is_done.shape[0], jnp.int32(0)
    anything = jnp.zeros(num_slots, jnp.int32)
    slots = _take(rows, anything)
    return Queue(
        rows=rows,
        ends=jnp.zeros(n, jnp.int32),
        num_taken=zero,
        iteration=zero,
        ids=jnp.full(num_slots, n, jnp.int32),
        jobs=_take(jobs, anything),
        slots=dataclasses.replace(slots, is_done=jnp.ones(num_slots, bool)),
        cache=(),
    )


def refill(queue: Queue, todo: Todo) -> Queue:
    """Writes back the rows that are done and gives their slots to waiting rows."""
    n = todo.order.shape[0]
    is_free = queue.slots.is_done
    leaving = jnp.where(is_free, queue.ids, n)

    def put(all_rows: Array, slots: Array) -> Array:
        return all_rows.at[leaving].set(slots, mode="drop")

    rows = jax.tree.map(put, queue.rows, queue.slots)
    place = queue.num_taken + jnp.cumsum(is_free, dtype=jnp.int32) - 1
    is_new = is_free & (place < todo.num_open)
    new_ids = todo.order[jnp.clip(place, 0, n - 1)]
    return dataclasses.replace(
        queue,
        rows=rows,
        ends=queue.ends.at[leaving].set(queue.iteration, mode="drop"),
        num_taken=queue.num_taken + jnp.sum(is_new, dtype=jnp.int32),
        ids=jnp.where(is_new, new_ids, jnp.where(is_free, n, queue.ids)),
        jobs=where(is_new, _take(todo.jobs, new_ids), queue.jobs),
        slots=where(is_new, _take(rows, new_ids), queue.slots),
    )


def _take(tree: PyTree, ids: Int[Array, "b"]) -> PyTree:
    return jax.tree.map(lambda x: x[ids], tree)


def where(is_new: Bool[Array, "b"], new: PyTree, old: PyTree) -> PyTree:
    """Some rows of one tree, and the others of another."""

    def choose(x: Array, y: Array) -> Array:
        return jnp.where(is_new.reshape(-1, *[1] * (y.ndim - 1)), x, y)

    return jax.tree.map(choose, new, old)
