"""Batches over devices: the same rows on one as on three, and no talk between them."""

import functools
import warnings

import jax
import numpy as np
import pytest
from device_runs import (
    SPECS,
    check_collectives,
    check_near_ties,
    collectives_of,
    elsewhere,
    fill_calls,
    record_all,
    run_all,
    run_by_head,
    run_mixed,
    run_plan,
)
from flax import nnx
from helpers import (
    ALL_SPECS,
    DATA,
    prompts_of,
)

from dlm_jax import checkpoints, models, samplers
from dlm_jax.core import loop
from dlm_jax.core.keys import row_keys
from dlm_jax.core.options import Options
from dlm_jax.devices import parallel
from dlm_jax.devices.runner import DataParallel, make_mesh
from dlm_jax.errors import InputError
from dlm_jax.models import llada

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
            ["all-gather", [[2, 4]], [[0, 2], [1, 3]]],
        ),
        (
            "%a = s32[2,4] all-gather(%p), replica_groups=[2,2]<=[4]T(0)",
            ["all-gather", [[2, 4]], PAIRS],
        ),
        (
            "%a = s32[2,4] all-gather(%p), replica_groups=mesh['x'=2,'y'=2] {'y'}",
            ["all-gather", [[2, 4]], PAIRS],
        ),
        (
            "%a = s32[2,4] all-gather(%p), replica_groups=mesh['x'=2,'y'=2] {'x'}",
            ["all-gather", [[2, 4]], [[0, 2], [1, 3]]],
        ),
        (
            "%a = s32[4] all-reduce(%p), replica_groups=mesh['x'=2,'y'=2] {'x','y'}",
            ["all-reduce", [[4]], ALL],
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


@pytest.mark.parametrize(
    ("num_sharing", "order"),
    [pytest.param(None, [0, 1, 3, 2], marks=pytest.mark.slow), (2, [0, 2, 1])],
)
def test_weights_lie_once_in_the_order_that_a_tpu_reads(num_sharing, order):
    expected, found, laid_out, in_place = elsewhere(4, run_by_head, num_sharing)
    assert found == expected
    assert (laid_out, in_place) == (order, [True, True])


@pytest.mark.parametrize(
    "cache",
    [
        "none",
        # The heads of the cache are split among the devices of a group.
        pytest.param("dual(refresh_every=3)", marks=pytest.mark.slow),
        pytest.param("prefix", marks=pytest.mark.slow),
    ],
)
def test_uneven_rows_on_several_devices_are_as_on_one(cache):
    with jax.enable_x64(True):
        ((*wanted, their_confidence, nfe),) = run_mixed("saber", 8, cache=cache)
    # A slot in each of two or four groups, so that rows wait for one.
    for found in elsewhere(4, run_mixed, "saber", 1, (2, None), cache):
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
@pytest.mark.parametrize("plan", ["prefix", "dual", "dual(refresh_every=3)", "block"])
def test_eight_devices_give_what_one_gives_with_every_cache(plan):
    """There a device has one row; here one of seven is computed whole at a time."""
    refused = ("saber", "saber_released") if plan == "block" else ()
    specs = [spec for spec in ALL_SPECS if spec.split("(")[0] not in refused]
    found = elsewhere(8, run_plan, specs, plan)
    with jax.enable_x64(True):
        assert found == run_plan(specs, plan)
    assert any(
        whole < steps
        for _, *n in found.values()
        for steps, whole in zip(*n, strict=True)
    )


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


def test_a_jax_that_is_slow_on_gpus_is_named(monkeypatch):
    monkeypatch.setattr(jax, "__version_info__", (0, 11, 0))
    with pytest.warns(UserWarning, match=r"copies all weights in every step on GPUs"):
        parallel._warn_of_copies("gpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parallel._warn_of_copies("cpu")
        monkeypatch.setattr(jax, "__version_info__", (0, 11, 1))
        parallel._warn_of_copies("gpu")


def test_what_compiles_is_asked_whether_it_is_slow(monkeypatch):
    asked = []
    monkeypatch.setattr(parallel, "_warn_of_copies", asked.append)
    model = llada.LLaDA(llada.tiny(), rngs=nnx.Rngs(0))
    arguments = prompts_of([2], 4), row_keys(0, np.arange(1)), Options(4)
    DataParallel(*models.as_denoiser(model)).compile(samplers.Random(), *arguments)
    assert asked == ["cpu"]


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


@pytest.mark.parametrize(
    "spec", [SPECS[0], *(pytest.param(x, marks=pytest.mark.slow) for x in SPECS[1:])]
)
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
