"""Programs of the grammar described in words and written in Python.

One program has many wordings, in an order that need not be that of execution, and many
equally correct texts: what varies from text to text (names, loops or comprehensions) is
in a `Style`, which holds for the whole text.
"""

import dataclasses
import random
from collections.abc import Sequence

from dlm_jax.tasks.program.grammar import (
    KINDS,
    TESTS,
    TYPES,
    Choice,
    Kind,
    Op,
    Step,
    Steps,
    source_of,
)

FUNCTIONS = (
    "solve",
    "run",
    "apply",
    "build",
    "compute",
    "convert",
    "handle",
    "reduce",
    "transform",
    "f",
    "g",
    "h",
)
ARGUMENTS = {
    "list": ("xs", "values", "data"),
    "str": ("s", "text", "word"),
    "int": ("n", "number", "m"),
}
_LOCALS = {
    "list": ("out", "result", "ys"),
    "str": ("out", "result", "t"),
    "int": ("total", "count", "result"),
}
_ELEMENTS = ("x", "e", "c")
_HEADERS = (
    "given {type} {argument}, write {function}: ",
    "write {function} of {type} {argument}: ",
    "define {function} for {type} {argument}: ",
)


@dataclasses.dataclass(frozen=True)
class Style:
    """One way to write a program; every choice holds from the first line to the last.

    Attributes:
      local_names: by type, the variable that holds values of that type. If the argument
        has its own name here, it is assigned to.
      element: name of an element in loops and comprehensions.
      variant: which of several expressions of the same meaning.
      is_loop: elements are treated in loops with statements where possible, rather than
        in comprehensions.
      is_fused: keeping and changing elements is one loop or comprehension.
      is_direct: the last value is returned without being given a name.
    """

    local_names: tuple[tuple[str, str], ...]
    element: str
    variant: int
    is_loop: bool
    is_fused: bool
    is_direct: bool


def describe(rng: random.Random, program: Steps, function: str, argument: str) -> str:
    """Describes a program in random words; one line.

    Args:
      rng: chooses the words and the order in which steps are described.
      program: what is asked for.
      function: its name.
      argument: the name of its argument.
    """
    header = rng.choice(_HEADERS).format(
        type=TYPES[source_of(program)], function=function, argument=argument
    )
    told = _arranged(rng, _sentences(rng, program))
    return f"{header}{'. '.join(told)}.\n"


def _phrase(rng: random.Random, op: Op) -> str:
    return rng.choice(KINDS[op.kind].phrases).format(*op.constants)


def _sentences(rng: random.Random, program: Steps) -> list[str]:
    """One or two steps each, in the order of execution."""
    sentences = []
    steps = list(program)
    while steps:
        step = steps.pop(0)
        if isinstance(step, Choice):
            test = rng.choice(TESTS[step.test].phrases).format(*step.constants)
            then, otherwise = _phrase(rng, step.then), _phrase(rng, step.otherwise)
            sentences.append(f"if {test}, {then}, otherwise {otherwise}")
            continue
        told = _phrase(rng, step)
        if steps and isinstance(after := steps[0], Op) and rng.random() < 0.5:
            following = _phrase(rng, after)
            del steps[0]
            told = rng.choice(
                (
                    "{0}, then {1}",
                    "{0} and then {1}",
                    "before you {1}, {0}",
                    "{1}, but first {0}",
                )
            ).format(told, following)
        sentences.append(told)
    return sentences


def _arranged(rng: random.Random, sentences: list[str]) -> list[str]:
    """Sentences with what ties them, told in an order that they make plain."""
    num = len(sentences)
    order = rng.random()
    if num >= 2 and order < 0.2:
        # The last two change places.
        *head, second_last, last = sentences
        return [*_in_order(rng, [*head, last]), f"right before that, {second_last}"]
    if num >= 2 and order < 0.35:
        first, *rest = sentences
        return [*_in_order(rng, rest), f"at the very start, {first}"]
    if num >= 3 and order < 0.5:
        first, second, *rest = sentences
        # After the exchange, 'then' would be open to doubt.
        if len(rest) == 1:
            return [second, f"right before that, {first}", f"at the end, {rest[0]}"]
    return _in_order(rng, sentences)


def _in_order(rng: random.Random, sentences: Sequence[str]) -> list[str]:
    ties = ("then", "next", "after that")
    return [
        sentence if index == 0 else f"{rng.choice(ties)}, {sentence}"
        for index, sentence in enumerate(sentences)
    ]


