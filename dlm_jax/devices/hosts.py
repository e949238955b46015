"""Several processes, one on each host of a pod or cluster, that share out prompts.

Each process runs its own rows on its own devices and writes a shard of the results;
`merge` puts shards together. To generate, processes talk to each other only to start,
so that it is known before any work if one is missing. Then they part: JAX ends every
process that is still joined to one that died, and there is nothing to wait for. They
stay joined where the runtime may need the others later, see `start`. To write a
checkpoint together, they also agree on its place, see `checkpoints.staging`.
"""

import dataclasses
import glob
import hashlib
import importlib.util
import itertools
import json
import os
import pathlib
import re
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax

from dlm_jax import files
from dlm_jax.errors import InputError

_Item = TypeVar("_Item")
# Seconds, a week.
_LONGEST_WAIT = 7 * 24 * 3600
# Seconds, as long as JAX waits.
_LONGEST_START = 300.0
_ALONE = "xla_gpu_shard_autotuning"
# What is in a record only where it is not as by default.
_WITH_DEFAULTS = ("precision", "chat", "num_skipped")
# What must be the same in all shards of an output.
_COMMON = (
    "num_prompts",
    "prompts_digest",
    "checkpoint",
    "dtype",
    "gen_length",
    "block_length",
    "temperature",
    "seed",
    "cache",
    "guidance",
    "suppress_eos",
    "defer_stops",
    "early_stop",
    *_WITH_DEFAULTS,
)
# Missing prompts that an error names.
_MOST_NAMED = 20
# What `merge` needs of a record, and the type that it must have.
_FIELDS = {"index": int, "num_prompts": int, "sampler": str}


@dataclasses.dataclass(frozen=True)
class Host:
    """One process of several.

    Attributes:
      index: from 0.
      count: how many there are.
    """

    index: int = 0
    count: int = 1

    def share(self, items: Sequence[_Item]) -> list[_Item]:
        """What falls to this process: every count-th, so that neighbours part."""
        return list(items[self.index :: self.count])

    def shard(self, output: str | pathlib.Path) -> pathlib.Path:
        """The file that this process writes; the output itself if it is alone."""
        output = pathlib.Path(output)
        if self.count == 1:
            return output
        return output.with_name(f"{output.name}.{self.index:05d}-of-{self.count:05d}")


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    is_cluster: bool = False,
    may_be_alone: bool = False,
    may_part: bool = False,
) -> Host:
    """Joins the other processes; must come before anything else that uses JAX.

    Args:
      coordinator: HOST:PORT of process 0, the same on all.
      num_processes: how many there are.
      process_id: which one this is, from 0.
      is_cluster: take what is left out from the environment, as `jax.distributed` finds
        it on TPU pods, under SLURM, Open MPI and Kubernetes.
      may_be_alone: a process that is given its place, and no coordinator, does not join
        others: the share of one that died can be run again.
      may_part: leave the others once all have begun; the same on all. A TPU's
        processes stay joined: what its runtime does when one leaves is not known here.

    Returns:
      This process among the others; alone if nothing is asked for.

    Raises:
      InputError: if arguments are missing or do not fit, no cluster is found, or the
        coordinator cannot be reached within five minutes. Where others than process 0
        are missing, JAX ends the process after that time, with a message of its own.
    """
    given = {
        "coordinator": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given) and not is_cluster:
        return Host()
    is_alone = may_be_alone and missing == ["coordinator"] and not is_cluster
    if missing and not is_cluster and not is_alone:
        raise InputError(
            f"{', '.join(missing)} must be given too, or found in a cluster's "
            "environment (--cluster)"
        )
    most = float("inf") if num_processes is None else num_processes
    if process_id is not None and not 0 <= process_id < most:
        raise InputError(
            f"process_id ({process_id}) must be from 0 to num_processes - 1 "
            f"(num_processes is {num_processes})"
        )
    if is_alone:
        return Host(process_id or 0, num_processes or 1)
    if coordinator is not None:
        place = re.fullmatch(r"\[?(.+?)\]?:(\d{1,5})", coordinator)
        if place is None or not 1 <= int(place[2]) <= 65535:
            raise InputError(
                f"coordinator ({coordinator}) must be HOST:PORT, with a port from 1 to "
                "65535"
            )
        if process_id:
            _reach(place[1], int(place[2]))
    if may_part:
        _compile_alone()
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            # What is given is not looked up: a cluster may limit the devices, too.
            cluster_detection_method=None if is_cluster else "deactivate",
            # One that has less to do waits for the others, which otherwise would be
            # ended with it.
            shutdown_timeout_seconds=_LONGEST_WAIT,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        if missing and isinstance(error, ValueError):
            flags = ", ".join(f"--{name}" for name in missing)
            raise InputError(
                f"no cluster is found here ({reason.rstrip('.')}); give {flags}"
            ) from error
        raise InputError(f"processes did not find each other: {reason}") from error
    # All backends start here: devices of all processes are known from now on.
    host = Host(jax.process_index(), jax.process_count())
    if may_part and jax.default_backend() != "tpu":
        # Waits until all others are here, too.
        jax.distributed.shutdown()
    return host


