"""Operations of the grammar on strings, and from numbers to strings."""

from dlm_jax.tasks.program.arithmetic import FACTORS, LETTERS, Kind


def _reverse_text(text: str) -> str:
    return "".join(text[len(text) - 1 - i] for i in range(len(text)))


def _words(text: str) -> list[str]:
    """The words of a text, whose only white space is the space."""
    return [word for word in text.split(" ") if word]


KINDS: dict[str, Kind] = {
    "upper": Kind(
        "str", "str", ("make it upper case",), ("{v}.upper()",), lambda v: v.upper()
    ),
    "lower": Kind(
        "str", "str", ("make it lower case",), ("{v}.lower()",), lambda v: v.lower()
    ),
    "swap_case": Kind(
        "str",
        "str",
        ("swap upper and lower case",),
        ("{v}.swapcase()",),
        lambda v: "".join(c.lower() if c.isupper() else c.upper() for c in v),
    ),
    "reverse_text": Kind(
        "str",
        "str",
        ("reverse it", "turn it around"),
        ("{v}[::-1]",),
        _reverse_text,
    ),
    "sort_characters": Kind(
        "str",
        "str",
        ("sort its characters",),
        ('"".join(sorted({v}))',),
        lambda v: "".join(sorted(v)),
    ),
    "reverse_words": Kind(
        "str",
        "str",
        ("reverse the order of its words",),
        ('" ".join({v}.split()[::-1])',),
        lambda v: " ".join(_words(v)[k] for k in range(len(_words(v)) - 1, -1, -1)),
    ),
    "first_characters": Kind(
        "str",
        "str",
        ("keep the first {0} characters",),
        ("{v}[:{0}]",),
        lambda v, k: "".join(c for i, c in enumerate(v) if i < k),
        (FACTORS,),
    ),
    "skip_characters": Kind(
        "str",
        "str",
        ("drop the first {0} characters",),
        ("{v}[{0}:]",),
        lambda v, k: "".join(c for i, c in enumerate(v) if i >= k),
        (FACTORS,),
    ),
    "last_characters": Kind(
        "str",
        "str",
        ("keep the last {0} characters",),
        ("{v}[-{0}:]",),
        lambda v, k: "".join(c for i, c in enumerate(v) if i >= len(v) - k),
        (FACTORS,),
    ),
    "chop_characters": Kind(
        "str",
        "str",
        ("drop the last {0} characters",),
        ("{v}[:-{0}]",),
        lambda v, k: "".join(c for i, c in enumerate(v) if i < len(v) - k),
        (FACTORS,),
    ),
    "remove_letter": Kind(
        "str",
        "str",
        ('remove every "{0}"',),
        ('{v}.replace("{0}", "")', '"".join({x} for {x} in {v} if {x} != "{0}")'),
        lambda v, k: "".join(c for c in v if c != k),
        (LETTERS,),
    ),
    "remove_spaces": Kind(
        "str",
        "str",
        ("remove the spaces",),
        ('{v}.replace(" ", "")',),
        lambda v: "".join(c for c in v if c != " "),
    ),
    "replace_letter": Kind(
        "str",
        "str",
        ('replace "{0}" by "{1}"', 'change every "{0}" to "{1}"'),
        ('{v}.replace("{0}", "{1}")',),
        lambda v, k, m: "".join(m if c == k else c for c in v),
        (LETTERS, LETTERS),
    ),
    "append_letter": Kind(
        "str",
        "str",
        ('append "{0}"', 'put "{0}" at the end'),
        ('{v} + "{0}"',),
        lambda v, k: f"{v}{k}",
        (LETTERS,),
    ),
    "prepend_letter": Kind(
        "str",
        "str",
        ('put "{0}" at the front',),
        ('"{0}" + {v}',),
        lambda v, k: f"{k}{v}",
        (LETTERS,),
    ),
    "repeat": Kind(
        "str",
        "str",
        ("repeat it {0} times",),
        ("{v} * {0}",),
        lambda v, k: "".join(v for _ in range(k)),
        ((2, 3),),
    ),
    "text_length": Kind(
        "str",
        "int",
        ("count its characters", "take its length"),
        ("len({v})",),
        lambda v: len(v),
    ),
    "count_letter": Kind(
        "str",
        "int",
        ('count how often "{0}" occurs',),
        ('{v}.count("{0}")',),
        lambda v, k: len([c for c in v if c == k]),
        (LETTERS,),
    ),
    "count_words": Kind(
        "str",
        "int",
        ("count its words",),
        ("len({v}.split())",),
        lambda v: len(_words(v)),
    ),
    "count_vowels": Kind(
        "str",
        "int",
        ("count its vowels",),
        ('sum({x} in "aeiou" for {x} in {v})',),
        lambda v: sum(1 for c in v if c in ("a", "e", "i", "o", "u")),
    ),
    "word_lengths": Kind(
        "str",
        "list",
        ("list the lengths of its words",),
        ("[len({x}) for {x} in {v}.split()]",),
        lambda v: [len(word) for word in _words(v)],
    ),
    "to_text": Kind(
        "int", "str", ("turn it into a string",), ("str({v})",), lambda v: f"{v:d}"
    ),
}
