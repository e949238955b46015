"""What flows between the loop, the model and the samplers.

Samplers and their `Canvas`, `Prediction` and `Decision` know ONE row; `generate` maps
them over the batch with `jax.vmap`, which adds a leading axis b to every array below.
Shapes: l positions of the padded row, g blanks, r positions of a region,
v vocabulary entries, d model width.
"""

import typing
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dlm_jax.errors import InputError

# jax.typing.ArrayLike would also admit Python scalars; these fields hold arrays of
# either kind, because prompts are built on the host.
HostArray = np.ndarray | jax.Array

# A field without a value. Not typed as optional: a sampler reads only what it lists in
# `needs`, and the loop only what `prepare` has filled in, so neither needs to test it.
ABSENT: Any = None


@flax.struct.dataclass
class Prompts:
    """A batch of canvases before the first forward.

    In every row the known tokens start at column 0, blanks may stand anywhere among
    them, and padding comes last.

    Attributes:
      tokens: int32 [b, l]; values at blanks and padding are ignored.
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
      blanks: int32 [g]; positions to fill (editable) in order, l where there are
        fewer than g.
      block: int32 []; index of the active block, from 0 at the first blank. Blocks
        count blanks; those of a block-causal model count columns, from column 0 of the
        row, so that a block may hold given tokens.
      block_start: int32 []; blanks before the active block.
      block_column: int32 []; first column of the active block.
      block_step: int32 []; steps since the active block began.
      block_masks: int32 []; blanks of the active block when it began.
      is_final: bool []; the tokens of the active block stay as they are: nothing in it
        is undecided, and the sampler did not say that it would go on. Only an exact
        cache, which has to store such a block, needs another forward of it.
      num_blocks: int32 []; blocks of this row.
      step: int32 []; steps of the sampler before this one.
      num_forwards: int32 []; forwards of this row so far: its steps, and those after
        which an exact cache lets the sampler decide nothing.
      block_length: blanks per block (static).
      mask_id: the mask token (static).
    """

    tokens: Int[Array, "l"]
    is_mask: Bool[Array, "l"]
    is_editable: Bool[Array, "l"]
    is_open: Bool[Array, "l"]
    is_eligible: Bool[Array, "l"]
    is_valid: Bool[Array, "l"]
    blanks: Int[Array, "g"]
    block: Int[Array, ""]
    block_start: Int[Array, ""]
    block_column: Int[Array, ""]
    block_step: Int[Array, ""]
    block_masks: Int[Array, ""]
    is_final: Bool[Array, ""]
    num_blocks: Int[Array, ""]
    step: Int[Array, ""]
    num_forwards: Int[Array, ""]
    block_length: int = flax.struct.field(pytree_node=False)
    mask_id: int = flax.struct.field(pytree_node=False)

    @property
    def length(self) -> int:
        """Columns of the row, l."""
        return self.tokens.shape[-1]

    @property
    def block_blanks(self) -> Int[Array, "w"]:
        """Positions of the active block's blanks, l where there are fewer than w.

        w is block_length. A block that is short of blanks is followed by those of the
        next one.
        """
        rank = self.block_start + jnp.arange(self.block_length)
        return self.blanks.at[rank].get(mode="fill", fill_value=self.length)


@flax.struct.dataclass
class View:
    """What the model is shown of one row; m tokens, of which the first l are the row's.

    Attributes:
      tokens: int32 [m].
      positions: int32 [m]; rotary positions.
      visibility: bool [q, m], q = 1 or m; True where a query may attend to a key. A
        block-causal model hides later blocks besides.
      block_length: blanks per block, what block-causal models count (static).
      columns: int32 [w] or None; which of the tokens go through the model, m where
        there are fewer than w. Keys and values of the others come from the cache. None
        is all of them. The cache plan sets it; samplers leave it None.
      sees_first: every query sees the same keys, and those come before all hidden ones
        (static, q = 1). Some kernels then take their number in place of a mask. The
        loop sets it where a sampler has the default view.
    """

    tokens: Int[Array, "m"]
    positions: Int[Array, "m"]
    visibility: Bool[Array, "q m"]
    block_length: int = flax.struct.field(pytree_node=False, default=1)
    columns: Int[Array, "w"] | None = None
    sees_first: bool = flax.struct.field(pytree_node=False, default=False)


class Missing:
    """Replaces a statistic that was not computed; any use of it raises InputError.

    Attributes:
      name: the field of `Prediction`.
    """

    def __init__(self, name: str):
        self.name = name

    def __eq__(self, other: object) -> bool:
        # JAX compares the structures of two predictions by it.
        if not isinstance(other, Missing):
            self._refuse()
        return other.name == self.name

    def __hash__(self) -> int:
        return hash((Missing, self.name))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # Libraries look for optional attributes.
            raise AttributeError(name)
        self._refuse()

    def _refuse(self, *unused: Any) -> typing.NoReturn:
        raise InputError(
            f"prediction.{self.name} is read but not computed: the sampler's `needs` "
            f"must list {self.name!r}"
        )


