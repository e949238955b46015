"""Samplers as plain eager PyTorch loops, the reference of benchmarks.

Written as such loops usually are: the whole batch goes through the model, the head is
applied to every position, and tensor operations decide until no mask is left. With a
cache (Fast-dLLM, arXiv:2505.22618) the head is applied to the active block, and all
rows are in the same block: those that are done with it wait for the others.
Temperature 0. The rules are those of `dlm_jax.samplers`, written a second time and for
a batch, so the two check each other. Needs PyTorch.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dlm_jax.caches import Dual, Prefix
from dlm_jax.core.cache import CachePlan
from dlm_jax.core.canvas import Prompts
from dlm_jax.core.sampler import Sampler
from dlm_jax.errors import InputError
from dlm_jax.parity import torch_llada
from experiments.timing import eager_rules
from experiments.timing.eager_rules import Prediction, Rule

_NO_CACHE = CachePlan()


def fill(
    model: torch.nn.Module,
    sampler: Sampler,
    prompts: Prompts,
    mask_id: int,
    block_length: int | None = None,
    cache: CachePlan = _NO_CACHE,
) -> tuple[np.ndarray, np.ndarray]:
    """Fills the blanks of a batch without padding.

    Args:
      model: tokens [b, l] -> object with logits [b, l, v]; with a cache, a
        `torch_llada.TorchLLaDA`.
      sampler: low_confidence (k tokens a step), threshold, entropy_bound with the
        entropy as error proxy, or saber without ablations.
      prompts: every position valid.
      mask_id: the mask token.
      block_length: blanks of a block; no position is committed before those of earlier
        blocks. By default the answer is one block.
      cache: none, prefix or dual.

    Returns:
      The filled rows int [b, l], and the forwards that each row took part in, int [b].

    Raises:
      InputError: as `check`.
    """
    check(sampler, prompts, block_length, cache)
    rule = eager_rules.rule_of(sampler)
    with torch.inference_mode():
        device = next(model.parameters()).device
        canvas = _Canvas(prompts, mask_id, block_length, device)
        if isinstance(cache, Dual | Prefix):
            num_steps = _fill_with_cache(model, rule, canvas, cache)
        else:
            num_steps = _fill_whole(model, rule, canvas)
    return canvas.tokens.cpu().numpy(), num_steps.cpu().numpy()


class _Canvas:
    """The rows of a batch.

    Attributes:
      tokens: int64 [b, l].
      is_blank: bool [b, l].
      block_of: int64 [b, l]; of each blank. Blocks count blanks, not columns.
      mask_id: the mask token.
    """

    def __init__(
        self,
        prompts: Prompts,
        mask_id: int,
        block_length: int | None,
        device: torch.device,
    ):
        self.mask_id = mask_id
        self.is_blank = torch.tensor(np.asarray(prompts.is_blank), device=device)
        tokens = torch.tensor(np.asarray(prompts.tokens, np.int64), device=device)
        self.tokens = tokens.masked_fill(self.is_blank, mask_id)
        rank = self.is_blank.cumsum(dim=1) - 1
        self.block_of = rank // (block_length or tokens.shape[1])

    @property
    def is_mask(self) -> torch.Tensor:
        """Blanks that are not filled."""
        return self.is_blank & (self.tokens == self.mask_id)

    def advance(
        self, rule: Rule, is_eligible: torch.Tensor, prediction: Prediction
    ) -> None:
        """Writes what a rule decides."""
        is_committed = self.is_blank & ~self.is_mask
        commit, remask = rule.decide(is_eligible, is_committed, prediction)
        self.tokens = torch.where(commit, prediction.token, self.tokens)
        if remask is not None:
            self.tokens = self.tokens.masked_fill(remask, self.mask_id)

    def columns(self, is_chosen: torch.Tensor) -> torch.Tensor:
        """The chosen columns of each row in order, [b, w]; l where there are fewer."""
        length = is_chosen.shape[1]
        columns = torch.arange(length, device=is_chosen.device)
        columns = columns.masked_fill(~is_chosen, length).sort(dim=1).values
        return columns[:, : int(is_chosen.sum(dim=1).max())]


def _fill_whole(model: torch.nn.Module, rule: Rule, canvas: _Canvas) -> torch.Tensor:
    """Fills a canvas; returns each row's forwards. Every row has its own block."""
    num_steps = torch.zeros_like(canvas.tokens[:, 0])
    active = torch.zeros_like(canvas.tokens[:, :1])
    while (is_mask := canvas.is_mask).any():
        num_steps += is_mask.any(dim=1)
        # Never back: a token may have been taken back from a block before.
        first = is_mask.int().argmax(dim=1, keepdim=True)
        active = torch.maximum(active, canvas.block_of.gather(1, first))
        logits = model(canvas.tokens).logits
        prediction = eager_rules.predict(
            logits, canvas.tokens, canvas.mask_id, rule.needs
        )
        canvas.advance(rule, is_mask & (canvas.block_of <= active), prediction)
    return num_steps


