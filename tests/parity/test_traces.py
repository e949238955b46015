"""The trace format: what is written is read back, and nothing else is accepted."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest

from dlm_jax import samplers
from dlm_jax.core.canvas import Generation, Prompts, Trajectory
from dlm_jax.core.options import Options
from dlm_jax.errors import InputError
from dlm_jax.parity import traces

DATA = pathlib.Path(__file__).parents[1] / "data" / "traces"
NAME = "fastdllm_threshold_0.5__kv2_seed3_p1"


def test_save_load_round_trip(tmp_path):
    trace = traces.load(DATA / f"{NAME}.json")
    path = traces.save(trace, tmp_path / "new" / "directory")
    again = traces.load(path)
    for field in ("name", "sampler", "params", "checkpoint", "nfe", "batch", "origin"):
        assert getattr(again, field) == getattr(trace, field), field
    np.testing.assert_array_equal(again.prompt, trace.prompt)
    np.testing.assert_array_equal(again.canvas, trace.canvas)
    assert sorted(p.name for p in path.parent.iterdir()) == [
        f"{NAME}.json",
        f"{NAME}.npz",
    ]


def test_failed_save_leaves_nothing(tmp_path):
    trace = traces.load(DATA / f"{NAME}.json")
    broken = {**trace.params, "object": object()}
    trace = dataclasses.replace(trace, params=broken)
    with pytest.raises(TypeError):
        traces.save(trace, tmp_path)
    assert not list(tmp_path.iterdir())


def test_load_directory_sorts_by_name():
    names = [trace.name for trace in traces.load_directory(DATA)]
    assert names == sorted(names)
    assert NAME in names


def _edit_json(path: pathlib.Path, **changes):
    fields = json.loads(path.read_text())
    fields = {k: v for k, v in {**fields, **changes}.items() if v is not None}
    path.write_text(json.dumps(fields))


def _edit_npz(path: pathlib.Path, **changes):
    with np.load(path.with_suffix(".npz")) as file:
        arrays = {**file}
    arrays |= {k: v(arrays[k]) for k, v in changes.items()}
    np.savez(
        path.with_suffix(".npz"), **{k: v for k, v in arrays.items() if v is not None}
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.unlink(), "has no json file"),
        (lambda p: p.with_suffix(".npz").unlink(), "trace.npz does not exist"),
        (lambda p: p.write_text("{"), "is not JSON"),
        (lambda p: p.write_bytes(b"\xff\xfe"), "is not JSON"),
        (lambda p: p.write_text("[1]"), "must hold a JSON object"),
        (lambda p: p.with_suffix(".npz").write_bytes(b"PK"), "is not an npz file"),
        (lambda p: _edit_json(p, nfe=None, origin=None), "missing: nfe, origin"),
        (lambda p: _edit_json(p, nfe="9"), "nfe must be of type int, got str"),
        (lambda p: _edit_json(p, nfe=9), r"canvas \[7, 38\] must be .* \[10, p \+ 32"),
        (lambda p: _edit_json(p, batch=2), r"batch \(2\) must be 1"),
        (lambda p: _edit_json(p, canvases="some"), "canvases"),
        (lambda p: _edit_json(p, params={"steps": 3}), "gen_length"),
        (lambda p: _edit_json(p, params=[]), "params must be of type Mapping"),
        (lambda p: _edit_npz(p, canvas=lambda x: None), "missing: canvas"),
        (lambda p: _edit_npz(p, canvas=lambda x: x[0]), r"got int32 \[38\]"),
        (lambda p: _edit_npz(p, prompt=lambda x: x.astype(float)), "got float64"),
        (lambda p: _edit_npz(p, prompt=lambda x: x + 1), "start with the prompt"),
        (lambda p: _edit_npz(p, prompt=lambda x: x[:, 1:]), r"prompt \[1, 5\]"),
    ],
)
def test_damaged_trace_is_one_clear_line(tmp_path, damage, message):
    for suffix in (".json", ".npz"):
        shutil.copy(DATA / (NAME + suffix), tmp_path / f"trace{suffix}")
    damage(tmp_path / "trace.json")
    with pytest.raises(InputError, match=message) as caught:
        traces.load_directory(tmp_path)
    assert "\n" not in str(caught.value)


def test_no_trace_is_an_error(tmp_path):
    with pytest.raises(InputError, match="holds no trace"):
        traces.load_directory(tmp_path)
    with pytest.raises(InputError, match="is not a directory"):
        traces.load_directory(tmp_path / "absent")
    with pytest.raises(InputError, match="does not exist"):
        traces.load(tmp_path / "absent.json")


def _run() -> tuple[Prompts, Generation]:
    """A made-up run of two rows: prompts of 3 and 1, 2 and 3 blanks, then padding."""
    tokens = np.array([[5, 6, 7, 0, 0, 0], [8, 0, 0, 0, 0, 0]], np.int32)
    column = np.arange(6)
    prompts = Prompts(
        tokens=tokens,
        is_blank=np.stack([(column > 2) & (column < 5), (column > 0) & (column < 4)]),
        is_valid=np.stack([column < 5, column < 4]),
    )
    canvas = np.zeros((2, 4, 6), np.int32)
    canvas[1, :, 0] = 8
    canvas[1, :3, 1:4] = [[9, 9, 9], [9, 4, 9], [3, 4, 2]]
    final = np.array([[5, 6, 7, 1, 1, 0], [8, 3, 4, 2, 0, 0]], np.int32)
    nothing = np.zeros((2, 3, 6))
    generation = Generation(
        tokens=final,
        num_steps=np.array([3, 2], np.int32),
        num_whole=np.array([3, 2], np.int32),
        num_stores=np.zeros(2, np.int32),
        last_iteration=np.array([2, 1], np.int32),
        commit_step=np.zeros((2, 6), np.int32),
        confidence=np.zeros((2, 6), np.float32),
        is_complete=np.ones(2, bool),
        has_nan=np.zeros(2, bool),
        trajectory=Trajectory(canvas, nothing, nothing > 0, nothing > 0),
    )
    return prompts, generation


def test_record_takes_one_row_without_padding(tmp_path):
    prompts, generation = _run()
    options = Options(gen_length=4, block_length=2, stop_ids=(2,))
    trace = traces.record(
        generation,
        prompts,
        samplers.parse("saber(n=3)"),
        options,
        name="ours",
        checkpoint="checkpoints/tiny",
        mask_id=9,
        row=1,
    )
    assert (trace.sampler, trace.nfe, trace.params["gen_length"]) == ("saber", 2, 3)
    assert trace.params["stop_ids"] == [2]
    assert samplers.parse(trace.params["spec"]) == samplers.parse("saber(n=3)")
    np.testing.assert_array_equal(trace.prompt, [[8]])
    np.testing.assert_array_equal(
        trace.canvas, [[8, 9, 9, 9], [8, 9, 4, 9], [8, 3, 4, 2]]
    )
    assert traces.load(traces.save(trace, tmp_path)).params == trace.params


def test_record_without_trajectory_keeps_the_output():
    prompts, generation = _run()
    trace = traces.record(
        generation.replace(trajectory=None),
        prompts,
        samplers.parse("entropy"),
        Options(gen_length=3),
        name="ours",
        checkpoint="checkpoints/tiny",
        mask_id=9,
    )
    assert (trace.canvases, trace.nfe) == (traces.FINAL_ONLY, 3)
    np.testing.assert_array_equal(trace.canvas, [[5, 6, 7, 1, 1]])


def test_record_refuses_infilling():
    prompts, generation = _run()
    prompts.is_blank[1] = [False, True, False, True, False, False]
    with pytest.raises(InputError, match="row 1: a trace needs a prompt followed by"):
        traces.record(
            generation,
            prompts,
            samplers.parse("random"),
            Options(gen_length=3),
            name="ours",
            checkpoint="checkpoints/tiny",
            mask_id=9,
            row=1,
        )
