"""What workers and servers are started with, and the words that the master and they exchange.  Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rlsurreal.distributed.shared_arrays import SharedFile
from rlsurreal.distributed.signals import Signal
from rlsurreal.structs import BatchSpec, EnvSpec, Samples, Spaces
from rlsurreal.utils.namedarraytuple import NamedArrayTuple

COLLECT, EVALUATE_AFRESH, EVALUATE_ON, STOP = range(4)


class Control(NamedArrayTuple):
    """Shared words between the master and one worker or server."""

    command: Any  # int64 []: what the next `go` asks for
    rows_done: Any  # int64 []: rows stepped since the start; it stands still when an environment hangs
    slots_begun: Any  # int64 []: training slots whose row 0 is there
    waited_ns: Any  # int64 []: how long it has waited for orders, actions or observations
    environment: Any  # int64 []: global index of the environment being stepped


@dataclass(kw_only=True)
class Unit:
    """Columns of one worker that one message is about: what an inference server serves together or not at all."""

    columns: slice
    obs_ready: Signal = field(default_factory=Signal)
    act_ready: Signal = field(default_factory=Signal)

    @property
    def num_envs(self) -> int:
        """How many columns."""
        num_envs: int = self.columns.stop - self.columns.start
        return num_envs


@dataclass(kw_only=True)
class StationPlan:
    """One kind of work (training or evaluation): environments, slots, and whose columns are whose."""

    env: EnvSpec
    slots: Samples
    batch: BatchSpec
    units: list[Unit]  # of this worker, in the order in which it steps them
    seed: int
    purpose: str
    state_interval: int
    deterministic: bool = False
    mid_batch_reset: bool = True
    max_decorrelation_steps: int = 0
    decorrelation_seed: int = 0
    programs: dict[int, Any] = field(default_factory=dict)  # compiled choice of actions, by number of columns
    capture: bool = False  # the choice of actions, where it is made on a GPU
    on_hold: np.ndarray | None = None  # shared bool [B]: environments to leave alone from the next slot on


@dataclass(frozen=True)
class Lost:
    """Where a worker was lost, for the one that replaces it."""

    num_slots_done: int
    has_begun: bool  # the next slot, so that its row 0 is there
    generation: int  # how many have been lost before: the new environments must not repeat the old ones' episodes


@dataclass(kw_only=True)
class WorkerPlan:
    """Everything a worker is started with."""

    train: StationPlan
    evaluate: StationPlan
    spaces: Spaces
    control: Control
    go: Signal
    done: Signal
    stack: SharedFile
    cpus: tuple[int, ...]
    num_threads: int = 1  # of torch, where the worker chooses actions itself
    agent: Any = None  # its settings, where the worker chooses actions itself
    link: Any = None  # where its parameters come from
    lost: Lost | None = None  # of the worker that this one replaces


class Layout:
    """Which columns belong to which worker, group and server.

    Columns go to servers, within a server to groups, within a group to workers, so that what is served together is
    contiguous.
    """

    def __init__(self, num_envs: int, num_workers: int, num_groups: int, num_servers: int) -> None:
        self.num_workers, self.num_servers = num_workers, num_servers
        self._units: dict[tuple[int, int, int], Unit] = {}  # server, group, worker
        share = np.array_split(np.arange(num_envs), num_workers)
        start = 0
        for server, workers in enumerate(np.array_split(np.arange(num_workers), num_servers)):
            for group in range(num_groups):
                for w in workers.tolist():
                    size = len(np.array_split(share[w], num_groups)[group])
                    if size:
                        self._units[server, group, w] = Unit(columns=slice(start, start + size))
                    start += size

    def units_of_worker(self, worker: int) -> list[Unit]:
        """A worker's units, by group."""
        return [unit for (_, _, w), unit in self._units.items() if w == worker]

    def groups_of_server(self, server: int) -> list[list[Unit]]:
        """A server's units, group by group; none empty."""
        groups: dict[int, list[Unit]] = {}
        for (s, group, _), unit in self._units.items():
            if s == server:
                groups.setdefault(group, []).append(unit)
        return list(groups.values())
