"""Deep models compile as fast as shallow ones: blocks are one scanned program."""

import statistics
import time

import jax
import numpy as np
import pytest
from flax import nnx
from helpers import prompts_of

from dlm_jax import generate, samplers
from dlm_jax.models import as_denoiser
from dlm_jax.models.llada import LLaDA
from dlm_jax.tasks import sudoku
from dlm_jax.types import Options


def lowered(num_layers):
    """The loop of a small model as JAX hands it to XLA."""
    shape = {"d_model": 64, "n_heads": 4, "mlp_hidden_size": 128}
    config = sudoku.Sudoku().model_config(n_layers=num_layers, **shape)
    model = nnx.eval_shape(lambda: LLaDA(config, rngs=nnx.Rngs(0)))
    denoiser, params = as_denoiser(model)
    arguments = generate.prepare(
        denoiser,
        samplers.parse("saber"),
        prompts_of([4, 9], 32, vocab_size=9),
        Options(32, 8),
    )
    keys = generate.row_keys(0, np.arange(2))
    return jax.jit(generate.sample, static_argnums=0).trace(
        denoiser, params, *arguments[:2], keys, arguments[2]
    )


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_compile_time_from_2_to_32_layers():
    seconds = {2: [], 32: []}
    for _ in range(7):
        for num_layers, found in seconds.items():
            jax.clear_caches()
            program = lowered(num_layers).lower()
            start = time.perf_counter()
            program.compile()
            found.append(time.perf_counter() - start)
    shallow, deep = (statistics.median(found) for found in seconds.values())
    print(f"compile: {shallow:.2f} s with 2 layers, {deep:.2f} s with 32")
    assert deep < 1.2 * shallow
