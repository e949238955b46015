"""Draws how two samplers fill the same Sudoku: docs/_static/sudoku.svg.

    python docs/examples/picture.py docs/_static/sudoku.svg

Every canvas is a real one, recorded from a run of the shipped model.
"""

import sys

import numpy as np

import dlm_jax as dlm
from dlm_jax import tasks
from dlm_jax.tasks.base import BLANK

SAMPLERS = ("low_confidence", "entropy_bound(gamma=0.01)")
CELL, GAP, LEFT, TOP = 15, 22, 18, 78
LEGEND = (
    "Grey: given. Blue: written since the canvas to the left. Black: written before. "
    "A forward is one call of the model."
)
BLUE, PALE, INK, GREY = "#1d5fc4", "#dbe7fb", "#1b1f24", "#6b7280"


def main(path: str) -> None:
    """Runs both samplers on the first test puzzle and writes the picture."""
    model = dlm.load(dlm.zoo.path("sudoku"))
    task = tasks.get("sudoku")
    example = task.examples("test", 1)[0]
    prompt = example.text.replace(BLANK, model.mask_text)
    outs = [model.infill(prompt, spec, trajectory=True) for spec in SAMPLERS]
    for spec, out in zip(SAMPLERS, outs, strict=True):
        is_correct = task.verdict(example, out.text).is_correct
        print(f"{spec}: {out.nfe} forwards, {'correct' if is_correct else 'wrong'}")

    # The same numbers of forwards for both, up to the end of the faster one.
    fewest = min(out.nfe for out in outs)
    forwards = [*range(0, fewest, max(1, fewest // 4)), fewest]
    texts = model.codec.vocabulary
    width = 2 * LEFT + (len(forwards) + 1) * (9 * CELL + GAP) - GAP
    height = TOP + len(outs) * (9 * CELL + 70) - 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif" role="img">',
        "<title>One Sudoku filled by two samplers, forward by forward</title>",
        # A background of its own keeps the picture legible on dark pages.
        f'<rect width="{width}" height="{height}" rx="10" fill="#ffffff"/>',
        _text(LEFT, 28, "One Sudoku, one model, two samplers", 17, INK, "bold"),
        _text(LEFT, 48, LEGEND, 12, GREY),
    ]
    for i, (spec, out) in enumerate(zip(SAMPLERS, outs, strict=True)):
        y = TOP + i * (9 * CELL + 70)
        parts.append(_text(LEFT, y + 4, f"{spec}: {out.nfe} forwards", 14, INK, "bold"))
        canvases = out.trajectory.canvas
        before = canvases[0]
        for column, step in enumerate([*forwards, out.nfe]):
            x = LEFT + column * (9 * CELL + GAP)
            is_end = column == len(forwards)
            if is_end and out.nfe == fewest:
                break
            now = canvases[step]
            parts += _grid(x, y + 30, texts, canvases[0], before, now)
            parts.append(_text(x, y + 24, f"after {step}", 12, GREY))
            before = now
    parts.append("</svg>")
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(parts) + "\n")


def _grid(
    x: int,
    y: int,
    texts: tuple[str, ...],
    start: np.ndarray,
    before: np.ndarray,
    now: np.ndarray,
) -> list[str]:
    """The SVG elements of one canvas: nine rows of nine cells."""
    parts = []
    for cell in range(81):
        # Each line of the text is nine digits and a newline.
        place = cell + cell // 9
        left, top = x + cell % 9 * CELL, y + cell // 9 * CELL
        is_given = texts[start[place]].isdigit()
        is_new = now[place] != before[place]
        if is_new:
            parts.append(_rect(left, top, CELL, CELL, PALE))
        if texts[now[place]].isdigit():
            color = GREY if is_given else BLUE if is_new else INK
            weight = "bold" if is_new else "normal"
            parts.append(
                _text(left + 4, top + 12, texts[now[place]], 12, color, weight)
            )
    for k in range(10):
        stroke = 1.4 if k % 3 == 0 else 0.4
        end = 9 * CELL
        for line in (
            (x + k * CELL, y, x + k * CELL, y + end),
            (x, y + k * CELL, x + end, y + k * CELL),
        ):
            parts.append(
                '<line x1="{}" y1="{}" x2="{}" y2="{}" '.format(*line)
                + f'stroke="#9aa3ae" stroke-width="{stroke}"/>'
            )
    return parts


def _rect(x: int, y: int, width: int, height: int, fill: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{fill}"/>'


def _text(
    x: int, y: int, text: str, size: int, fill: str, weight: str = "normal"
) -> str:
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" fill="{fill}" '
        f'font-weight="{weight}">{text}</text>'
    )


if __name__ == "__main__":
    main(sys.argv[1])
