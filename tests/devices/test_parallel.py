"""Batches over devices: the same rows on one as on three, and no talk between them."""

import dataclasses
import functools
import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import (
    ALL_SPECS,
    DATA,
    TableDenoiser,
    mixed_prompts,
    prompts_of,
    take_rows,
)

from dlm_jax import checkpoints, models, samplers
from dlm_jax.core import loop
from dlm_jax.core.keys import row_keys
from dlm_jax.core.options import Options
from dlm_jax.devices import batches, hosts
from dlm_jax.devices.runner import DataParallel, ModelParallel, make_mesh
from dlm_jax.errors import InputError
from dlm_jax.models import llada
from dlm_jax.parity import replay, traces
from dlm_jax.text.prompts import Encoded

# Seven rows, which no number of devices here divides.
LENGTHS = (1, 9, 4, 6, 9, 2, 5)
SPECS = ("saber", "entropy_bound(gamma=1.0)", "low_confidence")
OPCODES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "reduce-scatter",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)
# An instruction: what it gives, an opcode, whether it only begins the work.
COLLECTIVE = re.compile(rf"= (\S.*?) ({'|'.join(OPCODES)})(?:-start)?\(")


def collectives_of(program):
    """The collectives in the text of a compiled program.

    Returns:
      For each its opcode, the shapes of what it gives (of one that is begun, what it
      takes is among them) and its groups of devices; None if these are spelled in a way
      that is not known here, such as {}, which is all devices.
    """
    found = []
    for line in program.splitlines():
        if instruction := COLLECTIVE.search(line):
            result, opcode = instruction.groups()
            dims = re.findall(r"\w\[([^\]]*)\]", result)
            shapes = [[int(size) for size in re.findall(r"\d+", d)] for d in dims]
            found.append([opcode, shapes, groups_of(line)])
    return found


def groups_of(line):
    if explicit := re.search(r"replica_groups=(\{\{[\d,{} ]*\}\})", line):
        return json.loads(explicit[1].replace("{", "[").replace("}", "]"))
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[(\d+)\](?!T)", line):
        num_groups, size, num_devices = map(int, iota.groups())
        if num_groups * size == num_devices:
            return np.arange(num_devices).reshape(num_groups, size).tolist()
    return None


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
        *_, (begin, compiled) = runner._compiled.values()
        assert not collectives_of(begin.as_text())
        collectives[spec] = collectives_of(compiled.as_text())
    return results, collectives, runner.num_groups, placements(runner, *arguments)


def run_mixed(spec, num_slots, all_sharing=(None,)):
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
        vocab_slice=1024,
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
    found = batches.fill(
        runner,
        samplers.parse("random"),
        rows,
        Options(8, temperature=1.0),
        0,
        batch_size,
        period=float("inf"),
    )
    return [answer.tokens.tolist() for answer in found.answers], calls


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
    *_, (_, compiled) = runner._compiled.values()
    wanted = jax.tree.leaves(compiled.input_shardings[0][0])
    lies_right = [
        weight.sharding.is_equivalent_to(sharding, weight.ndim)
        for weight, sharding in zip(held, wanted, strict=True)
    ]
    for _ in range(2):
        runner(*arguments)
    return [all(lies_right), addresses() == before]


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
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={num_devices}",
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


