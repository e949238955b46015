"""Samplers as plain eager PyTorch loops, the reference of benchmarks.

Written as such loops usually are: the whole batch goes through the model, the head is
applied to every position, and tensor operations decide until no mask is left.
Temperature 0. The rules are those of `dlm_jax.samplers`, written a second time and for
a batch, so the two check each other. Needs PyTorch.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dlm_jax.core.canvas import Prompts
from dlm_jax.core.sampler import Sampler
from dlm_jax.errors import InputError
from dlm_jax.parity.torch_llada import wide
from dlm_jax.samplers.entropy_bound import EntropyBound
from dlm_jax.samplers.low_confidence import LowConfidence
from dlm_jax.samplers.saber import Saber
from dlm_jax.samplers.schedules import Fixed
from dlm_jax.samplers.threshold import Threshold

# (tokens, is_eligible, is_committed, best token's probability, all [b, l];
# log-probabilities [b, l, v]) -> what to commit, what to take back.
_Rule = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]


def fill(
    model: torch.nn.Module,
    sampler: Sampler,
    prompts: Prompts,
    mask_id: int,
    block_length: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Fills the blanks of a batch without padding.

    Args:
      model: tokens [b, l] -> object with logits [b, l, v].
      sampler: low_confidence (k tokens a step), threshold, entropy_bound with the
        entropy as error proxy, or saber without ablations.
      prompts: every position valid.
      mask_id: the mask token.
      block_length: blanks of a block; no position is committed before those of earlier
        blocks. By default the answer is one block.

    Returns:
      The filled rows int [b, l], and the forwards that each row took part in, int [b].

    Raises:
      InputError: as `check`.
    """
    check(sampler, prompts, block_length)
    rule = _rule(sampler)
    device = next(model.parameters()).device
    with torch.inference_mode():
        is_blank = torch.tensor(np.asarray(prompts.is_blank), device=device)
        tokens = torch.tensor(np.asarray(prompts.tokens, np.int64), device=device)
        tokens = tokens.masked_fill(is_blank, mask_id)
        is_mask = is_blank
        num_steps = torch.zeros_like(tokens[:, 0])
        block_of = None
        if block_length is not None:  # Blocks count blanks, not columns.
            block_of = (is_blank.cumsum(dim=1) - 1) // block_length
        active = torch.zeros_like(tokens[:, :1])
        while is_mask.any():
            num_steps += is_mask.any(dim=1)
            is_eligible = is_mask
            if block_of is not None:
                # Never back: a token may have been taken back from a block before.
                first = block_of.gather(1, is_mask.int().argmax(dim=1, keepdim=True))
                active = torch.maximum(active, first)
                is_eligible = is_mask & (block_of <= active)
            log_probs = wide(model(tokens).logits).log_softmax(dim=-1)
            candidates = log_probs.clone()
            candidates[..., mask_id] = -torch.inf
            best, best_token = candidates.max(dim=-1)
            is_committed = is_blank & ~is_mask
            commit, remask = rule(
                tokens, is_eligible, is_committed, best.exp(), log_probs
            )
            tokens = torch.where(commit, best_token, tokens)
            if remask is not None:
                tokens = tokens.masked_fill(remask, mask_id)
            is_mask = is_blank & (tokens == mask_id)
    return tokens.cpu().numpy(), num_steps.cpu().numpy()


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


def check(sampler: Sampler, prompts: Prompts, block_length: int | None) -> None:
    """Checks the arguments of `fill`.

    Raises:
      InputError: if there is no eager version of the sampler, rows are padded, or
        blocks are empty.
    """
    if not np.all(prompts.is_valid):
        raise InputError("the eager loop takes rows without padding")
    if block_length is not None and block_length < 1:
        raise InputError(f"block_length ({block_length}) must be at least 1")
    _rule(sampler)