def draw_style(rng: random.Random, program: Steps, argument: str) -> Style:
    """A random way to write a program."""
    names = {value_type: rng.choice(names) for value_type, names in _LOCALS.items()}
    if rng.random() < 0.4:
        names[source_of(program)] = argument
    return Style(
        local_names=tuple(names.items()),
        element=rng.choice([name for name in _ELEMENTS if name != argument]),
        variant=rng.randrange(2),
        is_loop=rng.random() < 0.35,
        is_fused=rng.random() < 0.5,
        is_direct=rng.random() < 0.7,
    )


def write(program: Steps, function: str, argument: str, style: Style) -> str:
    """The Python text of a program.

    Args:
      program: what to write.
      function: its name.
      argument: the name of its argument.
      style: how.

    Returns:
      A function definition that ends in a newline.
    """
    names = dict(style.local_names)
    lines = [f"def {function}({argument}):"]
    value = argument
    groups = _groups(program, style)
    for index, group in enumerate(groups):
        is_last = index == len(groups) - 1
        name = names[_target(group[-1])]
        is_named = not (is_last and style.is_direct)
        if isinstance(group[0], Choice):
            lines += _choice(group[0], value, name if is_named else "", style)
        elif style.is_loop and name != value and _is_loopable(group):
            lines += _loop(group, value, name, style)
            is_named = True
        else:
            start = f"{name} =" if is_named else "return"
            lines.append(f"    {start} {_expression(group, value, style)}")
        if is_last and is_named:
            lines.append(f"    return {name}")
        value = name
    return "\n".join(lines) + "\n"


def _groups(program: Steps, style: Style) -> list[tuple[Step, ...]]:
    """Steps that are written as one: keeping elements, then changing those kept."""
    groups: list[tuple[Step, ...]] = []
    for step in program:
        if (
            style.is_fused
            and groups
            and _form(step) == "map"
            and [_form(before) for before in groups[-1]] == ["filter"]
        ):
            groups[-1] += (step,)
        else:
            groups.append((step,))
    return groups


def _form(step: Step) -> str:
    return "choice" if isinstance(step, Choice) else KINDS[step.kind].form


def _target(step: Step) -> str:
    return KINDS[step.then.kind if isinstance(step, Choice) else step.kind].target


def _is_loopable(group: Sequence[Step]) -> bool:
    return _form(group[-1]) in ("map", "filter", "count") or group[-1] == Op("sum")


def _code(kind: Kind, constants: Sequence, value: str, style: Style) -> str:
    code = kind.codes[style.variant % len(kind.codes)]
    return code.format(*constants, v=value, x=style.element)


def _expression(group: Sequence[Step], value: str, style: Style) -> str:
    """One expression for a group without choices."""
    x, new, condition = _parts(group, value, style)
    form = _form(group[-1])
    if form == "whole":
        return new
    if form == "count":
        if style.variant:
            return f"len([{x} for {x} in {value} if {condition}])"
        return f"sum({condition} for {x} in {value})"
    return f"[{new} for {x} in {value}{f' if {condition}' if condition else ''}]"


def _parts(group: Sequence[Step], value: str, style: Style) -> tuple[str, str, str]:
    """Name of an element, what becomes of it, and the condition for keeping it."""
    new, condition = style.element, ""
    for step in group:
        assert isinstance(step, Op)
        kind = KINDS[step.kind]
        code = _code(kind, step.constants, value, style)
        if kind.form in ("filter", "count"):
            condition = code
        else:
            new = code
    return style.element, new, condition


def _loop(group: Sequence[Step], value: str, name: str, style: Style) -> list[str]:
    """A group written as a loop."""
    x, new, condition = _parts(group, value, style)
    start, change = {
        "whole": ("0", f"{name} += {x}"),  # the sum is the only one
        "count": ("0", f"{name} += 1"),
    }.get(_form(group[-1]), ("[]", f"{name}.append({new})"))
    lines = [f"    {name} = {start}", f"    for {x} in {value}:"]
    if condition:
        lines.append(f"        if {condition}:")
    return [*lines, f"{' ' * (12 if condition else 8)}{change}"]


def _choice(choice: Choice, value: str, name: str, style: Style) -> list[str]:
    """Both sides of a choice: assigned to a name, or returned if it is empty."""
    test = _code(TESTS[choice.test], choice.constants, value, style)
    then, otherwise = (
        _expression((op,), value, style) for op in (choice.then, choice.otherwise)
    )
    if not name:
        return [f"    if {test}:", f"        return {then}", f"    return {otherwise}"]
    return [
        f"    if {test}:",
        f"        {name} = {then}",
        "    else:",
        f"        {name} = {otherwise}",
    ]
