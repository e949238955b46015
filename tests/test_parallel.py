"""Batches over devices: the same rows on one as on three, and no talk between them."""

import functools
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers import DATA, prompts_of

from dlm_jax import checkpoints, generate, models, samplers
from dlm_jax.errors import InputError
from dlm_jax.parallel import DataParallel
from dlm_jax.types import Options

# Seven rows, which three devices do not divide.
LENGTHS = (1, 9, 4, 6, 9, 2, 5)
SPECS = ("saber", "entropy_bound(gamma=1.0)", "low_confidence")


def run_all():
    """Generates with every sampler on all devices of this process."""
    model = checkpoints.load(DATA / "checkpoints" / "tiny_kv2_seed3", "float64")
    parallel = DataParallel(*models.as_denoiser(model))
    prompts = prompts_of(LENGTHS, 8)
    keys = generate.row_keys(5, np.arange(len(LENGTHS)))
    options = Options(gen_length=8, block_length=4, temperature=0.7)
    results = {"devices": jax.local_device_count()}
    for spec in SPECS:
        result = parallel(samplers.parse(spec), prompts, keys, options)
        results[spec] = [result.tokens.tolist(), result.num_steps.tolist()]
    hlo = [compiled.as_text() for compiled in parallel._compiled.values()]
    results["collectives"] = [
        name
        for name in ("all-reduce", "all-gather", "all-to-all", "collective", "infeed")
        for text in hlo
        if name in text
    ]
    return results


def test_three_devices_give_what_one_gives():
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=3",
        "JAX_ENABLE_X64": "true",
        "PYTHONPATH": os.pathsep.join([os.getcwd(), *filter(None, sys.path)]),
    }
    child = "import json, test_parallel; print(json.dumps(test_parallel.run_all()))"
    done = subprocess.run(
        [sys.executable, "-c", child], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    three = json.loads(done.stdout.splitlines()[-1])
    assert three.pop("devices") == 3
    assert three.pop("collectives") == []
    with jax.enable_x64(True):
        one = run_all()
    assert one.pop("devices") == 1
    assert one.pop("collectives") == []
    assert three == one


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