def _compile_alone() -> None:
    """Lets a GPU's compiler ask no other process which kernels are fast.

    By default it shares these measurements out among the processes, and waits for them:
    for ever, for one that compiles another program or none.
    """
    given = os.environ.get("XLA_FLAGS", "")
    # It is read once, when a backend starts; a TPU's may not know the option.
    if _ALONE not in given and importlib.util.find_spec("libtpu") is None:
        os.environ["XLA_FLAGS"] = f"{given} --{_ALONE}=false".strip()


def killed(output: str | pathlib.Path, host: Host) -> list[int]:
    """The other processes that were killed before their shards were whole.

    Only what is seen in the files: the shards must be in one place, on a file system
    with locks, and a process that was killed before it locked its shard is not found.

    Args:
      output: the file that all processes were given.
      host: this process.
    """
    found = []
    for index in range(host.count):
        shard = Host(index, host.count).shard(output)
        if index != host.index and not shard.exists() and files.is_abandoned(shard):
            found.append(index)
    return found


def _reach(host: str, port: int) -> None:
    """Waits for process 0: JAX would end this process with a trace of its C++ stack."""
    end = time.monotonic() + _LONGEST_START
    while True:
        try:
            socket.create_connection((host, port), timeout=10).close()
            return
        except OSError as error:
            # One that is not there, or not known by name, may just come later.
            if time.monotonic() > end:
                raise InputError(
                    f"coordinator ({host}:{port}) cannot be reached: "
                    f"{error.strerror or error}"
                ) from error
        time.sleep(0.2)


def digest(prompts: Sequence[Any]) -> str:
    """Tells lists of prompts apart: 16 hexadecimal digits of a SHA-256."""
    return hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()[:16]


