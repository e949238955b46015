"""Every sampler with every cache plan, on transformers in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DATA, TABLE, prompts_of, take_rows

from dlm_jax import caches, checkpoints, models, samplers
from dlm_jax.core import loop
from dlm_jax.core.canvas import View
from dlm_jax.core.keys import row_keys
from dlm_jax.core.options import Options
from dlm_jax.errors import InputError
from dlm_jax.models import registry

BLOCK, GEN = 4, 12
PLANS = ("prefix", "dual", "dual(refresh_every=3)", "block")


@pytest.fixture(scope="module")
def subjects():
    """A model with bidirectional attention, and a block-causal one."""
    with jax.enable_x64(True):
        yield {
            name: models.as_denoiser(checkpoints.load(DATA / path, "float64"))
            for name, path in (
                ("llada", "checkpoints/tiny_kv2_seed3"),
                ("sdar", "checkpoints/sdar_a"),
            )
        }


def rows_of():
    """Six rows of different lengths."""
    prompts = prompts_of([1, 9, 4, 6, 14, 2], GEN, width=26, vocab_size=200)
    return dataclasses.replace(prompts, tokens=prompts.tokens % 9 + 20)


def generate(subject, spec, prompts, ids, plan, **options):
    denoiser, params = subject
    return loop.generate(
        denoiser,
        params,
        samplers.parse(spec),
        prompts,
        row_keys(3, np.asarray(ids)),
        Options(GEN, BLOCK, cache=caches.parse(plan), **options),
    )


def is_refused(spec):
    """Of rules that may return to finished blocks, where the cache holds them."""
    return "saber" in spec and "backtracking=False" not in spec


def cases(quick, plans):
    """The quick pairs of sampler and plan, and all others as slow ones."""
    return [
        pytest.param(
            spec, plan, marks=() if (spec, plan) in quick else pytest.mark.slow
        )
        for spec in TABLE
        for plan in plans
        if not (plan == "block" and is_refused(spec))
    ]


# Each compiles three programs, which takes minutes for all.
@pytest.mark.parametrize(
    ("spec", "plan"),
    cases(
        [
            ("low_confidence", "prefix"),
            ("saber", "dual(refresh_every=3)"),
            ("entropy_bound(gamma=1.0)", "block"),
        ],
        PLANS,
    ),
)
def test_a_row_does_not_depend_on_what_else_is_in_flight(subjects, spec, plan):
    """Alone, at another padding, and in slots that are refreshed two at a time."""
    subject, prompts = subjects["sdar" if plan == "block" else "llada"], rows_of()
    options = {"temperature": 0.7, "guidance": 0.5}
    queued = generate(
        subject, spec, prompts, range(6), plan, num_slots=3, num_refreshed=2, **options
    )
    wide = jax.tree.map(lambda x: np.pad(x, ((0, 0), (0, 6))), take_rows(prompts, [2]))
    for ids, other in (
        (
            range(6),
            generate(
                subject, spec, prompts, range(6), plan, num_refreshed=1, **options
            ),
        ),
        ([2], generate(subject, spec, wide, [2], plan, **options)),
    ):
        for i, row in enumerate(ids):
            assert other.num_steps[i] == queued.num_steps[row]
            assert other.num_whole[i] == queued.num_whole[row]
            np.testing.assert_array_equal(other.tokens[i, :26], queued.tokens[row])
    assert queued.is_complete.all()
    # Or each of the three blocks was filled by its first forward.
    has_steps = queued.num_whole < queued.num_steps
    assert (has_steps | (queued.num_steps == GEN // BLOCK)).any()


@pytest.mark.parametrize(
    ("spec", "plan"), cases([("saber(backtracking=False)", "block")], ["block"])
)
def test_the_exact_cache_writes_what_full_forwards_do(subjects, spec, plan):
    found, full = (
        generate(
            subjects["sdar"],
            spec,
            rows_of(),
            range(6),
            cache,
            num_slots=4,
            temperature=0.7,
            guidance=0.5,
        )
        for cache in (plan, "none")
    )
    np.testing.assert_array_equal(found.tokens, full.tokens)
    np.testing.assert_array_equal(
        found.num_steps - found.num_whole - found.num_stores, full.num_steps
    )


@pytest.mark.parametrize("spec", ["saber", "saber_released"])
@pytest.mark.parametrize("block_length", [BLOCK, GEN])
def test_a_rule_that_returns_to_finished_blocks_is_refused(
    subjects, spec, block_length
):
    """Without a cache it would take back tokens that `block` holds as final.

    Also where a block is as long as all blanks: behind one column of prompt they lie in
    two blocks.
    """
    denoiser, params = subjects["sdar"]
    prompts, keys = take_rows(rows_of(), [0]), row_keys(3, np.arange(1))
    options = Options(GEN, block_length, cache=caches.Block())
    message = r"cache \(Block\) must be used with a sampler that decides in the active"
    with pytest.raises(InputError, match=message):
        loop.generate(denoiser, params, samplers.parse(spec), prompts, keys, options)


def products_with_the_head(jaxpr, vocab_size):
    """The shapes of all products whose last axis is the vocabulary, in a program."""
    found = set()
    for equation in jaxpr.eqns:
        for output in equation.outvars:
            shape = getattr(output.aval, "shape", ())
            if equation.primitive.name == "dot_general" and vocab_size in shape:
                found.add(shape)
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    found |= products_with_the_head(inner, vocab_size)
    return found


@pytest.mark.parametrize(
    ("spec", "plan", "expected"),
    [
        # Of four rows the window's four positions; of the one that is whole, all
        # twelve that saber asks for.
        ("saber", "dual", {(4, 4), (1, 12)}),
        ("low_confidence", "dual", {(4, 4), (1, 4)}),
        ("low_confidence", "prefix", {(4, 4), (1, 4)}),
        ("saber", "prefix", {(4, 12), (1, 12)}),
        ("saber", "none", {(4, 12)}),
    ],
)
def test_the_head_reads_no_more_than_a_forward_tells(subjects, spec, plan, expected):
    denoiser, params = subjects["llada"]
    prompts = take_rows(rows_of(), [0, 1, 2, 3])

    def run(params):
        return generate(
            (denoiser, params), spec, prompts, range(4), plan, num_refreshed=1
        )

    vocab_size = denoiser.head(params).shape[0]
    shapes = products_with_the_head(jax.make_jaxpr(run)(params).jaxpr, vocab_size)
    assert {shape[-3:-1] for shape in shapes} == expected


@pytest.mark.parametrize("preset", ["tiny", "sdar_tiny"])
def test_a_step_computes_its_window_only(preset):
    """Operations that the compiler counts, of 8 columns and of 128."""
    denoiser, params = models.as_denoiser(registry.random_preset(preset, None, 0))
    length, size = 128, 8

    def flops(columns):
        view = View(
            jnp.zeros((1, length), jnp.int32),
            jnp.arange(length, dtype=jnp.int32)[None],
            jnp.ones((1, 1, length), bool),
            block_length=size,
            columns=columns,
        )
        cache = denoiser.init_cache(params, 1, length)
        region = jnp.arange(size, dtype=jnp.int32)[None]
        lowered = jax.jit(denoiser.denoise).lower(params, view, region, cache)
        return lowered.compile().cost_analysis()["flops"]

    window = flops(64 + jnp.arange(size, dtype=jnp.int32)[None])
    whole = flops(None)
    assert window == pytest.approx(whole * size / length, rel=0.05)
