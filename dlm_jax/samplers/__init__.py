"""The samplers, one file per published rule, and their specs."""

from dlm_jax.samplers.dynamic import Dynamic
from dlm_jax.samplers.entropy import Entropy
from dlm_jax.samplers.entropy_bound import EntropyBound
from dlm_jax.samplers.factor import Factor, FactorReleased
from dlm_jax.samplers.left_to_right import LeftToRight
from dlm_jax.samplers.low_confidence import LowConfidence
from dlm_jax.samplers.margin import Margin
from dlm_jax.samplers.random_order import Random
from dlm_jax.samplers.saber import Saber
from dlm_jax.samplers.saber_released import SaberReleased
from dlm_jax.samplers.schedules import Cosine, Dream, Fixed, Linear, Quota
from dlm_jax.samplers.spec import (
    SAMPLERS,
    SCHEDULES,
    canonical_spec,
    parse,
    parse_all,
    short_spec,
    to_spec,
)
from dlm_jax.samplers.threshold import Threshold

__all__ = [
    "SAMPLERS",
    "SCHEDULES",
    "Cosine",
    "Dream",
    "Dynamic",
    "Entropy",
    "EntropyBound",
    "Factor",
    "FactorReleased",
    "Fixed",
    "LeftToRight",
    "Linear",
    "LowConfidence",
    "Margin",
    "Quota",
    "Random",
    "Saber",
    "SaberReleased",
    "Threshold",
    "canonical_spec",
    "parse",
    "parse_all",
    "short_spec",
    "to_spec",
]
