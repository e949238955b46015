"""The families of models, found by config.json, by a config or by a module.

A new family is a file in `dlm_jax.models` that defines a `Family`, and its line in
FAMILIES.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PyTree

from dlm_jax.core.keys import check_seed
from dlm_jax.errors import InputError
from dlm_jax.models import llada, sdar
from dlm_jax.models.family import Family, ModelConfig, Module

# Of two families with one model_type, the first is meant where a config.json has no
# `architectures`.
FAMILIES: tuple[Family, ...] = (llada.FAMILY, sdar.FAMILY)


def find(config: Mapping[str, Any]) -> Family:
    """The family that a config.json is of.

    Args:
      config: its contents; `architectures` decides, or `model_type` if there is none.

    Raises:
      InputError: for an unknown architecture or model type, with the known ones.
    """
    names, model_type = config.get("architectures"), config.get("model_type")
    candidates = FAMILIES
    if names:
        # The names of a class that wraps another one end in that other's name.
        own = [str(x) for x in names] if isinstance(names, list | tuple) else []
        candidates = tuple(
            family
            for family in FAMILIES
            if any(name.endswith(family.architecture) for name in own)
        )
        if not candidates:
            known = [family.architecture for family in FAMILIES]
            raise InputError(
                f"config.json: not supported: architectures={names!r} (supported: "
                f"{known})"
            )
    for family in candidates:
        if family.model_type == model_type:
            return family
    known = list(dict.fromkeys(family.model_type for family in candidates))
    raise InputError(f"config.json: model_type ({model_type!r}) must be one of {known}")


def of(model: Module | ModelConfig) -> Family:
    """The family of a module or of a config.

    Raises:
      InputError: if no family has its class.
    """
    for family in FAMILIES:
        if isinstance(model, (family.module, family.config)):
            return family
    known = ", ".join(family.architecture for family in FAMILIES)
    raise InputError(f"model ({type(model).__name__}) must be one of {known}")


def partition(config: ModelConfig, num_parts: int, axis: str) -> PyTree:
    """How a model's parameters are split over a mesh axis, see `Family.partition`.

    Raises:
      InputError: naming what num_parts does not divide.
    """
    return of(config).partition(config, num_parts, axis)


def init(
    config: ModelConfig, seed: int = 0, dtype: jax.typing.DTypeLike | None = None
) -> Module:
    """A model with random weights.

    Args:
      config: its shape.
      seed: of the weights.
      dtype: of the weights, float32 by default.

    Raises:
      InputError: for a seed out of range.
    """
    check_seed(seed)
    return of(config).module(config, rngs=nnx.Rngs(seed), dtype=dtype or jnp.float32)


def small(**shape: Any) -> ModelConfig:
    """The shape of a model to be trained from nothing, see `Family.small`."""
    for family in FAMILIES:
        if family.small is not None:
            return family.small(**shape)
    raise InputError("no family has small models")


def deepen(model: Module) -> Module:
    """A model of twice the depth that computes the same, to be trained on.

    Raises:
      InputError: if the family does not know how.
    """
    family = of(model)
    if family.deepen is None:
        raise InputError(f"models of {family.architecture} cannot be deepened")
    return family.deepen(model)


def preset_names() -> list[str]:
    """The names of all families' presets, sorted."""
    return sorted(name for family in FAMILIES for name in family.presets)


def preset(name: str) -> ModelConfig:
    """The shape of a name.

    Raises:
      InputError: for an unknown name, with the known ones.
    """
    for family in FAMILIES:
        if name in family.presets:
            return family.presets[name]()
    raise InputError(f"preset ({name}) must be one of {', '.join(preset_names())}")


def random_preset(
    name: str, dtype: jax.typing.DTypeLike | None = None, seed: int = 0
) -> Module:
    """Random weights of a preset, for where only time or memory is to be measured.

    Args:
      name: of a preset.
      dtype: of the weights, float32 by default.
      seed: of the weights.

    Raises:
      InputError: for an unknown name or a seed out of range.
    """
    return init(preset(name), seed, dtype)
