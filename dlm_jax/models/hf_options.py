"""Reads a config.json, for all families: its options and the types of its fields."""

import math
import reprlib
import typing
from collections.abc import Collection, Mapping
from typing import Any

from dlm_jax.errors import InputError

# How words begin in the names of options that change what a model computes: of other
# architectures, of quantized weights, of adapters. The released class stores any field,
# so that such an option reaches a config.json without an error.
_CHANGING = (
    "adapter",
    "cap",
    "causal",
    "compress",
    "expert",
    "lora",
    "moe",
    "mrope",
    "peft",
    "pruned",
    "qk",
    "quant",
    "rope",
    "sliding",
    "softcap",
    "sparse",
    "window",
    "yarn",
)
# The same of factors, which change nothing at 1.
_FACTORS = ("multiplier", "rotary", "scal")
# The largest integer that an index of JAX is.
_LARGEST = 2**31 - 1
# Read by `read_rope`.
_ROPE = ("rope_parameters", "rope_scaling")


def read_rope(config: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """The base of the rotary embedding, and the fields that change the embedding.

    Transformers 5 writes `rope_parameters`, before it was `rope_scaling`: a dict with
    the type of the embedding, which must be the default, and from version 5 on with its
    base.

    Args:
      config: contents of a config.json.

    Returns:
      `rope_theta`, None if there is none, and a text for each field that is refused.
    """
    theta = config.get("rope_theta")
    refused = []
    for name in _ROPE:
        value = config.get(name)
        if not value:
            continue
        found = value if isinstance(value, Mapping) else {"rope_type": value}
        if theta is None:
            theta = found.get("rope_theta")
        neutral = {
            "rope_type": "default",
            "type": "default",
            "rope_theta": theta,
            "partial_rotary_factor": 1,
        }
        if any(key not in neutral or x != neutral[key] for key, x in found.items()):
            supported = {"rope_type": "default", "rope_theta": theta}
            refused.append(f"{name}={value!r} (supported: {supported!r})")
    return theta, refused


def first_id(value: Any) -> Any:
    """The first of several token ids, as `eos_token_id` may be; else the value itself.

    All of them end a text, see `text.stops`; a shape has one.

    Args:
      value: of a config.json.
    """
    is_several = isinstance(value, list) and all(type(x) is int for x in value)
    return value[0] if is_several and value else value


def typed(
    values: Mapping[str, Any],
    kinds: Mapping[str, Any],
    names: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The fields of a shape, all of them there and of their types.

    Args:
      values: of the fields; None where there is none.
      kinds: the type of each: float takes integers too, and a union with None may be
        missing.
      names: what a config.json calls fields that have another name here.

    Returns:
      The values; an integer where a float is declared becomes one.

    Raises:
      InputError: naming all fields that are missing, or one of another type, an
        integer of more than 32 bits or a real number that is not positive.
    """
    names = names or {}
    accepted = {field: typing.get_args(x) or (x,) for field, x in kinds.items()}
    missing = [
        names.get(field, field)
        for field, value in values.items()
        if value is None and type(None) not in accepted[field]
    ]
    if missing:
        raise InputError("config.json: missing: " + ", ".join(missing))
    checked = {}
    for field, (kind, *others) in accepted.items():
        value = values[field]
        if type(value) is int and abs(value) > _LARGEST:
            raise InputError(
                f"config.json: {names.get(field, field)} ({value!r:.40}) must be at "
                f"most {_LARGEST}"
            )
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) not in (kind, *others):
            raise InputError(
                f"config.json: {names.get(field, field)} ({value!r}) must be of type "
                f"{kind.__name__}"
            )
        if type(value) is float and not (math.isfinite(value) and value > 0):
            raise InputError(
                f"config.json: {names.get(field, field)} ({value}) must be a positive "
                "number"
            )
        checked[field] = value
    return checked


def unsupported(
    config: Mapping[str, Any],
    *,
    supported: Mapping[str, tuple[Any, ...]],
    own: Collection[str],
    architecture: str,
    defaults: Mapping[str, Any] | None = None,
) -> list[str]:
    """A text for each option of a config.json that a family does not implement.

    Args:
      config: contents of a config.json.
      supported: options and the values of each that are implemented.
      own: names of the family's own fields.
      architecture: the family's. Other classes have other heads, such as those of
        classifiers.
      defaults: what a left-out option means, where it is not the first of its values.
    """
    defaults = defaults or {}
    refused = []
    for name, accepted in supported.items():
        value = config.get(name, defaults.get(name, accepted[0]))
        if value not in accepted:
            absent = "" if name in config else "the default; "
            refused.append(f"{name}={value!r} ({absent}supported: {accepted[0]!r})")
    names = config.get("architectures")
    if names and not any(str(name).endswith(architecture) for name in names):
        refused.append(f"architectures={names!r} (supported: {[architecture]})")
    return refused + changing(config, {*own, *supported})


def changing(config: Mapping[str, Any], own: Collection[str]) -> list[str]:
    """A text for each option that a family does not know and that changes its models.

    Args:
      config: contents of a config.json.
      own: names of options that the family knows, which are not looked at.
    """
    refused = []
    is_sliding = config.get("use_sliding_window") is not False
    for name, value in config.items():
        words = name.lower().split("_")
        # What begins with an underscore is transformers' own bookkeeping.
        is_known = name in own or name in _ROPE or not words[0]
        if is_known or ("window" in words and not is_sliding):
            continue
        if any(word.startswith(_FACTORS) for word in words):
            is_one = type(value) in (int, float) and value == 1
            is_neutral = value is None or value is False or is_one
        elif name == "layer_types":
            kinds = value if isinstance(value, list | tuple) else [value]
            is_neutral = not value or all(x == "full_attention" for x in kinds)
        else:
            is_neutral = not value or not any(w.startswith(_CHANGING) for w in words)
        if not is_neutral:
            # Such values may be long.
            refused.append(f"{name}={reprlib.repr(value)} (supported: left out)")
    return refused
