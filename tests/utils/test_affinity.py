"""CPUs are divided without overlap, on machines and containers that are made up as files."""

from __future__ import annotations

import itertools
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlsurreal.utils import affinity
from rlsurreal.utils.affinity import (
    Affinity,
    cpus_by_socket,
    format_cpus,
    make_affinity,
    one_per_core,
    pin,
    socket_of_gpu,
    split_cpus,
    usable_cpus,
    usable_gpus,
)
from rlsurreal.utils.config import from_tree, to_tree


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """8 CPUs, 4 cores in 2 sockets; hyperthread c belongs to the core of c + 4; no quota."""
    monkeypatch.setattr(affinity, "_place", lambda cpu: (cpu % 4 // 2, cpu % 4, cpu))
    monkeypatch.setattr(affinity, "usable_cpus", lambda: tuple(range(8)))
    monkeypatch.setattr(affinity, "cpu_quota", lambda: None)
    monkeypatch.setattr(affinity, "CAN_PIN", True)
    return monkeypatch


def test_split_covers_without_overlap_and_evenly() -> None:
    for num_cpus, num_parts in itertools.product(range(1, 14), range(1, 14)):
        cpus = [3 * i for i in range(num_cpus)]
        if num_parts > num_cpus:
            with pytest.raises(ValueError, match=f"num_parts is {num_parts}"):
                split_cpus(cpus, num_parts)
            continue
        parts = split_cpus(cpus, num_parts)
        assert sorted(itertools.chain(*parts)) == cpus
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_split_keeps_hyperthreads_and_sockets_together(machine: pytest.MonkeyPatch) -> None:
    assert split_cpus(range(8), 2) == [(0, 1, 4, 5), (2, 3, 6, 7)]
    assert split_cpus(range(8), 4) == [(0, 4), (1, 5), (2, 6), (3, 7)]


def test_parts_of_a_size_leave_the_rest(machine: pytest.MonkeyPatch) -> None:
    assert split_cpus(range(8), 2, part_size=2) == [(0, 4), (1, 5)]
    assert split_cpus(range(8), 2, part_size=3) == [(0, 1, 4), (2, 5, 6)]
    with pytest.raises(ValueError, match=r"num_parts is 3; 8 CPUs can be divided into 1 to 2 parts of 3"):
        split_cpus(range(8), 3, part_size=3)


def test_cores_and_sockets(machine: pytest.MonkeyPatch) -> None:
    assert one_per_core(range(8)) == (0, 1, 2, 3)
    assert one_per_core((3, 4, 7)) == (3, 4)
    assert cpus_by_socket((7, 0, 2, 5)) == {0: (0, 5), 1: (2, 7)}


@pytest.mark.parametrize(
    ("visible", "count", "names"),
    [
        (None, 2, ("0", "1")),
        ("3, 1", 2, ("3", "1")),
        ("GPU-1a2b", 1, ("GPU-1a2b",)),
        ("", 0, ()),
        ("0,-1,1", 1, ("0",)),  # what follows an impossible number does not count
    ],
)
def test_usable_gpus(visible: str | None, count: int, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert usable_gpus() == names


def test_a_gpus_socket(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "bin/nvidia-smi"
    answers = "case $1 in --id=0) echo 00000000:17:00.0;; --id=1) echo 00000000:CA:00.0;; *) exit 6;; esac"
    files = {
        "bin/nvidia-smi": f"#!/bin/sh\n{answers}\n",
        "sys/bus/pci/devices/0000:17:00.0/local_cpulist": "0-1,4-5\n",
        "sys/bus/pci/devices/0000:ca:00.0/local_cpulist": "2-3,6-7\n",
    }
    _write(tmp_path, files)
    tool.chmod(0o755)
    machine.setenv("PATH", str(tool.parent), prepend=":")
    assert [socket_of_gpu(gpu, tmp_path) for gpu in ("0", "1", "2")] == [0, 1, None]
    assert socket_of_gpu("0", tmp_path / "elsewhere") is None
    machine.setenv("PATH", str(tmp_path))
    assert socket_of_gpu("0", tmp_path) is None


def test_workers_cover_the_cpus(machine: pytest.MonkeyPatch) -> None:
    for num_workers in range(1, 20):
        made = make_affinity(num_workers)
        assert made.num_workers == num_workers and made.server_cpus == tuple(range(8))
        assert set(itertools.chain(*made.worker_cpus)) == set(range(8))
        if num_workers <= 8:
            assert len(list(itertools.chain(*made.worker_cpus))) == 8
        else:
            load = [sum(cpu in cpus for cpus in made.worker_cpus) for cpu in range(8)]
            assert max(load) - min(load) <= 1
    assert make_affinity().num_workers == 8
    assert make_affinity(worker_threads=2).worker_threads == 2


def test_experiments_on_one_machine_do_not_overlap(machine: pytest.MonkeyPatch) -> None:
    runs = [make_affinity(cpus=part) for part in split_cpus(range(8), 3)]
    assert sorted(itertools.chain(*(run.server_cpus for run in runs))) == list(range(8))
    for run in runs:
        assert set(itertools.chain(*run.worker_cpus)) == set(run.server_cpus)


def test_one_cpu(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(affinity, "usable_cpus", lambda: (5,))
    assert make_affinity() == Affinity((5,), ((5,),), 1)
    assert make_affinity(3) == Affinity((5,), ((5,), (5,), (5,)), 1)


@pytest.mark.parametrize(("quota", "num_workers"), [(2.0, 2), (2.5, 3), (0.5, 1)])
def test_nobody_is_pinned_under_a_quota(machine: pytest.MonkeyPatch, quota: float, num_workers: int) -> None:
    machine.setattr(affinity, "cpu_quota", lambda: quota)
    assert make_affinity() == Affinity((), ((),) * num_workers, 1)
    assert make_affinity(6).worker_cpus == ((),) * 6


def test_who_starts_a_process_may_give_it_fewer_cpus(machine: pytest.MonkeyPatch) -> None:
    for given, expected in (("2", 2), ("0", 1), ("100", 8), ("", 8), ("many", 8)):
        machine.setenv("RLSURREAL_NUM_CPUS", given)
        assert affinity.count_cpus() == expected
    machine.setenv("RLSURREAL_NUM_CPUS", "2")
    assert make_affinity() == Affinity((), ((), ()), 1)
    machine.setattr(affinity, "cpu_quota", lambda: 1.5)
    assert affinity.count_cpus() == 2


def test_a_quota_of_all_cpus_does_not_hinder_pinning(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(affinity, "cpu_quota", lambda: 8.0)
    assert make_affinity().worker_cpus != ((),) * 8


def test_where_processes_cannot_be_pinned(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(affinity, "CAN_PIN", False)
    assert make_affinity(2) == Affinity((), ((), ()), 1)
    assert pin((0,)) is False


def test_usable_cpus_without_sched_getaffinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert usable_cpus() == (0, 1, 2)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cpus() == (0,)


def test_wrong_arguments_name_themselves(machine: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="num_workers is 0"):
        make_affinity(0)
    with pytest.raises(ValueError, match=r"cpus is 7-8; this process may use 0-7"):
        make_affinity(cpus=[7, 8])
    with pytest.raises(ValueError, match="cpus is empty"):
        make_affinity(cpus=[])
    with pytest.raises(ValueError, match=r"Affinity\.worker_threads is 0"):
        Affinity(worker_threads=0)
    with pytest.raises(ValueError, match=r"Affinity\.worker_cpus is empty"):
        Affinity(worker_cpus=())


def test_this_machine() -> None:
    made = make_affinity()
    assert made.num_workers >= 1 and made.worker_threads >= 1
    assert set(itertools.chain(*made.worker_cpus)) <= set(usable_cpus())
    assert from_tree(to_tree(made)) == made


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin")
def test_pin_in_a_process_of_its_own() -> None:
    cpu = usable_cpus()[-1]
    script = f"import os; from rlsurreal.utils.affinity import pin; print(pin(({cpu},)), os.sched_getaffinity(0))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == f"True {{{cpu}}}"


def test_a_refused_pin_is_logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(pid: int, cpus: object) -> None:
        raise PermissionError(1, "not permitted")

    monkeypatch.setattr(os, "sched_setaffinity", refuse, raising=False)
    monkeypatch.setattr(affinity, "CAN_PIN", True)
    with caplog.at_level(logging.WARNING):
        assert pin((0, 1)) is False
    assert "CPUs 0-1" in caplog.text and "not permitted" in caplog.text
    assert pin(()) is False


def test_format_cpus() -> None:
    assert format_cpus((8, 0, 1, 2, 3, 10, 11)) == "0-3,8,10-11"
    assert format_cpus(()) == ""


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root
