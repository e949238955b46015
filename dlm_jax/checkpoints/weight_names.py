"""Weights under names that a wrapper changed."""

from collections.abc import Collection, Sequence

# What PyTorch's wrappers write into the names of weights, in any place.
_WRAPPERS = (
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
)
# Of a dotted name, at most.
_NUM_PARTS = 50


def misnamed_weights(
    names: Collection[str], foreign: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
    """Weights under names that a wrapper changed, and a text for each such change.

    Args:
      names: that are looked for.
      foreign: that were found instead.

    Returns:
      The names that they should have, by those that they have; and the problems.
    """
    renamed: dict[str, dict[str, str]] = {}
    by_tail: dict[str, list[str]] = {}
    for name in names:
        for tail in _tails(name):
            by_tail.setdefault(tail, []).append(name)
    for name in foreign:
        parts = name.split(".")
        bare = ".".join(part for part in parts if part not in _WRAPPERS)
        change, own = "", ""
        if longer := [tail for tail in _tails(name) if tail in names]:
            own = longer[0]
            change = f"begin with {name[: -len(own)]!r}"
        elif bare != name and bare in names:
            own = bare
            wrapper = next(part for part in parts if part in _WRAPPERS)
            change = f"have {wrapper + '.'!r} inside"
        elif len(shorter := by_tail.get(name, [])) == 1:
            (own,) = shorter
            change = f"lack {own[: -len(name)]!r} at the beginning"
        if own:
            renamed.setdefault(change, {})[name] = own
    problems = []
    for change, pairs in renamed.items():
        name, own = next(iter(pairs.items()))
        more = f", and {len(pairs) - 1} more" if len(pairs) > 1 else ""
        problems.append(
            f"the names of weights must not {change} ({name} must be {own}{more}): "
            "save the model's own state dict"
            if not change.startswith("lack")
            else f"the names of weights {change} ({name} must be {own}{more})"
        )
    every = {name: own for pairs in renamed.values() for name, own in pairs.items()}
    return every, problems


def _tails(name: str) -> list[str]:
    """What is left of a dotted name without its first parts, the longest first.

    None of a name that no model has: all together are as long as its square.
    """
    parts = name.split(".")
    if len(parts) > _NUM_PARTS:
        return []
    return [".".join(parts[i:]) for i in range(1, len(parts))]
