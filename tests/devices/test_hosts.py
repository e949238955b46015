"""Several processes that share prompts out, and their shards put together."""

import dataclasses
import json
import os
import re
import socket
import threading
import time

import checkpoint_files as files_of
import device_runs
import jax
import numpy as np
import pytest
from flax import nnx
from helpers import ALL_SPECS, finish, free_port, start_python, start_script
from hypothesis import given
from hypothesis import strategies as st

from dlm_jax import checkpoints, files, zoo
from dlm_jax.devices import hosts
from dlm_jax.errors import InputError
from dlm_jax.models.llada import LLaDA
from dlm_jax.tasks import sudoku


def record(index, num_prompts, sampler="saber"):
    return {
        **{"index": index, "num_prompts": num_prompts, "sampler": sampler},
        "prompts_digest": hosts.digest([f"prompt {i}" for i in range(num_prompts)]),
        "text": f"{sampler} of {index}",
    }


def write_shards(output, count, num_prompts, specs=("saber", "random")):
    for number in range(count):
        host = hosts.Host(number, count)
        ids = host.share(range(num_prompts))
        files.write_jsonl(
            host.shard(output), [record(i, num_prompts, s) for s in specs for i in ids]
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
    assert len(hosts.merge(tmp_path / "many.jsonl")) == 2 * num_prompts
    merged = (tmp_path / "many.jsonl").read_bytes()
    assert merged == (tmp_path / "one.jsonl").read_bytes()


def test_shards_with_any_character_are_merged(tmp_path):
    text = "one\u2028two\u2029three\x85four\x0bfive"
    records = [{**record(index, 2), "text": text} for index in range(2)]
    for index in range(2):
        shard = hosts.Host(index, 2).shard(tmp_path / "a.jsonl")
        files.write_jsonl(shard, records[index : index + 1])
    assert hosts.merge(tmp_path / "a.jsonl") == records
    files.write_jsonl(tmp_path / "b.jsonl", records)
    merged = (tmp_path / "a.jsonl").read_bytes()
    assert merged == (tmp_path / "b.jsonl").read_bytes()


def test_an_output_may_have_any_name(tmp_path):
    output = tmp_path / "a[1]*?.jsonl"
    write_shards(output, 2, 3)
    assert len(hosts.merge(output)) == 6


def test_a_row_of_nans_is_told_once_everything_is_merged(tmp_path, run_script):
    output = tmp_path / "a.jsonl"
    for index in range(2):
        shard = hosts.Host(index, 2).shard(output)
        own = {**record(index, 2), "nfe": 3, "has_nan": index == 1}
        files.write_jsonl(shard, [own])
    status, out, error = run_script("merge", f"--output={output}")
    assert (status, out) == (1, f"Wrote {output}: 2 records\n")
    assert error.startswith("error: the model gave NaN for 1 of 2 rows, first for")
    assert len(output.read_text().splitlines()) == 2


def test_a_digest_is_of_prompts_in_their_order():
    lists = (["a", "b"], ["b", "a"], ["ab"], ["a", "b", ""], ["a\udc80"])
    assert len({hosts.digest(prompts) for prompts in lists}) == len(lists)
    assert hosts.digest(("a", "b")) == hosts.digest(["a", "b"])
    assert re.fullmatch("[0-9a-f]{16}", hosts.digest([]))


def remove(shards):
    shards[1].unlink()


def double(shards):
    shards[1].write_bytes(shards[0].read_bytes())


def repeat(shards):
    with shards[2].open("a") as file:
        file.write(shards[2].read_text().splitlines()[0] + "\n")


def cut_a_line(shards):
    shards[1].write_text("".join(shards[1].read_text().splitlines(True)[1:]))


def cut_the_last_prompt(shards):
    # Prompt 6 of 7, with all samplers: what is left is as of a run of 6 prompts.
    lines = shards[0].read_text().splitlines(True)
    shards[0].write_text("".join(x for x in lines if json.loads(x)["index"] != 6))


def cut_within_a_line(shards):
    shards[0].write_text(shards[0].read_text()[:-9])


def empty(shards):
    for shard in shards:
        shard.write_text("")


def change(shard, **fields):
    lines = [json.loads(line) for line in shard.read_text().splitlines()]
    shard.write_text("".join(f"{json.dumps({**x, **fields})}\n" for x in lines))


def set_another_seed(shards):
    change(shards[1], seed=1)


def set_another_scale_of_guidance(shards):
    for number, shard in enumerate(shards):
        change(shard, guidance=float(number))


def leave_the_template_out(shards):
    change(shards[2], chat=False)


def answer_other_prompts(shards):
    change(shards[1], prompts_digest=hosts.digest([*"abcdefg"]))


def set_more_prompts(shards):
    change(shards[2], num_prompts=8)


def set_fewer_prompts(shards):
    for shard in shards:
        change(shard, num_prompts=6)


def of_something_else(shards):
    shards[0].write_text('{"text": ""}\n')


def of_an_earlier_version(shards):
    shards[0].write_text('{"index": 0, "sampler": "saber"}\n')


def add_of_another_run(shards):
    path = shards[0]
    path.with_name(path.name.replace("of-00003", "of-00002")).write_text("")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove, r"lacks shards: a\.jsonl\.00001-of-00003"),
        (double, r"a\.jsonl\.00001-of-00003: prompt 0 is repeated or of another shard"),
        (repeat, r"a\.jsonl\.00002-of-00003: prompt 2 is repeated or of another shard"),
        (cut_a_line, r"lacks prompts of saber: 1$"),
        (cut_the_last_prompt, r"lacks prompts of saber: 6$"),
        (cut_within_a_line, r"a\.jsonl\.00000-of-00003 is damaged"),
        (empty, r"the shards of .*a\.jsonl have no records"),
        (set_another_seed, r"a\.jsonl\.00001-of-00003 is of another run: .*'seed': 1"),
        (
            set_another_scale_of_guidance,
            r"00001-of-00003 is of another run: {'guidance': 1.0}, not {'guidance': 0",
        ),
        (leave_the_template_out, r"00002-of-00003 .*: {'chat': False}, not {}$"),
        (answer_other_prompts, r"00001-of-00003 is of another run: .*'prompts_digest'"),
        (set_more_prompts, r"00002-of-00003 is of another run: .*'num_prompts': 8"),
        (
            set_fewer_prompts,
            r"00000-of-00003: index \(6\) must be from 0 to num_prompts",
        ),
        (of_something_else, r"a\.jsonl\.00000-of-00003, line 1 must have index, num_"),
        (of_an_earlier_version, r"00000-of-00003, line 1 must have index, num_prompts"),
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


