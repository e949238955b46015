"""The samplers and schedules of this package by name, and their specs."""

import importlib
import pathlib
import pkgutil
import re
from collections.abc import Iterable

from dlm_jax.core.sampler import Sampler
from dlm_jax.core.spec import Specs
from dlm_jax.errors import InputError
from dlm_jax.samplers.ordered import Ordered
from dlm_jax.samplers.schedules import Cosine, Dream, Fixed, Linear, Quota


def _snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


# Where samplers are: a file in this folder is all that a new one needs.
FOLDERS = [str(pathlib.Path(__file__).parent)]


def find_samplers() -> dict[str, type[Sampler]]:
    """The samplers of this package by name: every class in a file of it."""
    package = __name__.rpartition(".")[0]
    found = {}
    for info in pkgutil.iter_modules(FOLDERS):
        name = f"{package}.{info.name}"
        if name == __name__:
            continue
        for cls in vars(importlib.import_module(name)).values():
            is_own = isinstance(cls, type) and cls.__module__ == name
            if is_own and issubclass(cls, Sampler) and cls is not Ordered:
                found[_snake_case(cls.__name__)] = cls
    return found


SAMPLERS: dict[str, type[Sampler]] = find_samplers()

SCHEDULES: dict[str, type] = {
    "fixed": Fixed,
    "quota": Quota,
    "linear": Linear,
    "cosine": Cosine,
    "dream": Dream,
}


_SPECS = Specs(
    kind="sampler",
    base=Sampler,
    known=SAMPLERS,
    example="saber(n=2)",
    parts=SCHEDULES,
    part_kind="schedule",
)


def parse(spec: str) -> Sampler:
    """Reads a sampler from its spec.

    Args:
      spec: a name, or a name with fields: `saber(n=2, mu=8)`. Values are literals or,
        for the field `schedule`, a schedule of the same form. A rule of another module
        is `MODULE:CLASS` with its fields; the module is imported.

    Returns:
      The sampler; fields that the spec leaves out are at their defaults.

    Raises:
      InputError: for an unknown name or field, with the known ones, a bad value, or a
        module that does not import.

    >>> parse("saber(n=4)").n
    4
    """
    return _SPECS.parse(spec)


def parse_all(specs: Iterable[str]) -> dict[str, Sampler]:
    """Reads several samplers, by their specs.

    Raises:
      InputError: as `parse`, or for a sampler that is given twice, in any spelling.
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


def to_spec(sampler: Sampler) -> str:
    """Writes the spec of a sampler, with every field.

    Args:
      sampler: of this package or of any module.

    Returns:
      The spec, which `parse` reads back.

    >>> to_spec(parse("saber(n=4)"))
    'saber(n=4, mu=8.0, threshold=None, acceleration=True, backtracking=True)'
    """
    return _SPECS.write(sampler)


def short_spec(spec: str) -> str:
    """A spec without the fields at their defaults, for tables.

    Raises:
      InputError: as `parse`.
    """
    return _SPECS.write(parse(spec), is_short=True)
