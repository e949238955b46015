"""The PyTorch oracle and the recorder of PyTorch samplers."""

import json
import pathlib
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from dlm_jax.errors import InputError  # noqa: E402
from dlm_jax.parity import recorder, torch_llada, traces  # noqa: E402

TESTS = pathlib.Path(__file__).parents[1]
DATA = TESTS / "data"
CHECKPOINTS = [
    DATA / "checkpoints" / name for name in ("tiny_kv2_seed3", "tiny_kv4_seed0")
]
EAGER = f"{TESTS / 'eager_low_confidence.py'}:generate"


@pytest.mark.parametrize("directory", CHECKPOINTS, ids=lambda path: path.name)
def test_eager_llada_gives_the_recorded_logits(directory):
    model = torch_llada.load_llada(directory)
    recorded = np.load(directory / "logits.npz")
    tokens = torch.tensor(recorded["input_ids"]).long()
    mask = torch.tensor(recorded["attention_mask"])
    is_valid = recorded["attention_mask"].astype(bool)
    with torch.no_grad():
        logits = model(tokens).logits.numpy()
        masked = model(tokens, attention_mask=mask).logits.numpy()
    assert abs(logits - recorded["logits"]).max() < 2e-4
    assert abs(masked - recorded["logits_masked"])[is_valid].max() < 2e-4


@pytest.mark.parametrize(
    "name",
    [
        "llada_low_confidence_s6_g32_b16__kv2_seed3_p0",
        "llada_low_confidence_cfg__kv4_seed0_p1",
    ],
)
def test_recording_an_eager_sampler_gives_the_released_canvases(name):
    trace = traces.load(DATA / "traces" / f"{name}.json")
    params = {
        key: value
        for key, value in trace.params.items()
        if key not in ("remasking", "temperature")
    }
    recorded = recorder.record(
        recorder.resolve(EAGER),
        torch_llada.load_llada(DATA / trace.checkpoint),
        trace.prompt,
        params,
        name=name,
        sampler="low_confidence",
        checkpoint=trace.checkpoint,
        origin="eager",
    )
    assert (recorded.nfe, recorded.canvases) == (trace.nfe, traces.ALL_CANVASES)
    np.testing.assert_array_equal(recorded.canvas, trace.canvas)


def test_scripts_record_and_compare(tmp_path, run_script):
    """What a user with real weights does: record, then compare; guidance included."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("[17, 4, 250, 31, 8]\n\n[3, 3, 3, 120, 9, 55, 7]\n")
    shutil.copytree(CHECKPOINTS[0], tmp_path / "checkpoints" / "tiny")
    output = tmp_path / "traces"
    status, _, errors = run_script(
        "record_reference",
        f"--generate={EAGER}",
        "--model=dlm_jax.parity.torch_llada:load_llada",
        f"--checkpoint={tmp_path / 'checkpoints' / 'tiny'}",
        f"--prompts_file={prompts}",
        "--sampler=low_confidence",
        "--params=steps=6,gen_length=16,block_length=8,cfg_scale=0.5,mask_id=299",
        f"--output={output}",
    )
    assert status == 0, errors
    assert sorted(path.name for path in output.iterdir()) == [
        f"low_confidence__p{i}.{suffix}" for i in (0, 1) for suffix in ("json", "npz")
    ]
    fields = json.loads((output / "low_confidence__p1.json").read_text())
    assert fields["checkpoint"] == "checkpoints/tiny"
    assert fields["origin"] == "eager_low_confidence.py:generate"
    assert fields["nfe"] == 6
    status, table, errors = run_script("compare", f"--traces={output}")
    assert status == 0, table + errors
    assert table.splitlines()[-1] == "matched 2 of 2"


class Constant(torch.nn.Module):
    """A model whose forward changes nothing; the samplers below only show it tokens."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids):
        return input_ids


def _record(generate, **arguments):
    return recorder.record(
        generate,
        Constant(),
        np.array([[5, 6]], np.int32),
        {"gen_length": 2, **arguments},
        name="run",
        sampler="some",
        checkpoint="checkpoints/none",
        origin="test",
    )


