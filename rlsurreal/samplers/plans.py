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
    agent: Any = None  # its settings, where the worker chooses actions itself
    link: Any = None  # where its parameters come from
    lost: Lost | None = None  # of the worker that this one replaces
