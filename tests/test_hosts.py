"""Several processes that share prompts out, and their shards put together."""

import dataclasses
import json

import checkpoint_files as files_of
import jax
import numpy as np
import pytest
from flax import nnx
from helpers import ALL_SPECS, finish, free_port, start_script
from hypothesis import given
from hypothesis import strategies as st

from dlm_jax import checkpoints, files, hosts, zoo
from dlm_jax.errors import InputError
from dlm_jax.models.llada import LLaDA
from dlm_jax.tasks import sudoku


def record(index, sampler="saber"):
    return {"index": index, "sampler": sampler, "text": f"{sampler} of {index}"}


def write_shards(output, count, num_prompts, specs=("saber", "random")):
    for number in range(count):
        host = hosts.Host(number, count)
        ids = host.share(range(num_prompts))
        files.write_jsonl(
            host.shard(output), [record(i, s) for s in specs for i in ids]
        )


@given(count=st.integers(1, 9), num_items=st.integers(0, 40))
def test_shares_are_a_partition_of_nearly_equal_parts(count, num_items):
    items = list(range(num_items))
    shares = [hosts.Host(index, count).share(items) for index in range(count)]
    assert sorted(item for share in shares for item in share) == items
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("count", "num_prompts"), [(2, 7), (3, 3), (4, 10)])
def test_merged_shards_are_what_one_process_writes(tmp_path, count, num_prompts):
    write_shards(tmp_path / "many.jsonl", count, num_prompts)
    write_shards(tmp_path / "one.jsonl", 1, num_prompts)
    assert hosts.merge(tmp_path / "many.jsonl") == 2 * num_prompts
    merged = (tmp_path / "many.jsonl").read_bytes()
    assert merged == (tmp_path / "one.jsonl").read_bytes()


def test_shards_with_any_character_are_merged(tmp_path):
    text = "one\u2028two\u2029three\x85four\x0bfive"
    records = [{**record(index), "text": text} for index in range(2)]
    for index in range(2):
        shard = hosts.Host(index, 2).shard(tmp_path / "a.jsonl")
        files.write_jsonl(shard, records[index : index + 1])
    assert hosts.merge(tmp_path / "a.jsonl") == 2
    files.write_jsonl(tmp_path / "b.jsonl", records)
    merged = (tmp_path / "a.jsonl").read_bytes()
    assert merged == (tmp_path / "b.jsonl").read_bytes()


def remove(shards):
    shards[1].unlink()


def double(shards):
    shards[1].write_bytes(shards[0].read_bytes())


def repeat(shards):
    with shards[2].open("a") as file:
        file.write(shards[2].read_text().splitlines()[0] + "\n")


def cut_a_line(shards):
    shards[1].write_text("".join(shards[1].read_text().splitlines(True)[1:]))


def cut_within_a_line(shards):
    shards[0].write_text(shards[0].read_text()[:-9])


def empty(shards):
    for shard in shards:
        shard.write_text("")


def set_another_seed(shards):
    lines = [json.loads(line) for line in shards[1].read_text().splitlines()]
    shards[1].write_text("".join(f"{json.dumps({**x, 'seed': 1})}\n" for x in lines))


def of_something_else(shards):
    shards[0].write_text('{"text": ""}\n')


def add_of_another_run(shards):
    path = shards[0]
    path.with_name(path.name.replace("of-00003", "of-00002")).write_text("")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove, r"lacks shards: a\.jsonl\.00001-of-00003"),
        (double, r"a\.jsonl\.00001-of-00003: prompt 0 is twice, or of another one"),
        (repeat, r"a\.jsonl\.00002-of-00003: prompt 2 is twice"),
        (cut_a_line, r"lacks prompts of saber: 1$"),
        (cut_within_a_line, r"a\.jsonl\.00000-of-00003 is damaged"),
        (empty, r"the shards of .*a\.jsonl have no records"),
        (set_another_seed, r"a\.jsonl\.00001-of-00003 is of another run: .*'seed': 1"),
        (of_something_else, r"a\.jsonl\.00000-of-00003, line 1 must have index"),
        (add_of_another_run, r"has shards of different runs: a\.jsonl\.0000"),
    ],
)
def test_what_is_missing_or_double_is_refused(tmp_path, damage, message):
    output = tmp_path / "a.jsonl"
    write_shards(output, 3, 7)
    damage([hosts.Host(i, 3).shard(output) for i in range(3)])
    with pytest.raises(InputError, match=message):
        hosts.merge(output)
    assert not output.exists()


