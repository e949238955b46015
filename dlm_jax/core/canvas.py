"""What flows between the loop, the model and the samplers.

Samplers and their `Canvas`, `Prediction` and `Decision` know ONE row; `generate` maps
them over the batch with `jax.vmap`, which adds a leading axis b to every array below.
Shapes: l positions of the padded row, g generated slots, r positions of a region,
v vocabulary entries, d model width.
"""

import dataclasses
import typing
from collections.abc import Iterable
from typing import Any, ClassVar, Protocol, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from dlm_jax.errors import InputError

# jax.typing.ArrayLike would also admit Python scalars; these fields hold arrays of
# either kind, because prompts are built on the host.
HostArray = np.ndarray | jax.Array

# What is not there. Not typed as optional: a sampler reads only what it lists in
# `needs`, and the loop only what `prepare` has filled in, so neither need test for it.
ABSENT: Any = None


@flax.struct.dataclass
class Prompts:
    """A batch of canvases before the first forward.

    In every row the known tokens start at column 0, blanks may stand anywhere among
    them, and padding comes last.

    Attributes:
      tokens: int32 [b, l]; what stands at blanks and padding is ignored.
      is_blank: bool [b, l]; True where a token is to be generated.
      is_valid: bool [b, l]; False at padding.
      can_stop: bool [b]; whether `Options.stop_ids` end the row: True for a text that
        is continued, False for one whose blanks lie between given tokens. All rows can
        if ABSENT.
    """

    tokens: HostArray
    is_blank: HostArray
    is_valid: HostArray
    can_stop: HostArray = ABSENT


@flax.struct.dataclass
class Canvas:
    """One row as a sampler sees it before a step.

    Attributes:
      tokens: int32 [l]; mask_id where undecided.
      is_mask: bool [l]; still undecided.
      is_editable: bool [l]; the sampler owns it: generated region or blanks.
      is_open: bool [l]; editable and not past the end of the active block.
      is_eligible: bool [l]; may be committed this step: open and undecided. In
        `Sampler.step` also predicted, and not deferred while others are eligible (see
        `Options.deferred_ids`).
      is_valid: bool [l]; not padding.
      slots: int32 [g]; positions of the editable cells in order, l where there are
        fewer than g.
      block: int32 []; index of the active block; blocks count slots, not columns.
      block_step: int32 []; forwards since the active block began.
      block_masks: int32 []; blanks of the active block when it began.
      num_blocks: int32 []; blocks of this row.
      step: int32 []; forwards this row has taken part in.
      block_length: slots per block (static).
      mask_id: the mask token (static).
    """

    tokens: Int[Array, "l"]
    is_mask: Bool[Array, "l"]
    is_editable: Bool[Array, "l"]
    is_open: Bool[Array, "l"]
    is_eligible: Bool[Array, "l"]
    is_valid: Bool[Array, "l"]
    slots: Int[Array, "g"]
    block: Int[Array, ""]
    block_step: Int[Array, ""]
    block_masks: Int[Array, ""]
    num_blocks: Int[Array, ""]
    step: Int[Array, ""]
    block_length: int = flax.struct.field(pytree_node=False)
    mask_id: int = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class View:
    """What the model is shown of one row; m tokens, of which the first l are the row's.

    Attributes:
      tokens: int32 [m].
      positions: int32 [m]; rotary positions.
      visibility: bool [q, m], q = 1 or m; True where a query may attend to a key.
    """

    tokens: Int[Array, "m"]
    positions: Int[Array, "m"]
    visibility: Bool[Array, "q m"]


class Missing:
    """Stands for a statistic that was not computed; any use of it is refused.

    Attributes:
      name: the field of `Prediction`.
    """

    def __init__(self, name: str):
        self.name = name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Missing) and other.name == self.name

    def __hash__(self) -> int:
        return hash((Missing, self.name))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # Libraries ask for what an object does not have.
            raise AttributeError(name)
        self._refuse()

    def _refuse(self, *unused: Any) -> typing.NoReturn:
        raise InputError(
            f"prediction.{self.name} is read but not computed: the sampler's `needs` "
            f"must list {self.name!r}"
        )


