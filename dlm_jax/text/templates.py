"""Chat templates: programs that come with a checkpoint, run within bounds."""

import ctypes
import functools
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from dlm_jax.errors import InputError

# A conversation: messages with the texts `role` and `content`.
Messages = Sequence[Mapping[str, str]]
# For one conversation, which takes milliseconds. A template comes with its checkpoint,
# and may loop for ever.
_SECONDS = 5.0
# Of a rendered conversation: more than any context holds, and a tokenizer aborts the
# process at some 2**31.
_CHARACTERS = 2**24
# From here on a number repeats, pads or counts to more than memory holds.
_LARGE = 10**7
# A width or precision of such a size, in a format of either kind.
_WIDTH = re.compile(r"%[^a-zA-Z%]*\d{8}|\{[^{}]*:[^{}]*\d{8}")


def check(tokenizer: Any, template: str | None = None) -> None:
    """Refuses a template that nothing could stop.

    Args:
      tokenizer: a tokenizer of transformers.
      template: the tokenizer's own ones by default.

    Raises:
      InputError: if it computes a power, or holds a number of 8 digits.
    """
    chosen = tokenizer.chat_template if template is None else template
    texts = chosen.values() if isinstance(chosen, Mapping) else [chosen]
    if any(isinstance(text, str) and _has_power(text) for text in texts):
        raise InputError(
            "the checkpoint's chat template must not have the operator **, whose "
            "result may take for ever"
        )
    if any(isinstance(text, str) and _has_large_number(text) for text in texts):
        raise InputError(
            "the checkpoint's chat template must not have a number or a format width "
            f"of {_LARGE} or more, whose text may take all memory"
        )


def write(
    tokenizer: Any,
    messages: Messages,
    template: str | None = None,
    opens_answer: bool = True,
) -> str:
    """Writes a conversation in a chat template that `check` let through.

    Args:
      tokenizer: a tokenizer of transformers.
      messages: the conversation.
      template: the tokenizer's own by default.
      opens_answer: end where the assistant's answer begins; if not, the last message is
        the beginning of that answer.

    Raises:
      TimeoutError: if it takes more than 5 seconds; it is then stopped.
      InputError: if it writes more than 2^24 characters.
      Exception: whatever the template raises.
    """
    text = _in_time(
        functools.partial(
            tokenizer.apply_chat_template,
            [dict(message) for message in messages],
            chat_template=template,
            tokenize=False,
            add_generation_prompt=opens_answer,
            continue_final_message=not opens_answer,
        )
    )
    if len(text) > _CHARACTERS:
        raise InputError(f"it writes {len(text)} characters, more than {_CHARACTERS}")
    return text


@functools.lru_cache
def _has_power(template: str) -> bool:
    """Whether a template computes a power.

    That is one step for the interpreter, which nothing can stop, and may be of numbers
    of any length.
    """
    return any(kind == "operator" and text == "**" for kind, text in _lexed(template))


@functools.lru_cache
def _has_large_number(template: str) -> bool:
    """Whether a template has a number that makes a text of more than memory holds.

    Repeating a text is one step for the interpreter, too.
    """
    for kind, text in _lexed(template):
        digits = text.replace("_", "")
        # Python refuses to read an integer of thousands of digits.
        if kind == "integer" and (len(digits) > 40 or int(digits, 0) >= _LARGE):
            return True
        if kind == "float" and float(digits) >= _LARGE:
            return True
        if kind == "string" and _WIDTH.search(text):
            return True
    return False


def _lexed(template: str) -> list[tuple[str, str]]:
    """The kinds and texts of a template's tokens; none if it cannot be rendered."""
    import jinja2

    try:
        return [(kind, text) for _, kind, text in jinja2.Environment().lex(template)]
    except jinja2.TemplateError:
        return []


def _in_time(render: Callable[[], Any]) -> Any:
    """What a function returns, or raises, within the time for a template.

    Raises:
      TimeoutError: if it takes longer; it is then stopped.
    """
    done: dict[str, Any] = {}

    def work() -> None:
        try:
            done["value"] = render()
        except Exception as error:
            done["error"] = error
        except SystemExit:  # What stops it below.
            pass

    # Only another thread can be stopped wherever this one is, and without a signal.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(_SECONDS)
    if thread.is_alive():
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(cast(int, thread.ident)), ctypes.py_object(SystemExit)
        )
        raise TimeoutError(f"it takes more than {_SECONDS} seconds")
    if "error" in done:
        raise done["error"]
    return done["value"]
