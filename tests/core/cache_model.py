"""A model whose cache goes stale, and plain Python loops over it.

The model has two layers, so that what it keeps of a column depends on tokens that
change later. A refresh, a window or a store that is missing, or one too many, changes
what is written.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from helpers import infilling_of, prompts_of, stack

from dlm_jax import samplers
from dlm_jax.core import loop
from dlm_jax.core.cache import Kind
from dlm_jax.core.keys import row_keys
from dlm_jax.core.options import Options

MASK, EOS, VOCAB, BLOCK, GEN = 11, 10, 12, 4, 12
CODES = 17


@dataclasses.dataclass(frozen=True)
class Memory:
    """A model of two layers whose caches are integers.

    The first keeps the token of each column, the second a code: of the column's token
    and of all tokens that it sees. The logits of column i are own[i] plus, for every
    column j that it sees, the row of seen[j] of that column's code, turned by i - j.
    params is (own [l, v], seen [l, CODES, v]).
    """

    is_block_causal: bool = False
    shift: int = 0
    mask_id: int = MASK
    eos_id: int = EOS
    max_length: int = 64
    model_axis: None = None

    def init_cache(self, params, batch_size, length):
        # What is never written must never be read.
        return tuple(jnp.full((batch_size, length, 1), x, jnp.int32) for x in (7, 5))

    def sources(self, region):
        return jnp.maximum(region - self.shift, 0)

    def denoise(self, params, view, region, cache):
        own, seen = params
        num_rows, length = view.tokens.shape
        everything = jnp.arange(length)
        columns = view.columns
        if columns is None:
            columns = jnp.broadcast_to(everything, (num_rows, length))
        rows = jnp.arange(num_rows)[:, None]
        has_cache = bool(jax.tree.leaves(cache))
        empty = jnp.zeros((num_rows, length), jnp.int32)
        first, second = (x[..., 0] for x in cache) if has_cache else (empty, empty)

        visible = jnp.broadcast_to(
            view.visibility, (num_rows, columns.shape[1], length)
        )
        if self.is_block_causal:
            block = columns // view.block_length
            visible &= everything // view.block_length <= block[..., None]
        shown = jnp.take_along_axis(view.tokens, columns, axis=1, mode="clip")
        first = first.at[rows, columns].set(shown, mode="drop")
        weighed = first * (everything + 1)
        code = 3 * shown + jnp.sum(jnp.where(visible, weighed[:, None], 0), axis=-1)
        code = (code % CODES).astype(jnp.int32)
        second = second.at[rows, columns].set(code, mode="drop")

        # The further away a column, the more its row is turned.
        turn = (columns[..., None] - everything) % VOCAB
        entries = (jnp.arange(VOCAB) + turn[..., None]) % VOCAB  # [b, w, l, v]
        added = jnp.take_along_axis(
            seen[everything, second][:, None], entries, axis=-1, mode="clip"
        )
        logits = own[jnp.clip(columns, 0, length - 1)]
        logits += jnp.sum(jnp.where(visible[..., None], added, 0), axis=2)
        hidden = jnp.take_along_axis(logits, region[..., None], axis=1, mode="clip")
        return hidden, (first[..., None], second[..., None]) if has_cache else ()

    def head(self, params):
        return jnp.eye(VOCAB)


def params_of(length, seed=0):
    rng = np.random.default_rng(seed)
    own = rng.normal(size=(length, VOCAB))
    return own, 0.3 * rng.normal(size=(length, CODES, VOCAB))


class Eager:
    """One row in plain Python: which columns are computed is written out here."""

    def __init__(self, model, params, prompts, row, block_length=BLOCK):
        self.model, self.params, self.block_length = model, params, block_length
        self.length = int(np.asarray(prompts.is_valid)[row].sum())
        is_blank = np.asarray(prompts.is_blank)[row]
        self.blanks = np.flatnonzero(is_blank)
        self.tokens = np.where(is_blank, MASK, np.asarray(prompts.tokens)[row])
        self.first = np.full(len(is_blank), 7)
        self.second = np.full(len(is_blank), 5)
        self.kinds = []
        self.num_edits = 0

    def seen_by(self, i):
        """The columns that one may see."""
        size = self.block_length
        return [
            j
            for j in range(self.length)
            if not self.model.is_block_causal or j // size <= i // size
        ]

    def compute(self, kind, columns):
        """Runs columns through the model."""
        self.kinds.append(int(kind))
        for i in columns:
            self.first[i] = self.tokens[i]
        for i in columns:
            weighed = sum(self.first[j] * (j + 1) for j in self.seen_by(i))
            self.second[i] = (3 * self.tokens[i] + weighed) % CODES

    def logits(self, i):
        """The logits of a column."""
        own, seen = self.params
        total = own[i].copy()
        for j in self.seen_by(i):
            total += seen[j, self.second[j]][(np.arange(VOCAB) + i - j) % VOCAB]
        return total

    def confidences(self, positions):
        """The best token of each position and its probability."""
        found = {}
        for i in positions:
            logits = self.logits(max(i - self.model.shift, 0))
            p = np.exp(logits - logits.max())
            p /= p.sum()
            p[MASK] = 0
            found[i] = int(p.argmax()), p.max()
        return found

    def commit(self, positions, threshold):
        """Writes what is above the threshold, and always the best."""
        masked = [i for i in positions if self.tokens[i] == MASK]
        found = self.confidences(masked)
        best = max(found, key=lambda i: (found[i][1], -i))
        for i, (token, probability) in found.items():
            if i == best or probability >= threshold:
                self.tokens[i] = token


class Guided(Eager):
    """The same under guidance: a second view of the row has its prompt masked."""

    def __init__(self, model, params, prompts, row, scale):
        super().__init__(model, params, prompts, row)
        self.scale = scale
        self.other = Eager(model, params, prompts, row)

    def compute(self, kind, columns):
        super().compute(kind, columns)
        is_blank = np.isin(np.arange(len(self.tokens)), self.blanks)
        self.other.tokens = np.where(is_blank, self.tokens, MASK)
        self.other.compute(kind, columns)

    def logits(self, i):
        other = self.other.logits(i)
        return other + (self.scale + 1) * (super().logits(i) - other)


def llada21(eager, plan, threshold, editing_threshold, max_post_steps):
    """LLaDA2.1's loop: decided tokens are edited, and full blocks revised.

    With a `plan`, blocks count columns where the model's do, and blanks elsewhere.
    """
    size, is_causal = eager.block_length, eager.model.is_block_causal
    count = eager.blanks if is_causal else np.arange(len(eager.blanks))
    if plan == "block" and count[0] >= size:
        eager.compute(Kind.PREFILL, range(eager.length))
    for index in range(count[0] // size, count[-1] // size + 1):
        block = eager.blanks[count // size == index]
        columns = range(index * size, min(index * size + size, eager.length))
        num_forwards = num_full = 0
        # A block that is given between others has nothing to edit.
        while len(block):
            was_mask = {i for i in block if eager.tokens[i] == MASK}
            num_full += not was_mask
            if num_full > max_post_steps:
                break
            # The window of a cached step, once the block has begun.
            if plan == "block":
                eager.compute(Kind.STEP, columns)
            elif plan == "dual" and num_forwards > 0:
                eager.compute(Kind.STEP, block)
            else:
                eager.compute(Kind.REFRESH, range(eager.length))
            num_forwards += 1
            found = eager.confidences(block)
            masked = {i: found[i] for i in was_mask}
            best = max(masked, key=lambda i: (masked[i][1], -i), default=None)
            written = {
                i: token
                for i, (token, probability) in masked.items()
                if i == best or probability > threshold
            }
            edited = {
                i: token
                for i, (token, probability) in found.items()
                if i not in was_mask
                and token != eager.tokens[i]
                and probability > editing_threshold
            }
            for i, token in (written | edited).items():
                eager.tokens[i] = token
            eager.num_edits += len(edited)
            if not was_mask and not edited:
                break
        if plan == "block":
            eager.compute(Kind.STORE, columns)


def fast_dllm(eager, plan, threshold, refresh_every):
    """Fast-dLLM's loops (arXiv:2505.22618), with refreshes added."""
    everything = range(eager.length)
    for start in range(0, len(eager.blanks), eager.block_length):
        block = eager.blanks[start : start + eager.block_length]
        window = {"prefix": eager.blanks[start:], "dual": block}.get(plan, everything)
        for step in itertools.count():
            if (eager.tokens[block] != MASK).all():
                break
            sources = {i: max(i - eager.model.shift, 0) for i in block}
            masked = [i for i in block if eager.tokens[i] == MASK]
            is_whole = plan == "none" or step == 0
            is_whole |= bool(refresh_every) and step % refresh_every == 0
            # Nothing that could be committed would be predicted.
            is_whole |= not any(sources[i] in window for i in masked)
            if is_whole:
                eager.compute(Kind.REFRESH, everything)
            else:
                eager.compute(Kind.STEP, window)
            known = [i for i in block if is_whole or sources[i] in window]
            eager.commit(known, threshold)


