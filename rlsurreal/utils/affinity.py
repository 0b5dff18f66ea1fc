"""Which CPUs the processes of a run use, and how many threads; which GPUs there are, and where.

Called by samplers when they start workers, and by launchers that run several experiments on one machine.  Works with
one CPU, without a GPU, in containers, and where processes cannot be pinned (macOS): there everything runs unpinned.
"""

from __future__ import annotations

import logging
import math
import os
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlsurreal.utils.cgroups import cpu_quota, read

_log = logging.getLogger(__name__)
CAN_PIN = hasattr(os, "sched_setaffinity")
NUM_CPUS = "RLSURREAL_NUM_CPUS"  # environment variable: how many this process and its workers have time for


@dataclass(frozen=True)
class Affinity:
    """CPU numbers and thread counts of a run's workers and servers; no CPUs mean: not pinned.

    The learner's own process runs where it was started (taskset, a queue of experiments, or its ranks say).
    """

    server_cpus: tuple[int, ...] = ()  # of all inference servers that are processes of their own
    worker_cpus: tuple[tuple[int, ...], ...] = ((),)  # one entry for each worker
    worker_threads: int = 1  # of PyTorch, in each worker

    def __post_init__(self) -> None:
        if not self.worker_cpus:
            raise ValueError("Affinity.worker_cpus is empty; give an entry for each worker: () leaves it unpinned")
        if self.worker_threads < 1:
            raise ValueError(f"Affinity.worker_threads is {self.worker_threads}; it must be at least 1")

    @property
    def num_workers(self) -> int:
        """How many worker processes this is for."""
        return len(self.worker_cpus)


def make_affinity(
    num_workers: int | None = None, cpus: Iterable[int] | None = None, worker_threads: int = 1
) -> Affinity:
    """Divide ``cpus`` among ``num_workers`` workers; servers, idle while workers step, may use all of them.

    Args:
        num_workers: default: one for each CPU there is time for.
        cpus: of this run; default: all that this process may use.  Experiments that share a machine take parts that
            `split_cpus` makes.
        worker_threads: PyTorch threads of each worker.

    Workers own CPUs apart from each other as long as there are enough, hyperthreads of one core staying together; with
    more workers than CPUs each CPU serves about equally many.  Nobody is pinned where the operating system cannot, nor
    where a container's quota gives less time than there are CPUs: neighbours under the same quota would pick the same
    few CPUs.

    Raises:
        ValueError: ``num_workers`` below 1, or ``cpus`` that this process may not use.
    """
    allowed = usable_cpus()
    chosen = allowed if cpus is None else tuple(sorted(set(cpus)))
    if not chosen or not set(chosen) <= set(allowed):
        raise ValueError(
            f"cpus is {format_cpus(chosen) or 'empty'}; this process may use {format_cpus(allowed)}: choose among these"
        )
    num_cpus = min(len(chosen), count_cpus())
    num_workers = num_cpus if num_workers is None else num_workers
    if num_workers < 1:
        raise ValueError(f"num_workers is {num_workers}; it must be at least 1")
    if not CAN_PIN or num_cpus < len(chosen):
        return Affinity((), ((),) * num_workers, worker_threads)
    parts = split_cpus(chosen, min(num_workers, len(chosen)))
    return Affinity(chosen, tuple(parts[w % len(parts)] for w in range(num_workers)), worker_threads)


def split_cpus(cpus: Sequence[int], num_parts: int, part_size: int | None = None) -> list[tuple[int, ...]]:
    """Divide ``cpus`` into parts that do not overlap, cover all, and differ in size by at most one.

    Neighbours in the machine (hyperthreads of a core, cores of a socket) stay together where the sizes allow it.  With
    ``part_size`` each part has so many, and what is left belongs to none.
    """
    most = len(cpus) // (part_size or 1)
    if not 1 <= num_parts <= most:
        size = f" of {part_size}" if part_size else ""
        raise ValueError(f"num_parts is {num_parts}; {len(cpus)} CPUs can be divided into 1 to {most} parts{size}")
    near = sorted(cpus, key=_place)[: None if part_size is None else num_parts * part_size]
    bounds = [len(near) * i // num_parts for i in range(num_parts + 1)]
    return [tuple(sorted(near[low:high])) for low, high in zip(bounds, bounds[1:])]


def one_per_core(cpus: Iterable[int]) -> tuple[int, ...]:
    """Of each core's hyperthreads among ``cpus`` the first."""
    first: dict[tuple[int, int], int] = {}
    for cpu in sorted(cpus):
        first.setdefault(_place(cpu)[:2], cpu)
    return tuple(sorted(first.values()))


def cpus_by_socket(cpus: Iterable[int]) -> dict[int, tuple[int, ...]]:
    """``cpus`` by the number of their socket, in rising order of both."""
    places = sorted((_place(cpu)[0], cpu) for cpu in cpus)
    return {socket: tuple(cpu for other, cpu in places if other == socket) for socket, _ in places}


def usable_cpus() -> tuple[int, ...]:
    """The CPUs that this process may use, in rising order."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def count_cpus() -> int:
    """CPUs that this process has time for: those it may use, or fewer where a quota, or who started it, gives less."""
    quota, given = cpu_quota(), os.environ.get(NUM_CPUS, "")
    limits = [len(usable_cpus()), math.inf if quota is None else math.ceil(quota)]
    return max(1, int(min(*limits, int(given) if given.isdecimal() else math.inf)))


def pin(cpus: Sequence[int]) -> bool:
    """Let the calling thread, and threads and processes it starts, run on ``cpus`` only; True when that was done.

    Call it first thing in a worker: threads that exist already (of OpenMP, say) stay where they are.  Does nothing for
    no CPUs or where the operating system cannot pin; a refusal (some containers forbid it) is logged and costs speed
    only.
    """
    if not cpus or not CAN_PIN:
        return False
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        _log.warning("cannot pin process %d to CPUs %s (%s); it runs unpinned", os.getpid(), format_cpus(cpus), error)
        return False
    return True


def format_cpus(cpus: Iterable[int]) -> str:
    """CPU numbers as Linux tools (taskset, cpuset) write them: ``0-3,8``."""
    runs: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def usable_gpus() -> tuple[str, ...]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; none without PyTorch's CUDA."""
    import torch

    count = torch.cuda.device_count()  # asks the driver, but starts nothing on the GPUs
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(map(str, range(count))) if names is None else tuple(n.strip() for n in names.split(","))[:count]


def socket_of_gpu(gpu: str, root: Path = Path("/")) -> int | None:
    """The socket whose CPUs are near the GPU of this number (in the order of the bus) or name; None: not known."""
    command = ["nvidia-smi", f"--id={gpu}", "--query-gpu=pci.bus_id", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip().lower()
    except (OSError, subprocess.SubprocessError):
        return None
    address = answer[-len("0000:00:00.0") :]  # the driver writes the domain with eight digits, the kernel with four
    first = read(root / "sys/bus/pci/devices" / address / "local_cpulist").partition(",")[0].partition("-")[0].strip()
    return _place(int(first))[0] if first else None


def _place(cpu: int) -> tuple[int, int, int]:
    """Socket, core and number of a CPU: an order in which neighbours in the machine are neighbours."""
    topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
    package, core = read(topology / "physical_package_id").strip(), read(topology / "core_id").strip()
    return int(package or 0), int(core or cpu), cpu
