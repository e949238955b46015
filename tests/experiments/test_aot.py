"""Programs compiled for devices that are not at hand, and what is read of them."""

import dataclasses
import importlib.util
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dlm_jax import models, samplers
from dlm_jax.core.keys import row_keys
from dlm_jax.core.options import Options
from dlm_jax.devices.runner import DataParallel
from dlm_jax.errors import InputError
from dlm_jax.models.llada import LLaDA, llada_8b, tiny
from experiments.timing import aot, compiled, roofline, steps

SMALL = (
    "--preset=tiny",
    "--prompt_length=8",
    "--gen_length=16",
    "--block_length=8",
    "--batch_size=2",
)

# As the TPU's compiler writes it, shortened: sums in a loop over four layers, which
# lies in the loop over steps; one more in each branch of a condition.
TEXT = """HloModule jit_proceed

%layers (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %psum.1 = bf16[8,4]{1,0:T(8,128)S(1)} all-reduce(%f.1), replica_groups={{0,1},{2,3}}
  ROOT %t = (s32[], bf16[8,4]) tuple(%i, %psum.1)
}

%layers_end (p: (s32[], bf16[8,4])) -> pred[] {
  %c = s32[]{:T(128)} constant(4), metadata={op_name="jit(f)"}
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %c), direction=LT
}

%yes (p: f32[2]) -> f32[2] {
  ROOT %g.1 = f32[2,2] all-gather(%p), replica_groups=[2,2]<=[4], dimensions={0}
}

%no (p: f32[2]) -> f32[2] {
  ROOT %g.2 = f32[2,2] all-gather(%p), replica_groups=[2,2]<=[4], dimensions={0}
}

%step (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %w = (s32[], bf16[8,4]) while(%t), condition=%layers_end, body=%layers
  %psum.2 = f32[3]{0} all-reduce(%x), replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %r = f32[2] conditional(%p, %a, %b), branch_computations={%yes, %no}
}

%step_end (p: (s32[], bf16[8,4])) -> pred[] {
  %u = s32[] get-tuple-element(%p), index=1
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %u), direction=LT
}

ENTRY %main (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  ROOT %w = (s32[], bf16[8,4]) while(%p), condition=%step_end, body=%step
}
"""
PAIRS = ((0, 1), (2, 3))

# As a GPU's compiler writes it, shortened: weights of two layers are joined, and read
# by a product through a slice that is fused with it.
GPU_TEXT = """HloModule jit_proceed

%joined (a: bf16[2,4,4], b: bf16[2,4,4]) -> bf16[4,8] {
  %s.1 = bf16[1,4,4]{2,1,0} slice(%a), slice={[0:1], [0:4], [0:4]}
  %s.2 = bf16[1,4,4]{2,1,0} slice(%b), slice={[0:1], [0:4], [0:4]}
  ROOT %c = bf16[4,8]{1,0} concatenate(%s.1, %s.2), dimensions={1}
}

%sliced (a: bf16[2,4,4], x: bf16[3,4]) -> bf16[3,4] {
  %s.3 = bf16[1,4,4]{2,1,0} slice(%a), slice={[1:2], [0:4], [0:4]}
  ROOT %m = bf16[3,4]{1,0} custom-call(%x, %s.3), custom_call_target="__cublas$gemm"
}

%yes (p: f32[2]) -> f32[2] {
  ROOT %n = f32[2]{0} negate(%p)
}

%no (p: f32[2]) -> f32[2] {
  ROOT %p = f32[2]{0} parameter(0)
}

%step (p: (bf16[2,4,4], bf16[2,4,4], bf16[3,4])) -> (bf16[2,4,4], bf16[3,4]) {
  %w.1 = bf16[2,4,4]{2,1,0} get-tuple-element(%p), index=0
  %w.2 = bf16[2,4,4]{2,1,0} get-tuple-element(%p), index=1
  %x = bf16[3,4]{1,0} get-tuple-element(%p), index=2
  %f.1 = bf16[4,8]{1,0} fusion(%w.1, %w.2), kind=kInput, calls=%joined
  %m.1 = (bf16[3,8]{1,0}, s8[64]{0}) custom-call(%x, %f.1), custom_call_target="a"
  %f.2 = bf16[3,4]{1,0} fusion(%w.1, %x), kind=kCustom, calls=%sliced
  %r = f32[2] conditional(%i, %a, %b), branch_computations={%yes, %no}
  ROOT %t = (bf16[2,4,4]) tuple(%w.1)
}

%step_end (p: (bf16[2,4,4], bf16[2,4,4], bf16[3,4])) -> pred[] {
  ROOT %lt = pred[] compare(%i, %u), direction=LT
}

ENTRY %main (p: bf16[2,4,4]) -> bf16[2,4,4] {
  %before = bf16[4,2,4]{2,1,0} copy(%q)
  ROOT %w = (bf16[2,4,4]) while(%p), condition=%step_end, body=%step
}
"""


