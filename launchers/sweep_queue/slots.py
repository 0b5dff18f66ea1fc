"""The machine divided into slots, each for one run at a time: CPUs of its own, and GPUs.

Called by `launchers/local_queue.py`; what there is to divide, `rlsurreal.utils.affinity` says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlsurreal.utils import affinity
from rlsurreal.utils.affinity import format_cpus


@dataclass(frozen=True, kw_only=True)
class Slots:
    """How to divide the machine."""

    num_slots: int | None = None  # None: as many as the machine has room for, and as there are runs
    gpus_per_run: int | None = None  # None: one if the runs use GPUs; several are ranks with one gradient
    runs_per_gpu: int = 1  # at the same time
    cpus_per_run: int | None = None  # None: all CPUs in equal shares, a core at least
    use_hyperthreads: bool = True  # False: of each core one CPU, the others idle
    within_socket: bool = False  # no run spans two sockets, and each is on that of its GPU

    def __post_init__(self) -> None:
        for name, least in (("num_slots", 1), ("gpus_per_run", 0), ("runs_per_gpu", 1), ("cpus_per_run", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"Slots.{name} is {value}; it must be at least {least}")


@dataclass(frozen=True)
class Slot:
    """What one run at a time may use."""

    index: int
    cpus: tuple[int, ...]  # none: not pinned
    gpus: tuple[str, ...]
    num_threads: int  # that it has time for

    def environment(self) -> dict[str, str]:
        """Environment variables of a run here."""
        threads = max(1, self.num_threads // max(1, len(self.gpus)))  # of each rank
        return {
            "CUDA_VISIBLE_DEVICES": ",".join(self.gpus),
            "OMP_NUM_THREADS": str(threads),
            affinity.NUM_CPUS: str(self.num_threads),
        }

    def __str__(self) -> str:
        cpus = f"CPU {format_cpus(self.cpus)}" if self.cpus else f"any {self.num_threads} CPUs"
        return f"{cpus}, GPU {','.join(self.gpus)}" if self.gpus else cpus


def make_slots(wanted: Slots, num_runs: int, *, uses_gpus: bool) -> list[Slot]:
    """Slots for ``num_runs`` runs, which use GPUs or not.

    CPUs of slots are apart from each other, neighbours in the machine together.  Where a container's quota gives less
    time than there are CPUs, all of them are divided, and what a slot has time for is its share of the quota.

    Raises:
        ValueError: the machine has not what is wanted.
    """
    cpus = affinity.usable_cpus() if wanted.use_hyperthreads else affinity.one_per_core(affinity.usable_cpus())
    has_quota = affinity.count_cpus() < len(cpus)
    division = _Division(wanted, cpus, min(len(cpus), affinity.count_cpus()))
    groups = _gpu_groups(wanted, uses_gpus)
    asked = num_runs if wanted.num_slots is None else wanted.num_slots
    chosen: list[tuple[int, tuple[str, ...]]] = []  # socket and GPUs of each slot
    for socket, group in division.on_gpus(groups) if groups else division.on_cpus():
        chosen.append((socket, group))
        if len(chosen) == max(1, asked):
            break
    if not chosen or (wanted.num_slots is not None and len(chosen) < asked):
        gpus = f" and {sum(map(len, groups))} GPUs" if groups else ""
        each = f" of {wanted.cpus_per_run} CPUs" if wanted.cpus_per_run else ""
        raise ValueError(
            f"{max(1, asked)} slots{each} are asked for; {division.num_cpus} CPUs{gpus} have room for {len(chosen)}: "
            "ask for fewer or smaller ones"
        )
    size = None if has_quota else wanted.cpus_per_run
    parts = {
        socket: iter(affinity.split_cpus(members, count, size))
        for socket, members in division.sockets.items()
        if (count := sum(other == socket for other, _ in chosen))
    }
    share = max(1, division.num_cpus // len(chosen)) if has_quota else len(cpus)
    slots = []
    for index, (socket, group) in enumerate(chosen):
        part = next(parts[socket])
        num_threads = min(len(part), wanted.cpus_per_run or share)
        slots.append(Slot(index, part if affinity.CAN_PIN else (), group, num_threads))
    return slots


def _gpu_groups(wanted: Slots, uses_gpus: bool) -> list[tuple[str, ...]]:
    """The GPUs that a run has together; none without GPUs."""
    size = int(uses_gpus) if wanted.gpus_per_run is None else wanted.gpus_per_run
    if size and not uses_gpus:
        raise ValueError(
            f"gpus_per_run is {size} and the device of a run is cpu, so GPUs would be idle; add device='cuda' to the "
            "sweep's settings, or make gpus_per_run 0"
        )
    if uses_gpus and not size:
        raise ValueError("gpus_per_run is 0 and the device of a run is cuda; make it 1, or remove device")
    gpus = affinity.usable_gpus() if size else ()
    if len(gpus) < size:
        raise ValueError(f"gpus_per_run is {size}; this process may use {len(gpus)} GPUs: ask for fewer")
    return [gpus[start : start + size] for start in range(0, len(gpus) - size + 1, size)] if size else []


class _Division:
    """Room for slots in sockets; with ``within_socket=False`` all CPUs count as one."""

    def __init__(self, wanted: Slots, cpus: Sequence[int], num_cpus: int) -> None:
        self.sockets = affinity.cpus_by_socket(cpus) if wanted.within_socket else {0: tuple(cpus)}
        self.num_cpus = num_cpus  # that there is time for
        self._wanted = wanted
        self._least = wanted.cpus_per_run or 1
        self._counts = dict.fromkeys(self.sockets, 0)

    def on_gpus(self, groups: Sequence[tuple[str, ...]]) -> Iterator[tuple[int, tuple[str, ...]]]:
        """Slots on GPUs, each GPU's first run before any GPU's second."""
        near = [self._socket_of(group, place / len(groups)) for place, group in enumerate(groups)]
        for _ in range(self._wanted.runs_per_gpu):
            for socket, group in zip(near, groups):
                if self._has_room(socket):
                    yield self._take(socket), group

    def on_cpus(self) -> Iterator[tuple[int, tuple[str, ...]]]:
        """Slots on CPUs alone, where there are most CPUs for each."""
        # A core at least: two runs on hyperthreads of one core are hardly faster than one after the other.
        cores = sum(len(affinity.one_per_core(cpus)) for cpus in self.sockets.values())
        counted = self._wanted.num_slots is None and self._wanted.cpus_per_run is None
        for _ in range(cores if counted else self.num_cpus):
            free = [socket for socket in self.sockets if self._has_room(socket)]
            if not free:
                return
            yield self._take(max(free, key=lambda s: len(self.sockets[s]) / (self._counts[s] + 1))), ()

    def _socket_of(self, group: tuple[str, ...], place: float) -> int:
        """Where the GPUs are; where that is not known, GPUs are taken to be evenly on the sockets."""
        known = affinity.socket_of_gpu(group[0]) if self._wanted.within_socket else None
        return list(self.sockets)[int(place * len(self.sockets))] if known not in self.sockets else known

    def _has_room(self, socket: int) -> bool:
        in_time = (sum(self._counts.values()) + 1) * self._least <= self.num_cpus
        return in_time and (self._counts[socket] + 1) * self._least <= len(self.sockets[socket])

    def _take(self, socket: int) -> int:
        self._counts[socket] += 1
        return socket
