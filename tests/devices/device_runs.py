"""Generations on all devices of a process, and what runs them in another process."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from helpers import (
    DATA,
    TableDenoiser,
    mixed_prompts,
    prompts_of,
    take_rows,
)

from dlm_jax import caches, checkpoints, models, samplers
from dlm_jax.core.keys import row_keys
from dlm_jax.core.options import Options
from dlm_jax.devices import batches, hosts
from dlm_jax.devices.runner import DataParallel, ModelParallel, make_mesh
from dlm_jax.models import llada, stack
from dlm_jax.parity import replay, traces
from dlm_jax.text.prompts import Encoded
from experiments.timing import compiled

# Seven rows, which no number of devices here divides.
LENGTHS = (1, 9, 4, 6, 9, 2, 5)
SPECS = ("saber", "entropy_bound(gamma=1.0)", "low_confidence")


def collectives_of(program):
    """The collectives in the text of a compiled program, as lists.

    Returns:
      For each its opcode, the shapes of what it gives and its groups of devices, see
      `compiled.Collective`.
    """
    return [
        [x.opcode, x.shapes, None if x.groups is None else [*map(list, x.groups)]]
        for x in compiled.collectives(program)
    ]


def small_model(dtype="float64", config=None):
    """Weights at which predictions differ, and a key head for each of four devices."""
    config = config or dataclasses.replace(llada.tiny(), n_kv_heads=4)
    model = llada.LLaDA(config, rngs=nnx.Rngs(3))
    graph, state = nnx.split(checkpoints.astype(model, dtype))
    return nnx.merge(graph, jax.tree.map(lambda x: 4 * x, state))


def runner_of(model, num_sharing):
    """On all devices of this process; num_sharing None is `DataParallel`."""
    denoiser, params = models.as_denoiser(model)
    if num_sharing is None:
        return DataParallel(denoiser, params)
    shared = llada.partition(model.config, num_sharing, "model")
    return ModelParallel(denoiser, params, shared, make_mesh(num_sharing))


def run_all(specs, num_sharing=None):
    """Generates with samplers on all devices of this process.

    Args:
      specs: of the samplers.
      num_sharing: devices that share the weights; None for `DataParallel`.

    Returns:
      Results and collectives by spec, number of groups, and what `placements` finds.
    """
    runner = runner_of(small_model(), num_sharing)
    prompts = prompts_of(LENGTHS, 8)
    keys = row_keys(5, np.arange(len(LENGTHS)))
    options = Options(gen_length=8, block_length=4, temperature=0.7)
    results, collectives = {}, {}
    for spec in specs:
        arguments = (samplers.parse(spec), prompts, keys, options)
        result = runner(*arguments)
        results[spec] = [result.tokens.tolist(), result.num_steps.tolist()]
        # Stopped at every iteration of all devices.
        seen = []
        for places, part in runner.stream(*arguments, period=0.0):
            np.testing.assert_array_equal(part.tokens, result.tokens[places])
            seen += places.tolist()
        assert sorted(seen) == list(range(len(LENGTHS)))
        programs = runner.programs(*arguments)
        assert not collectives_of(programs.begin.as_text())
        collectives[spec] = collectives_of(programs.proceed.as_text())
    return results, collectives, runner.num_groups, placements(runner, *arguments)


def run_mixed(spec, num_slots, all_sharing=(None,), cache="none"):
    """Generates with all that makes the loop's work uneven, on all devices.

    A part of the vocabulary (half of 2,320) is read in two slices, and the second one
    starts inside of a tile of noise.
    """
    config = dataclasses.replace(
        llada.tiny(),
        n_kv_heads=4,
        n_layers=1,
        vocab_size=2300,
        embedding_size=2320,
    )
    model = small_model(config=config)
    options = Options(
        12,
        4,
        0.7,
        0.5,
        stop_ids=(2, 3, 4),
        suppressed_ids=(5,),
        deferred_ids=(2,),
        num_slots=num_slots,
        logits_bytes=1,
        cache=caches.parse(cache),
    )
    prompts = mixed_prompts(12)
    keys = row_keys(5, np.arange(len(prompts.tokens)))
    found = []
    for num_sharing in all_sharing:
        result = runner_of(model, num_sharing)(
            samplers.parse(spec), prompts, keys, options
        )
        fields = result.tokens, result.num_steps, result.commit_step, result.confidence
        found.append([x.tolist() for x in (*fields, result.last_iteration)])
    return found


def run_plan(specs, plan):
    """Generates with samplers and one cache plan on all devices.

    Returns:
      Tokens, steps and whole forwards by spec.
    """
    if plan == "block":
        model = checkpoints.load(DATA / "checkpoints" / "sdar_a", "float64")
    else:
        model = small_model()
    runner = runner_of(model, None)
    keys = row_keys(5, np.arange(len(LENGTHS)))
    options = Options(8, 4, temperature=0.7, cache=caches.parse(plan))
    found = {}
    for spec in specs:
        prompts = prompts_of(LENGTHS, 8, vocab_size=200)
        result = runner(samplers.parse(spec), prompts, keys, options)
        fields = result.tokens, result.num_steps, result.num_whole
        found[spec] = [x.tolist() for x in fields]
    return found


def fill_calls(num_rows, batch_size):
    """Fills rows of equal NFE, call after call.

    Returns:
      Tokens of all rows, and the iterations of each call.
    """
    table = 3 * jax.random.normal(jax.random.key(1), (12, 12))
    runner = DataParallel(TableDenoiser(mask_id=11, eos_id=10), table)
    calls, stream = [], runner.stream

    def counted(*arguments):
        for places, rows in stream(*arguments):
            calls.append(int(rows.last_iteration.max()))
            yield places, rows

    runner.stream = counted
    prompts = prompts_of([i % 4 for i in range(num_rows)], 8, vocab_size=9)
    rows = [
        Encoded(tokens[is_valid], is_blank[is_valid], is_infill=False)
        for tokens, is_blank, is_valid in zip(
            prompts.tokens, prompts.is_blank, prompts.is_valid, strict=True
        )
    ]
    found = {}
    for done in batches.stream(
        parallel=runner,
        sampler=samplers.parse("random"),
        rows=rows,
        options=Options(8, temperature=1.0),
        seed=0,
        batch_size=batch_size,
        period=float("inf"),
    ):
        for row, index in enumerate(done.indices):
            tokens = done.filled.tokens[row, : rows[index].tokens.size]
            found[int(index)] = tokens.tolist()
    return [found[i] for i in range(len(rows))], calls


def placements(runner, *arguments):
    """Whether calls take weights from where they lie, and whether that would be seen.

    Returns:
      What `is_in_place` says of the runner as it is, with weights that lie on its first
      device, and with weights that are placed anew before each call.
    """
    placed = runner._params
    found = [is_in_place(runner, *arguments)]
    runner._params = jax.tree.map(lambda x: jax.device_put(np.asarray(x)), placed)
    found.append(is_in_place(runner, *arguments))
    runner._params = placed
    prepare = runner._prepare

    def place_anew(*arguments):
        runner._params = jax.tree.map(jnp.copy, runner._params)
        return prepare(*arguments)

    runner._prepare = place_anew
    return [*found, is_in_place(runner, *arguments)]


def is_in_place(runner, *arguments):
    """Of weights in calls after the first.

    Returns:
      Whether they lie as the compiled program takes them, and whether they still are
      where they were before two calls.
    """

    def addresses():
        shards = [x.addressable_shards for x in jax.tree.leaves(runner._params)]
        return [[part.data.unsafe_buffer_pointer() for part in x] for x in shards]

    # Held, for memory that is given back could be given out again.
    held, before = jax.tree.leaves(runner._params), addresses()
    *_, (_, proceed) = runner._compiled.values()
    wanted = jax.tree.leaves(proceed.input_shardings[0][0])
    lies_right = [
        weight.sharding.is_equivalent_to(sharding, weight.ndim)
        for weight, sharding in zip(held, wanted, strict=True)
    ]
    for _ in range(2):
        runner(*arguments)
    return [all(lies_right), addresses() == before]


def run_by_head(num_sharing):
    """Generates as a TPU does: weights of heads lie in another order of axes.

    Returns:
      Tokens as every backend but a TPU gives them, those by head, the order of axes of
      a weight of heads, and what `is_in_place` says.
    """
    arguments = (
        samplers.parse("saber"),
        prompts_of(LENGTHS, 8),
        row_keys(5, np.arange(len(LENGTHS))),
        Options(gen_length=8, block_length=4, temperature=0.7),
    )
    expected = runner_of(small_model(), num_sharing)(*arguments).tokens
    stack._WAYS["cpu"] = stack.Way(is_by_head=True)
    runner = runner_of(small_model(), num_sharing)
    found = runner(*arguments).tokens
    weight = runner._params["blocks"]["q_proj"][...]
    return (
        expected.tolist(),
        found.tolist(),
        weight.format.layout.major_to_minor,
        is_in_place(runner, *arguments),
    )


def record_all(specs, num_sharing, directory, host=None):
    """Writes traces of every sampler and row in float32, on all devices.

    Args:
      specs: of the samplers.
      num_sharing: devices that share the weights; None for `DataParallel`.
      directory: of the traces.
      host: whose share of the rows is run; all by default.
    """
    host = host or hosts.Host()
    model = small_model("float32")
    runner = runner_of(model, num_sharing)
    places = host.share(range(len(LENGTHS)))
    prompts = take_rows(prompts_of(LENGTHS, 8), places)
    keys = row_keys(0, np.zeros(len(places), np.int32))
    options = Options(gen_length=8, block_length=4, has_trajectory=True)
    for number, spec in enumerate(specs):
        sampler = samplers.parse(spec)
        found = runner(sampler, prompts, keys, options)
        for row, place in enumerate(places):
            trace = traces.record(
                found,
                prompts,
                sampler,
                options,
                name=f"{number:02}_{place}",
                checkpoint="small_model",
                mask_id=model.config.mask_token_id,
                row=row,
            )
            traces.save(trace, directory)


def elsewhere(num_devices, function, *arguments, is_wide=True, is_optimized=False):
    """What a function of this file gives in a process with that many devices."""
    environment = {
        **os.environ,
        "JAX_NUM_CPU_DEVICES": str(num_devices),
        "JAX_ENABLE_X64": str(is_wide),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": str(not is_optimized),
        "PYTHONPATH": os.pathsep.join([os.getcwd(), *filter(None, sys.path)]),
    }
    call = f"t.{function.__name__}(*{arguments!r})"
    child = f"import json, test_parallel as t; print(json.dumps({call}))"
    done = subprocess.run(
        [sys.executable, "-c", child], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check_collectives(by_spec, num_groups, num_sharing):
    """Weights are shared within a group only, and no vocabulary is put together."""
    groups = np.arange(num_groups * num_sharing).reshape(num_groups, -1).tolist()
    config = llada.tiny()
    vocabulary = {config.embedding_size, config.embedding_size // num_sharing}
    rows = -(-len(LENGTHS) // num_groups)
    for spec, collectives in by_spec.items():
        # Samplers that revise look at all blanks, the others at the active block.
        region = {"saber": 8, "saber_released": 10}.get(spec, 4)
        largest = {
            # A statistic of every position, from every device of the group.
            "all-gather": num_sharing * rows * region,
            # The hidden states.
            "all-reduce": rows * (max(LENGTHS) + 8) * config.d_model,
        }
        assert {opcode for opcode, *_ in collectives} == set(largest)
        for opcode, shapes, found in collectives:
            assert found == groups
            for shape in shapes:
                assert np.prod(shape) <= largest[opcode]
                assert not vocabulary & {*shape}


def check_near_ties(directory, num_specs):
    """One device follows what `record_all` wrote, up to near-ties."""
    denoiser, params = models.as_denoiser(small_model("float32"))
    sample = DataParallel(denoiser, params)
    found = [
        replay.replay(trace, denoiser, params, sample, tolerance=1e-3)
        for trace in traces.load_directory(directory)
    ]
    assert len(found) == num_specs * len(LENGTHS)
    for comparison in found:
        divergence = comparison.divergence
        assert comparison.is_match or divergence.label == "near-tie", divergence
    # With few rows at a near-tie, a wrong one would be seen.
    assert sum(comparison.is_match for comparison in found) > 0.9 * len(found)
