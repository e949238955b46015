"""Samplers as plain eager PyTorch loops: what the compiled loop is measured against.

Written the way such loops are written today: the whole batch goes through the model,
the head is applied to every position, and tensor operations decide until no mask is
left. One block, temperature 0. The rules are those of `dlm_jax.samplers`, written a
second time and for a batch, so the two check each other. Needs PyTorch.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dlm_jax.errors import InputError
from dlm_jax.samplers.entropy_bound import EntropyBound
from dlm_jax.samplers.low_confidence import LowConfidence
from dlm_jax.samplers.saber import Saber
from dlm_jax.samplers.threshold import Threshold
from dlm_jax.schedules import Fixed
from dlm_jax.types import Prompts, Sampler

# (tokens, is_mask, is_blank, best token's probability, all [b, l]; log-probabilities
# [b, l, v]) -> what to commit, what to take back.
_Rule = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]


def fill(
    model: torch.nn.Module, sampler: Sampler, prompts: Prompts, mask_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Fills the blanks of a batch without padding.

    Args:
      model: tokens [b, l] -> object with logits [b, l, v].
      sampler: low_confidence (k tokens a step), threshold, entropy_bound with the
        entropy as error proxy, or saber without ablations.
      prompts: every position valid.
      mask_id: the mask token.

    Returns:
      The filled rows int [b, l], and the forwards that each row took part in, int [b].

    Raises:
      InputError: if there is no eager version of the sampler, or rows are padded.
    """
    if not np.all(prompts.is_valid):
        raise InputError("the eager loop takes rows without padding")
    rule = _rule(sampler)
    device = next(model.parameters()).device
    with torch.inference_mode():
        is_blank = torch.tensor(np.asarray(prompts.is_blank), device=device)
        tokens = torch.tensor(np.asarray(prompts.tokens, np.int64), device=device)
        tokens = tokens.masked_fill(is_blank, mask_id)
        is_mask = is_blank
        num_steps = torch.zeros_like(tokens[:, 0])
        while is_mask.any():
            num_steps += is_mask.any(dim=1)
            log_probs = model(tokens).logits.float().log_softmax(dim=-1)
            candidates = log_probs.clone()
            candidates[..., mask_id] = -torch.inf
            best, best_token = candidates.max(dim=-1)
            commit, remask = rule(tokens, is_mask, is_blank, best.exp(), log_probs)
            tokens = torch.where(commit, best_token, tokens)
            if remask is not None:
                tokens = tokens.masked_fill(remask, mask_id)
            is_mask = is_blank & (tokens == mask_id)
    return tokens.cpu().numpy(), num_steps.cpu().numpy()


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
    k = max(int(schedule.k), 1)

    def step(tokens, is_mask, is_blank, confidence, log_probs):
        if k == 1:
            return _best(confidence, is_mask), None
        return _top_k(confidence, is_mask, k), None

    return step


def _threshold(sampler: Threshold) -> _Rule:
    def step(tokens, is_mask, is_blank, confidence, log_probs):
        passed = is_mask & (confidence >= sampler.threshold)
        return passed | (
            _best(confidence, is_mask) & ~passed.any(1, keepdim=True)
        ), None

    return step


def _entropy_bound(sampler: EntropyBound) -> _Rule:
    def step(tokens, is_mask, is_blank, confidence, log_probs):
        entropy = -(log_probs.exp() * log_probs).sum(dim=-1)
        ranked, order = entropy.masked_fill(~is_mask, torch.inf).sort(
            dim=1, stable=True
        )
        # Ascending, so the maximum of a prefix is its last entry.
        rest = torch.zeros_like(ranked)
        rest[:, 1:] = ranked[:, :-1].cumsum(dim=1)
        taken = rest <= sampler.gamma
        return torch.zeros_like(is_mask).scatter_(1, order, taken) & is_mask, None

    return step


class _Saber:
    """Saber's state: confidences at commit, and held probabilities a step ago."""

    def __init__(self, sampler: Saber):
        self.sampler = sampler
        self.committed: torch.Tensor | None = None
        self.previous: torch.Tensor | None = None

    def __call__(self, tokens, is_mask, is_blank, confidence, log_probs):
        if self.committed is None or self.previous is None:
            self.committed = self.previous = torch.zeros_like(confidence)
        held = log_probs.gather(-1, tokens[..., None])[..., 0].exp()
        is_committed = is_blank & ~is_mask
        num_committed = is_committed.sum(dim=1)
        highest = confidence.masked_fill(~is_mask, 0).amax(dim=1)
        mean = (self.committed * is_committed).sum(dim=1) / num_committed
        tau = torch.where(num_committed > 0, torch.minimum(mean, highest), highest)

        n = max(int(self.sampler.n), 1)
        draft = is_mask & (confidence > tau[:, None])
        is_short = draft.sum(dim=1, keepdim=True) < n
        draft = torch.where(is_short, _top_k(confidence, is_mask, n), draft)
        num_drafted = draft.sum(dim=1, keepdim=True)
        num_back = (num_drafted / self.sampler.mu).long().clamp(min=1)
        num_back = torch.minimum(num_back, num_drafted - 1)
        remask = _top_k(self.previous - held, is_committed, num_back)

        self.committed = torch.where(draft, confidence, self.committed)
        self.previous = torch.where(draft, confidence, held)
        return draft, remask