# What `placements` finds on several devices, if weights are placed once.
IN_PLACE = [[True, True], [False, True], [True, False]]
PAIRS, ALL = [[0, 1], [2, 3]], [[0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "ROOT %a.1 = f32[4]{0} all-reduce(%p), replica_groups={}, to_apply=%sum",
            ["all-reduce", [[4]], None],
        ),
        (
            "a = f32[] all-reduce(p), channel_id=1, replica_groups={{0,1},{2,3}}, x={}",
            ["all-reduce", [[]], PAIRS],
        ),
        (
            "%a = (f32[2,3]{1,0:T(8,128)}, /*index=1*/f64[5]{0}) all-reduce(%p, %q), "
            "replica_groups={{0,1,2,3}}",
            ["all-reduce", [[2, 3], [5]], ALL],
        ),
        (
            "%a = f32[4]{0:S(1)} all-reduce-start(%p), replica_groups=[2,2]<=[4]",
            ["all-reduce", [[4]], PAIRS],
        ),
        (
            "%a = (f32[4]{0}, f32[2,4]{1,0}) all-gather-start(%p), dimensions={0}, "
            "replica_groups=[1,4]<=[4]",
            ["all-gather", [[4], [2, 4]], ALL],
        ),
        (
            "%a = s32[2,4] all-gather(%p), replica_groups=[2,2]<=[2,2]T(1,0)",
            ["all-gather", [[2, 4]], None],
        ),
        (
            "%a = s32[2,4] all-gather(%p), replica_groups=[2,2]<=[4]T(0)",
            ["all-gather", [[2, 4]], None],
        ),
        (
            "%a = s32[2,4] all-gather(%p), replica_groups=mesh['x'=2,'y'=2] {'y'}",
            ["all-gather", [[2, 4]], None],
        ),
        (
            "%a = (f32[1,2], f32[1,2]) all-to-all(%p), replica_groups={{0,1},{2,3}}",
            ["all-to-all", [[1, 2], [1, 2]], PAIRS],
        ),
        (
            "%a = f32[<=8] ragged-all-to-all(%p), replica_groups={{0,1},{2,3}}",
            ["ragged-all-to-all", [[8]], PAIRS],
        ),
        (
            "%a = f32[4]{0} reduce-scatter(%p), replica_groups={{0,1},{2,3}}",
            ["reduce-scatter", [[4]], PAIRS],
        ),
        (
            "%a = pred[3] collective-permute(%p), source_target_pairs={{0,1},{1,0}}",
            ["collective-permute", [[3]], None],
        ),
        (
            "%a = ((f32[3]), (f32[3]), u32[]) collective-permute-start(%p), x={{0,1}}",
            ["collective-permute", [[3], [3], []], None],
        ),
        (
            "%a = f32[3] collective-broadcast(%p), replica_groups={{0,1},{2,3}}",
            ["collective-broadcast", [[3]], PAIRS],
        ),
    ],
)
def test_every_spelling_of_a_collective_is_found(line, expected):
    # Around it what is none: the end of one that was begun, a name, a use of a name.
    others = [
        "ENTRY %main (p: f32[4]) -> f32[4] {",
        "%all-gather.2 = f32[4]{0} all-gather-done(%all-gather.1)",
        '%b = f32[4]{0} copy(%all-reduce.1), metadata={op_name="jit(f)/all-gather"}',
    ]
    assert collectives_of("\n  ".join([*others, line, *others])) == [expected]


@pytest.mark.parametrize(
    "bad",
    [
        # All devices; as one of them; the wrong pairs.
        ["all-reduce", [[4]], None],
        ["all-reduce", [[4]], ALL],
        ["all-gather", [[2, 4]], [[0, 2], [1, 3]]],
        # Logits of a device's part of the vocabulary, as they are and flattened.
        ["all-gather", [[2, 1, 160]], PAIRS],
        ["all-gather", [[4], [2 * 4 * 4 * 160]], PAIRS],
        ["all-reduce", [[4 * 4 * 320]], PAIRS],
        ["collective-permute", [[3]], None],
        ["all-to-all", [[2, 4]], PAIRS],
    ],
)
def test_a_wrong_collective_is_refused(bad):
    good = [["all-reduce", [[4, 17, 64]], PAIRS], ["all-gather", [[2, 4, 4]], PAIRS]]
    check_collectives({"random": good}, 2, 2)
    with pytest.raises(AssertionError):
        check_collectives({"random": [*good, bad]}, 2, 2)


@pytest.fixture(scope="module")
def on_one_device():
    with jax.enable_x64(True):
        return run_all(SPECS)