def test_collectives_are_counted_as_often_as_they_run_in_a_step():
    assert compiled.collectives(TEXT) == [
        compiled.Collective("all-reduce", ("bf16[8,4]",), PAIRS, 4),
        compiled.Collective("all-gather", ("f32[2,2]",), PAIRS, 1),
        compiled.Collective("all-gather", ("f32[2,2]",), PAIRS, 1),
        compiled.Collective("all-reduce", ("f32[3]",), PAIRS, 1),
    ]


def test_turns_are_those_of_a_program_that_was_compiled_here():
    """XLA on a CPU writes them another way than on a TPU."""

    def run(x):
        return jax.lax.scan(lambda x, _: (jnp.sin(x), None), x, None, 7)

    text = jax.jit(run).lower(jnp.ones(3)).compile().as_text()
    loops = [line for line in text.splitlines() if " while(" in line]
    assert [compiled._trips(line, []) for line in loops] == [7]


def test_kernels_of_a_step_are_counted_without_what_is_fused():
    # Two fusions, a product and a branch.
    assert compiled.launches(GPU_TEXT) == 4


def test_copies_of_weights_are_what_reads_them_and_does_not_multiply():
    assert compiled.moved(GPU_TEXT, {(2, 4, 4)}) == 2 * 4 * 8
    assert compiled.moved(GPU_TEXT, {(2, 4, 5)}) == 0
    # The joining and the product's slice in one: nothing is copied.
    both = GPU_TEXT.replace("calls=%joined", "calls=%sliced")
    assert compiled.moved(both, {(2, 4, 4)}) == 0


def report(**changes):
    fields = dict(
        kind="TPU v5 lite",
        num_devices=4,
        num_groups=2,
        seconds=12.34,
        arguments=8_000_000_000,
        temporaries=2_000_000_000,
        outputs=0,
        code=250_000_000,
        flops=1.5e12,
        bytes_accessed=2.5e9,
        moved=300_000_000,
        launches=None,
        collectives=compiled.collectives(TEXT),
        forwards={"a step": roofline.Times(0.020, 0.005, 0.001)},
    )
    return aot.Report(**{**fields, **changes})


def test_the_memory_left_is_that_of_the_chip():
    assert report().total == 10_250_000_000
    assert report().left == pytest.approx(1 - 10.25e9 / (15.75 * 2**30))
    unknown = report(kind="TPU v9")
    assert unknown.chip is None and unknown.left is None


def test_a_report_is_printed_as_tables():
    text = aot.describe(report())
    for cells in (
        ("one device", "TPU v5 lite"),
        ("devices, groups", "4, 2"),
        ("compiled in, s", "12.3"),
        ("temporaries, GB", "2.00"),
        ("memory left", "39.4%"),
        ("TFLOP, loop bodies counted once", "1.50"),
        ("copies of weights in a step, GB", "0.30"),
        ("a step, lower bound, ms", "21.00"),
        ("  limit", "compute"),
        ("all-reduce", "bf16[8,4]", "4", "2 of 2: {0,1} {2,3}"),
        # Both branches.
        ("all-gather", "f32[2,2]", "2", "2 of 2: {0,1} {2,3}"),
    ):
        assert re.search(r"\| " + r" *\| *".join(map(re.escape, cells)) + r" \|", text)
    alone = aot.describe(report(collectives=[], kind="TPU v9", forwards={}))
    assert "no collectives" in alone and "memory left" not in alone
    assert "TFLOP" in alone and "kernels" not in alone
    of_a_gpu = aot.describe(report(flops=None, bytes_accessed=None, launches=503))
    assert re.search(r"kernels in a step, at most *\| *503 \|", of_a_gpu)
    assert "TFLOP" not in of_a_gpu