def merge(output: str | pathlib.Path) -> list[Mapping[str, Any]]:
    """Puts the shards of an output together as one process would have written it.

    That is sampler by sampler, in the order of the prompts, which records name by
    `index`. How many there must be, records say by `num_prompts`: of what is cut off at
    the end of a shard, nothing else tells.

    Args:
      output: the file that the processes were given; is created.

    Returns:
      The records, in their order.

    Raises:
      InputError: naming shards that are missing, damaged or of different runs, and
        prompts that are missing or in the wrong shard.
    """
    output = pathlib.Path(output)
    files.check_output(output)
    digits = "[0-9]" * 5
    name = glob.escape(output.name)
    found = sorted(output.parent.glob(f"{name}.{digits}-of-{digits}"))
    if not found:
        begun = output.parent.glob(f"{name}.{digits}-of-{digits}.partial")
        names = ", ".join(sorted(path.name for path in begun))
        raise InputError(
            f"{output} has no shards ({output.name}.00000-of-...)"
            + (f"; unfinished: {names}" if names else "")
        )
    count = int(found[0].name[-5:])
    expected = [Host(index, count).shard(output) for index in range(count)]
    foreign = [path.name for path in found if path not in expected]
    if foreign:
        raise InputError(
            f"{output} has shards of different runs: {', '.join(foreign)} beside "
            f"{found[0].name}"
        )
    missing = [path.name for path in expected if path not in found]
    if missing:
        ids = ", ".join(str(i) for i in range(count) if expected[i] not in found)
        raise InputError(
            f"{output} lacks shards: {', '.join(missing)}; run the processes' command "
            f"again with --num_processes={count}, --process_id={ids} and no "
            "--coordinator"
        )
    by_sampler: dict[str, dict[int, Mapping[str, Any]]] = {}
    first: dict[str, Any] = {}
    for number, path in enumerate(expected):
        for record in _read(path):
            setting = {key: record[key] for key in _COMMON if key in record}
            first = first or setting
            if setting != first:
                names = [x for x in _COMMON if setting.get(x) != first.get(x)]
                own, others = (
                    {x: known[x] for x in names if x in known}
                    for known in (setting, first)
                )
                raise InputError(f"{path} is of another run: {own}, not {others}")
            index, num_prompts = record["index"], record["num_prompts"]
            if not 0 <= index < num_prompts:
                raise InputError(
                    f"{path}: index ({index}) must be from 0 to num_prompts - 1 "
                    f"(num_prompts is {num_prompts})"
                )
            rows = by_sampler.setdefault(record["sampler"], {})
            if index % count != number or index in rows:
                raise InputError(
                    f"{path}: prompt {index} is repeated or of another shard"
                )
            rows[index] = record
    if not by_sampler:
        raise InputError(f"the shards of {output} have no records")
    num_prompts = first["num_prompts"]
    for sampler, own in by_sampler.items():
        if num_absent := num_prompts - len(own):
            absent = itertools.islice(
                (i for i in range(num_prompts) if i not in own), _MOST_NAMED
            )
            numbers = ", ".join(map(str, absent))
            if num_absent > _MOST_NAMED:
                numbers += f" and {num_absent - _MOST_NAMED} more"
            raise InputError(f"{output} lacks prompts of {sampler}: {numbers}")
    records = [own[i] for own in by_sampler.values() for i in range(num_prompts)]
    files.write_jsonl(output, records)
    return records


def is_whole(
    shard: pathlib.Path, common: Mapping[str, Any], keys: Iterable[tuple[str, int]]
) -> bool:
    """Whether a process has written its shard already, in an earlier run.

    Args:
      shard: of the process.
      common: what its records say of the run; fields not known yet are left out.
      keys: sampler and prompt of the records that it must have.

    Raises:
      InputError: if it is there, and of another run.
    """
    if not shard.exists():
        return False
    records = _read(shard)
    for record in records:
        for name in _COMMON:
            is_known = name in common or name in _WITH_DEFAULTS
            if is_known and record.get(name) != common.get(name):
                raise InputError(
                    f"output ({shard}) already exists, and {name} ({common.get(name)}) "
                    f"is {record.get(name)} in it"
                )
    if sorted((record["sampler"], record["index"]) for record in records) != sorted(
        keys
    ):
        raise InputError(f"output ({shard}) already exists, with other rows")
    return True


def _read(path: pathlib.Path) -> list[Mapping[str, Any]]:
    try:
        # Not by splitlines, for which characters inside of a string end a line too.
        with path.open(encoding="utf-8") as file:
            records = [files.parse_json(line) for line in file]
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error})") from None
    for number, record in enumerate(records, start=1):
        found = record if isinstance(record, dict) else {}
        if not all(isinstance(found.get(x), kind) for x, kind in _FIELDS.items()):
            raise InputError(
                f"{path}, line {number} must have {', '.join(_FIELDS)}, as the "
                "processes write them"
            )
    return records