def test_three_devices_give_what_one_gives(on_one_device):
    results, collectives, num_groups, in_place = elsewhere(3, run_all, SPECS)
    assert (num_groups, collectives) == (3, {spec: [] for spec in SPECS})
    assert on_one_device[:3] == (results, collectives, 1)
    assert in_place == IN_PLACE
    # Else nothing would be compared but one answer.
    assert len({str(tokens) for tokens, _ in results.values()}) == len(SPECS)


def test_two_groups_of_two_devices_give_what_one_gives(on_one_device):
    results, collectives, num_groups, in_place = elsewhere(4, run_all, SPECS, 2)
    assert num_groups == 2
    assert results == on_one_device[0]
    check_collectives(collectives, 2, 2)
    assert in_place == IN_PLACE


def test_uneven_rows_on_several_devices_are_as_on_one():
    with jax.enable_x64(True):
        ((*wanted, their_confidence, nfe),) = run_mixed("saber", 8)
    # A slot in each of two or four groups, so that rows wait for one.
    for found in elsewhere(4, run_mixed, "saber", 1, (2, None)):
        *exact, confidence, iterations = found
        assert exact == wanted
        np.testing.assert_allclose(confidence, their_confidence, rtol=1e-9)
        assert max(iterations) > max(nfe)


def test_a_call_that_is_not_full_is_shared_by_all_devices():
    tokens, calls = elsewhere(3, fill_calls, 29, 3)
    # 24 rows and 5, each of 8 forwards, in 3 slots.
    assert calls == [64, 16]
    with jax.enable_x64(True):
        assert tokens == fill_calls(29, 3)[0]


@pytest.mark.slow
@pytest.mark.parametrize(("num_devices", "num_sharing"), [(4, 2), (3, None)])
def test_optimized_programs_give_it_too(on_one_device, num_devices, num_sharing):
    specs = SPECS[:1]
    results, collectives, *_ = elsewhere(
        num_devices, run_all, specs, num_sharing, is_optimized=True
    )
    assert results == {spec: on_one_device[0][spec] for spec in specs}
    if num_sharing is None:
        assert collectives == {spec: [] for spec in specs}
    else:
        check_collectives(collectives, num_devices // num_sharing, num_sharing)


@pytest.mark.slow
@pytest.mark.parametrize("num_sharing", [None, 1, 2, 4])
def test_eight_devices_give_what_one_gives_with_every_sampler(num_sharing):
    results, collectives, num_groups, in_place = elsewhere(
        8, run_all, ALL_SPECS, num_sharing
    )
    with jax.enable_x64(True):
        assert results == run_all(ALL_SPECS)[0]
    assert num_groups == 8 // (num_sharing or 1)
    assert in_place == IN_PLACE
    if num_sharing is None:
        assert collectives == {spec: [] for spec in ALL_SPECS}
    else:
        check_collectives(collectives, num_groups, num_sharing)


@pytest.mark.slow
@pytest.mark.parametrize("num_sharing", [None, 1, 2, 4])
def test_eight_devices_differ_in_float32_by_near_ties_only(tmp_path, num_sharing):
    elsewhere(8, record_all, ALL_SPECS, num_sharing, str(tmp_path), is_wide=False)
    check_near_ties(tmp_path, len(ALL_SPECS))


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
    keys = row_keys(0, np.arange(2))
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
    arguments += (row_keys(0, np.arange(2)), Options(gen_length=4))
    DataParallel(denoiser, params)(*arguments)
    prompts.tokens[1, 2] = token
    message = rf"prompts.tokens \({token}\) must be token ids from 0 to 319"
    for run in (
        DataParallel(denoiser, params),
        functools.partial(loop.generate, denoiser, params),
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
        row_keys(0, np.arange(2)),
        Options(gen_length=4),
    )
    ours = DataParallel(denoiser, params)(*arguments)
    plain = loop.generate(denoiser, params, *arguments)
    np.testing.assert_array_equal(ours.tokens, plain.tokens)
    np.testing.assert_array_equal(ours.num_steps, plain.num_steps)