def test_shapes_compile_to_the_program_of_the_weights():
    config = tiny()
    model = LLaDA(config, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    prompts = steps.synthetic(6, 5, 8, config.vocab_size, 0)
    call = (
        samplers.parse("saber"),
        prompts,
        row_keys(0, np.arange(6)),
        Options(8, 4, num_slots=3),
    )
    devices = jax.local_devices()[:1]
    whole = DataParallel(*models.as_denoiser(model), devices).programs(*call)
    shapes = aot.abstract(config, "bfloat16", devices, None).programs(*call)
    for one, other in zip(whole, shapes, strict=True):
        # The name of the attention function is no part of the instructions.
        assert instructions(one) == instructions(other)


def instructions(program):
    text = re.sub(r", metadata=\{[^}]*\}", "", program.as_text())
    return text[text.index("\n\n%") : text.index("\nFileNames")]


def test_a_window_costs_its_own_tokens_and_the_cache():
    whole = roofline.forward(llada_8b(), 8, 512, 32)
    step = roofline.forward(llada_8b(), 8, 512, 32, window=32)
    head = 2 * 126464 * 4096 * 8 * 32
    assert step.flops - head == pytest.approx((whole.flops - head) / 16)
    assert step.weight_bytes == whole.weight_bytes
    assert whole.cache_bytes == 0
    assert step.cache_bytes == 2 * 2 * 32 * 8 * 512 * 4096


def test_rows_refreshed_at_once_are_those_of_the_chip_not_of_this_machine():
    options = Options(8, 4, num_slots=8)
    chosen = [aot.chosen_for(name, options).num_refreshed for name in ("cpu", "tpu")]
    assert chosen == [2, 1]
    asked = Options(8, 4, num_slots=8, num_refreshed=3)
    assert aot.chosen_for("tpu", asked).num_refreshed == 3


def test_a_program_for_this_machine_is_compiled_and_described(run_script, tmp_path):
    text = tmp_path / "program.txt"
    status, out, err = run_script("aot", "--topology=cpu", *SMALL, f"--text={text}")
    assert (status, err) == (0, "")
    assert "| devices, groups" in out and "no collectives" in out
    assert text.read_text().startswith("HloModule")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--topology=cpu", "--num_devices=99"],
            r"num_devices \(99\) must be from 1 to",
        ),
        (["--topology=cpu", "--batch_size=0"], r"batch_size \(0\) must be at least 1"),
        (["--topology=cpu", "--layers=0"], r"layers \(0\) must be at least 1"),
        (["--topology=cpu", "--prompt_length=-1"], r"prompt_length \(-1\) must be"),
        (
            ["--topology=cpu", "--chips_per_host=4"],
            r"chips_per_host \(4\) must be such",
        ),
        (
            ["--topology=h100", "--chips_per_host=2x2"],
            "chips_per_host is for TPUs, not for topology h100",
        ),
        (["--topology=cpu", "--devices_per_model=7"], r"must be a multiple of the dev"),
        (["--topology=cpu", "--cache=all"], r"cache \(all\) must be one of"),
    ],
)
def test_what_cannot_be_compiled_is_refused(run_script, arguments, message):
    status, out, err = run_script("aot", *SMALL, *arguments)
    assert (status, out) == (1, "")
    assert re.fullmatch(rf"error: .*{message}.*\n", err)


@pytest.mark.parametrize(
    ("topology", "extra"), [("v5e:4x4", "aot"), ("h100", "cuda"), ("h200:8", "cuda")]
)
def test_without_the_compiler_its_install_command_is_named(
    monkeypatch, topology, extra
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError) as error:
        aot.devices_of(topology)
    assert f"topology ({topology}) needs the " in str(error.value)
    assert f"pip install -e '.[{extra}]'" in str(error.value)


