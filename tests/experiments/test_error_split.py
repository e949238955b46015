"""The split of a sampler's error against enumeration of what the sampler draws."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlm_jax import samplers
from dlm_jax.core.canvas import Prompts
from dlm_jax.errors import InputError
from experiments.studies.eb_sampler import error_split
from experiments.studies.eb_sampler.error_split import Joint

MASK = 2
CELLS = np.array(list(itertools.product((0, 1), repeat=3)))


@dataclasses.dataclass(frozen=True)
class Conditionals:
    """A perfect model of a joint of three binary tokens; params are its 8 numbers.

    The logits of a position are the logarithms of its true marginals given what stands
    on the canvas.
    """

    mask_id: int = MASK
    eos_id: int = 0
    max_length: int = 64
    model_axis: None = None
    is_block_causal: bool = False

    def init_cache(self, params, batch_size, length):
        return ()

    def sources(self, region):
        return region

    def denoise(self, params, view, region, cache):
        cells = jnp.asarray(CELLS)
        shown = view.tokens[:, None, :3]
        is_possible = ((shown == MASK) | (shown == cells)).all(-1)
        weight = is_possible * params
        marginal = jnp.einsum("bo,olv->blv", weight, jnp.eye(3)[cells])
        marginal /= marginal.sum(-1, keepdims=True)
        log_prob = jnp.maximum(jnp.log(marginal), -80.0)
        return jnp.take_along_axis(log_prob, region[..., None], 1, mode="clip"), cache

    def head(self, params):
        return jnp.eye(3)


def joint_of(probability):
    return Joint(CELLS.astype(np.int32), np.asarray(probability, float))


def prompts_of(num):
    width = 5  # two columns of padding
    is_blank = np.arange(width)[None].repeat(num, 0) < 3
    return Prompts(np.zeros((num, width), np.int32), is_blank, is_blank)


def run(sampler, model, truth, outcomes=CELLS):
    """Errors with each of the outcomes forced once, in a batch."""
    tokens = np.pad(outcomes, ((0, 0), (0, 2)))
    joint = Joint(np.pad(CELLS, ((0, 0), (0, 2))).astype(np.int32), np.asarray(truth))
    return error_split.split(
        Conditionals(),
        jnp.asarray(model, jnp.float32),
        samplers.parse(sampler),
        prompts_of(len(tokens)),
        [joint] * len(tokens),
        tokens,
        gen_length=3,
        batch_size=3,
    )


def random_joint(seed):
    return np.random.default_rng(seed).dirichlet(np.ones(8))


def kl(q, p):
    return float(sum(a * np.log(a / b) for a, b in zip(q, p, strict=True) if a))


@given(st.integers(0, 10_000))
def test_all_at_once_loses_the_mutual_information(seed):
    q, p = random_joint(seed), random_joint([seed, 1])

    def marginals(joint):
        cube = joint.reshape(2, 2, 2)
        return [cube.sum(axes) for axes in ((1, 2), (0, 2), (0, 1))]

    def product(marginals):
        return np.einsum("a,b,c->abc", *marginals).ravel()

    own, models = marginals(q), marginals(p)
    model_error, dependence = error_split.step_errors(CELLS, q, np.log(models))
    np.testing.assert_allclose(dependence, kl(q, product(own)), atol=1e-12)
    np.testing.assert_allclose(
        model_error, sum(map(kl, own, models)), atol=1e-12, rtol=1e-9
    )
    # Together they are all that drawing from the model's marginals loses.
    np.testing.assert_allclose(model_error + dependence, kl(q, product(models)))
    assert error_split.step_errors(CELLS, q, np.log(own))[0] < 1e-12


def drawn_by(model, sampler):
    """What a sampler draws at temperature 1: every canvas visited, every draw taken."""
    drawn = {}

    def visit(canvas, probability):
        if MASK not in canvas:
            drawn[canvas] = drawn.get(canvas, 0) + probability
            return
        shown = np.array(canvas)
        weight = model * ((shown == MASK) | (shown == CELLS)).all(1)
        ones = (weight @ CELLS) / weight.sum()
        marginals = np.stack([1 - ones, ones], 1)
        masked = [i for i in range(3) if canvas[i] == MASK]
        entropy = {
            i: -sum(m * np.log(m) for m in marginals[i] if m > 0) for i in masked
        }
        order = sorted(masked, key=entropy.__getitem__)
        chosen = sampler(order, entropy)
        for tokens in itertools.product((0, 1), repeat=len(chosen)):
            new, share = list(canvas), probability
            for i, token in zip(chosen, tokens, strict=True):
                new[i] = token
                share *= marginals[i][token]
            if share:
                visit(tuple(new), share)

    visit((MASK,) * 3, 1.0)
    return np.array([drawn.get(tuple(cell), 0.0) for cell in CELLS])


def bounded(gamma):
    def choose(order, entropy):
        for num in range(len(order), 0, -1):
            values = [entropy[i] for i in order[:num]]
            if num == 1 or sum(values) - max(values) <= gamma:
                return order[:num]

    return choose


SAMPLERS = {
    "entropy": lambda order, entropy: order[:1],
    "entropy(schedule=fixed(k=2))": lambda order, entropy: order[:2],
    "entropy_bound(gamma=0.6)": bounded(0.6),
    "entropy_bound(gamma=inf)": lambda order, entropy: order,
}


@pytest.mark.parametrize("spec", SAMPLERS)
@pytest.mark.parametrize("seed", range(4))
def test_the_errors_sum_to_the_divergence_of_what_is_drawn(spec, seed):
    q, p = random_joint(seed), random_joint([seed, 1])
    split = run(spec, p, q)
    total = q @ (split.model_error + split.dependence_error)
    np.testing.assert_allclose(total, kl(q, drawn_by(p, SAMPLERS[spec])), rtol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_one_token_a_step_has_only_the_models_error(seed):
    q, p = random_joint(seed), random_joint([seed, 1])
    split = run("entropy", p, q)
    assert (split.dependence_error == 0).all() and (split.num_steps == 3).all()
    # The model is another joint's exact conditionals, so the chain rule closes.
    np.testing.assert_allclose(q @ split.model_error, kl(q, p), rtol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_a_perfect_model_has_only_dependence_error_and_the_bound_holds(seed):
    q = random_joint(seed)
    for gamma in (0.0, 0.3, 0.6):
        split = run(f"entropy_bound(gamma={gamma})", q, q)
        assert split.model_error.max() < 1e-5
        assert split.largest_dependence_error.max() <= gamma + 1e-5
    np.testing.assert_allclose(
        q @ split.dependence_error, kl(q, drawn_by(q, bounded(0.6))), atol=1e-5
    )


def test_outcomes_that_are_ruled_out_count_no_more():
    # Two equal bits and a free one: after the first bit, the second is known.
    q = np.where(CELLS[:, 0] == CELLS[:, 1], 0.25, 0.0)
    one = run("left_to_right", q, q, CELLS[q > 0])
    both = run("left_to_right(schedule=fixed(k=2))", q, q, CELLS[q > 0])
    np.testing.assert_allclose(one.dependence_error, 0)
    np.testing.assert_allclose(both.dependence_error, np.log(2))
    np.testing.assert_allclose(both.largest_dependence_error, np.log(2))
    np.testing.assert_allclose(both.num_steps, 2)


def test_a_field_may_have_a_value_per_row():
    q, p = random_joint(0), random_joint(1)
    rule = samplers.EntropyBound(gamma=np.array([0.0, np.inf], np.float32))
    tokens = np.pad(CELLS[:2], ((0, 0), (0, 2)))
    joint = Joint(np.pad(CELLS, ((0, 0), (0, 2))).astype(np.int32), q)
    split = error_split.split(
        Conditionals(),
        jnp.asarray(p, jnp.float32),
        rule,
        prompts_of(2),
        [joint] * 2,
        tokens,
        gen_length=3,
    )
    assert split.num_steps.tolist() == [3, 1]


@pytest.mark.parametrize(
    ("spec", "truth", "message"),
    [
        ("saber", CELLS, r"sampler \(Saber\) must neither remask nor rewrite"),
        ("entropy", CELLS + 5, "truth of row 0 must be one of its joint's outcomes"),
    ],
)
def test_bad_input_is_named(spec, truth, message):
    with pytest.raises(InputError, match=message):
        run(spec, random_joint(0), random_joint(0), truth)