def test_as_many_missing_prompts_are_named_as_one_reads(tmp_path):
    output = tmp_path / "a.jsonl"
    write_shards(output, 2, 2, ["saber"])
    for number in range(2):
        change(hosts.Host(number, 2).shard(output), num_prompts=10**12)
    with pytest.raises(InputError, match=r"of saber: 2, 3, .*, 21 and 9{10}78 more$"):
        hosts.merge(output)


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
        *(
            ((f"localhost:{port}", 2, 0), rf"\(localhost:{port}\) must be HOST:PORT, w")
            for port in ("0", "65536", "123456", "-1", "")
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused_at_once(arguments, message):
    with pytest.raises(InputError, match=message):
        hosts.start(*arguments)


@pytest.mark.parametrize("host", ["localhost", "[::1]", "nowhere.invalid"])
def test_a_coordinator_that_is_not_there_is_one_line(monkeypatch, host):
    monkeypatch.setattr(hosts, "_LONGEST_START", 0.3)
    address = f"{host}:{free_port()}"
    start = time.monotonic()
    with pytest.raises(InputError, match=r"^coordinator \(.*\) cannot be reached: .+$"):
        hosts.start(address, 2, 1)
    assert time.monotonic() - start >= 0.3


def test_a_coordinator_may_come_later(monkeypatch):
    joined = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: joined.append(a))
    port = free_port()

    def serve():
        time.sleep(0.5)
        with socket.create_server(("localhost", port)) as listener:
            listener.accept()

    server = threading.Thread(target=serve)
    server.start()
    hosts.start(f"localhost:{port}", 2, 1)
    server.join()
    assert joined == [(f"localhost:{port}", 2, 1)]


