"""Encoded prompts, and groups of them in few shapes.

A program is compiled for each shape of a group, so lengths are padded to buckets and
the last group is filled up.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int, Int32

from dlm_jax.core.canvas import Prompts
from dlm_jax.core.denoiser import Denoiser
from dlm_jax.core.options import Options
from dlm_jax.errors import PromptError


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A prompt and its blanks, without padding.

    Attributes:
      tokens: int32 [n]; the mask token at blanks.
      is_blank: bool [n]; True where a token is to be generated.
      is_infill: the blanks are part of a given text, so none of them may be cut off;
        otherwise they continue it, and EOS may come early.
    """

    tokens: Int32[np.ndarray, "n"]
    is_blank: Bool[np.ndarray, "n"]
    is_infill: bool


@dataclasses.dataclass(frozen=True)
class Group:
    """Encoded prompts of one shape, ready to be filled in one call.

    Attributes:
      ids: int [n]; which prompt a row is; -1 where it only fills up the group.
      prompts: the rows.
    """

    ids: Int[np.ndarray, "n"]
    prompts: Prompts


def bucket(length: int, max_length: int) -> int:
    """The padded length of a row: few different ones, so that few programs compile.

    Multiples of 16 up to 64, then four steps per doubling (80, 96, 112, 128, 160, ...),
    so that padding is at most a fifth of a longer row; never more than max_length.
    """
    doubling = 1 << max(length - 1, 0).bit_length() >> 1
    step = max(16, doubling // 4)
    return min(-(-length // step) * step, max_length)


def pad(rows: Sequence[Encoded], length: int, batch_size: int | None = None) -> Prompts:
    """Stacks rows, with padding after each and empty rows after the last.

    Args:
      rows: at least one.
      length: of a padded row.
      batch_size: rows of the result; as many as are given by default.
    """
    b = len(rows) if batch_size is None else batch_size
    tokens = np.zeros((b, length), np.int32)
    is_blank = np.zeros((b, length), bool)
    is_valid = np.zeros((b, length), bool)
    for i, row in enumerate(rows):
        tokens[i, : row.tokens.size] = row.tokens
        is_blank[i, : row.tokens.size] = row.is_blank
        is_valid[i, : row.tokens.size] = True
    can_stop = np.array([not row.is_infill for row in rows] + [True] * (b - len(rows)))
    return Prompts(tokens, is_blank, is_valid, can_stop)


def groups(rows: Sequence[Encoded], size: int, max_length: int) -> Iterator[Group]:
    """Cuts prompts into groups of one size and of few lengths, the longest first.

    Rows of similar length share a group, which is padded to the bucket of its longest.
    The longest need the most memory: if there is too little, it is known at once.

    Args:
      rows: in any order; a group's ids are places in it.
      size: rows of every group; the last is filled up with empty ones.
      max_length: of a padded row.
    """
    order = np.argsort([-row.tokens.size for row in rows], kind="stable")
    for start in range(0, len(rows), size):
        chosen = order[start : start + size]
        ids = np.full(size, -1)
        ids[: chosen.size] = chosen
        members = [rows[i] for i in chosen]
        length = bucket(members[0].tokens.size, max_length)
        yield Group(ids, pad(members, length, size))


def gen_length(rows: Sequence[Encoded], block_length: int | None) -> int:
    """The gen_length that rows of different numbers of blanks need: whole blocks."""
    most = max(int(row.is_blank.sum()) for row in rows)
    return most if not block_length else -(-most // block_length) * block_length


def fit_blocks(
    rows: Sequence[Encoded], options: Options, denoiser: Denoiser
) -> tuple[list[Encoded], Options]:
    """Ends the rows of a block-causal model with a whole block, as its programs do.

    Their blocks count columns: a continuation gets up to block_length - 1 blanks more
    than were asked for. Other models take rows as they are.

    Args:
      rows: any.
      options: how to fill them; block_length is given.
      denoiser: the model.

    Returns:
      The rows, and options whose gen_length holds their blanks.

    Raises:
      PromptError: if a longer row exceeds the model's context.
    """
    if not denoiser.is_block_causal:
        return list(rows), options
    size = options.block_length or options.gen_length
    longer = []
    for index, row in enumerate(rows):
        is_longer = row.is_blank.any() and not row.is_infill
        missing = -row.tokens.size % size if is_longer else 0
        if row.tokens.size + missing > denoiser.max_length:
            raise PromptError(
                index,
                f"prompt {index}: its last block of {size} ends at column "
                f"{row.tokens.size + missing}, past the model's context "
                f"({denoiser.max_length})",
                is_too_long=True,
            )
        blanks = np.full(missing, denoiser.mask_id, np.int32)
        longer.append(
            Encoded(
                tokens=np.concatenate([row.tokens, blanks]),
                is_blank=np.concatenate([row.is_blank, np.ones(missing, bool)]),
                is_infill=row.is_infill,
            )
        )
    most = max(options.gen_length, gen_length(longer, size) if longer else 1)
    most = -(-most // size) * size
    return longer, dataclasses.replace(options, gen_length=most, block_length=size)
