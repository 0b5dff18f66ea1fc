"""Central inference: one agent, one batch, many workers.

    worker                         server
    writes observation of row t    waits for obs_ready of the units it serves next
    posts obs_ready  ------------> acts on their rows, in the slots themselves
    waits for act_ready  <-------- posts act_ready
    steps row t

Nothing is copied on the way: workers and server look at the same slots.  Which units are served together is the
schedule:

    lock_step    all of them; environments and inference take turns
    alternating  two groups; while one is served the environments of the other step
    dynamic      whoever is ready, once ``min_batch`` environments are or ``max_wait_s`` has passed since the first

    loop                  consumes           produces           waits for                     is unblocked by
    serve (lock step,     obs_ready (T+1     act_ready (T       obs_ready of one group        the workers' posts; the
    alternating)          per unit, slot)    per unit, slot)                                  `wait` it was given raises
    serve (dynamic)       the same           the same           obs_ready of any open unit    when a process died
"""

from __future__ import annotations

import contextlib
import faulthandler
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch

from rlsurreal.distributed.shared_arrays import SharedFile, plain
from rlsurreal.distributed.signals import Signal, Waiter
from rlsurreal.distributed.zygote import send_to_master
from rlsurreal.samplers.actor import Actor
from rlsurreal.samplers.plans import COLLECT, STOP, Control, StationPlan, Unit
from rlsurreal.samplers.worker import wait
from rlsurreal.structs import Agent, Spaces
from rlsurreal.utils.affinity import pin


class SignalWatch(Protocol):
    """Waits for several signals: `Waiter`, or the master's `Watch`, which also minds the worker processes."""

    def wait(self, timeout_s: float | None) -> list[Signal]:
        """The signals that are posted; none when time is over."""

    def remove(self, signal: Signal) -> None:
        """No longer wait for this one."""


MakeWatch = Callable[[list[Signal]], SignalWatch]


@dataclass(kw_only=True, eq=False)
class InferenceServer:
    """Settings: actions are chosen centrally, in the learner's process (one slot) or in processes of their own."""

    schedule: Literal["lock_step", "alternating", "dynamic"] = "lock_step"
    min_batch: int = 1  # dynamic: environments
    max_wait_s: float = 0.002  # dynamic: how long the first that is ready waits for others; in whole milliseconds
    devices: tuple[str, ...] = ()  # one server process for each; (): one, on the agent's device
    num_threads: int = 1  # of torch, in each server process

    def __post_init__(self) -> None:
        if self.schedule not in ("lock_step", "alternating", "dynamic"):
            raise ValueError(
                f"InferenceServer.schedule is {self.schedule!r}; choose 'lock_step', 'alternating' or 'dynamic'"
            )
        unused = (self.min_batch, self.max_wait_s) != (1, 0.002)
        if unused and self.schedule != "dynamic":
            raise ValueError(
                f"InferenceServer: min_batch={self.min_batch} and max_wait_s={self.max_wait_s} are for "
                f"schedule='dynamic', and schedule is {self.schedule!r}; leave them out"
            )
        if self.min_batch < 1 or self.max_wait_s < 0 or self.num_threads < 1:
            raise ValueError(
                f"InferenceServer: min_batch={self.min_batch} and num_threads={self.num_threads} must be at "
                f"least 1, max_wait_s={self.max_wait_s} at least 0"
            )

    @property
    def num_groups(self) -> int:
        """Into how many units each worker's environments are divided."""
        return 2 if self.schedule == "alternating" else 1


class Stopped(Exception):
    """The master has asked this process to leave, in the middle of a slot."""


