"""Models, prompts and processes that several tests share."""

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np

from dlm_jax.core.canvas import Prompts

DATA = Path(__file__).parent / "data"
# The cases that every sampler is tested in: a new sampler is one row here. Its settings
# should commit several tokens at once, and its variants have rows of their own.
TABLE = [
    "random",
    "left_to_right(schedule=fixed(k=3))",
    "low_confidence",
    "low_confidence(schedule=linear(steps=6))",
    "low_confidence(schedule=cosine(steps=6))",
    "entropy(schedule=dream(steps=6))",
    "margin",
    "threshold(threshold=0.3)",
    "dynamic(threshold=0.2, schedule=quota(steps=3))",
    "low_confidence(schedule=quota(steps=3))",
    "factor(factor=2.0)",
    "factor_released(factor=2.0)",
    "entropy_bound(gamma=1.0)",
    "entropy_bound(gamma=1.0, error_proxy='confidence')",
    "entropy_bound(gamma=1.0, error_proxy='margin')",
    "saber",
    "saber(mu=2, n=4)",
    "saber(backtracking=False)",
    "saber(acceleration=False)",
    "saber(threshold=0.5)",
    "saber_released",
    "saber_released(n=4)",
]
# The first case of each.
ALL_SPECS = tuple({spec.partition("(")[0]: spec for spec in TABLE[::-1]}.values())


@dataclasses.dataclass(frozen=True)
class TableDenoiser:
    """Gives every position of every row the logits that stand in a table.

    params is the table, [length, vocab]: logits may depend on the position, never on
    other tokens. `hidden` is the logits themselves, the head an identity.
    """

    mask_id: int
    eos_id: int = 0
    max_length: int = 10_000
    model_axis: None = None
    is_block_causal: bool = False
    traces: list = dataclasses.field(default_factory=list, hash=False, compare=False)

    def init_cache(self, params, batch_size, length):
        return ()

    def sources(self, region):
        return region

    def denoise(self, params, view, region, cache):
        self.traces.append(region.shape)
        return jnp.take(params, region, axis=0, mode="clip"), cache

    def head(self, params):
        return jnp.eye(params.shape[-1], dtype=params.dtype)


def prompts_of(lengths, gen_length, *, width=None, vocab_size=290, seed=0) -> Prompts:
    """Random prompts of the given lengths, each followed by gen_length blanks."""
    width = width or max(lengths) + gen_length
    columns = np.arange(width)
    lengths = np.asarray(lengths)[:, None]
    # Row by row, so that a row is the same in every batch and at every width.
    tokens = np.zeros((len(lengths), width), np.int32)
    for row, (length,) in enumerate(lengths):
        rng = np.random.default_rng([seed, int(length)])
        tokens[row, :length] = rng.integers(3, vocab_size, length)
    is_valid = columns < lengths + gen_length
    return Prompts(tokens, is_valid & (columns >= lengths), is_valid)


def infilling_of(num_blanks, length, *, width=None, vocab_size=290, seed=0) -> Prompts:
    """One row of random tokens with blanks at random places."""
    width = width or length
    rng = np.random.default_rng(seed)
    tokens = np.zeros((1, width), np.int32)
    tokens[0, :length] = rng.integers(3, vocab_size, length)
    is_blank = np.zeros((1, width), bool)
    is_blank[0, rng.choice(length, num_blanks, replace=False)] = True
    return Prompts(tokens, is_blank, np.arange(width)[None] < length)


def stack(batches: list[Prompts]) -> Prompts:
    """Puts batches of one width on top of each other."""
    return jax.tree.map(lambda *xs: np.concatenate(xs), *batches)


def mixed_prompts(gen_length) -> Prompts:
    """Continuations, an infilling, short rows; at the front a row without a blank."""
    return stack(
        [
            prompts_of([8], 0, width=26),
            prompts_of([1, 14, 6, 9], gen_length, width=26),
            infilling_of(11, 17, width=26),
            prompts_of([5, 3], 7, width=26),
        ]
    )


def take_rows(prompts: Prompts, rows) -> Prompts:
    """Some rows of a batch."""
    return jax.tree.map(lambda x: x[rows], prompts)


def equations(jaxpr, path=()):
    """All equations of a jaxpr with the names of the primitives around them."""
    for equation in jaxpr.eqns:
        yield path, equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner, (*path, equation.primitive.name))


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def start_script(name, flags, num_devices=1, **environment):
    """Begins `python -m experiments.NAME` in a process that sees so many devices."""
    arguments = ["-m", f"experiments.{name}", *flags]
    return start_python(arguments, num_devices, **environment)


def start_python(arguments, num_devices=1, **environment):
    """Begins Python in a process that sees so many devices."""
    environment = {
        **os.environ,
        "JAX_NUM_CPU_DEVICES": str(num_devices),
        "PYTHONPATH": os.pathsep.join([os.getcwd(), *filter(None, sys.path)]),
        **environment,
    }
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(processes, status=0):
    """What processes print that are to end with a status; none is left running."""
    said = []
    try:
        for process in processes:
            said.append(process.communicate(timeout=600)[0])
            assert process.returncode == status, said[-1]
    finally:
        for process in processes:
            process.kill()
    return said