@pytest.mark.parametrize("topology", ["h100:", "H100:0", "h100:2x2", "h200:100"])
def test_a_number_of_gpus_is_a_number(topology):
    with pytest.raises(InputError, match="must have 1 to 99 GPUs, as h100:8"):
        aot.devices_of(topology)


def test_what_a_compiler_lets_through_is_refused_too(run_script, monkeypatch):
    """A GPU's compiler tells how much a program takes, and nothing more."""
    kind = jax.local_devices()[0].device_kind
    small = dataclasses.replace(roofline.CHIPS["TPU v5"], usable=1000.0)
    monkeypatch.setitem(roofline.CHIPS, kind, small)
    status, out, err = run_script("aot", "--topology=cpu", *SMALL)
    assert (status, out) == (1, "")
    told = rf"the program does not fit the memory of one {kind} \(0.\dGB of 0.0GB\)"
    assert re.match(f"error: {told}", err)


def test_a_compiler_that_runs_out_of_memory_is_one_line():
    (device,) = jax.local_devices()[:1]
    told = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for "
        "HLO temporaries (800.00G) exceeds available HBM (15.75G)."
    )
    assert " cpu (800.00GB of 15.75GB): more devices" in aot._too_large(told, device)
    other = "RESOURCE_EXHAUSTED: Ran out of memory in hbm. Used 17.5G of 15.75G hbm."
    assert " cpu (17.5GB of 15.75GB): more devices" in aot._too_large(other, device)


needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the extra aot"
)


def run_aot(*arguments):
    """The script in a process of its own, with XLA's optimisations on."""
    off = ("JAX_DISABLE_MOST_OPTIMIZATIONS", "JAX_PLATFORMS")
    done = subprocess.run(
        [sys.executable, "-m", "experiments.aot", *arguments],
        env={name: x for name, x in os.environ.items() if name not in off},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr.splitlines()


def cell(table, name):
    return re.search(rf"^\| +{re.escape(name)} *\| *(\S.*?) *\|$", table, re.M)[1]


@needs_compiler
@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("v9e:4x4", r"topology \(v9e:4x4\) must be cpu or .*Invalid TPU external name"),
        ("v5e:4x5", r"topology \(v5e:4x5\) must be cpu or .*is not divisible by"),
    ],
)
def test_an_unknown_topology_is_refused(topology, message):
    status, out, err = run_aot(f"--topology={topology}", *SMALL)
    assert (status, out) == (1, "")
    assert re.match(f"error: {message}", err[-1])


@needs_compiler
@pytest.mark.parametrize(
    ("topology", "chips_per_host", "num_groups", "place"),
    [
        ("v5e:4x4", "2x2", 8, "Every group is on one host"),
        # In pairs only if the axes of the machine are split.
        ("v6e:4x4", "2x2", 8, "Every group is on one host"),
        ("v5p:2x2x1", "1x1", 2, "A group spans 2 hosts"),
    ],
)
def test_devices_of_a_group_are_neighbours_and_talk_to_no_other(
    topology, chips_per_host, num_groups, place
):
    status, out, err = run_aot(
        f"--topology={topology}",
        f"--chips_per_host={chips_per_host}",
        "--devices_per_model=2",
        *SMALL,
    )
    assert status == 0, err
    assert cell(out, "devices, groups") == f"{2 * num_groups}, {num_groups}"
    # A table's last column.
    found = set(re.findall(r"\| *(\S[^|]*) \|$", out.partition("groups |")[2], re.M))
    found.discard("-" * max(map(len, found), default=0))
    pairs = [x for x in found if not x.startswith("-")]
    assert pairs == [f"{num_groups} of 2: {{0,1}} {{2,3}}" + " ..." * (num_groups > 2)]
    x, y = re.search(r"first at (\[.*?\]) (\[.*?\])", out).groups()
    assert sum(a != b for a, b in zip(x, y, strict=True)) == 1
    assert place in out


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("cache", ["none", "dual"])
@pytest.mark.parametrize(
    ("arguments", "chip", "num_sharing"),
    [
        (["--topology=v5p:2x2x1", "--num_devices=1", "--batch_size=8"], "TPU v5", 1),
        (
            [
                "--topology=v5e:4x4",
                "--devices_per_model=2",
                "--batch_size=4",
                "--sampler=saber",
            ],
            "TPU v5 lite",
            2,
        ),
        (["--topology=v6e:2x2", "--num_devices=1", "--batch_size=8"], "TPU v6 lite", 1),
    ],
)
def test_llada_8b_fits_and_moves_no_weights(
    tmp_path, arguments, chip, num_sharing, cache
):
    """Blocks with a cache are unrolled: six minutes of CPU for each program."""
    text = tmp_path / "program.txt"
    status, out, err = run_aot(*arguments, f"--cache={cache}", f"--text={text}")
    assert status == 0, err
    assert cell(out, "one device") == chip
    # 8.0 G parameters in bfloat16, and little beside them.
    assert 16.0 < num_sharing * float(cell(out, "arguments, GB")) < 20.0
    assert float(cell(out, "memory left").rstrip("%")) > 0
    assert ("no collectives" in out) == (num_sharing == 1)
    # Nor is the cache moved between two orders of axes.
    assert not re.search(r"= bf16\[[48],512,(32|16),128\]\S* copy\(", text.read_text())
    if cache == "none":
        # A transposed copy of the weights of heads would be 3.2 GB.
        assert float(cell(out, "temporaries, GB")) < 1.0
        columns = 4096 // num_sharing
        copied = rf"= bf16\[(1,)?(32,)?4096,{columns}\]\S* copy\("
        assert not re.search(copied, text.read_text())


