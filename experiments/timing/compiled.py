"""What the text of a compiled program says: what runs in a step, and how often."""

import dataclasses
import json
import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

_OPCODES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "reduce-scatter",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)
# An instruction: what it gives, an opcode, whether it only begins the work.
_COLLECTIVE = re.compile(rf"= (\S.*?) ({'|'.join(_OPCODES)})(?:-start)?\(")
# The first line of a computation, whose instructions follow it.
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
_WHILE = re.compile(r" while\(.*condition=%?([\w.-]+), body=%?([\w.-]+)")
_CALLS = re.compile(
    r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.-]+)"
    r"|(?:branch_computations|called_computations)=\{([^}]*)\}"
)
# An instruction: its name, the type of what it gives, its opcode.
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)")
# Instructions that do no work of their own.
_IDLE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
}
# Instructions that multiply, or call what may.
_PRODUCTS = ("custom-call", "dot", "convolution")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction in which devices exchange values.

    Attributes:
      opcode: such as "all-reduce".
      types: what it gives, such as "bf16[4,512]"; of one that is begun, what it takes
        is among them.
      groups: of devices that exchange values, by their places in the program; None if
        they are not written out: {} is all devices.
      times: how often it runs while each loop without a known end runs once. That is a
        step, in the loop over steps. Both branches of a condition count.
    """

    opcode: str
    types: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...] | None
    times: int = 1

    @property
    def shapes(self) -> list[list[int]]:
        """The shapes of `types`."""
        dims = (x.partition("[")[2] for x in self.types)
        return [[int(size) for size in re.findall(r"\d+", x)] for x in dims]


def collectives(text: str) -> list[Collective]:
    """The collectives of a program, in the order of its text.

    Args:
      text: of a program for one or all devices, `jax.stages.Compiled.as_text`.
    """
    computations, entry = _computations(text)
    times = _times(computations, entry)
    found = []
    for name, lines in computations.items():
        for line in lines:
            if instruction := _COLLECTIVE.search(line):
                result, opcode = instruction.groups()
                types = tuple(re.findall(r"\w+\[[^\]]*\]", result))
                found.append(
                    Collective(opcode, types, _groups(line), times.get(name, 1))
                )
    return found


def launches(text: str) -> int:
    """How many instructions run in a step, which on a GPU are as many kernels.

    Counted as `Collective.times` is. Of two branches, both are.

    Args:
      text: of a program, `jax.stages.Compiled.as_text`.
    """
    computations, entry = _computations(text)
    times = _times(computations, entry, into_fusions=False)
    # What runs before and after the loop is no part of a step.
    return sum(
        num * sum(x[2] not in _IDLE for x in _instructions(computations[name]))
        for name, num in times.items()
        if name != entry
    )


def moved(text: str, shapes: Collection[tuple[int, ...]]) -> int:
    """Bytes that a step writes of weights without multiplying by them: copies.

    Counted as `Collective.times` is. What is copied before the loop is not counted, nor
    what a step copies of such a copy.

    Args:
      text: of a program, `jax.stages.Compiled.as_text`.
      shapes: of the weights, stacked over layers.
    """
    computations, entry = _computations(text)
    times = _times(computations, entry, into_fusions=False)
    wanted = {",".join(map(str, shape)) for shape in shapes}
    total = 0
    for name, num in times.items():
        if name == entry:
            continue
        weights = set()
        for given, kind, opcode, rest in _instructions(computations[name]):
            operands = re.findall(r"%([\w.-]+)", rest.partition(")")[0])
            reads = not weights.isdisjoint(operands)
            if opcode in _IDLE:
                if kind.partition("[")[2].partition("]")[0] in wanted or (
                    reads and opcode == "bitcast"
                ):
                    weights.add(given)
                continue
            if opcode in _PRODUCTS or not reads:
                continue
            # A fusion's own instructions.
            called = re.search(r"calls=%?([\w.-]+)", rest)
            inside = computations.get(called[1], []) if called else []
            if not any(x[2] in _PRODUCTS for x in _instructions(inside)):
                total += num * _size(kind)
    return total


# Bytes of an element.
_SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4}
_SIZES |= {"u32": 4, "f64": 8, "s64": 8, "u64": 8}


def _size(kind: str) -> int:
    """Bytes of all arrays of a type."""
    return sum(
        _SIZES.get(dtype, 0) * math.prod(int(x) for x in dims.split(",") if x)
        for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", kind)
    )


def _instructions(lines: Sequence[str]) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, opcode and the rest of each instruction."""
    for line in lines:
        if found := _INSTRUCTION.match(line):
            yield found[1], found[2], found[3], found[4]


def _groups(line: str) -> tuple[tuple[int, ...], ...] | None:
    """The replica groups of an instruction."""
    if explicit := re.search(r"replica_groups=(\{\{[\d,{} ]*\}\})", line):
        lists = json.loads(explicit[1].replace("{", "[").replace("}", "]"))
        return tuple(map(tuple, lists))
    # By the axes of a mesh, along some of which devices talk: jaxlib 0.12 on a GPU.
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line)
    if mesh:
        sizes = {x: int(n) for x, n in re.findall(r"'([^']*)'=(\d+)", mesh[1])}
        within = re.findall(r"'([^']*)'", mesh[2])
        order = [x for x in sizes if x not in within] + within
        places = np.arange(math.prod(sizes.values())).reshape(*sizes.values())
        places = places.transpose([list(sizes).index(x) for x in order])
        size = math.prod(sizes[x] for x in within)
        return tuple(map(tuple, places.reshape(-1, size).tolist()))
    iota = re.search(
        r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line
    )
    if iota:
        num_groups, size = int(iota[1]), int(iota[2])
        dims = [int(x) for x in iota[3].split(",")]
        places = np.arange(np.prod(dims)).reshape(dims)
        if iota[4]:
            places = places.transpose([int(x) for x in iota[4].split(",")])
        if num_groups * size == places.size:
            return tuple(map(tuple, places.reshape(num_groups, size).tolist()))
    return None


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Instructions by the name of their computation, and which one is the program."""
    found: dict[str, list[str]] = defaultdict(list)
    name = entry = ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            name = header[2]
            entry = name if header[1] else entry
        else:
            found[name].append(line)
    return found, entry


def _times(
    computations: Mapping[str, list[str]], entry: str, into_fusions: bool = True
) -> dict[str, int]:
    """How often each computation runs, see `Collective.times`.

    Args:
      computations: instructions by computation.
      entry: the program's.
      into_fusions: whether what is fused, and what a reduction applies, counts too.
    """
    times: dict[str, int] = defaultdict(int)

    def visit(name: str, num: int) -> None:
        times[name] += num
        for line in computations.get(name, ()):
            if loop := _WHILE.search(line):
                condition, body = loop.groups()
                trips = _trips(line, computations.get(condition, []))
                visit(body, num * trips)
                continue
            if not into_fusions and not re.search(r" (conditional|call)\(", line):
                continue
            for one, several in _CALLS.findall(line):
                for called in [one] if one else re.findall(r"[\w.-]+", several):
                    visit(called, num)

    visit(entry, 1)
    return times


def _trips(line: str, condition: list[str]) -> int:
    """Turns of a loop that counts up to a constant; 1 for any other."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line):
        return int(known[1])
    # The TPU's compiler leaves the bound in the condition, which holds nothing else.
    bounds = [
        m[1] for x in condition if (m := re.search(r"= s32.* constant\((\d+)", x))
    ]
    is_counted = any("ROOT" in x and "direction=LT" in x for x in condition)
    return int(bounds[0]) if is_counted and len(bounds) == 1 else 1