def test_shadow_columns_and_tuples_are_left_out():
    def generate(model, prompt, gen_length):
        row = torch.cat([prompt, torch.full((1, 2), 9)], dim=1)
        model(input_ids=torch.cat([row, torch.full((1, 3), 8)], dim=1))
        row[0, 3] = 1
        model(row)
        row[0, 2] = 4
        return row, 2

    trace = _record(generate)
    np.testing.assert_array_equal(
        trace.canvas, [[5, 6, 9, 9], [5, 6, 9, 1], [5, 6, 4, 1]]
    )
    assert trace.nfe == 2


def test_cached_forwards_leave_the_output_only():
    def generate(model, prompt, gen_length):
        model(torch.cat([prompt, torch.full((1, 2), 9)], dim=1))
        model(torch.full((1, 2), 9))
        return torch.cat([prompt, torch.tensor([[3, 4]])], dim=1)

    trace = _record(generate)
    assert (trace.canvases, trace.nfe) == (traces.FINAL_ONLY, 2)
    np.testing.assert_array_equal(trace.canvas, [[5, 6, 3, 4]])


def test_output_of_another_length_is_refused():
    with pytest.raises(InputError, match=r"\[1, p\] and \[1, p \+ 2\]"):
        _record(lambda model, prompt, gen_length: prompt)


def test_params_are_literals_or_words():
    assert recorder.parse_params("steps=16,remasking=random,cfg_scale=.5,x=None") == {
        "steps": 16,
        "remasking": "random",
        "cfg_scale": 0.5,
        "x": None,
    }
    for bad in ("steps", "steps=f()", "3", "a=1,a=2", "**x", ")("):
        with pytest.raises(InputError, match="must be name=literal"):
            recorder.parse_params(bad)


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--generate", "absent.py:generate", "absent.py"),
        ("--generate", "generate", "must be file.py:function"),
        ("--generate", "dlm_jax.absent:generate", "dlm_jax.absent"),
        ("--generate", "dlm_jax.parity.torch_llada:absent", "has no function absent"),
        ("--params", "steps=4", "gen_length"),
        ("--checkpoint", "absent", "absent"),
        ("--prompts_file", "absent", "absent"),
        ("--output", __file__, "low_confidence__p0.json) cannot be written"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    tmp_path, run_script, flag, value, message
):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("[17, 4]\n")
    flags = {
        "--generate": EAGER,
        "--model": "dlm_jax.parity.torch_llada:load_llada",
        "--checkpoint": str(CHECKPOINTS[0]),
        "--prompts_file": str(prompts),
        "--sampler": "low_confidence",
        "--params": "steps=4,gen_length=8",
        "--output": str(tmp_path / "traces"),
        flag: value,
    }
    status, _, errors = run_script(
        "record_reference", *(f"{name}={value}" for name, value in flags.items())
    )
    assert status == 1
    (line,) = errors.splitlines()
    assert line.startswith("error: ") and message in line
    assert not (tmp_path / "traces").exists()


def test_an_existing_trace_is_refused_before_the_model_is_loaded(tmp_path, run_script):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("[17, 4]\n[3, 3]\n")
    existing = tmp_path / "low_confidence__p1.npz"
    existing.write_text("kept")
    status, printed, errors = run_script(
        "record_reference",
        f"--generate={EAGER}",
        "--model=builtins:print",  # which would print the directory
        f"--checkpoint={CHECKPOINTS[0]}",
        f"--prompts_file={prompts}",
        "--sampler=low_confidence",
        "--params=steps=4,gen_length=8",
        f"--output={tmp_path}",
    )
    assert (status, errors) == (1, f"error: output ({existing}) already exists\n")
    assert (printed, existing.read_text()) == ("", "kept")
    assert len(list(tmp_path.iterdir())) == 2


def test_prompts_must_be_ids_or_text():
    (row,) = recorder.encode_prompts(["[4, 5]"], "absent")
    np.testing.assert_array_equal(row, [[4, 5]])
    for bad in ("[]", '["a"]', "[1.5]"):
        with pytest.raises(InputError, match="prompt 0 must be a list of token ids"):
            recorder.encode_prompts([bad], "absent")
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        recorder.encode_prompts(["hello"], CHECKPOINTS[0])
