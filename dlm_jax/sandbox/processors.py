"""Processors: how many this process may use, and how long a child waited for one."""

import os
import pathlib
from collections.abc import Iterator

_PROC = pathlib.Path("/proc")
_CGROUPS = pathlib.Path("/sys/fs/cgroup")
_MOST_CHILDREN = 16


def usable(proc: pathlib.Path = _PROC, cgroups: pathlib.Path = _CGROUPS) -> int:
    """Processors that this process may keep busy; at least 1.

    A host may have more: a scheduler, a container or taskset allows some of them
    (affinity), or a share of their time (the quota of a control group).

    Args:
      proc: where the kernel tells of processes.
      cgroups: where control groups of either version are mounted.
    """
    try:
        num = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        num = os.cpu_count() or 1
    return max(1, min([num, *(int(quota) for quota in _quotas(proc, cgroups))]))


def _quotas(proc: pathlib.Path, cgroups: pathlib.Path) -> Iterator[float]:
    """Processors' worth of time that each control group around us may use."""
    lines = _read(proc / "self" / "cgroup").splitlines()
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        parts = [part for part in path.split("/") if part not in ("", "..")]
        # In a container the path may be the host's, and the mount our own group.
        for depth in range(len(parts), -1, -1):
            own = "/".join(parts[:depth])
            if not controllers:
                quota, _, period = _read(cgroups / own / "cpu.max").partition(" ")
            elif "cpu" in controllers.split(","):
                root = cgroups / controllers / own
                if not root.exists():
                    root = cgroups / "cpu" / own
                quota = _read(root / "cpu.cfs_quota_us")
                period = _read(root / "cpu.cfs_period_us")
            else:
                break
            try:
                share = int(quota) / int(period)
            except (ValueError, ZeroDivisionError):  # 'max', or no such file
                continue
            if share > 0:  # -1: no quota
                yield share


def seconds_waited(process: int, proc: pathlib.Path = _PROC) -> float:
    """How long a process and its children could have run, had a processor been free.

    Args:
      process: its id.
      proc: where the kernel tells of processes.

    Returns:
      Seconds since their starts; 0 where the system does not tell.
    """
    total, todo = 0.0, [process]
    for number in todo:
        # Nanoseconds on a processor, and waiting for one.
        fields = _read(proc / str(number) / "schedstat").split()
        if len(fields) == 3:
            total += int(fields[1]) / 1e9
        children = _read(proc / str(number) / "task" / str(number) / "children")
        todo += [int(child) for child in children.split()]
        if len(todo) > _MOST_CHILDREN:
            break
    return total


def _read(path: pathlib.Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""