@pytest.mark.parametrize("backend", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("may_part", [False, True])
def test_processes_part_once_all_have_begun(monkeypatch, backend, may_part):
    done = []
    given = "--xla_cpu_enable_fast_math=false"
    monkeypatch.setenv("XLA_FLAGS", given)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: done.append("+"))
    monkeypatch.setattr(jax.distributed, "shutdown", lambda: done.append("-"))
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    # Here the backends of all processes start, which they do together.
    monkeypatch.setattr(jax, "process_count", lambda: done.append("count") or 2)
    assert hosts.start("localhost:1", 2, 0, may_part=may_part) == hosts.Host(0, 2)
    parts = may_part and backend != "tpu"
    assert done == ["+", "count", *["-"][: int(parts)]]
    alone = f"{given} --xla_gpu_shard_autotuning=false"
    assert os.environ["XLA_FLAGS"] == (alone if may_part else given)
    # What the user says of it holds.
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_shard_autotuning=true")
    hosts.start("localhost:1", 2, 0, may_part=may_part)
    assert os.environ["XLA_FLAGS"] == "--xla_gpu_shard_autotuning=true"


def test_a_killed_process_is_seen_by_the_lock_of_its_shard(tmp_path):
    output, host = tmp_path / "a.jsonl", hosts.Host(1, 5)
    locks = [tmp_path / f".a.jsonl.0000{i}-of-00005.lock" for i in range(5)]
    # Process 0 has not begun; what is left of process 1's earlier run is its own.
    for index in (1, 2, 3):
        locks[index].write_text("host 1")
    with files.locked(hosts.Host(3, 5).shard(output)):
        assert hosts.killed(output, host) == [2]
    locks[4].write_text("host 1")
    assert hosts.killed(output, host) == [2, 4]
    # It was killed after its last row, or its share was run again.
    hosts.Host(2, 5).shard(output).write_text("")
    assert hosts.killed(output, host) == [4]


def test_where_there_is_no_cluster_the_flags_are_named():
    (said,) = finish([start_script("generate", ["--cluster"])], status=1)
    assert said.count("\n") == 1
    assert "no cluster is found here" in said
    assert said.endswith("; give --coordinator, --num_processes, --process_id\n")


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


def test_a_process_loads_while_the_other_does_not(tmp_path):
    model = LLaDA(files_of.CONFIG, rngs=nnx.Rngs(0))
    checkpoints.save_orbax(model, tmp_path / "model")
    program = (
        "import sys; from dlm_jax import checkpoints\n"
        "from dlm_jax.devices import hosts\n"
        f"host = hosts.start('localhost:{free_port()}', 2, int(sys.argv[1]))\n"
        f"if host.index: checkpoints.load({str(tmp_path / 'model')!r}); print('loaded')"
    )
    # Process 0 is at its end at once, where it waits. Would the other wait for it to
    # load, too, it would fail after half a minute.
    loading, _ = finish([start_python(["-c", program, str(i)]) for i in (1, 0)])
    assert "loaded" in loading


