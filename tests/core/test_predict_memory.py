"""What the loop keeps alive at LLaDA-8B's vocabulary: the region, never the row.

The model is so small that nothing else is large.
"""

import functools
import math

import jax
import numpy as np
import pytest
from flax import nnx
from helpers import equations

from dlm_jax import samplers
from dlm_jax.core import predict
from dlm_jax.core.canvas import Prompts
from dlm_jax.core.checks import prepare
from dlm_jax.core.keys import row_keys
from dlm_jax.core.loop import sample
from dlm_jax.core.options import Options
from dlm_jax.models import as_denoiser
from dlm_jax.models.llada import LLaDA, LLaDAConfig

VOCAB_SIZE, SLICE = 126464, 4096
# Arrays of region x slice in float32 that were alive at once, by temperature, with
# jaxlib 0.10.2 on a CPU; as many for one row as for four. Noise takes the difference.
MEASURED = {0: 3.7, 0.7: 5.7}

pytestmark = pytest.mark.usefixtures("optimized")


@functools.cache
def _tiny(vocab_size):
    config = LLaDAConfig(
        d_model=16,
        n_heads=1,
        n_kv_heads=1,
        n_layers=1,
        mlp_hidden_size=16,
        vocab_size=vocab_size,
        embedding_size=vocab_size,
        max_sequence_length=4096,
        rope_theta=1e4,
        rms_norm_eps=1e-5,
        weight_tying=False,
        mask_token_id=vocab_size - 1,
        eos_token_id=0,
        pad_token_id=0,
    )
    return as_denoiser(nnx.eval_shape(lambda: LLaDA(config, rngs=nnx.Rngs(0))))


def _arguments(
    spec,
    length,
    gen_length,
    block_length,
    vocab_size=VOCAB_SIZE,
    batch=1,
    temperature=0,
    logits_bytes=None,
):
    """What `sample` takes; by default slices of SLICE, at a region of one block."""
    denoiser, params = _tiny(vocab_size)
    prompts = Prompts(
        np.zeros((batch, length), int),
        np.tile(np.arange(length) < gen_length, (batch, 1)),
        np.ones((batch, length), bool),
    )
    options = Options(
        gen_length=gen_length,
        block_length=block_length,
        temperature=temperature,
        logits_bytes=logits_bytes or 4 * SLICE * batch * block_length,
    )
    sampler, prompts, options = prepare(
        denoiser, samplers.parse(spec), prompts, options
    )
    function = functools.partial(sample, denoiser)
    return function, (params, sampler, prompts, row_keys(0, np.arange(batch)), options)


def _temporary_bytes(*shape, **more):
    function, arguments = _arguments("entropy", *shape, **more)
    compiled = jax.jit(function).lower(*arguments).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_grows_with_the_region_and_not_with_the_row():
    row = 4 * SLICE  # Bytes of the logits of one position in one slice.
    short = _temporary_bytes(512, 256, 32)
    long = _temporary_bytes(2048, 256, 32)
    # What a longer row costs is the model's own: as much without the vocabulary.
    model = _temporary_bytes(2048, 256, 32, SLICE) - _temporary_bytes(
        512, 256, 32, SLICE
    )
    assert abs(long - short - model) < 32 * row
    # A longer generation in blocks of the same size does not pay for its length.
    assert _temporary_bytes(512, 512, 32) - short < 32 * row
    # A block of 8 times the size has logits of 8 times the positions.
    wide = _temporary_bytes(512, 256, 256)
    assert 224 * row < wide - short < 224 * 1.3 * MEASURED[0] * row
    # All logits of a row, in float32, are out of the question.
    assert long < 2048 * 4 * VOCAB_SIZE / 20


@pytest.mark.parametrize(
    ("batch", "temperature"),
    [
        (4, 0.7),
        pytest.param(4, 0, marks=pytest.mark.slow),
        pytest.param(1, 0.7, marks=pytest.mark.slow),
    ],
)
def test_memory_grows_with_the_rows_by_as_few_arrays(batch, temperature):
    more = {"batch": batch, "temperature": temperature}
    short = _temporary_bytes(512, 256, 32, **more)
    wide = _temporary_bytes(512, 256, 256, **more)
    array = 224 * batch * 4 * SLICE
    assert array < wide - short < 1.3 * MEASURED[temperature] * array


@pytest.mark.parametrize("num_slices", [1, 3, 31])
@pytest.mark.parametrize("temperature", [pytest.param(0, marks=pytest.mark.slow), 0.7])
def test_memory_is_bounded_by_the_budget(num_slices, temperature):
    budget = -(-4 * VOCAB_SIZE * 256 // num_slices)
    found = _temporary_bytes(
        512, 256, 256, temperature=temperature, logits_bytes=budget
    )
    assert 0.9 * budget < found < 1.3 * MEASURED[temperature] * budget


def test_unrolled_slices_wait_for_each_other(monkeypatch):
    """As GPUs and TPUs have them. A CPU would make all logits first if it could."""
    monkeypatch.setattr(predict, "scan_slices", predict.unroll_slices)
    budget = -(-4 * VOCAB_SIZE * 256 // 3)
    found = _temporary_bytes(512, 256, 256, logits_bytes=budget)
    assert 0.9 * budget < found < 2.5 * budget


@pytest.mark.parametrize("spec", samplers.SAMPLERS)
def test_no_array_of_the_vocabulary_but_the_weights(spec):
    gen_length, block_length = 64, 32
    # Samplers that revise look at all blanks, the others at the active block.
    region = {"saber": gen_length, "saber_released": gen_length + 2}.get(
        spec, block_length
    )
    function, arguments = _arguments(
        spec,
        96,
        gen_length,
        block_length,
        temperature=0.5,
        logits_bytes=4 * SLICE * region,
    )
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    avals = [x.aval for _, e in equations(jaxpr) for x in (*e.invars, *e.outvars)]
    shapes = {aval.shape for aval in avals if hasattr(aval, "shape")}
    assert (1, region, SLICE) in shapes
    assert {shape for shape in shapes if VOCAB_SIZE in shape} == {(VOCAB_SIZE, 16)}
    largest = max(math.prod(shape) for shape in shapes - {(VOCAB_SIZE, 16)})
    assert largest == region * SLICE