@pytest.mark.slow
@needs_compiler
def test_what_does_not_fit_is_refused():
    status, out, err = run_aot(
        "--topology=v5e:2x2", "--num_devices=1", "--dtype=float32"
    )
    assert (status, out) == (1, "")
    told = r"error: the program does not fit the memory of one TPU v5 lite \(.*B of 15"
    assert re.match(told, err[-1])


needs_gpu_compiler = pytest.mark.skipif(
    not any(map(importlib.util.find_spec, aot.GPU_COMPILERS)),
    reason="needs the extra cuda",
)


@needs_gpu_compiler
def test_gpus_that_share_a_model_talk_to_each_other():
    status, out, err = run_aot("--topology=h100:4", "--devices_per_model=2", *SMALL)
    assert status == 0, err
    assert cell(out, "one device") == "NVIDIA H100 80GB HBM3"
    assert cell(out, "devices, groups") == "4, 2"
    assert "2 of 2: {0,1} {2,3}" in out


@pytest.mark.slow
@needs_gpu_compiler
@pytest.mark.parametrize(
    ("preset", "cache", "batch_size"),
    [
        ("llada_8b", "none", 1),
        ("llada_8b", "none", 8),
        ("llada_8b", "dual", 1),
        ("llada_8b", "dual", 8),
        ("sdar_8b", "none", 8),
        ("sdar_8b", "block", 8),
    ],
)
def test_an_h100_copies_no_weights(tmp_path, preset, cache, batch_size):
    text = tmp_path / "program.txt"
    status, out, err = run_aot(
        "--topology=h100",
        f"--preset={preset}",
        f"--cache={cache}",
        f"--batch_size={batch_size}",
        f"--text={text}",
    )
    assert status == 0, err
    # Nor the cache.
    copied = rf"= bf16\[{batch_size},512,(32|8),128\]\S* copy\("
    assert not re.search(copied, text.read_text())
    assert 15.0 < float(cell(out, "arguments, GB")) < 20.0
    assert float(cell(out, "temporaries, GB")) < 1.0
    if preset == "llada_8b":
        # 13 s where nothing else ran.
        assert float(cell(out, "compiled in, s")) < 60
    if tuple(map(int, jax.__version__.split(".")[:3])) >= (0, 11, 1):
        # Older compilers copy every layer out of its stack.
        assert float(cell(out, "copies of weights in a step, GB")) == 0


@pytest.mark.slow
@needs_gpu_compiler
def test_what_does_not_fit_an_h100_is_refused():
    status, out, err = run_aot("--topology=h100", "--layers=300")
    assert (status, out) == (1, "")
    told = r"error: the program does not fit the memory of one NVIDIA H100 80GB HBM3"
    assert re.match(told, err[-1])