def block_diffusion(eager, threshold):
    """SDAR's loop: blocks count columns, and finished ones are stored."""
    size = eager.block_length
    first = eager.blanks[0] // size
    if first > 0:
        eager.compute(Kind.PREFILL, range(eager.length))
    for index in range(first, eager.blanks[-1] // size + 1):
        block = range(index * size, min(index * size + size, eager.length))
        while (eager.tokens[list(block)] == MASK).any():
            eager.compute(Kind.STEP, block)
            eager.commit(list(block), threshold)
        eager.compute(Kind.STORE, block)


def batch(width=26):
    """Continuations, short ones, an infilling, and a row with nothing to do."""
    return stack(
        [
            prompts_of([1, 9, 6], GEN, width=width, vocab_size=9),
            prompts_of([5], 7, width=width, vocab_size=9),
            infilling_of(9, 17, width=width, vocab_size=9),
            prompts_of([8], 0, width=width, vocab_size=9),
        ]
    )


def generate(model, params, prompts, sampler="threshold(threshold=0.4)", **options):
    return loop.generate(
        model,
        params,
        samplers.parse(sampler) if isinstance(sampler, str) else sampler,
        prompts,
        row_keys(0, np.arange(len(prompts.tokens))),
        Options(GEN, BLOCK, has_trajectory=True, **options),
    )


def assert_is(result, row, eager):
    """A row of a result is what the plain loop did."""
    length = len(eager.kinds)
    assert result.num_steps[row] == length
    kinds = result.trajectory.kind[row]
    assert kinds[:length].tolist() == eager.kinds
    assert (kinds[length:] == -1).all()
    whole = [kind in (Kind.REFRESH, Kind.PREFILL) for kind in eager.kinds]
    assert result.num_whole[row] == sum(whole)
    assert result.num_stores[row] == eager.kinds.count(Kind.STORE)
    np.testing.assert_array_equal(
        result.tokens[row, : eager.length], eager.tokens[: eager.length]
    )
