"""A page that replays runs: every canvas, forward by forward, in one HTML file.

The page needs no network and no library. `page.html` beside this module is its
template; the runs are JSON inside it.
"""

import dataclasses
import html
import importlib.resources
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from dlm_jax.core.cache import Kind
from dlm_jax.core.canvas import Trajectory
from dlm_jax.errors import InputError
from dlm_jax.text.codec import Codec


@dataclasses.dataclass(frozen=True)
class Grid:
    """How a text of lines of equal width is shown as a grid.

    A text that is not made of such lines, one token each place, is shown as text.

    Attributes:
      width: places in a line, without its newline.
      box: a heavy line follows every so many rows and columns; 0 for none.
      styles: from a token's text to how its cell is drawn: 'wall', 'path', 'off' (not
        seen) or 'end'; as a digit or letter otherwise.
    """

    width: int
    box: int = 0
    styles: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Run:
    """One row's run as a page shows it; n forwards, l tokens.

    Attributes:
      canvas: int32 [n + 1, l]; before every forward, then the final one.
      texts: of every token id in `canvas`.
      mask_id: the token of a blank.
      commit: bool [n, l]; positions that each forward wrote.
      remask: bool [n, l]; positions that it took back, after it wrote.
      log_prob: float [n, l] or None; of the candidates, -inf where there is none.
      kind: int32 [n] or None; the `core.cache.Kind` of each forward, -1 if unknown.
      staleness: float [n] or None; see `Trajectory`.
    """

    canvas: Int[np.ndarray, "s l"]
    texts: Mapping[int, str]
    mask_id: int
    commit: Bool[np.ndarray, "n l"]
    remask: Bool[np.ndarray, "n l"]
    log_prob: Float[np.ndarray, "n l"] | None = None
    kind: Int[np.ndarray, "n"] | None = None
    staleness: Float[np.ndarray, "n"] | None = None


def of_trajectory(trajectory: Trajectory, codec: Codec) -> Run:
    """The run of a recorded trajectory.

    Args:
      trajectory: of one row, as in `Output.trajectory`.
      codec: of the model.
    """
    canvas = np.asarray(trajectory.canvas)
    staleness = trajectory.staleness
    return Run(
        canvas=canvas,
        texts=_texts(codec, canvas),
        mask_id=codec.mask_id,
        commit=np.asarray(trajectory.commit),
        remask=np.asarray(trajectory.remask),
        log_prob=np.asarray(trajectory.log_prob),
        kind=np.asarray(trajectory.kind),
        staleness=None if staleness is None else np.asarray(staleness),
    )


def of_canvases(
    canvas: Int[np.ndarray, "s l"], mask_id: int, codec: Codec | None = None
) -> Run:
    """The run of which only the canvases were recorded, as in a trace.

    Args:
      canvas: int32 [n + 1, l]; before every forward, then the final one.
      mask_id: the token of a blank.
      codec: of the model; without one, the page shows the ids of tokens.

    Raises:
      InputError: if there are not two canvases.
    """
    if len(canvas) < 2:
        raise InputError(
            f"canvas ({len(canvas)} recorded) must be at least 2: a page replays what "
            "changes between them"
        )
    is_mask = canvas == mask_id
    is_changed = canvas[1:] != canvas[:-1]
    return Run(
        canvas=canvas,
        texts=_texts(codec, canvas),
        mask_id=mask_id,
        commit=is_changed & ~is_mask[1:],
        remask=is_changed & is_mask[1:],
    )


def _texts(codec: Codec | None, canvas: Int[np.ndarray, "s l"]) -> dict[int, str]:
    """The text of each token; its name in the vocabulary if it has none alone."""
    if codec is None:
        return {token: f"{token} " for token in np.unique(canvas).tolist()}
    texts = {}
    for token in np.unique(canvas).tolist():
        text = codec.tokenizer.decode([token], skip_special_tokens=False)
        if not text or "\N{REPLACEMENT CHARACTER}" in text:
            # A part of a character, or no token of the tokenizer's.
            text = codec.tokenizer.convert_ids_to_tokens(token)
        texts[token] = text or f"#{token}"
    return texts


def data(
    runs: Mapping[str, Run],
    *,
    title: str = "",
    note: str = "",
    remarks: Mapping[str, str] | None = None,
    grid: Grid | None = None,
) -> dict[str, Any]:
    """What the page is made from, as JSON takes it; see `build`.

    A run is its first canvas (`start`, places in `texts`) and, for each forward, what
    the sampler did and every token that differs in the next canvas (`changes`).

    Raises:
      InputError: if there is no run.
    """
    if not runs:
        raise InputError("runs must be at least one")
    remarks = remarks or {}
    return {
        "title": title or "A run, forward by forward",
        "note": note,
        "grid": dataclasses.asdict(grid) if grid else None,
        "runs": [
            {"name": name, "remark": remarks.get(name, ""), **_run(run, grid)}
            for name, run in runs.items()
        ],
    }


