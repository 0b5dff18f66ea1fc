"""Limits of control groups, which are made up as files."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from rlsurreal.utils.cgroups import cpu_quota, free_memory


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


CGROUP = "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n"}, None),
        ({"proc/self/cgroup": "0::/\n", f"{CGROUP}/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", f"{CGROUP}/cpu.max": "250000 100000\n"}, 2.5),
        (
            {"proc/self/cgroup": "0::/a/b", f"{CGROUP}/a/b/cpu.max": "max 10000", f"{CGROUP}/a/cpu.max": "40000 10000"},
            4,
        ),
        (
            {
                "proc/self/cgroup": "0::/a/b",
                f"{CGROUP}/a/b/cpu.max": "20000 10000",
                f"{CGROUP}/a/cpu.max": "40000 10000",
            },
            2,
        ),
        ({"proc/self/cgroup": "0::/path/of/the/host\n", f"{CGROUP}/cpu.max": "300000 100000\n"}, 3.0),
        (
            {
                "proc/self/cgroup": "5:memory:/x\n3:cpu,cpuacct:/job\n",
                f"{CGROUP}/cpu,cpuacct/job/cpu.cfs_quota_us": "150000\n",
                f"{CGROUP}/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
            },
            1.5,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n0::/\n",
                f"{CGROUP}/cpu/cpu.cfs_quota_us": "-1\n",
                f"{CGROUP}/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
    ],
)
def test_cpu_quota(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    assert cpu_quota(_write(tmp_path, files)) == quota


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", f"{CGROUP}/memory.max": "max\n", f"{CGROUP}/memory.current": "5\n"}, None),
        ({"proc/self/cgroup": "0::/\n", f"{CGROUP}/memory.max": "900\n", f"{CGROUP}/memory.current": "500\n"}, 400),
        (
            {
                "proc/self/cgroup": "0::/\n",
                f"{CGROUP}/memory.max": "900\n",
                f"{CGROUP}/memory.current": "500\n",
                f"{CGROUP}/memory.stat": "anon 100\ninactive_file 300\n",
            },
            700,
        ),
        ({"proc/self/cgroup": "0::/a/b", f"{CGROUP}/a/memory.max": "9", f"{CGROUP}/a/memory.current": "10"}, 0),
        (
            {
                "proc/self/cgroup": "5:memory:/x\n",
                f"{CGROUP}/memory/x/memory.limit_in_bytes": "7000",
                f"{CGROUP}/memory/x/memory.usage_in_bytes": "1000",
            },
            6000,
        ),
    ],
)
def test_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], free: int | None) -> None:
    machine = psutil.virtual_memory()._replace(available=12_345)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)
    assert free_memory(_write(tmp_path, files)) == (12_345 if free is None else free)