# Whatever arithmetic, indexing or a function of jax.numpy does with an operand.
for _operator in (
    *("neg", "pos", "abs", "invert", "bool", "int", "float", "len", "iter", "getitem"),
    *("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "pow"),
    *("rpow", "lt", "le", "gt", "ge", "and", "rand", "or", "ror", "matmul", "rmatmul"),
    *("array", "jax_array"),
):
    setattr(Missing, f"__{_operator}__", Missing._refuse)
jax.tree_util.register_static(Missing)


@flax.struct.dataclass
class Prediction:
    """Statistics of the model's distribution at every position, natural logarithms.

    Positions outside the sampler's region hold the canvas's token, log-probability
    -inf and entropy +inf. A sampler is refused fields that it does not list in `needs`.

    Attributes:
      token: int32 [l]; the candidate: the most probable token, or at a temperature
        above 0 the drawn one. Never mask_id.
      log_prob: float [l]; the candidate's log-probability, without temperature; -inf
        where the candidate is deferred.
      is_known: bool [l]; True where there is a prediction: in the sampler's region.
      best_log_prob: float [l]; of the most probable token.
      runner_up_log_prob: float [l]; of the second most probable token.
      entropy: float [l]; nats; +inf where the candidate is deferred.
      held_log_prob: float [l]; of the token that stands on the canvas.
    """

    token: Int[Array, "l"]
    log_prob: Float[Array, "l"]
    is_known: Bool[Array, "l"] = ABSENT
    best_log_prob: Float[Array, "l"] = ABSENT
    runner_up_log_prob: Float[Array, "l"] = ABSENT
    entropy: Float[Array, "l"] = ABSENT
    held_log_prob: Float[Array, "l"] = ABSENT


@flax.struct.dataclass
class Decision:
    """What a sampler does with one row in one step.

    The loop keeps to what can be done: it commits and takes back only open positions
    with a prediction, and never writes mask_id.

    Attributes:
      commit: bool [l]; positions to write: eligible or already decided.
      remask: bool [l] or None; decided positions to take back, after the commits.
      tokens: int32 [l] or None; what to write; the prediction's candidates if None.
    """

    commit: Bool[Array, "l"]
    remask: Bool[Array, "l"] | None = None
    tokens: Int[Array, "l"] | None = None


@flax.struct.dataclass
class Trajectory:
    """Every step of a generation; s is the static bound on steps.

    Attributes:
      canvas: int32 [b, s + 1, l]; canvas[:, k] is what forward k saw; from the row's
        num_steps on, the final tokens.
      log_prob: float [b, s, l]; of the candidates; -inf outside the region.
      commit: bool [b, s, l].
      remask: bool [b, s, l].
    """

    canvas: HostArray
    log_prob: HostArray
    commit: HostArray
    remask: HostArray


@flax.struct.dataclass
class Generation:
    """The result of a batch.

    Attributes:
      tokens: int32 [b, l]; mask_id is left only in rows that are not complete.
      num_steps: int32 [b]; NFE: forwards the row took part in.
      last_iteration: int32 [b]; forwards of the whole batch, from the first on, until
        the row was done: what it waited for a slot, and its num_steps. The largest is
        the number of the loop's iterations on the row's device.
      commit_step: int32 [b, l]; step of the commit that stood; -1 at prompt, padding
        and what a stop filled in.
      confidence: float [b, l]; probability of the prediction's candidate at that
        commit (of another token only for samplers that write their own,
        `Decision.tokens`); 0 where commit_step is -1.
      is_complete: bool [b]; False where the bound on steps or a NaN ended the row.
      has_nan: bool [b]; a position that could be committed had no finite prediction.
      trajectory: every step, if asked for.
    """

    tokens: HostArray
    num_steps: HostArray
    last_iteration: HostArray
    commit_step: HostArray
    confidence: HostArray
    is_complete: HostArray
    has_nan: HostArray
    trajectory: Trajectory | None = None


# What a number of a rule may have to be beside a limit.
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
    """A traced field of a rule that does not take every number, see `canonical`.

    Args:
      default: value of the field.
      above: all values must be.
      at_least: all values must be.
      at_most: all values must be.
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
    """Base of all samplers: hyper-parameters, and what they mean.

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

    def init(self, canvas: Canvas) -> PyTree:
        """State before the first step; () by default."""
        return ()

    def view(self, canvas: Canvas) -> View:
        """What the model is shown; the canvas without its padding by default."""
        positions = jnp.arange(canvas.tokens.shape[0], dtype=jnp.int32)
        return View(canvas.tokens, positions, canvas.is_valid[None])

    def region(self, canvas: Canvas) -> Int[Array, "r"]:
        """Positions that need a prediction; the active block's by default."""
        start = canvas.block * canvas.block_length
        return jax.lax.dynamic_slice(canvas.slots, (start,), (canvas.block_length,))

    def adjust(
        self,
        state: PyTree,
        canvas: Canvas,
        region: Int[Array, "r"],
        token_ids: Int[Array, "v"],
        logits: Float[Array, "r v"],
    ) -> Float[Array, "r v"]:
        """Changes a slice of the vocabulary's logits before any statistic is taken."""
        return logits

    def step(
        self, key: Key[Array, ""], state: PyTree, canvas: Canvas, prediction: Prediction
    ) -> tuple[PyTree, Decision]:
        """Decides what to commit and what to take back."""
        raise NotImplementedError

    def max_steps(self, num_blanks: int) -> int:
        """A bound on the forwards needed to fill `num_blanks` blanks."""
        return num_blanks

    def check(self, gen_length: int, block_length: int) -> None:
        """Refuses lengths that the hyper-parameters do not fit; by default none.

        `generate.prepare` calls it on the host, before anything is compiled.
        Hyper-parameters are then NumPy arrays [b], see `canonical`.

        Args:
          gen_length: slots per row.
          block_length: slots per block, a divisor of gen_length.

        Raises:
          InputError: naming the field that does not fit.
        """


class Denoiser(Protocol):
    """A model as pure functions of its parameters; hashable, static under jit."""

    @property
    def mask_id(self) -> int:
        """The mask token."""
        ...

    @property
    def eos_id(self) -> int:
        """What fills a row behind a stop."""
        ...

    @property
    def max_length(self) -> int:
        """The longest row that the model accepts."""
        ...

    @property
    def model_axis(self) -> str | None:
        """The mapped axis that the parameters are split over; None if they are whole.

        The vocabulary is then split over it too: `head` gives a device's own part, and
        the axis index times its length is its first token.
        """
        ...

    def init_cache(self, params: PyTree, batch_size: int, length: int) -> PyTree:
        """The cache before a row's first forward; () for models without one.

        The batch is the leading axis of every leaf: a slot that takes another row gets
        its initial values again.
        """
        ...

    def denoise(
        self, params: PyTree, view: View, region: Int[Array, "b r"], cache: PyTree
    ) -> tuple[Float[Array, "b r d"], PyTree]:
        """Runs a batched view; returns what the head reads for `region`, and the cache.

        The model knows which output predicts a position (LLaDA its own, Dream the
        one before). Indices of `region` past the end are clipped.
        """
        ...

    def head(self, params: PyTree) -> Float[Array, "v d"]:
        """The language-model head; logits are hidden @ head.T."""
        ...


@flax.struct.dataclass
class Options:
    """How to generate, apart from the sampler.

    Attributes:
      gen_length: slots per row: the most blanks a row may have.
      block_length: slots per semi-autoregressive block; gen_length if ABSENT.
      temperature: of the candidate's draw; 0 takes the most probable token.
      guidance: scale s of classifier-free guidance, logits un + (s + 1) (cond - un),
        `un` with the prompt masked (arXiv:2502.09992); 0 is off.
      stop_ids: tokens that end a row that can stop (`Prompts.can_stop`), once nothing
        before them is undecided; what follows is filled with eos_id.
      suppressed_ids: tokens whose logits are -inf (LLaDA's `logits_eos_inf` for EOS).
      deferred_ids: tokens that are committed last (LLaDA's `confidence_eos_eot_inf`, at
        any temperature): a position whose candidate is one of them is not eligible
        while another is, and has confidence 0 and infinite entropy.
      num_slots: rows that are in flight at once on a device; the others wait in a
        queue, and take the place of rows that are done. All rows if ABSENT.
      max_steps: static bound on a row's forwards; the sampler's own if ABSENT.
      logits_dtype: dtype that logits are rounded to, and under guidance every step of
        their arithmetic; None keeps float32 or wider. `bfloat16` repeats a model that
        is run in bfloat16 by PyTorch.
      probability_dtype: dtype that probabilities are rounded to before positions are
        compared; None keeps float32 or wider. `bfloat16` repeats the ties of released
        samplers that take the softmax in the model's dtype (LLaDA, Saber), None those
        that take it in float64 (Fast-dLLM).
      precision: of matrix products of models in float32 or wider, as in
        `jax.default_matmul_precision`. With "default", GPUs use TF32 and TPUs
        bfloat16 passes: faster, but recorded float32 runs diverge.
      vocab_slice: entries of the vocabulary whose logits are alive at once; a
        multiple of 1,024.
      has_trajectory: return every step.
    """

    gen_length: int = flax.struct.field(pytree_node=False)
    block_length: int = flax.struct.field(pytree_node=False, default=ABSENT)
    temperature: float | None = 0.0
    guidance: float | None = 0.0
    stop_ids: tuple[int, ...] = flax.struct.field(pytree_node=False, default=())
    suppressed_ids: tuple[int, ...] = flax.struct.field(pytree_node=False, default=())
    deferred_ids: tuple[int, ...] = flax.struct.field(pytree_node=False, default=())
    num_slots: int = flax.struct.field(pytree_node=False, default=ABSENT)
    max_steps: int = flax.struct.field(pytree_node=False, default=ABSENT)
    logits_dtype: Any = flax.struct.field(pytree_node=False, default=None)
    probability_dtype: Any = flax.struct.field(pytree_node=False, default=None)
    precision: str = flax.struct.field(pytree_node=False, default="highest")
    vocab_slice: int = flax.struct.field(pytree_node=False, default=16384)
    has_trajectory: bool = flax.struct.field(pytree_node=False, default=False)


_Struct = TypeVar("_Struct")


def canonical(
    struct: _Struct, shape: tuple[int, ...] = (), name: str | None = None
) -> _Struct:
    """Casts the traced fields of a sampler to arrays of their declared dtype.

    0, 0.1 and np.float64(0.1) then lead to the same compiled program. All that is
    sampled goes through here while its numbers are still known, so that here they are
    checked.

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
            # The cast below would wrap around without a word.
            if not is_real and (abs(array) > jnp.iinfo(jnp.int32).max).any():
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
            is_wrong = ~_BOUNDS[bound](array, limit)  # NaN is on no side.
            if is_wrong.any():
                shown = value if np.ndim(value) == 0 else array[is_wrong][0]
                raise InputError(
                    f"{name}: {field.name} ({shown}) must be {bound} {limit}"
                )
        values[field.name] = array
    return dataclasses.replace(struct, **values)  # type: ignore[type-var]
