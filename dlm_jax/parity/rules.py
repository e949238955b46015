"""How the arguments of recorded calls become samplers and cache plans."""

import dataclasses
import string
from collections.abc import Mapping
from typing import Any

from dlm_jax import samplers
from dlm_jax.core.sampler import Sampler
from dlm_jax.errors import InputError
from dlm_jax.parity.traces import Trace


class UnavailableError(InputError):
    """A well-formed trace that cannot be replayed here."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """How the arguments of a recorded call become a sampler.

    Attributes:
      spec: the sampler's spec, with a field for every argument it takes.
      accepted: further arguments, with the values under which the rule holds;
        () where any value does, because the recorded code ignores it.
      is_wide: the recorded code takes the softmax in float64, whatever the model's
        dtype; otherwise in the model's.
      cache: spec of the cache plan.
      early_stop: see `Options`.
    """

    spec: str
    accepted: Mapping[str, tuple] = dataclasses.field(default_factory=dict)
    is_wide: bool = False
    cache: str = "none"
    early_stop: bool = True


# Given a threshold, Fast-dLLM's loop never reads its steps.
_FAST_DLLM = {"steps": (), "remasking": ("low_confidence",), "factor": (None,)}
# SDAR's two loops: what they are called with beside what a rule takes. The static and
# the sequential rule have no use for a threshold.
_SDAR = {"strategy": (), "threshold": ()}

RULES = {
    "low_confidence": Rule(
        "low_confidence(schedule=linear(steps={steps}))",
        {"remasking": ("low_confidence",), "confidence_eos_eot_inf": (False,)},
    ),
    "threshold": Rule("threshold(threshold={threshold})", _FAST_DLLM, is_wide=True),
    "threshold_prefix_cache": Rule(
        "threshold(threshold={threshold})", _FAST_DLLM, is_wide=True, cache="prefix"
    ),
    "threshold_dual_cache": Rule(
        "threshold(threshold={threshold})", _FAST_DLLM, is_wide=True, cache="dual"
    ),
    "low_confidence_prefix_cache": Rule(
        "low_confidence(schedule=linear(steps={steps}))",
        {"remasking": ("low_confidence",), "threshold": (None,), "factor": (None,)},
        is_wide=True,
        cache="prefix",
    ),
    "low_confidence_dual_cache": Rule(
        "low_confidence(schedule=linear(steps={steps}))",
        {"remasking": ("low_confidence",), "threshold": (None,), "factor": (None,)},
        is_wide=True,
        cache="dual",
    ),
    "factor_prefix_cache": Rule(
        "factor_released(factor={factor})", {}, is_wide=True, cache="prefix"
    ),
    "factor_dual_cache": Rule(
        "factor_released(factor={factor})", {}, is_wide=True, cache="dual"
    ),
    "sdar_low_confidence_static": Rule(
        "low_confidence(schedule=quota(steps={denoising_steps}))",
        _SDAR,
        cache="block",
        early_stop=False,
    ),
    "sdar_low_confidence_dynamic": Rule(
        "dynamic(threshold={threshold}, schedule=quota(steps={denoising_steps}))",
        _SDAR,
        cache="block",
        early_stop=False,
    ),
    # All confidences are 1 there: every position is above the threshold.
    "sdar_low_confidence_dynamic_topk1": Rule(
        "dynamic(threshold=0.0, schedule=quota(steps={denoising_steps}))",
        _SDAR,
        cache="block",
        early_stop=False,
    ),
    "sdar_sequential": Rule(
        "left_to_right(schedule=quota(steps={denoising_steps}))",
        _SDAR,
        cache="block",
        early_stop=False,
    ),
    "factor": Rule("factor_released(factor={factor})", is_wide=True),
    "entropy_bound": Rule("entropy_bound(gamma={gamma}, error_proxy={error_proxy!r})"),
    "saber_released": Rule("saber_released(n={n})"),
}

# Arguments that any call may have; `_options` reads them.
_COMMON = {
    "gen_length",
    "block_length",
    "temperature",
    "mask_id",
    "cfg_scale",
    "guidance",
    "logits_eos_inf",
    "stop_ids",
    "suppressed_ids",
    "deferred_ids",
    "cache",
    "early_stop",
    "logits_dtype",
    "probability_dtype",
    # Both of them, in traces of version 0.1.
    "confidence_dtype",
}


def sampler_for(trace: Trace) -> Sampler:
    """The sampler that repeats a trace's rule.

    Raises:
      UnavailableError: if there is none, or for an argument it does not know.
    """
    params = trace.params
    if "spec" in params:
        _refuse_unknown(params, {"spec"}, {})
        return samplers.parse(params["spec"])
    rule = RULES.get(trace.sampler)
    if rule is None:
        raise UnavailableError(f"sampler {trace.sampler!r} is not available")
    taken = {name for _, name, _, _ in string.Formatter().parse(rule.spec) if name}
    missing = sorted(taken - params.keys())
    if missing:
        raise InputError(f"trace {trace.name}: params: missing: {', '.join(missing)}")
    _refuse_unknown(params, taken, rule.accepted)
    return samplers.parse(rule.spec.format(**params))


def _refuse_unknown(
    params: Mapping[str, Any], taken: set[str], accepted: Mapping[str, tuple]
):
    """Raises UnavailableError for an argument whose effect is not repeated here."""
    for name, value in params.items():
        if name in taken or name in _COMMON:
            continue
        if name not in accepted or (accepted[name] and value not in accepted[name]):
            raise UnavailableError(f"argument {name}={value!r} is not available")
