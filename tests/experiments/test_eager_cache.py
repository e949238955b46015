"""Fast-dLLM's caches in the eager loop and in dlm_jax: the same rows in as many steps.

The two are written apart: here one loop for a batch whose rows wait for each other,
there a plan for one row. The released code's own run is the third.
"""

import jax
import numpy as np
import pytest
from helpers import DATA, infilling_of, prompts_of, stack

from dlm_jax import caches, checkpoints, models, samplers
from dlm_jax.core import loop
from dlm_jax.core.canvas import Prompts
from dlm_jax.core.keys import row_keys
from dlm_jax.core.options import Options
from dlm_jax.errors import InputError

torch = pytest.importorskip("torch")
torch_llada = pytest.importorskip("dlm_jax.parity.torch_llada")
eager = pytest.importorskip("experiments.timing.eager")

NAME = "tiny_kv2_seed3"
GEN, BLOCK = 20, 8


def batch():
    """Rows of 30 tokens, without padding: in three, three, two blocks and one."""
    return stack(
        [
            prompts_of([10], GEN, width=30),
            infilling_of(19, 30, width=30),
            prompts_of([17], 13, width=30),
            prompts_of([24], 6, width=30),
        ]
    )


@pytest.fixture(scope="module")
def twins():
    """The same weights in float64, for both."""
    path = DATA / "checkpoints" / NAME
    with jax.enable_x64(True):
        ours = models.as_denoiser(checkpoints.load(path, "float64"))
    return ours, torch_llada.load_llada(path).to(torch.float64)


def both(twins, spec, plan, prompts, gen_length=24, **options):
    (denoiser, params), model = twins
    sampler, plan = samplers.parse(spec), caches.parse(plan)
    with jax.enable_x64(True):
        ours = loop.generate(
            denoiser,
            params,
            sampler,
            prompts,
            row_keys(0, np.arange(len(prompts.tokens))),
            Options(gen_length, BLOCK, cache=plan, num_slots=2, **options),
        )
    # What the loop makes must lie where the model does; by default it would nowhere.
    with torch.device("meta"):
        theirs = eager.fill(model, sampler, prompts, denoiser.mask_id, BLOCK, plan)
    return jax.device_get(ours), theirs


@pytest.mark.parametrize(
    ("spec", "plan"),
    [
        ("low_confidence(schedule=fixed(k=3))", "dual"),
        ("threshold(threshold=0.4)", "prefix(refresh_every=3)"),
        ("saber(n=3, mu=2)", "dual"),
        # Each compiles a loop, and PyTorch runs beside it.
        *(
            pytest.param(spec, plan, marks=pytest.mark.slow)
            for spec, plan in (
                ("low_confidence", "dual"),
                ("low_confidence(schedule=fixed(k=3))", "prefix"),
                ("low_confidence(schedule=fixed(k=3))", "dual(refresh_every=2)"),
                ("threshold(threshold=0.4)", "dual"),
                ("entropy_bound(gamma=1.0)", "dual"),
                ("saber", "dual"),
                ("saber(n=3, mu=2)", "prefix"),
            )
        ),
    ],
)
def test_rows_and_forwards_are_those_of_the_compiled_loop(twins, spec, plan):
    ours, (tokens, num_steps) = both(twins, spec, plan, batch())
    np.testing.assert_array_equal(tokens, ours.tokens)
    np.testing.assert_array_equal(num_steps, ours.num_steps)
    # There were steps of windows, and some commit more than a token.
    assert (ours.num_whole < ours.num_steps)[:3].all()
    if spec != "low_confidence":
        assert (num_steps < batch().is_blank.sum(axis=1)).any()


def test_caches_change_what_is_written(twins):
    """Or the test above could not tell them apart."""
    spec = "low_confidence(schedule=fixed(k=3))"
    found = [
        both(twins, spec, plan, batch())[1][0].tobytes()
        for plan in ("none", "dual", "prefix", "dual(refresh_every=2)")
    ]
    assert len(set(found)) == 4


def test_a_block_takes_one_forward_of_the_whole_row(twins):
    prompts = prompts_of([10], BLOCK)
    ours, (tokens, num_steps) = both(
        twins, "low_confidence(schedule=fixed(k=3))", "dual", prompts, BLOCK
    )
    assert (num_steps, ours.num_steps, ours.num_whole) == (3, 3, 1)
    np.testing.assert_array_equal(tokens, ours.tokens)


def test_released_code_writes_the_same():
    """The recorded run of Fast-dLLM, in as many forwards."""
    path = DATA / "traces" / "fastdllm_dual_cache_0.5__kv2_seed3_p1.npz"
    with np.load(path) as recorded:
        final, length = recorded["canvas"][-1:], recorded["prompt"].shape[1]
    is_blank = np.arange(final.shape[1])[None] >= length
    prompts = Prompts(final.astype(np.int32), is_blank, np.ones_like(is_blank))
    model = torch_llada.load_llada(DATA / "checkpoints" / NAME)
    tokens, num_steps = eager.fill(
        model,
        samplers.parse("threshold(threshold=0.5)"),
        prompts,
        299,
        16,
        caches.parse("dual"),
    )
    np.testing.assert_array_equal(tokens, final)
    assert num_steps == 6


@pytest.mark.parametrize("plan", ["dual", "prefix"])
def test_a_step_computes_its_window_only(twins, plan, monkeypatch):
    shapes = []
    _, model = twins
    inner = model.forward

    def forward(input_ids, **rest):
        shapes.append(tuple(input_ids.shape))
        return inner(input_ids, **rest)

    monkeypatch.setattr(model, "forward", forward)
    prompts = prompts_of([14], 16)
    both(twins, "low_confidence(schedule=fixed(k=4))", plan, prompts, 16)
    later = {"dual": (1, 8), "prefix": (1, 16)}[plan]
    assert shapes == [(1, 30), later, (1, 30), (1, 8)]


def test_a_row_without_a_mask_in_its_window_is_refreshed(twins):
    """A token of an earlier block was taken back last. Other rows go on in theirs."""
    ours, (tokens, num_steps) = both(twins, "saber(n=3, mu=1)", "dual", batch())
    np.testing.assert_array_equal(tokens, ours.tokens)
    np.testing.assert_array_equal(num_steps, ours.num_steps)
    blocks = -(-batch().is_blank.sum(axis=1) // BLOCK)
    assert (ours.num_whole > blocks).any() and (ours.num_whole < num_steps)[:3].all()


def test_a_cache_without_an_eager_version_is_refused(twins):
    class Other(caches.Dual):
        pass

    for plan in (caches.Block(), Other()):
        with pytest.raises(InputError, match="there is no eager version of "):
            eager.check(samplers.parse("threshold"), batch(), BLOCK, plan)
