"""Chat templates: programs that come with a checkpoint, run within bounds."""

import ctypes
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from dlm_jax.errors import InputError

# A conversation: messages with the texts `role` and `content`.
Messages = Sequence[Mapping[str, str]]
# For one conversation, which takes milliseconds. A template comes with its checkpoint,
# and may loop for ever.
_SECONDS = 5.0


def check(tokenizer: Any, template: str | None = None) -> None:
    """Refuses a template that nothing could stop.

    Args:
      tokenizer: a tokenizer of transformers.
      template: the tokenizer's own ones by default.

    Raises:
      InputError: if it computes a power.
    """
    chosen = tokenizer.chat_template if template is None else template
    texts = chosen.values() if isinstance(chosen, Mapping) else [chosen]
    if any(isinstance(text, str) and _has_power(text) for text in texts):
        raise InputError(
            "the checkpoint's chat template must not have the operator **, whose "
            "result may take for ever"
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
      Exception: whatever the template raises.
    """
    return _in_time(
        functools.partial(
            tokenizer.apply_chat_template,
            [dict(message) for message in messages],
            chat_template=template,
            tokenize=False,
            add_generation_prompt=opens_answer,
            continue_final_message=not opens_answer,
        )
    )


@functools.lru_cache
def _has_power(template: str) -> bool:
    """Whether a template computes a power.

    That is one step for the interpreter, which nothing can stop, and may be of numbers
    of any length.
    """
    import jinja2

    try:
        tokens = list(jinja2.Environment().lex(template))
    except jinja2.TemplateError:
        return False  # Nor can it be rendered.
    return any(kind == "operator" and text == "**" for _, kind, text in tokens)


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