@pytest.mark.parametrize(
    ("save", "specs", "sharing"),
    [
        (checkpoints.save_orbax, ("saber",), []),
        # Processes whose devices share weights stay joined.
        pytest.param(
            checkpoints.save_hf,
            ALL_SPECS,
            ["--devices_per_model=2"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["two-orbax", "all-hf"],
)
def test_two_processes_of_four_devices_give_what_one_device_gives(
    tmp_path, save, specs, sharing
):
    shape = {"d_model": 16, "n_heads": 4, "n_layers": 1, "mlp_hidden_size": 16}
    model = LLaDA(sudoku.Sudoku().model_config(**shape), rngs=nnx.Rngs(0))
    companions = checkpoints.companions(zoo.path("sudoku"))
    save(model, tmp_path / "model", companions)
    port = free_port()

    def start(name, *flags, num_devices=4):
        flags += (f"--checkpoint={tmp_path / 'model'}", "--temperature=0.5")
        flags += ("--num_examples=5", *(f"--sampler={s}" for s in specs))
        # In float64 no rounding can decide a near-tie.
        flags += ("--dtype=float64", f"--output={tmp_path / name}")
        return start_script("generate", flags, num_devices, JAX_ENABLE_X64="true")

    pair = [
        start(
            "pair.jsonl",
            f"--coordinator=localhost:{port}",
            "--num_processes=2",
            f"--process_id={number}",
            *sharing,
        )
        for number in range(2)
    ]
    finish([*pair, start("alone.jsonl", num_devices=1)])
    shards = sorted(path.name for path in tmp_path.glob("pair*"))
    assert shards == [f"pair.jsonl.0000{i}-of-00002" for i in range(2)]
    hosts.merge(tmp_path / "pair.jsonl")
    ours, plain = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("pair.jsonl", "alone.jsonl")
    )
    assert len(ours) == len(plain) == 5 * len(specs)
    for one, other in zip(ours, plain, strict=True):
        del one["seconds"], other["seconds"]
        assert one == other
        assert one["num_prompts"] == 5
        assert len(one["prompts_digest"]) == 16
    # Rows differ, so that a wrong share or key would be seen.
    assert len({str(one["tokens"]) for one in ours}) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_no_other(tmp_path, victim):
    output, port = tmp_path / "a.jsonl", free_port()
    flags = [f"--output={output}", "--num_examples=4", "--sampler=threshold"]
    flags += [f"--coordinator=localhost:{port}", "--num_processes=2"]
    pair = [start_script("generate", [*flags, f"--process_id={i}"]) for i in range(2)]
    survivor = 1 - victim
    # It has begun, and will not be done for seconds: it has compiled nothing.
    locks = [output.with_name(f".a.jsonl.0000{i}-of-00002.lock") for i in range(2)]
    end = time.monotonic() + 300
    while not locks[victim].exists() and time.monotonic() < end:
        time.sleep(0.05)
    pair[victim].kill()
    pair[victim].communicate()
    (said,) = finish([pair[survivor]])
    assert said.splitlines()[-1] == (
        f"process {victim} was killed before its shard was whole: run its command "
        f"again with --num_processes=2, --process_id={victim} and no --coordinator"
    )
    assert "fatal" not in said
    # Its whole share is there.
    host = hosts.Host(survivor, 2)
    records = map(json.loads, host.shard(output).read_text().splitlines())
    assert [record["index"] for record in records] == [survivor, survivor + 2]


@pytest.mark.slow
def test_two_processes_differ_in_float32_by_near_ties_only(tmp_path):
    specs = device_runs.SPECS
    program = (
        "import sys, device_runs; from dlm_jax.devices import hosts\n"
        "number = int(sys.argv[1])\n"
        f"host = hosts.start('localhost:{free_port()}', 2, number)\n"
        # One with all weights on every device, one with groups of two.
        f"sharing = {[None, 2]}[number]\n"
        f"device_runs.record_all({specs}, sharing, {str(tmp_path)!r}, host)"
    )
    finish([start_python(["-c", program, str(i)], num_devices=4) for i in range(2)])
    device_runs.check_near_ties(tmp_path, len(specs))