def _fill_with_cache(
    model: Any, rule: Rule, canvas: _Canvas, plan: Dual | Prefix
) -> torch.Tensor:
    """Fills a canvas; returns the forwards that each row took part in.

    The first forward of a block is of whole rows and keeps all keys and values. Later
    ones are of the block's blanks (dual) or also of those behind it (prefix). A row
    whose only masks were taken back in earlier blocks goes through the model whole.
    """
    num_steps = torch.zeros_like(canvas.tokens[:, 0])
    cache = torch_llada.Cache(model, *canvas.tokens.shape)
    period = int(plan.refresh_every)
    num_blocks = int(canvas.block_of.masked_fill(~canvas.is_blank, -1).max()) + 1
    for block in range(num_blocks):
        is_open = canvas.is_blank & (canvas.block_of <= block)
        is_own = canvas.is_blank & (canvas.block_of == block)
        window = region = canvas.columns(is_own)
        if isinstance(plan, Prefix):  # Its first blanks are the block's.
            window = canvas.columns(canvas.is_blank & (canvas.block_of >= block))
        step = 0
        while (is_live := (canvas.is_mask & is_open).any(dim=1)).any():
            num_steps += is_live
            # Which rows go through the model whole: all, none, or some of them.
            is_due = step == 0 or (period > 0 and step % period == 0)
            parts: list[_Part] = [(None, None if is_due else window)]
            if rule.may_remask and not is_due:
                # Nothing that may be filled is in the window.
                is_stray = is_live & ~(canvas.is_mask & is_own).any(dim=1)
                if is_stray.any():
                    strays, others = (x.nonzero()[:, 0] for x in (is_stray, ~is_stray))
                    parts = [(strays, None), (others, window)]
            prediction = _predict(model, rule, canvas, cache, region, parts)
            # A row that waits for the others must not notice the forward.
            is_known = prediction.is_known & is_live[:, None]
            prediction = dataclasses.replace(prediction, is_known=is_known)
            is_eligible = canvas.is_mask & is_open & is_known
            canvas.advance(rule, is_eligible, prediction)
            step += 1
    return num_steps


# Rows, and the columns [b, w] that go through the model; None for all of them.
_Part = tuple[torch.Tensor | None, torch.Tensor | None]


def _predict(
    model: Any,
    rule: Rule,
    canvas: _Canvas,
    cache: torch_llada.Cache,
    region: torch.Tensor,
    parts: Sequence[_Part],
) -> Prediction:
    """A forward of each part, and what they predict of a region [b, r]."""
    num_rows, length = canvas.tokens.shape
    row_ids = torch.arange(num_rows, device=region.device)
    found: dict[str, torch.Tensor] = {}
    for rows, columns in parts:
        ids = row_ids if rows is None else rows
        if not len(ids):
            continue
        tokens, wanted = canvas.tokens, region
        if rows is not None:
            tokens, wanted = tokens[rows], wanted[rows]
        if columns is None:
            if "held" in rule.needs:  # Of blocks that came before, too.
                wanted = torch.arange(length, device=ids.device).expand(len(ids), -1)
            places = wanted.clamp(max=length - 1)
            logits = model(tokens, cache=cache, rows=rows, region=places).logits
        else:
            window = columns if rows is None else columns[rows]
            shown = tokens.gather(1, window.clamp(max=length - 1))
            # The region comes first in a window.
            places = torch.arange(wanted.shape[1], device=ids.device)
            logits = model(
                shown,
                cache=cache,
                rows=rows,
                columns=window,
                region=places.expand(len(ids), -1),
            ).logits
        held = tokens.gather(1, wanted.clamp(max=length - 1))
        part = eager_rules.predict(logits, held, canvas.mask_id, rule.needs)
        fields = {**vars(part), "is_known": torch.ones_like(wanted, dtype=torch.bool)}
        for name, value in fields.items():
            if value is not None:
                # What is past the end of a row goes to a column that is cut off.
                whole = found.setdefault(name, value.new_zeros(num_rows, length + 1))
                whole[ids[:, None], wanted] = value
    return Prediction(**{name: whole[:, :length] for name, whole in found.items()})


def problem_of_compiling() -> str | None:
    """Why torch.compile does not work here, in a line; None if it does."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    # The compiler that is missing may be PyTorch's, Triton's or the system's; each
    # raises errors of its own.
    except Exception as error:
        return " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return None


def check(
    sampler: Sampler,
    prompts: Prompts,
    block_length: int | None,
    cache: CachePlan = _NO_CACHE,
) -> None:
    """Checks the arguments of `fill`.

    Raises:
      InputError: if there is no eager version of the sampler or the cache, rows are
        padded, or blocks are empty.
    """
    if not np.all(prompts.is_valid):
        raise InputError("the eager loop takes rows without padding")
    if block_length is not None and block_length < 1:
        raise InputError(f"block_length ({block_length}) must be at least 1")
    if type(cache) not in (CachePlan, Dual, Prefix):
        raise InputError(f"there is no eager version of {cache}")
    eager_rules.rule_of(sampler)
