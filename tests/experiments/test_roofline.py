"""Counts of a forward against XLA's own, and the model's own parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from dlm_jax.errors import InputError
from dlm_jax.models.llada import LLaDA, llada_8b, tiny
from experiments.timing import roofline

CHIP = roofline.Chip(
    name="test",
    flops=1e12,
    memory=1e9,
    usable=1e9,
    bandwidth=1e11,
    link=1e10,
    source="none",
)
TEST = roofline.Machine("test", 4, CHIP)


@pytest.mark.parametrize("changes", [{}, {"weight_tying": True}, {"n_layers": 7}])
def test_parameters_are_those_of_the_module(changes):
    config = dataclasses.replace(tiny(), **changes)
    state = nnx.state(nnx.eval_shape(lambda: LLaDA(config, rngs=nnx.Rngs(0))))
    expected = sum(x.size for x in jax.tree.leaves(state))
    assert roofline.num_parameters(config) == expected


def test_llada_8b_has_its_published_size():
    assert roofline.num_parameters(llada_8b()) == 8_015_581_184


@pytest.mark.parametrize(("batch_size", "length", "region"), [(2, 64, 8), (3, 32, 32)])
def test_operations_are_those_that_xla_counts(batch_size, length, region):
    """XLA counts a scan's body once, and element-wise operations too."""
    config = dataclasses.replace(tiny(), n_layers=1, d_model=256, mlp_hidden_size=512)
    model = nnx.eval_shape(lambda: LLaDA(config, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(model)

    def run(state, tokens, region):
        model = nnx.merge(graph, state)
        positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
        seen = jnp.ones((batch_size, 1, length), bool)
        hidden, _ = model.hidden(tokens, positions, seen, region)
        return hidden @ model.head.T

    shapes = ((batch_size, length), (batch_size, region))
    arguments = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in shapes]
    counted = jax.jit(run).lower(state, *arguments).compile().cost_analysis()["flops"]
    ours = roofline.forward(config, batch_size, length, region).flops
    assert 0.98 * counted < ours < counted


def test_an_estimate_follows_from_the_counts():
    cost = roofline.forward(tiny(), 8, 100, 10)
    alone = roofline.estimate(tiny(), TEST, 1, 8, 100, 10)
    assert alone.compute == cost.flops / 1e12 and alone.network == 0
    assert alone.memory == (cost.weight_bytes + cost.activation_bytes) / 1e11
    assert alone.seconds == max(alone.compute, alone.memory)
    assert alone.tokens_per_second == 4 * 8 / alone.seconds
    shared = roofline.estimate(tiny(), TEST, 2, 8, 100, 10)
    assert shared.compute == alone.compute / 2 and shared.memory == alone.memory / 2
    # In a ring of two each sends half of it twice.
    assert shared.network == cost.sum_bytes / 1e10
    assert shared.bytes_per_device == alone.bytes_per_device / 2


def test_what_does_not_fit_is_refused():
    small = dataclasses.replace(TEST, chip=dataclasses.replace(CHIP, memory=1e5))
    with pytest.raises(InputError, match=r"test has 0 GB a device, 0\.\d are needed"):
        roofline.estimate(tiny(), small, 1, 1, 10, 10)
    odd = dataclasses.replace(TEST, num_devices=3)
    with pytest.raises(InputError, match=r"num_sharing \(2\) must divide the devices"):
        roofline.estimate(tiny(), odd, 2, 1, 10, 10)