def _rule(sampler: Sampler) -> _Rule:
    """The eager version of a sampler, with its state before the first step."""
    if isinstance(sampler, LowConfidence) and isinstance(sampler.schedule, Fixed):
        return _low_confidence(sampler.schedule)
    if isinstance(sampler, Threshold):
        return _threshold(sampler)
    if isinstance(sampler, EntropyBound) and sampler.error_proxy == "entropy":
        return _entropy_bound(sampler)
    if isinstance(sampler, Saber) and not _is_ablated(sampler):
        return _Saber(sampler)
    raise InputError(f"there is no eager version of {sampler}")


def _is_ablated(sampler: Saber) -> bool:
    is_whole = sampler.acceleration and sampler.backtracking
    return not is_whole or sampler.threshold is not None


def _top_k(score: torch.Tensor, allowed: torch.Tensor, k: Any) -> torch.Tensor:
    """The k allowed positions of highest score per row, lowest index first at ties."""
    score = score.masked_fill(~allowed, -torch.inf)
    order = score.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order)
    ranks = torch.arange(order.shape[1], device=order.device)
    rank.scatter_(1, order, ranks.expand_as(order))
    return allowed & (rank < k)


def _best(score: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """The allowed position of highest score per row."""
    index = score.masked_fill(~allowed, -torch.inf).argmax(dim=1, keepdim=True)
    return torch.zeros_like(allowed).scatter_(1, index, True) & allowed


def _low_confidence(schedule: Fixed) -> _Rule:
    k = int(schedule.k)

    def step(tokens, is_eligible, is_committed, confidence, log_probs):
        if k == 1:
            return _best(confidence, is_eligible), None
        return _top_k(confidence, is_eligible, k), None

    return step


def _threshold(sampler: Threshold) -> _Rule:
    def step(tokens, is_eligible, is_committed, confidence, log_probs):
        passed = is_eligible & (confidence >= sampler.threshold)
        best = _best(confidence, is_eligible) & ~passed.any(1, keepdim=True)
        return passed | best, None

    return step


def _entropy_bound(sampler: EntropyBound) -> _Rule:
    def step(tokens, is_eligible, is_committed, confidence, log_probs):
        entropy = -(log_probs.exp() * log_probs).sum(dim=-1)
        entropy = entropy.masked_fill(~is_eligible, torch.inf)
        ranked, order = entropy.sort(dim=1, stable=True)
        # Ascending, so the maximum of a prefix is its last entry.
        rest = torch.zeros_like(ranked)
        rest[:, 1:] = ranked[:, :-1].cumsum(dim=1)
        taken = rest <= sampler.gamma
        taken = torch.zeros_like(is_eligible).scatter_(1, order, taken)
        return taken & is_eligible, None

    return step


class _Saber:
    """Saber's state: confidences at commit, and held probabilities a step ago."""

    def __init__(self, sampler: Saber):
        self.sampler = sampler
        self.committed: torch.Tensor | None = None
        self.previous: torch.Tensor | None = None

    def __call__(self, tokens, is_eligible, is_committed, confidence, log_probs):
        if self.committed is None or self.previous is None:
            self.committed = self.previous = torch.zeros_like(confidence)
        held = log_probs.gather(-1, tokens[..., None])[..., 0].exp()
        num_committed = is_committed.sum(dim=1)
        highest = confidence.masked_fill(~is_eligible, 0).amax(dim=1)
        mean = (self.committed * is_committed).sum(dim=1) / num_committed
        tau = torch.where(num_committed > 0, torch.minimum(mean, highest), highest)

        n = int(self.sampler.n)
        draft = is_eligible & (confidence > tau[:, None])
        is_short = draft.sum(dim=1, keepdim=True) < n
        draft = torch.where(is_short, _top_k(confidence, is_eligible, n), draft)
        num_drafted = draft.sum(dim=1, keepdim=True)
        num_back = (num_drafted / self.sampler.mu).long().clamp(min=1)
        num_back = torch.minimum(num_back, num_drafted - 1)
        # All of them lie in the active block or before it: nothing else is committed.
        remask = _top_k(self.previous - held, is_committed, num_back)

        self.committed = torch.where(draft, confidence, self.committed)
        self.previous = torch.where(draft, confidence, held)
        return draft, remask
