"""The base classes of samplers and schedules, and checks of their numbers."""

import dataclasses
import inspect
import typing
from collections.abc import Iterable
from typing import Any, ClassVar, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from dlm_jax.core.canvas import Canvas, Decision, Prediction, View
from dlm_jax.errors import InputError

# Comparisons of a rule's number with its limits.
_BOUNDS = {
    "above": np.greater,
    "at least": np.greater_equal,
    "at most": np.less_equal,
}


def number(
    *,
    default: float | None,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Any:
    """Declares a numeric field of a rule that takes only some numbers.

    The field is traced: another value compiles nothing anew. Values out of bounds are
    refused with an `InputError` that names the field, before anything is compiled.

    Args:
      default: value of the field; None only where the field's type has None.
      above: lower limit, itself excluded.
      at_least: lower limit.
      at_most: upper limit.

    Returns:
      What the class body assigns to the field.
    """
    limits = zip(_BOUNDS, (above, at_least, at_most), strict=True)
    bounds = {bound: limit for bound, limit in limits if limit is not None}
    return flax.struct.field(default=default, metadata={"bounds": bounds})


@typing.dataclass_transform(
    frozen_default=True,
    field_specifiers=(dataclasses.field, flax.struct.field, number),
)
class Rule:
    """Base of samplers and schedules: each subclass is a frozen dataclass and a pytree.

    Numeric fields are traced (changing one does not recompile); one that does not take
    every number is declared with `number`. A field that sets a shape or selects code is
    declared with `flax.struct.field(pytree_node=False)`.

    Subclasses are not decorated. `flax.struct.dataclass` would register them by
    `jax.tree_util.register_dataclass`, and tree structures of such classes are equal
    whenever their fields are (JAX 0.10 to 0.12). Their hashes differ, so that jit
    mostly tells them apart; but now and then it ran the program of `left_to_right` for
    `margin`. The structures of classes that bring their own functions do differ.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        dataclasses.dataclass(frozen=True)(cls)
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]
        children, static = (
            [f.name for f in fields if f.metadata.get("pytree_node", True) == is_child]
            for is_child in (True, False)
        )

        def flatten(rule: Rule) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
            return (
                tuple(getattr(rule, name) for name in children),
                tuple(getattr(rule, name) for name in static),
            )

        def flatten_with_keys(rule: Rule) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
            values, aux = flatten(rule)
            keys = map(jax.tree_util.GetAttrKey, children)
            return tuple(zip(keys, values, strict=True)), aux

        def unflatten(aux: tuple[Any, ...], values: Iterable[Any]) -> Rule:
            return cls(
                **dict(zip(children, values, strict=True)),
                **dict(zip(static, aux, strict=True)),
            )

        jax.tree_util.register_pytree_with_keys(
            cls, flatten_with_keys, unflatten, flatten
        )


class Sampler(Rule):
    """Base of all samplers: hyper-parameters, and the rule that they set.

    A subclass writes `step`; the other methods have defaults. All are written for one
    row of l positions, padding included. The loop maps them over the rows with
    `jax.vmap` and compiles them, so that arrays and numeric fields are traced: write
    `jnp.where`, not `if`. `max_steps`, `extra_steps` and `check` alone run in Python,
    on the host.

    Attributes:
      needs: optional fields of `Prediction` that `step` reads.
      may_rewrite: `step` may commit positions that are already decided.
      may_remask: `step` may take back decided tokens.
      may_remask_fresh: ... also those it commits in the same step.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    may_rewrite: ClassVar[bool] = False
    may_remask: ClassVar[bool] = False
    may_remask_fresh: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        annotation = str(inspect.get_annotations(cls).get("needs", "ClassVar"))
        if "ClassVar" not in annotation:
            # It would be a field, and a number of the rule.
            raise InputError(f"{cls.__name__}: needs must be written without a type")
        super().__init_subclass__()

    def init(self, canvas: Canvas) -> PyTree:
        """Makes the state that the first `step` of a row gets.

        Args:
          canvas: the row before its first forward.

        Returns:
          A pytree of arrays, whose shapes and dtypes stay; () by default.
        """
        return ()

    def view(self, canvas: Canvas) -> View:
        """Chooses what the model is shown in the next forward of a row.

        Args:
          canvas: the row before that forward.

        Returns:
          The tokens of the row, and any that are appended to them; all rows append
          equally many. The loop sets the other fields. By default the canvas at
          positions 0 to l - 1, of which every one sees all but padding.
        """
        positions = jnp.arange(canvas.tokens.shape[0], dtype=jnp.int32)
        return View(canvas.tokens, positions, canvas.is_valid[None])

    def region(self, canvas: Canvas) -> Int[Array, "r"]:
        """Chooses the positions that need a prediction; others are not computed.

        Args:
          canvas: the row before the forward that predicts.

        Returns:
          int32 [r]; positions of the row, l where there are fewer than r, which is
          the same for all rows. The blanks of the active block by default; those of
          the whole row are `canvas.blanks`.
        """
        return canvas.block_blanks

    def adjust(
        self,
        state: PyTree,
        canvas: Canvas,
        region: Int[Array, "r"],
        token_ids: Int[Array, "v"],
        logits: Float[Array, "r v"],
    ) -> Float[Array, "r v"]:
        """Changes logits before any statistic is taken of them.

        The loop may call it several times a forward, each with a slice of the
        vocabulary. Guidance is applied before, `Options.suppressed_ids` and the
        temperature after.

        Args:
          state: what the next `step` gets.
          canvas: the row before the forward.
          region: int32 [r]; the position of each row of logits, see `region`.
          token_ids: int32 [v]; the token of each column.
          logits: float [r, v], float32 or wider.

        Returns:
          Logits of the same shape; the same ones by default.
        """
        return logits

    def step(
        self, key: Key[Array, ""], state: PyTree, canvas: Canvas, prediction: Prediction
    ) -> tuple[PyTree, Decision]:
        """Decides which tokens of a row to write, and which to take back.

        The loop calls it once after each forward of a row, except those that only fill
        an exact cache. An example: all candidates of probability 0.9 or more, or else
        the best one (Fast-dLLM, arXiv:2505.22618, section 3.3)::

            probability = jnp.exp(prediction.log_prob)
            commit = select.above(probability, canvas.is_eligible, 0.9)
            return state, Decision(commit)

        A step that commits nothing costs its forward all the same. A row that is not
        full after the steps that `max_steps` and `extra_steps` allow stays incomplete.

        Args:
          key: a random key, of this row and this step alone; candidates are drawn with
            another. Draw for each position from `jax.random.fold_in(key, position)`:
            one draw of shape [l] would depend on the padding.
          state: what `init` or the row's previous step returned.
          canvas: the row before this step. `is_eligible`, bool [l], is where a token
            may be written.
          prediction: what the model says of every position, arrays [l]: the candidate
            `token`, int32; its `log_prob`, float32 or wider, in nats; `is_known`,
            False where this forward predicted nothing; and the fields that `needs`
            lists. To use another one raises InputError.

        Returns:
          The next state, with the shapes of the last one, whose dtypes it gets; and a
          `Decision`: `commit`, bool [l], and where wanted `remask`, bool [l], and
          `tokens`, int32 [l]. The loop carries out the part of it that can be done,
          see `Decision`.
        """
        raise NotImplementedError

    def max_steps(self, num_blanks: int) -> int:
        """Bounds the steps that fill a row.

        Args:
          num_blanks: the most blanks of a row, `Options.gen_length`.

        Returns:
          The bound; by default num_blanks, for rules whose every step decides at least
          one more position than it takes back.
        """
        return num_blanks

    def extra_steps(self, num_blocks: int) -> int:
        """Bounds the steps of a row that find nothing undecided in their block.

        Only rules that return `Decision.is_finished` take such steps, and have to write
        this method. A numeric field may be an array with a value per row: the largest
        counts.

        Args:
          num_blocks: the most blocks of a row.

        Returns:
          The bound, an int; 0 by default.
        """
        return 0

    def check(self, gen_length: int, block_length: int) -> None:
        """Checks that the hyper-parameters fit the lengths; accepts all by default.

        Called before anything is compiled. Numeric fields are then NumPy arrays [b],
        one value per row.

        Args:
          gen_length: the most blanks of a row.
          block_length: blanks per block, a divisor of gen_length.

        Raises:
          InputError: naming the field that does not fit.
        """


_Struct = TypeVar("_Struct")


def canonical(
    struct: _Struct, shape: tuple[int, ...] = (), name: str | None = None
) -> _Struct:
    """Casts the traced fields of a sampler to arrays of their declared dtype.

    0, 0.1 and np.float64(0.1) then lead to the same compiled program. Every sampler
    passes through here while its numbers are still concrete, so they are checked here.

    Args:
      struct: a `Rule` or `flax.struct.dataclass` with fields declared float, int or
        another of the two; None stays None.
      shape: what every field is broadcast to; a field may already have this shape.
      name: what errors call it; its class by default.

    Raises:
      InputError: naming a field that is no number, not one that it takes (see
        `number`) or does not broadcast.
    """
    name = name or type(struct).__name__
    hints = typing.get_type_hints(type(struct))
    values = {}
    for field in dataclasses.fields(struct):  # type: ignore[arg-type]
        value = getattr(struct, field.name)
        if not field.metadata.get("pytree_node", True):
            continue
        if dataclasses.is_dataclass(value):
            values[field.name] = canonical(value, shape)
            continue
        hint = hints[field.name]
        kinds = (hint, *typing.get_args(hint))
        if value is None and type(None) in kinds:
            continue
        is_real = float in kinds
        try:
            # NumPy, because eager JAX would take longer than a small model's step.
            array = np.asarray(value)
            is_integer = jnp.issubdtype(array.dtype, jnp.integer)
            if not is_integer and not (
                is_real and jnp.issubdtype(array.dtype, jnp.floating)
            ):
                raise TypeError
            # The cast below would wrap around silently.
            # (By comparisons: the least int64 is its own absolute value.)
            bound = jnp.iinfo(jnp.int32).max
            if not is_real and ((array > bound) | (array < -bound)).any():
                raise TypeError
            dtype = jnp.result_type(float) if is_real else np.dtype(np.int32)
            array = np.broadcast_to(array.astype(dtype), shape)
        except (TypeError, ValueError):
            kind = "a number" if is_real else "an integer of 32 bits"
            raise InputError(
                f"{name}: {field.name} ({value!r}) must be {kind}"
                + (f" or an array of shape {shape}" if shape else "")
            ) from None
        for bound, limit in field.metadata.get("bounds", {}).items():
            is_wrong = ~_BOUNDS[bound](array, limit)  # True for NaN.
            if is_wrong.any():
                shown = value if np.ndim(value) == 0 else array[is_wrong][0]
                raise InputError(
                    f"{name}: {field.name} ({shown}) must be {bound} {limit}"
                )
        values[field.name] = array
    return dataclasses.replace(struct, **values)  # type: ignore[type-var]