def _run(run: Run, grid: Grid | None) -> dict[str, Any]:
    ids = sorted({*run.texts, run.mask_id})
    place_of = {token: place for place, token in enumerate(ids)}
    canvas = np.vectorize(place_of.__getitem__, otypes=[int])(run.canvas)
    texts = [run.texts.get(token, "") for token in ids]
    mask = place_of[run.mask_id]
    return {
        "texts": texts,
        "mask": mask,
        "start": canvas[0].tolist(),
        "rows": grid and _rows(texts, mask, canvas[0], grid),
        "forwards": [
            _forward(run, canvas, step) for step in range(len(run.canvas) - 1)
        ],
    }


def _forward(run: Run, canvas: Int[np.ndarray, "s l"], step: int) -> dict[str, Any]:
    (changed,) = np.nonzero(canvas[step + 1] != canvas[step])
    (commit,) = np.nonzero(run.commit[step])
    kind = -1 if run.kind is None else int(run.kind[step])
    made: dict[str, Any] = {
        "kind": Kind(kind).name.lower() if kind >= 0 else None,
        "changes": [[int(i), int(canvas[step + 1, i])] for i in changed],
        "commit": commit.tolist(),
        "remask": np.flatnonzero(run.remask[step]).tolist(),
        "confidence": None,
        "doubt": None,
        "log_prob": None,
        "staleness": None,
    }
    if run.log_prob is not None:
        log_prob = run.log_prob[step].astype(float)
        made["confidence"] = [
            _number(float(np.exp(x))) if np.isfinite(x) else None
            for x in log_prob[commit]
        ]
        # 1 - p keeps its digits near p = 1, where trained models are most of the time.
        written = log_prob[commit]
        doubts = -np.expm1(written[np.isfinite(written)])
        made["doubt"] = _number(float(doubts.max())) if doubts.size else None
        is_candidate = (run.canvas[step] == run.mask_id) & np.isfinite(log_prob)
        if is_candidate.any():
            made["log_prob"] = _number(float(log_prob[is_candidate].mean()))
    if run.staleness is not None:
        made["staleness"] = _number(float(run.staleness[step]))
    return made


def _number(x: float) -> float | None:
    """Five digits; JSON has no NaN."""
    return float(f"{x:.5g}") if np.isfinite(x) else None


def _rows(
    texts: list[str], mask: int, start: Int[np.ndarray, "l"], grid: Grid
) -> list[list[int]] | None:
    """The positions of each line of a grid; None if the text is none."""
    rows: list[list[int]] = [[]]
    for position, place in enumerate(start.tolist()):
        if texts[place] == "\n":
            rows.append([])
        elif place == mask or len(texts[place]) == 1:
            rows[-1].append(position)
        else:
            return None
    if not rows[-1]:
        rows.pop()
    is_grid = bool(rows) and all(len(row) == grid.width for row in rows)
    return rows if is_grid else None


def build(
    runs: Mapping[str, Run],
    *,
    title: str = "",
    note: str = "",
    remarks: Mapping[str, str] | None = None,
    grid: Grid | None = None,
) -> str:
    """A page that shows runs side by side, with one slider.

    Texts are shown as they are: HTML in them is not run.

    Args:
      runs: of one prompt, by the names that the page shows.
      title: of the page.
      note: a line below it.
      remarks: a line below a run's name, by name.
      grid: how the text is laid out; as text by default.

    Returns:
      The HTML of the page.

    Raises:
      InputError: if there is no run.
    """
    made = data(runs, title=title, note=note, remarks=remarks, grid=grid)
    text = json.dumps(made, allow_nan=False, separators=(",", ":"))
    # Nothing in a script element may look like its end or a comment.
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    template = importlib.resources.files("dlm_jax.text") / "page.html"
    parts = {"__TITLE__": html.escape(made["title"]), "__DATA__": text}
    # In one pass: what is filled in may itself hold such a name.
    return re.sub(
        "|".join(parts),
        lambda match: parts[match.group()],
        template.read_text(encoding="utf-8"),
    )


def frame(page: str, height: int = 720) -> str:
    """An HTML element that shows a page inside another, as notebooks do.

    Args:
      page: from `build`.
      height: in CSS pixels.
    """
    return (
        f'<iframe srcdoc="{html.escape(page)}" sandbox="allow-scripts" '
        f'title="A run, forward by forward" '
        f'style="width:100%;height:{height}px;border:0"></iframe>'
    )
