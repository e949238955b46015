"""What a prompt became: text, tokens and what they cost."""

import dataclasses

import jax
import numpy as np
from jaxtyping import Float32, Int32

from dlm_jax.core.canvas import Generation, Trajectory
from dlm_jax.text import page
from dlm_jax.text.codec import Codec
from dlm_jax.text.prompts import Encoded


@dataclasses.dataclass(frozen=True)
class Output:
    """One prompt with its blanks filled.

    With a trajectory, a notebook shows the run forward by forward.

    Attributes:
      text: the continuation up to its stop; of an infilling the whole text. Masks are
        shown where the row is not complete.
      tokens: int32 [n]; the generated tokens, of a continuation up to its stop.
      nfe: forwards that the row took part in, of any kind.
      num_whole: of those, forwards of the whole row; all without a cache.
      num_tokens: how many of `tokens` were written; masks do not count.
      commit_step: int32 [n]; the forward that wrote each token; -1 at masks.
      confidence: float32 [n]; the probability of each token when it was written; 0 at
        masks.
      is_complete: False where the bound on steps or a NaN ended the row.
      has_nan: the model gave NaN at the last forward, which ended the row.
      seconds: the row's share of the wall time, by forwards of any kind, compiling
        excluded: the shares of a call add up to it.
      compile_seconds: the call's, divided by its rows.
      trajectory: every step of the row, without padding; None unless asked for.
      replay: the same as a page shows it, see `dlm_jax.text.page`.
    """

    text: str
    tokens: Int32[np.ndarray, "n"]
    nfe: int
    num_whole: int
    num_tokens: int
    commit_step: Int32[np.ndarray, "n"]
    confidence: Float32[np.ndarray, "n"]
    is_complete: bool
    has_nan: bool
    seconds: float
    compile_seconds: float
    trajectory: Trajectory | None = None
    replay: page.Run | None = dataclasses.field(default=None, repr=False)

    def _repr_html_(self) -> str | None:
        """What a notebook shows; without a trajectory it falls back to `repr`."""
        if self.replay is None:
            return None
        name = f"{self.nfe} forwards, {self.num_tokens} tokens"
        return page.frame(page.build({name: self.replay}))


def read_output(
    codec: Codec,
    encoded: Encoded,
    filled: Generation,
    row: int,
    seconds: float,
    compile_seconds: float,
) -> Output:
    """Reads one row of a generation.

    Args:
      codec: of the model.
      encoded: what the row started from.
      filled: rows on the host, padded.
      row: its place among them.
      seconds: see `Output`.
      compile_seconds: see `Output`.
    """
    size = encoded.tokens.size
    tokens = np.asarray(filled.tokens[row, :size])
    new = codec.generated(encoded, tokens)
    # Of a continuation, what follows the stop is left out of all arrays.
    places = np.flatnonzero(encoded.is_blank)[: new.size]
    trajectory = replay = None
    if filled.trajectory is not None:
        nfe = int(filled.num_steps[row])
        # Some arrays are of steps, others of steps and positions.
        trajectory = jax.tree.map(
            lambda x: x[(row, slice(nfe), slice(size))[: x.ndim]], filled.trajectory
        )
        canvas = filled.trajectory.canvas[row, : nfe + 1, :size]
        trajectory = dataclasses.replace(trajectory, canvas=canvas)
        replay = page.of_trajectory(trajectory, codec)
    return Output(
        text=codec.decode(encoded, tokens),
        tokens=new,
        nfe=int(filled.num_steps[row]),
        num_whole=int(filled.num_whole[row]),
        num_tokens=int((new != codec.mask_id).sum()),
        commit_step=np.asarray(filled.commit_step[row, places], np.int32),
        confidence=np.asarray(filled.confidence[row, places], np.float32),
        is_complete=bool(filled.is_complete[row]),
        has_nan=bool(filled.has_nan[row]),
        seconds=seconds,
        compile_seconds=compile_seconds,
        trajectory=trajectory,
        replay=replay,
    )
