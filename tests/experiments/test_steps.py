"""What a step costs beside the forward alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from race_helpers import prompts_of

from dlm_jax import samplers
from dlm_jax.core.options import Options
from dlm_jax.devices.runner import DataParallel
from dlm_jax.models import as_denoiser
from dlm_jax.models.llada import LLaDA, tiny
from experiments.timing import ceilings, races, steps


def test_the_peak_is_not_measured_on_constants():
    x = ceilings.operand(64, jnp.bfloat16)
    assert x.dtype == jnp.bfloat16
    assert float(jnp.std(x.astype(float))) == pytest.approx(1, abs=0.1)


def test_random_prompts_are_functions_of_their_seed():
    prompts = steps.synthetic(3, 4, 2, vocab_size=7, seed=1)
    assert prompts.tokens.shape == (3, 6) and prompts.tokens.max() < 7
    np.testing.assert_array_equal(prompts.is_blank, [[False] * 4 + [True] * 2] * 3)
    assert prompts.is_valid.all()
    again, other = (steps.synthetic(3, 4, 2, vocab_size=7, seed=s) for s in (1, 2))
    np.testing.assert_array_equal(again.tokens, prompts.tokens)
    assert (other.tokens != prompts.tokens).any()


def test_forwards_are_timed_around_every_run(parallel):
    clock = iter([1.0, 3.0, 2.0, 6.0])
    rules = {"saber": samplers.parse("saber")}
    options = Options(60, num_slots=2)
    (result,) = races.race(
        parallel,
        rules,
        prompts_of(2),
        options,
        forward=clock.__next__,
        num_pairs=2,
    )
    assert result.forward_seconds.tolist() == [2.0, 4.0]


def test_a_step_is_compared_with_forwards_beside_it():
    result = races.Result(
        "saber",
        "none",
        None,
        16,
        2,
        1.0,
        seconds=np.array([11.0, 24.0, 33.0]),
        reference_seconds=None,
        forward_seconds=np.array([1.0, 2.0, 3.0]),
        cached_seconds={},
        num_steps=np.array([10, 10]),
        num_whole=np.array([10, 10]),
        num_forwards=10,
        num_tokens=8,
        num_equal=None,
    )
    (record,) = steps.records(
        [result],
        tiny(),
        steps.Shape(2, 16, 8),
        regions={("saber", "none"): 8},
        reached=ceilings.Ceilings(1e9, 1e9),
        memory={("saber", "none"): 2_000_000},
    )
    # Ratios of 1.1, 1.2 and 1.1, where that of the medians is 1.2.
    assert record["beyond_forward"] == pytest.approx(0.1)
    assert (record["step_ms"], record["forward_ms"]) == (2400, 2000)
    assert record["megabytes"] == 2


class Watched:
    """A denoiser that notes the tokens of each forward."""

    def __init__(self, denoiser):
        self.inner, self.seen = denoiser, []

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def denoise(self, params, view, *rest):
        jax.debug.callback(lambda x: self.seen.append(np.asarray(x)), view.tokens)
        return self.inner.denoise(params, view, *rest)


@pytest.mark.parametrize("num_rows", [3, 60])
def test_a_forward_is_timed_on_tokens_that_differ(num_rows):
    """Of constants a GPU makes less work, and is up to 18 % faster."""
    denoiser, params = as_denoiser(LLaDA(tiny(), rngs=nnx.Rngs(0)))
    watched = Watched(denoiser)
    parallel = DataParallel(watched, params)
    steps.forward_timer(parallel, steps.Shape(num_rows, 8, 4))()
    vocab_size = denoiser.head(params).shape[0]
    assert len(watched.seen) > 2
    for tokens in watched.seen:
        assert tokens.shape == (num_rows, 8)
        assert tokens.min() >= 0 and tokens.max() < vocab_size
        assert np.unique(tokens).size == min(tokens.size, vocab_size)
        # In no order.
        assert abs(np.corrcoef(tokens.ravel(), np.arange(tokens.size))[0, 1]) < 0.5


def test_a_forward_is_timed_by_itself():
    parallel = DataParallel(*as_denoiser(LLaDA(tiny(), rngs=nnx.Rngs(0))))
    short, long = (
        steps.forward_timer(parallel, steps.Shape(2, length, 4))()
        for length in (8, 256)
    )
    assert 0 < short < long