def test_an_output_without_shards_or_one_that_exists_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"b\.jsonl has no shards"):
        hosts.merge(tmp_path / "b.jsonl")
    (tmp_path / "b.jsonl").write_text("kept")
    with pytest.raises(InputError, match="already exists"):
        hosts.merge(tmp_path / "b.jsonl")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("localhost:1", None, None), "num_processes, process_id must be given too"),
        (
            ("localhost:1", 2, 2),
            r"process_id \(2\) must be from 0 to num_processes - 1",
        ),
        (("localhost", 2, 1), r"coordinator \(localhost\) must be HOST:PORT"),
        (("localhost:1", 2, -1), r"process_id \(-1\) must be from 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_at_once(arguments, message):
    with pytest.raises(InputError, match=message):
        hosts.start(*arguments)


def test_alone_if_nothing_is_asked_for():
    host = hosts.start()
    assert (host.index, host.count) == (0, 1)
    assert str(host.shard("answers.jsonl")) == "answers.jsonl"


def test_two_processes_convert_a_checkpoint_together(tmp_path):
    config = dataclasses.replace(files_of.CONFIG, n_heads=4, n_kv_heads=4)
    directory = files_of.write(
        tmp_path / "hf", files_of.random_tensors(config), config, num_shards=2
    )
    (directory / "tokenizer.json").write_text("{}")
    port = free_port()

    def start(name, *flags):
        flags += (f"--checkpoint={directory}", f"--output={tmp_path / name}")
        return start_script("convert", flags, num_devices=2)

    processes = [start("alone")]
    for number in range(2):
        flags = [f"--coordinator=localhost:{port}", "--num_processes=2"]
        processes.append(start("pair", *flags, f"--process_id={number}"))
    finish(processes)
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == ["alone", "hf", "pair"]
    assert (tmp_path / "pair" / "tokenizer.json").exists()
    pair, alone, source = (
        jax.tree.leaves_with_path(nnx.state(checkpoints.load(tmp_path / name)))
        for name in ("pair", "alone", "hf")
    )
    for ours, plain, stored in zip(pair, alone, source, strict=True):
        np.testing.assert_array_equal(ours[1], plain[1], err_msg=str(ours[0]))
        np.testing.assert_array_equal(ours[1], stored[1], err_msg=str(ours[0]))
    # A chunk for each of four devices; who writes it, only memory shows (-m slow).
    chunks = [
        path
        for path in (tmp_path / "pair" / "params").rglob("*")
        if "ff_proj" in str(path) and path.is_file() and not path.name.startswith(".")
    ]
    assert len(chunks) >= 4


@pytest.mark.parametrize(
    "specs",
    [
        ("threshold(threshold=0.12)", "saber"),
        pytest.param(ALL_SPECS, marks=pytest.mark.slow),
    ],
    ids=["two", "all"],
)
def test_two_processes_of_four_devices_give_what_one_process_gives(tmp_path, specs):
    shape = {"d_model": 16, "n_heads": 4, "n_layers": 1, "mlp_hidden_size": 16}
    model = LLaDA(sudoku.Sudoku().model_config(**shape), rngs=nnx.Rngs(0))
    companions = checkpoints.companions(zoo.path("sudoku"))
    checkpoints.save_hf(model, tmp_path / "model", companions)
    port = free_port()

    def start(name, *flags):
        flags += (f"--checkpoint={tmp_path / 'model'}", "--temperature=0.5")
        flags += ("--config.num_examples=5", *(f"--sampler={s}" for s in specs))
        # In float64 no rounding can decide a near-tie.
        flags += ("--dtype=float64", f"--output={tmp_path / name}")
        return start_script("generate", flags, num_devices=4, JAX_ENABLE_X64="true")

    pair = [
        start(
            "pair.jsonl",
            *(f"--coordinator=localhost:{port}", "--num_processes=2"),
            # One with all weights on every device, one with groups of two.
            *(f"--process_id={number}", *["--devices_per_model=2"][:number]),
        )
        for number in range(2)
    ]
    finish([*pair, start("alone.jsonl")])
    shards = sorted(path.name for path in tmp_path.glob("pair*"))
    assert shards == [f"pair.jsonl.0000{i}-of-00002" for i in range(2)]
    hosts.merge(tmp_path / "pair.jsonl")
    ours, plain = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("pair.jsonl", "alone.jsonl")
    )
    assert len(ours) == len(plain) == 5 * len(specs)
    for one, other in zip(ours, plain, strict=True):
        del one["batch_seconds"], other["batch_seconds"]
        assert one == other
    # Rows differ, so that a wrong share or key would be seen.
    assert len({str(one["tokens"]) for one in ours}) > 5
