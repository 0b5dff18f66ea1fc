"""Filling a slot where environments and agent share a process: serial sampling and workers with a copy of the agent."""

from __future__ import annotations

from collections.abc import Callable

import torch

from rlsurreal.samplers.actor import Actor
from rlsurreal.samplers.collector import Collector
from rlsurreal.samplers.plans import STOP, StationPlan, WorkerPlan


def fill_slot(collector: Collector, actor: Actor, slot: int, must_stop: Callable[[], bool] | None = None) -> None:
    """Collect one slot where environments and agent share a process; given up as soon as ``must_stop()``."""
    collector.begin(slot)
    actor.begin(slot)
    everyone = slice(0, collector.views.num_envs)
    for t in range(actor.num_steps):
        if must_stop is not None and must_stop():
            return
        actor.act(t, everyone)
        collector.step(slot, t)
    actor.end()


class LocalFill:
    """Fills a worker's columns of a slot.  Training and evaluation share one copy of the agent."""

    def __init__(self, plan: StationPlan, worker: WorkerPlan, collectors: list[Collector]) -> None:
        self._agent, self._control = worker.agent, worker.control
        if not hasattr(self._agent, "spaces"):
            torch.set_num_threads(worker.num_threads)
            self._agent.initialize(worker.spaces, seed=0)
            self._agent.follow(worker.link)
        self._collectors = collectors
        self._actors = [
            Actor(
                self._agent,
                plan.slots,
                unit.columns,
                first_env=plan.batch.first_env,
                seed=plan.seed,
                purpose=plan.purpose,
                deterministic=plan.deterministic,
                programs=plan.programs,
                state_interval=plan.state_interval,
            )
            for unit in plan.units
        ]
        if plan is worker.train and worker.lost is not None:
            for actor in self._actors:
                actor.num_slots_begun = worker.lost.num_slots_done

    def __call__(self, slot: int) -> None:
        """Fill the slot with the newest parameters."""
        self._agent.pull()
        for collector, actor in zip(self._collectors, self._actors):
            fill_slot(collector, actor, slot, self._must_stop)

    def _must_stop(self) -> bool:
        return int(self._control.command) == STOP
