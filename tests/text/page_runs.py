"""Runs for the tests of pages: drawn by a rule of thumb, without a model."""

import numpy as np

from dlm_jax.core.cache import Kind
from dlm_jax.text.page import Run

HTML = "</script><img src=x onerror=alert(1)><!--"
MASK = 0
# The texts of a running text, of which some would be HTML.
TEXTS = {0: "<mask>", 1: HTML, 2: " two", 3: "\n", 4: "x" * 80, 5: "&lt;", 6: "\u2028"}
DIGITS = {0: "<mask>", 1: "\n", **{i: str(i - 1) for i in range(2, 11)}}


def random_run(
    seed: int, start: np.ndarray, texts: dict[int, str], has_cache: bool = False
) -> Run:
    """A run that writes at random and takes back some of what it wrote."""
    rng = np.random.default_rng(seed)
    is_blank = start == MASK
    tokens = [token for token in texts if token != MASK and texts[token] != "\n"]
    canvas, commits, remasks = [start], [], []
    while (canvas[-1] == MASK).any():
        now = canvas[-1].copy()
        commit = (now == MASK) & (rng.random(now.size) < 0.3)
        remask = np.zeros(now.size, bool)
        if len(commits) < 8:  # so that it ends
            remask = is_blank & (now != MASK) & (rng.random(now.size) < 0.15)
        if len(commits) == 2:
            # What is written may be taken back in the same forward.
            remask |= commit & (rng.random(now.size) < 0.5)
        now[commit] = rng.choice(tokens, commit.sum())
        now[remask] = MASK
        canvas.append(now)
        commits.append(commit)
        remasks.append(remask)
    shape = (len(commits), start.size)
    log_prob = np.where(is_blank, -rng.exponential(size=shape), -np.inf)
    kind = np.full(len(commits), Kind.REFRESH)
    if has_cache:
        kind[np.arange(len(kind)) % 4 > 0] = Kind.STEP
    return Run(
        canvas=np.stack(canvas).astype(np.int32),
        texts=texts,
        mask_id=MASK,
        commit=np.stack(commits),
        remask=np.stack(remasks),
        log_prob=log_prob.astype(np.float32),
        kind=kind.astype(np.int32),
        staleness=rng.random(len(kind)).astype(np.float32) if has_cache else None,
    )


def text_run(seed: int, has_cache: bool = False) -> Run:
    """A prompt with HTML in it and 30 blanks."""
    return random_run(seed, np.array([1, 2, 4, 3] + 30 * [MASK]), TEXTS, has_cache)


def grid_run(seed: int) -> Run:
    """Nine lines of nine places, half of them blank."""
    rng = np.random.default_rng(seed)
    start = rng.integers(2, 11, (9, 10))
    start[rng.random(start.shape) < 0.5] = MASK
    start[:, 9] = 1
    return random_run(seed, start.ravel(), DIGITS)
