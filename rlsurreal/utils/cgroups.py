"""What this process's control groups (Linux, version 1 or 2) limit.  Called by `affinity` and by replays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs' worth of time that is granted; None: no limit, or not known.

    ``root`` is where the file system's /proc and /sys are found.
    """
    quotas = [_group_quota(folder) for folder in _group_folders(root, "cpu", "cpu,cpuacct")]
    limits = [quota for quota in quotas if quota is not None]
    return min(limits) if limits else None


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that the machine has left, or a group that is allowed fewer."""
    free = [int(psutil.virtual_memory().available)]
    for folder in _group_folders(root, "memory"):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            with suppress(ValueError):  # "max", or no such file
                free.append(int(read(folder / limit)) - int(read(folder / used)) + _old_cache(folder))
    return max(0, min(free))


def _old_cache(folder: Path) -> int:
    """Bytes of files that a group has in memory, and that go when something else wants their place."""
    counts = dict(line.split() for line in read(folder / "memory.stat").splitlines())
    return int(counts.get("total_inactive_file", counts.get("inactive_file", 0)))


def _group_folders(root: Path, controller: str, *aliases: str) -> Iterator[Path]:
    """Those that may have the limits of a controller."""
    for line in read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for mount in ("", "unified", controller, *aliases):
            # Any group on the way up may be the one that limits.  In a container the path may be the host's, which does
            # not exist here; its own group is the mount itself, the last of these.
            group = Path(path.lstrip("/"))
            yield from (root / "sys/fs/cgroup" / mount / part for part in (group, *group.parents))


def _group_quota(folder: Path) -> float | None:
    quota, period = (read(folder / "cpu.max").split() or ["max", ""])[:2]
    if quota == "max":
        quota, period = read(folder / "cpu.cfs_quota_us").strip(), read(folder / "cpu.cfs_period_us").strip()
    return int(quota) / int(period) if quota and period and int(quota) > 0 else None


def read(path: Path) -> str:
    """The text of a file of /proc or /sys; nothing where there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""
