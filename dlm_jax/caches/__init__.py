"""Cache plans, one file each, and their specs: `dual(refresh_every=8)`.

Attributes:
  CACHES: the plans of this package by name; "none" is `CachePlan` itself.
"""

from dlm_jax.caches.approximate import Approximate
from dlm_jax.caches.block import Block
from dlm_jax.caches.dual import Dual
from dlm_jax.caches.prefix import Prefix
from dlm_jax.core.cache import CachePlan, Kind
from dlm_jax.core.spec import Specs

CACHES: dict[str, type[CachePlan]] = {
    "none": CachePlan,
    "prefix": Prefix,
    "dual": Dual,
    "block": Block,
}
_SPECS = Specs(
    kind="cache", base=CachePlan, known=CACHES, example="dual(refresh_every=8)"
)

__all__ = [
    "CACHES",
    "Approximate",
    "Block",
    "Dual",
    "Kind",
    "Prefix",
    "parse",
    "to_spec",
]


def parse(spec: str) -> CachePlan:
    """Reads a cache plan from its spec.

    Args:
      spec: as that of a sampler, see `dlm_jax.parse`.

    Returns:
      The plan.

    Raises:
      InputError: for an unknown name or field, with the known ones, a bad value, or a
        module that does not import.

    >>> parse("dual(refresh_every=8)").refresh_every
    8
    """
    return _SPECS.parse(spec)


def to_spec(plan: CachePlan) -> str:
    """Writes the spec of a cache plan, without fields at their defaults.

    Args:
      plan: of this package or of any module.

    Returns:
      The spec, which `parse` reads back.
    """
    return _SPECS.write(plan, is_short=True)
