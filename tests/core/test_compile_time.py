"""Deep models compile as fast as shallow ones: blocks are one scanned program."""

import statistics
import time

import jax
import numpy as np
import pytest
from flax import nnx
from helpers import prompts_of

from dlm_jax import samplers
from dlm_jax.core import loop as generate
from dlm_jax.core.checks import prepare
from dlm_jax.core.keys import row_keys
from dlm_jax.core.options import Options
from dlm_jax.models import as_denoiser
from dlm_jax.models.llada import LLaDA
from dlm_jax.tasks import sudoku


def arguments_of(num_layers):
    """What the loop of a small model is traced for."""
    shape = {"d_model": 64, "n_heads": 4, "mlp_hidden_size": 128}
    config = sudoku.Sudoku().model_config(n_layers=num_layers, **shape)
    model = nnx.eval_shape(lambda: LLaDA(config, rngs=nnx.Rngs(0)))
    denoiser, params = as_denoiser(model)
    sampler, prompts, options = prepare(
        denoiser,
        samplers.parse("saber"),
        prompts_of([4, 9], 32, vocab_size=9),
        Options(32, 8),
    )
    keys = row_keys(0, np.arange(2))
    return denoiser, params, sampler, prompts, keys, options


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_compile_time_from_2_to_32_layers():
    seconds = {2: [], 32: []}
    for _ in range(7):
        for num_layers, found in seconds.items():
            arguments = arguments_of(num_layers)
            jax.clear_caches()
            # All that a user waits for: tracing and lowering too.
            start = time.perf_counter()
            loop = jax.jit(generate.sample, static_argnums=0)
            loop.trace(*arguments).lower().compile()
            found.append(time.perf_counter() - start)
    shallow, deep = (statistics.median(found) for found in seconds.values())
    print(f"compile: {shallow:.2f} s with 2 layers, {deep:.2f} s with 32")
    assert deep < 1.2 * shallow
