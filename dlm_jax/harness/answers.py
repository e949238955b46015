"""Answers that lm_eval keeps (`--use_cache`), and what random ones depend on."""

import collections
import hashlib
import json
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance

from dlm_jax.errors import InputError
from dlm_jax.harness.arguments import Request

# The entry that says whose answers a file holds.
_OWNER = "dlm_jax settings"


def claim(kept: MutableMapping[str, Any], own: dict[str, Any]) -> None:
    """Makes a file of answers one of these settings, or checks that it is.

    lm_eval's keys know nothing of the model, so another one's answers would be taken.

    Args:
      kept: the file's entries.
      own: settings, ready for JSON.

    Raises:
      InputError: if it holds answers of other settings.
    """
    found = kept.get(_OWNER, None if len(kept) else own)
    if found is None:
        raise InputError("use_cache must be a new file: this is another tool's")
    if found != own:
        names = own.keys() | found.keys()
        other = sorted(name for name in names if own.get(name) != found.get(name))
        raise InputError(
            "use_cache must be a file of these settings; in this one differ: "
            + ", ".join(other)
        )
    kept[_OWNER] = own


def check(asked: Sequence[Mapping[str, Any]], wanted: Sequence[Request]) -> None:
    """Raises InputError where a cache would repeat the first of several draws."""
    for gen_kwargs, want in zip(asked, wanted, strict=True):
        if want.temperature and not gen_kwargs.get("do_sample"):
            raise InputError(
                f"use_cache keeps one answer per prompt: temperature "
                f"({want.temperature}) must come with --gen_kwargs do_sample=true, of "
                "which lm_eval keeps nothing"
            )


def draw_ids(requests: Sequence[Instance]) -> list[int]:
    """What the random draws of requests depend on, beside the seed.

    Task, document and context, and which repetition it is: neither the order of the
    requests nor which others are asked (`--limit`, answers in a cache, more tasks).
    """
    seen = collections.Counter[str]()
    ids = []
    for request in requests:
        own = json.dumps(
            [request.task_name, request.doc_id, request.idx, request.args[0]]
        )
        digest = hashlib.sha256(f"{seen[own]} {own}".encode()).digest()
        ids.append(int.from_bytes(digest[:4], "big"))
        seen[own] += 1
    return ids
