"""The rules of samplers for a batch in PyTorch, see `eager`.

Those of `dlm_jax.samplers`, written a second time. Temperature 0. Needs PyTorch.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from dlm_jax.core.canvas import ABSENT
from dlm_jax.core.sampler import Sampler
from dlm_jax.errors import InputError
from dlm_jax.parity.torch_llada import wide
from dlm_jax.samplers.entropy_bound import EntropyBound
from dlm_jax.samplers.low_confidence import LowConfidence
from dlm_jax.samplers.saber import Saber
from dlm_jax.samplers.schedules import Fixed
from dlm_jax.samplers.threshold import Threshold


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Statistics of positions, [b, l] of a batch; r in place of l for a region.

    Attributes:
      token: int64; the most probable one that is not the mask.
      confidence: its probability.
      held: probability of the token on the canvas; ABSENT if no rule needs it.
      entropy: in nats; ABSENT if no rule needs it.
      is_known: where there is a prediction; True everywhere if ABSENT. Elsewhere the
        others mean nothing.
    """

    token: torch.Tensor
    confidence: torch.Tensor
    held: torch.Tensor = ABSENT
    entropy: torch.Tensor = ABSENT
    is_known: torch.Tensor = ABSENT


# (is_eligible [b, l], is_committed [b, l], prediction) -> what to commit, what to take
# back.
_Decide = Callable[
    [torch.Tensor, torch.Tensor, Prediction], tuple[torch.Tensor, torch.Tensor | None]
]


@dataclasses.dataclass(frozen=True)
class Rule:
    """A sampler for a batch, with its state before the first step.

    Attributes:
      decide: (is_eligible [b, l], is_committed [b, l], prediction) -> what to commit,
        and what to take back.
      needs: the optional fields of `Prediction` that it reads.
      may_remask: whether it takes anything back.
    """

    decide: _Decide
    needs: tuple[str, ...] = ()
    may_remask: bool = False


def rule_of(sampler: Sampler) -> Rule:
    """The eager version of a sampler.

    Raises:
      InputError: if there is none.
    """
    if isinstance(sampler, LowConfidence) and isinstance(sampler.schedule, Fixed):
        return Rule(_low_confidence(sampler.schedule))
    if isinstance(sampler, Threshold):
        return Rule(_threshold(sampler))
    if isinstance(sampler, EntropyBound) and sampler.error_proxy == "entropy":
        return Rule(_entropy_bound(sampler), needs=("entropy",))
    if isinstance(sampler, Saber) and not _is_ablated(sampler):
        return Rule(_Saber(sampler), needs=("held",), may_remask=True)
    raise InputError(
        f"there is no eager version of {sampler}; --reference=batches, host or "
        "none need none"
    )


def predict(
    logits: torch.Tensor, held: torch.Tensor, mask_id: int, needs: tuple[str, ...]
) -> Prediction:
    """The statistics that a rule needs.

    Args:
      logits: [b, r, v].
      held: int64 [b, r]; the tokens on the canvas.
      mask_id: is no candidate.
      needs: see `Rule`.
    """
    log_probs = wide(logits).log_softmax(dim=-1)
    candidates = log_probs.clone()
    candidates[..., mask_id] = -torch.inf
    best, token = candidates.max(dim=-1)
    optional = {}
    if "held" in needs:
        optional["held"] = log_probs.gather(-1, held[..., None])[..., 0].exp()
    if "entropy" in needs:
        optional["entropy"] = -(log_probs.exp() * log_probs).sum(dim=-1)
    return Prediction(token, best.exp(), **optional)


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


def _low_confidence(schedule: Fixed) -> _Decide:
    k = int(schedule.k)

    def decide(is_eligible, is_committed, prediction):
        if k == 1:
            return _best(prediction.confidence, is_eligible), None
        return _top_k(prediction.confidence, is_eligible, k), None

    return decide


def _threshold(sampler: Threshold) -> _Decide:
    def decide(is_eligible, is_committed, prediction):
        confidence = prediction.confidence
        passed = is_eligible & (confidence >= sampler.threshold)
        best = _best(confidence, is_eligible) & ~passed.any(1, keepdim=True)
        return passed | best, None

    return decide


def _entropy_bound(sampler: EntropyBound) -> _Decide:
    def decide(is_eligible, is_committed, prediction):
        entropy = prediction.entropy.masked_fill(~is_eligible, torch.inf)
        ranked, order = entropy.sort(dim=1, stable=True)
        # Ascending, so the maximum of a prefix is its last entry.
        rest = torch.zeros_like(ranked)
        rest[:, 1:] = ranked[:, :-1].cumsum(dim=1)
        taken = rest <= sampler.gamma
        taken = torch.zeros_like(is_eligible).scatter_(1, order, taken)
        return taken & is_eligible, None

    return decide


class _Saber:
    """Saber's state: confidences at commit, and held probabilities a step ago."""

    def __init__(self, sampler: Saber):
        self.sampler = sampler
        self.committed: torch.Tensor | None = None
        self.previous: torch.Tensor | None = None

    def __call__(self, is_eligible, is_committed, prediction):
        confidence, held = prediction.confidence, prediction.held
        if self.committed is None or self.previous is None:
            self.committed = self.previous = torch.zeros_like(confidence)
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
        # All of them are in the active block or before it: nothing else is committed.
        may_fall = is_committed
        if prediction.is_known is not None:
            may_fall = is_committed & prediction.is_known
        remask = _top_k(self.previous - held, may_fall, num_back)

        self.committed = torch.where(draft, confidence, self.committed)
        seen = torch.where(draft, confidence, held)
        if prediction.is_known is not None:
            seen = torch.where(prediction.is_known, seen, self.previous)
        self.previous = seen
        return draft, remask
