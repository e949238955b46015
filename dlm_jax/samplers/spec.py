"""The registry of samplers and the parser of their specs.

On the command line and in tables a sampler is its spec: a call that is read with `ast`
and never evaluated, such as `entropy_bound(gamma=0.1)` or
`low_confidence(schedule=linear(steps=64))`.
"""

import ast
import dataclasses
import math
import typing
from collections.abc import Iterable
from typing import Any

from dlm_jax.core.sampler import Sampler, canonical
from dlm_jax.errors import InputError
from dlm_jax.samplers.entropy import Entropy
from dlm_jax.samplers.entropy_bound import EntropyBound
from dlm_jax.samplers.factor import Factor, FactorReleased
from dlm_jax.samplers.left_to_right import LeftToRight
from dlm_jax.samplers.low_confidence import LowConfidence
from dlm_jax.samplers.margin import Margin
from dlm_jax.samplers.random_order import Random
from dlm_jax.samplers.saber import Saber
from dlm_jax.samplers.saber_released import SaberReleased
from dlm_jax.samplers.schedules import Cosine, Dream, Fixed, Linear
from dlm_jax.samplers.threshold import Threshold

SAMPLERS: dict[str, type[Sampler]] = {
    "random": Random,
    "left_to_right": LeftToRight,
    "low_confidence": LowConfidence,
    "margin": Margin,
    "entropy": Entropy,
    "threshold": Threshold,
    "factor": Factor,
    "factor_released": FactorReleased,
    "entropy_bound": EntropyBound,
    "saber": Saber,
    "saber_released": SaberReleased,
}

SCHEDULES: dict[str, type] = {
    "fixed": Fixed,
    "linear": Linear,
    "cosine": Cosine,
    "dream": Dream,
}


def parse(spec: str) -> Sampler:
    """Reads a sampler from its spec.

    Args:
      spec: a name, or a name with fields: `saber(n=2, mu=8)`. Values are literals or,
        for the field `schedule`, a schedule of the same form.

    Raises:
      InputError: for an unknown name or field, with the known ones, or a bad value.
    """
    try:
        node = ast.parse(spec.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError):
        raise InputError(
            f"sampler ({spec!r}) must be a name or a call like saber(n=2)"
        ) from None
    return _build(node, SAMPLERS, "sampler", spec)


def parse_all(specs: Iterable[str]) -> dict[str, Sampler]:
    """Reads several samplers, by their specs.

    Raises:
      InputError: as `parse`, or for a sampler that stands twice, in any spelling.
    """
    rules = {}
    names = set()
    for spec in specs:
        rules[spec] = parse(spec)
        name = to_spec(rules[spec])
        if name in names:
            raise InputError(f"sampler ({name}) must be given once")
        names.add(name)
    return rules


def canonical_spec(spec: str) -> str:
    """The one spelling of a spec, by which results are kept and found.

    Raises:
      InputError: as `parse`.
    """
    return to_spec(parse(spec))


def _build(node: ast.expr, known: dict[str, type], kind: str, spec: str) -> Any:
    """Builds the object that a node of a spec describes."""
    keywords = []
    if isinstance(node, ast.Call):
        if node.args or any(keyword.arg is None for keyword in node.keywords):
            raise InputError(f"sampler ({spec!r}): write fields as name=value")
        node, keywords = node.func, node.keywords
    if not isinstance(node, ast.Name) or node.id not in known:
        raise InputError(
            f"{kind} ({ast.unparse(node)}) must be one of " + ", ".join(known)
        )
    cls = known[node.id]
    fields = {field.name: field for field in dataclasses.fields(cls)}
    values = {}
    for keyword in keywords:
        name = str(keyword.arg)
        if name not in fields:
            raise InputError(
                f"{node.id} has no field {name}; it takes "
                + (", ".join(fields) or "no fields")
            )
        if name in values:
            raise InputError(f"{node.id}: {name} is given twice")
        if dataclasses.is_dataclass(fields[name].default):
            values[name] = _build(keyword.value, SCHEDULES, "schedule", spec)
            continue
        if isinstance(keyword.value, ast.Name) and keyword.value.id == "inf":
            # Python has no literal for infinity; `to_spec` writes it like this.
            values[name] = math.inf
            continue
        try:
            values[name] = ast.literal_eval(keyword.value)
        except (ValueError, TypeError):
            raise InputError(
                f"{node.id}: {name} ({ast.unparse(keyword.value)}) must be a literal"
            ) from None
    built = cls(**values)
    canonical(built, name=node.id)
    return built


def to_spec(sampler: Sampler) -> str:
    """The spec that `parse` reads back; every field is written out."""
    return _write(sampler, _names(), is_short=False)


def short_spec(spec: str) -> str:
    """A spec without the fields at their defaults, for tables.

    Raises:
      InputError: as `parse`.
    """
    return _write(parse(spec), _names(), is_short=True)


def _names() -> dict[type, str]:
    return {cls: name for name, cls in (SAMPLERS | SCHEDULES).items()}


def _write(value: Any, names: dict[type, str], is_short: bool) -> str:
    if not dataclasses.is_dataclass(value):
        return repr(value.item() if hasattr(value, "item") else value)
    hints = typing.get_type_hints(type(value))
    written = []
    for field in dataclasses.fields(value):
        part = getattr(value, field.name)
        if is_short and part == field.default:
            continue
        # 8 and 8.0 are the same sampler where a float is declared.
        hint = hints[field.name]
        is_real = float in (hint, *typing.get_args(hint))
        if is_real and isinstance(part, int):
            part = float(part)
        written.append(f"{field.name}={_write(part, names, is_short)}")
    return names[type(value)] + (f"({', '.join(written)})" if written else "")