# The methods that arithmetic, indexing and jax.numpy call on an operand.
# fmt: off
_OPERATORS = (
    "neg", "pos", "abs", "invert", "bool", "int", "float", "len", "iter", "getitem",
    "add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "pow", "rpow",
    "floordiv", "rfloordiv", "mod", "rmod", "divmod", "rdivmod", "matmul", "rmatmul",
    "lt", "le", "gt", "ge", "and", "rand", "or", "ror", "xor", "rxor", "lshift",
    "rlshift", "rshift", "rrshift", "round", "floor", "ceil", "trunc", "contains",
    "array", "jax_array",
)
# fmt: on
for _operator in _OPERATORS:
    setattr(Missing, f"__{_operator}__", Missing._refuse)
jax.tree_util.register_static(Missing)


@flax.struct.dataclass
class Prediction:
    """Statistics of the model's distribution at every position, natural logarithms.

    Positions that are not known hold the canvas's token, log-probability -inf and
    entropy +inf. A sampler is refused fields that it does not list in `needs`.

    Attributes:
      token: int32 [l]; the candidate: the most probable token, or at a temperature
        above 0 the drawn one. Never mask_id.
      log_prob: float [l]; the candidate's log-probability, without temperature; -inf
        where the candidate is deferred.
      is_known: bool [l]; True where there is a prediction: in the sampler's region, and
        with a cache also in the window that was computed.
      best_log_prob: float [l]; of the most probable token.
      runner_up_log_prob: float [l]; of the second most probable token.
      entropy: float [l]; nats; +inf where the candidate is deferred.
      held_log_prob: float [l]; of the token on the canvas.
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
      is_finished: bool [] or None; whether the active block may end when nothing in it
        is undecided. None is True. A rule that edits decided tokens returns False until
        it is through with a block, and bounds these steps with `Sampler.extra_steps`.
    """

    commit: Bool[Array, "l"]
    remask: Bool[Array, "l"] | None = None
    tokens: Int[Array, "l"] | None = None
    is_finished: Bool[Array, ""] | None = None


@flax.struct.dataclass
class Trajectory:
    """Every step of a generation; s is the static bound on steps.

    Attributes:
      canvas: int32 [b, s + 1, l]; canvas[:, k] is what forward k saw; from the row's
        num_steps on, the final tokens.
      log_prob: float [b, s, l]; of the candidates; -inf where there is no prediction.
      commit: bool [b, s, l].
      remask: bool [b, s, l].
      kind: int32 [b, s]; the `core.cache.Kind` of each forward, -1 where there is none.
      staleness: float [b, s] or None; how far a candidate's log-probability is from
        that of a forward without the cache, in nats: the largest difference over the
        positions that could be committed (`Options.has_staleness`). 0 after forwards
        of the whole row.
    """

    canvas: HostArray
    log_prob: HostArray
    commit: HostArray
    remask: HostArray
    kind: HostArray = ABSENT
    staleness: HostArray | None = None


@flax.struct.dataclass
class Generation:
    """The result of a batch.

    Attributes:
      tokens: int32 [b, l]; mask_id is left only in rows that are not complete.
      num_steps: int32 [b]; NFE: forwards the row took part in, of any kind.
      num_whole: int32 [b]; of those, forwards of the whole row; all without a cache.
      num_stores: int32 [b]; of those, forwards that only wrote an exact cache.
      last_iteration: int32 [b]; iterations of the loop, from the first on, until the
        row was done: its wait for a slot, its num_steps, and with a cache its waits
        for a refresh. The largest is the number of iterations on the row's device.
      commit_step: int32 [b, l]; forward of the commit that was kept; -1 at prompt,
        padding and what a stop filled in.
      confidence: float [b, l]; probability of the prediction's candidate at that
        commit (of another token only for samplers that write their own,
        `Decision.tokens`); 0 where commit_step is -1.
      is_complete: bool [b]; False where the bound on steps or a NaN ended the row: with
        masks left, or before a rule that edits was through with it.
      has_nan: bool [b]; a position that could be committed had no finite prediction.
      trajectory: every step, if asked for.
    """

    tokens: HostArray
    num_steps: HostArray
    num_whole: HostArray
    num_stores: HostArray
    last_iteration: HostArray
    commit_step: HostArray
    confidence: HostArray
    is_complete: HostArray
    has_nan: HostArray
    trajectory: Trajectory | None = None
