"""The settings that lm_eval's `model_args` and `gen_kwargs` hold, read and checked."""

import ast
import dataclasses
import logging
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from dlm_jax import likelihood, samplers
from dlm_jax.core.canvas import ABSENT
from dlm_jax.core.sampler import Sampler
from dlm_jax.errors import NOT_PYTHON, InputError
from dlm_jax.outline import Outline
from dlm_jax.text.prompts import Encoded
from dlm_jax.text.settings import Settings
from dlm_jax.text.stops import cut

# A child of lm_eval's logger, so that its handler and its verbosity hold.
log = logging.getLogger("lm_eval.dlm_jax")

# Tokens that are generated where neither model_args nor the task says how many: what
# lm_eval's other models take.
GEN_LENGTH = 256

_OWN = {
    "checkpoint": str,
    "sampler": str,
    "gen_length": int,
    "dtype": str,
    "devices_per_model": int,
    "truncate": bool,
    "add_special_tokens": bool,
}
# A trajectory would be thrown away.
_GENERATION = {
    name: hint
    for name, hint in typing.get_type_hints(Settings).items()
    if name not in ("trajectory", "staleness")
}
_LIKELIHOOD = typing.get_type_hints(likelihood.Settings)
_HINTS = {**_OWN, **_GENERATION, **_LIKELIHOOD}
# Settings that change a result at most by rounding.
OF_SPEED = (
    "batch_size",
    "queue_length",
    "num_refreshed",
    "logits_bytes",
    "devices_per_model",
)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What `model_args` says.

    Attributes:
      checkpoint: directory of the model.
      rule: the sampler.
      gen_length: tokens to generate for every request; None leaves it to the task.
      temperature: of every request; None leaves it to the task.
      dtype: of the weights; as stored by default.
      devices_per_model: see `load`.
      truncate: cut the front of a context that is too long; if not, it is refused.
      add_special_tokens: whether the tokenizer adds its special tokens to a context;
        by default unless the context begins with one.
      generation: other settings of `Model.generate`.
      likelihood: settings of `Model.log_likelihood`.
      given: all of them as they were given, for the results.
    """

    checkpoint: str
    rule: Sampler
    gen_length: int | None
    temperature: float | None
    dtype: str | None
    devices_per_model: int | None
    truncate: bool
    add_special_tokens: bool | None
    generation: Settings
    likelihood: likelihood.Settings
    given: dict[str, Any]

    def check(self, outline: Outline) -> None:
        """Checks what needs no weights, before they are read.

        Raises:
          InputError: naming the argument that does not fit.
        """
        settings = Settings(**self.generation)
        if self.temperature is not None:
            settings["temperature"] = self.temperature
        # Without a gen_length here, each task brings its own. Whether the sampler and
        # the blocks fit that length is then checked when the task runs.
        length = self.gen_length or 1
        options = outline.options(length, settings)
        if self.gen_length is None:
            options = dataclasses.replace(options, block_length=ABSENT)
        rule = samplers.LowConfidence() if self.gen_length is None else self.rule
        outline.check([_blanks(outline, length)], rule, options, settings)
        likelihood.draw(
            [_blanks(outline, 1)],
            num_samples=self.likelihood.get("num_samples", 128),
            seed=settings.get("seed", 0),
            masks=self.likelihood.get("masks"),
        )


def _blanks(outline: Outline, length: int) -> Encoded:
    """A row of blanks only."""
    return Encoded(
        tokens=np.full(length, outline.codec.mask_id, np.int32),
        is_blank=np.ones(length, bool),
        is_infill=False,
    )


@dataclasses.dataclass(frozen=True)
class Request:
    """What the `gen_kwargs` of a request mean, with those of `model_args`.

    Attributes:
      gen_length: tokens to generate.
      temperature: of the draw.
      until: texts that end the answer.
    """

    gen_length: int
    temperature: float
    until: tuple[str, ...]

    def cut(self, text: str) -> str:
        """A text up to the earliest of `until`."""
        return cut(text, self.until)


def split(text: str) -> dict[str, Any]:
    """Reads `key=value,key=value`; commas in brackets and quotes belong to the value.

    Raises:
      InputError: for a piece that is no such pair, or a key that is given twice.

    >>> split("sampler=saber(n=2, mu=8),gen_length=128")
    {'sampler': 'saber(n=2, mu=8)', 'gen_length': 128}
    """
    pieces = [""]
    for piece in text.split(","):
        if pieces[-1] and _is_open(pieces[-1]):
            pieces[-1] += f",{piece}"
        else:
            pieces.append(piece)
    found: dict[str, Any] = {}
    for piece in filter(str.strip, pieces):
        name, equals, value = piece.partition("=")
        if not equals:
            raise InputError(f"model_args ({piece.strip()!r}) must be NAME=VALUE")
        if name.strip() in found:
            raise InputError(f"model_args: {name.strip()} is given twice")
        found[name.strip()] = _literal(value)
    return found


def join(pieces: Mapping[str, Any]) -> dict[str, Any]:
    """Puts values together that were cut at commas inside of brackets.

    lm_eval's command line splits at the right commas, but where a YAML configuration
    has model_args as one text, `sampler=saber(n=2, mu=8)` arrives in two pieces.

    Raises:
      InputError: for a bracket that stays open.

    >>> join({"sampler": "saber(n=2", " mu": "8)", "seed": 1})
    {'sampler': 'saber(n=2, mu=8)', 'seed': 1}
    """
    found: dict[str, Any] = {}
    last = ""
    for name, value in pieces.items():
        if isinstance(found.get(last), str) and _is_open(found[last]):
            found[last] += f",{name}" + (f"={value}" if value != "" else "")
            if not _is_open(found[last]):
                found[last] = _literal(found[last])
        else:
            last = name
            found[name] = value
    for name, value in found.items():
        if isinstance(value, str) and _is_open(value):
            raise InputError(
                f"model_args: {name} ({value}) has an open bracket or quote; in a YAML "
                "configuration write model_args as a mapping"
            )
    return found


def merge(given: Mapping[str, Any], own: Mapping[str, Any] | None) -> dict[str, Any]:
    """Adds lm_eval's own flags to model_args, which win.

    Args:
      given: model_args.
      own: `batch_size`, `max_batch_size` and `device` of the command line.
    """
    own = dict(own or {})
    found = dict(given)
    # JAX chooses the devices; lm_eval's default is cuda:0, so it cannot be refused.
    devices = {own.pop("device", None), found.pop("device", None)}
    for device in sorted(map(str, devices - {None, "cuda:0"})):
        log.warning("device (%s) is ignored: JAX_PLATFORMS chooses", device)
    # Says whether data sets may run code; code of a checkpoint is never run.
    found.pop("trust_remote_code", None)
    own.pop("max_batch_size", None)
    found.pop("max_batch_size", None)
    found.setdefault("batch_size", own.pop("batch_size", None))
    size = found["batch_size"]
    if isinstance(size, str):
        found["batch_size"] = None if size.startswith("auto") else _literal(size)
    return {**found, **own}


def read(model_args: Mapping[str, Any]) -> Arguments:
    """Reads model_args.

    Args:
      model_args: by name; None is as not given.

    Raises:
      InputError: for an unknown name, with the known ones, or a value of a wrong kind.
    """
    given = {name: value for name, value in model_args.items() if value is not None}
    if "pretrained" in given:
        # lm_eval names folders of results after it.
        if "checkpoint" in given:
            raise InputError("model_args: checkpoint and pretrained are the same")
        given["checkpoint"] = given.pop("pretrained")
    if "chat" in given:
        raise InputError("model_args: chat is lm_eval's flag --apply_chat_template")
    if unknown := given.keys() - _HINTS.keys():
        raise InputError(
            f"model_args: {', '.join(sorted(unknown))} must be among "
            + ", ".join(_HINTS)
        )
    if "checkpoint" not in given:
        raise InputError("model_args: checkpoint must be given: checkpoint=DIRECTORY")
    values = {name: _typed(name, value, _HINTS[name]) for name, value in given.items()}
    generation = {name: values[name] for name in _GENERATION if name in values}
    own = {name: values[name] for name in _LIKELIHOOD if name in values}
    return Arguments(
        checkpoint=values["checkpoint"],
        rule=samplers.parse(values.get("sampler", "low_confidence")),
        gen_length=values.get("gen_length"),
        temperature=generation.pop("temperature", None),
        dtype=values.get("dtype"),
        devices_per_model=values.get("devices_per_model"),
        truncate=values.get("truncate", False),
        add_special_tokens=values.get("add_special_tokens"),
        generation=cast(Settings, generation),
        likelihood=cast(likelihood.Settings, {"greedy": True, **own}),
        given={"sampler": "low_confidence", **values},
    )


# Names for the number of tokens, the first that is given counts.
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
# Has no meaning where the most probable token is taken.
_OF_DRAWS = ("top_p", "top_k", "min_p", "typical_p")
# What these say if they say nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "top_p": (1,),
    "top_k": (0,),
    "min_p": (0,),
    "typical_p": (1,),
    "num_beams": (1,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
}


def read_request(gen_kwargs: Mapping[str, Any], arguments: Arguments) -> Request:
    """Reads the gen_kwargs of a request.

    Args:
      gen_kwargs: of the task, and of lm_eval's `--gen_kwargs`.
      arguments: a length and a temperature in them win.

    Raises:
      InputError: for what cannot be followed.
    """
    kwargs = {name: value for name, value in gen_kwargs.items() if value is not None}
    until = kwargs.pop("until", ())
    until = (until,) if isinstance(until, str) else tuple(map(str, until))

    lengths = [kwargs.pop(name) for name in _LENGTHS if name in kwargs]
    asked = _typed("max_gen_toks", lengths[0], int) if lengths else None
    length = arguments.gen_length or asked or GEN_LENGTH
    if asked is not None and asked != length:
        _warn_once(f"gen_length={length} of model_args replaces max_gen_toks={asked}")

    is_drawn = kwargs.pop("do_sample", None)
    temperature = kwargs.pop("temperature", 1.0 if is_drawn else 0.0)
    temperature = _typed("temperature", temperature, float)
    if is_drawn is False:
        temperature = 0.0
    if arguments.temperature is not None and arguments.temperature != temperature:
        _warn_once(
            f"temperature={arguments.temperature} of model_args replaces the task's "
            f"{temperature}"
        )
        temperature = arguments.temperature

    for name, value in kwargs.items():
        if value in _NEUTRAL.get(name, ()) or (name in _OF_DRAWS and not temperature):
            continue
        advice = ""
        if name in _NEUTRAL:
            advice = f"; --gen_kwargs {name}={_NEUTRAL[name][0]} turns it off"
        raise InputError(
            f"gen_kwargs: {name} ({value!r}) must be among until, do_sample, "
            f"temperature, {', '.join(_LENGTHS)}{advice}"
        )
    return Request(length, temperature, tuple(filter(None, until)))


_WARNED: set[str] = set()


def _warn_once(message: str) -> None:
    if message not in _WARNED:
        _WARNED.add(message)
        log.warning("%s", message)


def _is_open(text: str) -> bool:
    """Whether a bracket or quote is still open at the end of a text."""
    depth, quote = 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        else:
            depth += (character in "([{") - (character in ")]}")
    return depth > 0 or bool(quote)


def _literal(text: str) -> Any:
    """A value as lm_eval's command line reads it: a literal if it is one."""
    text = text.strip()
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except NOT_PYTHON:
        return text


def _typed(name: str, value: Any, hint: Any) -> Any:
    """A value of the kind that a setting's annotation names.

    Raises:
      InputError: if it is of another.
    """
    is_union = isinstance(hint, types.UnionType)
    kinds = typing.get_args(hint) if is_union else (hint,)
    if Any in kinds:
        return value
    if Sequence[int] in kinds:
        ids = [value] if isinstance(value, int) else value
        if isinstance(ids, (list, tuple)) and all(type(x) is int for x in ids):
            return tuple(ids)
        raise InputError(f"{name} ({value!r}) must be token ids: {name}=[1,2]")
    if bool in kinds:
        if isinstance(value, bool):
            return value
        raise InputError(f"{name} ({value!r}) must be true or false")
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if int in kinds:
        if is_number and float(value).is_integer():
            return int(value)
        raise InputError(f"{name} ({value!r}) must be an integer")
    if float in kinds:
        if is_number:
            return float(value)
        raise InputError(f"{name} ({value!r}) must be a number")
    return str(value)  # lm_eval reads a directory named 8 as a number.