class Server:
    """Serves one station's units slot after slot."""

    def __init__(
        self,
        settings: InferenceServer,
        actor: Actor,
        groups: list[list[Unit]],
        watch: MakeWatch,
        control: Control | None = None,
    ) -> None:
        """``groups``: units that are served together, contiguous in columns; ``control``: of a process of its own."""
        first_column = groups[0][0].columns.start
        self._settings, self._actor, self._watch = settings, actor, watch
        self._control = control
        self._groups = groups
        self._unit_watches = [[watch([unit.obs_ready]) for unit in group] for group in groups]
        self._parts = [
            slice(group[0].columns.start - first_column, group[-1].columns.stop - first_column) for group in groups
        ]
        self._first_column = first_column

    def serve(self, slot: int) -> None:
        """Choose the actions of one whole slot."""
        self._actor.begin(slot)
        if self._settings.schedule == "dynamic":
            self._serve_dynamic()
        else:
            self._serve_in_turn()
        self._actor.end()

    def _serve_in_turn(self) -> None:
        for t in range(self._actor.num_steps):
            for g, group in enumerate(self._groups):
                self._wait_for_all(g)
                self._actor.act(t, self._parts[g])
                if self._control is not None:
                    rows_done = self._control.rows_done
                    rows_done += 1
                for unit in group:
                    unit.act_ready.post()
        for g in range(len(self._groups)):
            self._wait_for_all(g)

    def _wait_for_all(self, g: int) -> None:
        for unit, watch in zip(self._groups[g], self._unit_watches[g]):
            watch.wait(None)
            unit.obs_ready.take()
            self._leave_if_told()

    def _leave_if_told(self) -> None:
        if self._control is not None and int(self._control.command) == STOP:
            raise Stopped

    def _serve_dynamic(self) -> None:
        settings, num_steps = self._settings, self._actor.num_steps
        waiting = {id(unit.obs_ready): unit for group in self._groups for unit in group}  # for their next observation
        row = dict.fromkeys(waiting, 0)
        watch = self._watch([unit.obs_ready for unit in waiting.values()])
        ready: dict[int, Unit] = {}
        deadline = 0.0
        while waiting or ready:
            for posted in watch.wait(max(0.0, deadline - time.monotonic()) if ready else None) if waiting else []:
                posted.take()
                self._leave_if_told()
                unit = waiting.pop(id(posted))
                if row[id(posted)] == num_steps:  # this slot is full; the next post is for the next one
                    watch.remove(posted)
                    continue
                if not ready:
                    deadline = time.monotonic() + settings.max_wait_s
                ready[id(posted)] = unit
            num_ready = sum(unit.num_envs for unit in ready.values())
            if ready and (num_ready >= settings.min_batch or not waiting or time.monotonic() >= deadline):
                self._act_dynamic(ready, row)
                waiting.update(ready)
                ready = {}

    def _act_dynamic(self, ready: dict[int, Unit], row: dict[int, int]) -> None:
        columns = np.concatenate([np.arange(u.columns.start, u.columns.stop) for u in ready.values()])
        rows = np.repeat([row[key] for key in ready], [u.num_envs for u in ready.values()]) + self._actor.first_row
        self._actor.act_at(rows, columns - self._first_column)
        for key, unit in ready.items():
            row[key] += 1
            unit.act_ready.post()


@dataclass(kw_only=True)
class ServerPlan:
    """Everything a server process is started with."""

    settings: InferenceServer
    train: StationPlan  # `units` in these: all units that this server serves
    evaluate: StationPlan
    train_groups: list[list[Unit]]
    evaluate_groups: list[list[Unit]]
    spaces: Spaces
    control: Control
    go: Signal
    done: Signal
    stack: SharedFile
    cpus: tuple[int, ...]
    agent: Any
    link: Any
    device: str


def make_server(
    settings: InferenceServer,
    agent: Agent,
    plan: StationPlan,
    groups: list[list[Unit]],
    watch: MakeWatch,
    control: Control | None = None,
) -> Server:
    """The server of one station, with an actor for the columns of ``groups``."""
    first, last = groups[0][0].columns.start, groups[-1][-1].columns.stop
    actor = Actor(
        agent,
        plan.slots,
        slice(first, last),
        first_env=plan.batch.first_env,
        seed=plan.seed,
        purpose=plan.purpose,
        deterministic=plan.deterministic,
        programs=plan.programs,
        capture=plan.capture,
        state_interval=plan.state_interval,
    )
    return Server(settings, actor, groups, watch, control)


class _TimedWaiter(Waiter):
    """Takes note of how long it waits."""

    def __init__(self, sources: Sequence[Signal], waited_ns: np.ndarray) -> None:
        super().__init__(sources)
        self._waited_ns = waited_ns

    def wait(self, timeout_s: float | None) -> list[Signal]:
        start = time.perf_counter_ns()
        ready = super().wait(timeout_s)
        self._waited_ns += time.perf_counter_ns() - start
        return ready


def run_server(plan: ServerPlan) -> None:
    """Child process: serve slots until told to stop."""
    with contextlib.suppress(Stopped):
        _serve_slots(plan)


def _serve_slots(plan: ServerPlan) -> None:
    faulthandler.register(signal.SIGUSR1, file=plan.stack, all_threads=False)
    plan.control = plain(plan.control)
    plan.control.environment[...] = -1
    pin(plan.cpus)
    torch.set_num_threads(plan.settings.num_threads)
    plan.agent.initialize(plan.spaces, seed=0, device=plan.device)
    plan.agent.follow(plan.link)

    def watch(signals: Sequence[Signal]) -> SignalWatch:
        return _TimedWaiter(signals, plan.control.waited_ns)

    train = make_server(plan.settings, plan.agent, plan.train, plan.train_groups, watch, plan.control)
    evaluate: Server | None = None
    if plan.evaluate_groups:
        evaluate = make_server(plan.settings, plan.agent, plan.evaluate, plan.evaluate_groups, watch, plan.control)
    send_to_master("ready")
    slot, num_slots = 0, len(plan.train.slots.env.reward)
    while True:
        wait(plan.go, plan.control)
        command = int(plan.control.command)
        if command == STOP:
            return
        plan.agent.pull()
        if command == COLLECT:
            train.serve(slot)
            slot = (slot + 1) % num_slots
        elif evaluate is not None:
            evaluate.serve(0)
        plan.done.post()
