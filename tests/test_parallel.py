"""Batches over devices: the same rows on one as on three, and no talk between them."""

import dataclasses
import functools
import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from helpers import ALL_SPECS, DATA, prompts_of

from dlm_jax import checkpoints, generate, models, replay, samplers, traces
from dlm_jax.errors import InputError
from dlm_jax.models import llada
from dlm_jax.parallel import DataParallel, ModelParallel, make_mesh
from dlm_jax.types import Options

# Seven rows, which no number of devices here divides.
LENGTHS = (1, 9, 4, 6, 9, 2, 5)
SPECS = ("saber", "entropy_bound(gamma=1.0)", "low_confidence")
COLLECTIVES = re.compile(
    r"= \(?\w+\[([\d,]*)\]\S* (all-\w+|collective-\w+|reduce-scatter)\("
    r".*replica_groups=(\{\{.*?\}\}|\[\S+?<=\[\d+\])"
)


def small_model(dtype="float64"):
    """Weights at which predictions differ, and a key head for each of four devices."""
    config = dataclasses.replace(llada.tiny(), n_kv_heads=4)
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
      Results, number of groups and collectives: (shape, name, groups of devices).
    """
    runner = runner_of(small_model(), num_sharing)
    prompts = prompts_of(LENGTHS, 8)
    keys = generate.row_keys(5, np.arange(len(LENGTHS)))
    options = Options(gen_length=8, block_length=4, temperature=0.7)
    results = {}
    for spec in specs:
        result = runner(samplers.parse(spec), prompts, keys, options)
        results[spec] = [result.tokens.tolist(), result.num_steps.tolist()]
    collectives = [
        found
        for compiled in runner._compiled.values()
        for found in COLLECTIVES.findall(compiled.as_text())
    ]
    return results, runner.num_groups, collectives


def record_all(specs, num_sharing, directory):
    """Writes traces of every sampler and row in float32, on all devices."""
    model = small_model("float32")
    runner = runner_of(model, num_sharing)
    prompts = prompts_of(LENGTHS, 8)
    keys = generate.row_keys(0, np.zeros(len(LENGTHS), np.int32))
    options = Options(gen_length=8, block_length=4, has_trajectory=True)
    for number, spec in enumerate(specs):
        sampler = samplers.parse(spec)
        found = runner(sampler, prompts, keys, options)
        for row in range(len(LENGTHS)):
            trace = traces.record(
                *(found, prompts, sampler, options),
                name=f"{number:02}_{row}",
                checkpoint="small_model",
                mask_id=model.config.mask_token_id,
                row=row,
            )
            traces.save(trace, directory)


def elsewhere(num_devices, function, *arguments, is_wide=True):
    """What a function of this file gives in a process with that many devices."""
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={num_devices}",
        "JAX_ENABLE_X64": str(is_wide),
        "PYTHONPATH": os.pathsep.join([os.getcwd(), *filter(None, sys.path)]),
    }
    call = f"t.{function.__name__}(*{arguments!r})"
    child = f"import json, test_parallel as t; print(json.dumps({call}))"
    done = subprocess.run(
        [sys.executable, "-c", child], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check_collectives(collectives, num_groups, num_sharing):
    """Weights are shared within a group only, and no vocabulary is put together."""
    num_devices = num_groups * num_sharing
    groups = np.arange(num_devices).reshape(num_groups, num_sharing).tolist()
    spelled = "{" + ",".join("{" + ",".join(map(str, g)) + "}" for g in groups) + "}"
    short = f"[{num_groups},{num_sharing}]<=[{num_devices}]"
    assert {name for _, name, _ in collectives} == {"all-reduce", "all-gather"}
    vocabulary = llada.tiny().embedding_size
    for shape, _, found in collectives:
        assert found in (spelled, short)
        sizes = {int(size) for size in shape.split(",")}
        assert not sizes & {vocabulary, vocabulary // num_sharing}


@pytest.fixture(scope="module")
def on_one_device():
    with jax.enable_x64(True):
        return run_all(SPECS)


def test_three_devices_give_what_one_gives(on_one_device):
    results, num_groups, collectives = elsewhere(3, run_all, SPECS)
    assert (num_groups, collectives) == (3, [])
    assert on_one_device == (results, 1, [])
    # Else nothing would be compared but one answer.
    assert len({str(tokens) for tokens, _ in results.values()}) == len(SPECS)


def test_two_groups_of_two_devices_give_what_one_gives(on_one_device):
    results, num_groups, collectives = elsewhere(4, run_all, SPECS, 2)
    assert num_groups == 2
    assert results == on_one_device[0]
    check_collectives(collectives, 2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("num_sharing", [None, 1, 2, 4])
def test_eight_devices_give_what_one_gives_with_every_sampler(num_sharing):
    results, num_groups, collectives = elsewhere(8, run_all, ALL_SPECS, num_sharing)
    with jax.enable_x64(True):
        assert results == run_all(ALL_SPECS)[0]
    assert num_groups == 8 // (num_sharing or 1)
    if num_sharing is None:
        assert collectives == []
    else:
        check_collectives(collectives, num_groups, num_sharing)


@pytest.mark.slow
@pytest.mark.parametrize("num_sharing", [None, 1, 2, 4])
def test_eight_devices_differ_in_float32_by_near_ties_only(tmp_path, num_sharing):
    elsewhere(8, record_all, ALL_SPECS, num_sharing, str(tmp_path), is_wide=False)
    denoiser, params = models.as_denoiser(small_model("float32"))
    sample = DataParallel(denoiser, params)
    found = [
        replay.replay(trace, denoiser, params, sample, tolerance=1e-3)
        for trace in traces.load_directory(tmp_path)
    ]
    assert len(found) == len(ALL_SPECS) * len(LENGTHS)
    for comparison in found:
        divergence = comparison.divergence
        assert comparison.is_match or divergence.label == "near-tie", divergence
    # With few rows at a near-tie, a wrong one would be seen.
    assert sum(comparison.is_match for comparison in found) > 0.9 * len(found)


def test_all_specs_are_the_registry():
    assert {spec.split("(")[0] for spec in ALL_SPECS} == set(samplers.SAMPLERS)


@pytest.mark.parametrize(
    ("num_sharing", "message"),
    [
        (
            3,
            r"n_heads \(4\) must be a multiple of the devices that share a model \(3\)",
        ),
        (4, r"n_kv_heads \(2\) must be a multiple of the devices"),
        (0, r"devices that share a model \(0\) must be at least 1"),
    ],
)
def test_a_model_that_does_not_split_is_refused(num_sharing, message):
    with pytest.raises(InputError, match=message):
        llada.partition(llada.tiny(), num_sharing, "model")


def test_a_mesh_takes_a_divisor_of_the_devices():
    message = r"devices that share a model \(2\) must divide the local devices \(1\)"
    with pytest.raises(InputError, match=message):
        make_mesh(2)


def test_compiles_once_and_replicates_once():
    model = checkpoints.load(DATA / "checkpoints" / "tiny_kv2_seed3")
    parallel = DataParallel(*models.as_denoiser(model))
    prompts = prompts_of([3, 5], 4)
    options = Options(gen_length=4)
    keys = generate.row_keys(0, np.arange(2))
    for threshold, is_new in ((0.9, True), (0, False), (np.float64(0.3), False)):
        sampler = samplers.Threshold(threshold=threshold)
        seconds = parallel.compile(sampler, prompts, keys, options)
        assert (seconds > 0) == is_new
    # A leading device axis that lies where it is needed is what pmap does not copy.
    for weight in jax.tree.leaves(parallel._params):
        assert weight.shape[0] == 1
        assert weight.sharding.device_set == set(jax.local_devices())


@pytest.mark.parametrize("token", [-1, 320])
def test_tokens_that_the_model_does_not_have_are_refused(token):
    model = checkpoints.load(DATA / "checkpoints" / "tiny_kv2_seed3")
    denoiser, params = models.as_denoiser(model)
    prompts = prompts_of([3, 5], 4)
    # What stands at blanks and padding is ignored.
    prompts.tokens[:, 5:] = 10_000
    arguments = (samplers.parse("threshold"), prompts)
    arguments += (generate.row_keys(0, np.arange(2)), Options(gen_length=4))
    DataParallel(denoiser, params)(*arguments)
    prompts.tokens[1, 2] = token
    message = rf"prompts.tokens \({token}\) must be token ids from 0 to 319"
    for run in (
        DataParallel(denoiser, params),
        functools.partial(generate.generate, denoiser, params),
    ):
        with pytest.raises(InputError, match=message):
            run(*arguments)


@pytest.mark.parametrize("spec", SPECS)
def test_equals_generate(spec):
    model = checkpoints.load(DATA / "checkpoints" / "tiny_kv2_seed3")
    denoiser, params = models.as_denoiser(model)
    arguments = (
        samplers.parse(spec),
        prompts_of([3, 5], 4),
        generate.row_keys(0, np.arange(2)),
        Options(gen_length=4),
    )
    ours = DataParallel(denoiser, params)(*arguments)
    plain = generate.generate(denoiser, params, *arguments)
    np.testing.assert_array_equal(ours.tokens, plain.tokens)
    np.testing.assert_array_equal(ours.num_steps, plain.num_steps)
