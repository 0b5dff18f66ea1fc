"""The process that steps environments.  Torch-free unless it chooses actions itself.

    loop               consumes                    produces                     waits for        is unblocked by
    run_worker         `go` (one per slot)         `done` (one per slot)        go               the master's post
    serve-side step    `act_ready` (T per slot)    `obs_ready` (T+1 per slot)   act_ready        the inference server

All data goes through the shared slots.  A worker never times out: when its master dies it is killed.
"""

from __future__ import annotations

import faulthandler
import signal
import time
from collections.abc import Callable

from rlsurreal.distributed.shared_arrays import plain
from rlsurreal.distributed.signals import Signal
from rlsurreal.distributed.zygote import at_end, send_to_master
from rlsurreal.samplers.collector import Collector
from rlsurreal.samplers.plans import COLLECT, EVALUATE_AFRESH, STOP, Control, StationPlan, Unit, WorkerPlan
from rlsurreal.samplers.slots import SlotViews
from rlsurreal.structs import EnvSpec
from rlsurreal.utils.affinity import pin
from rlsurreal.utils.seeding import derive_seed


def describe_env(train: EnvSpec, evaluate: EnvSpec, seed: int) -> None:
    """Child process: build one environment of each kind and say what it is like."""
    described = []
    for spec in [train] if evaluate is train else [train, evaluate]:  # of one kind two may want the same port
        env = spec.make(1, 0, seed)
        at_end.append(env.close)
        described.append((env.spaces, env.info_example, env.can_skip))
    send_to_master((described[0], described[-1]))


def run_worker(plan: WorkerPlan) -> None:
    """Child process: step environments through slots until told to stop."""
    # The master asks where a hanging worker is.
    faulthandler.register(signal.SIGUSR1, file=plan.stack, all_threads=False)
    plan.control = plain(plan.control)
    plan.control.environment[...] = -1
    pin(plan.cpus)
    train = _Station(plan.train, plan)
    evaluation: _Station | None = None
    send_to_master("ready")
    while True:
        wait(plan.go, plan.control)
        command = int(plan.control.command)
        if command == STOP:
            return
        if command == COLLECT:
            train.fill()
        else:
            try:
                if evaluation is None:
                    evaluation = _Station(plan.evaluate, plan)
                elif command == EVALUATE_AFRESH:
                    evaluation.start()
                evaluation.fill()
            except Exception as error:
                raise RuntimeError(f"in an evaluation: {error}") from error
        plan.done.post()


def wait(signal_: Signal, control: Control) -> None:
    """Wait, and take note for how long."""
    start = time.perf_counter_ns()
    signal_.wait()
    waited = control.waited_ns
    waited += time.perf_counter_ns() - start


class _Station:
    """Environments of one kind, stepped slot after slot."""

    def __init__(self, plan: StationPlan, worker: WorkerPlan) -> None:
        self._plan, self._worker = plan, worker
        self._collectors = [self._collector(unit) for unit in plan.units]
        self._slot, self._num_slots = 0, len(plan.slots.env.reward)
        if plan is worker.train and worker.lost is not None:
            self._slot = worker.lost.num_slots_done % self._num_slots
            for collector in self._collectors:
                collector.take_over(self._slot, worker.lost.has_begun)
        else:
            self.start()
        self._fill: Callable[[int], None] = self._fill_served if worker.agent is None else self._local_fill()

    def _collector(self, unit: Unit) -> Collector:
        plan = self._plan
        first_env = plan.batch.first_env + unit.columns.start
        generation = 0 if self._worker.lost is None else self._worker.lost.generation
        seed = plan.seed if generation == 0 else derive_seed(plan.seed, "replacement", generation)
        env = plan.env.make(unit.num_envs, first_env, seed)
        at_end.append(env.close)
        control = self._worker.control
        collector = Collector(
            env,
            SlotViews(plan.slots, unit.columns),
            mid_batch_reset=plan.mid_batch_reset,
            rows_done=control.rows_done,
            slots_begun=control.slots_begun if plan is self._worker.train else None,
        )
        env.position = self._worker.control.environment
        if plan.on_hold is not None:
            collector.on_hold = plan.on_hold[unit.columns]
        return collector

    def start(self) -> None:
        """New episodes everywhere."""
        plan = self._plan
        for unit, collector in zip(plan.units, self._collectors):
            collector.start(
                max_decorrelation_steps=plan.max_decorrelation_steps,
                seed=plan.decorrelation_seed,
                first_env=plan.batch.first_env + unit.columns.start,
            )

    def fill(self) -> None:
        """The next slot of the ring."""
        self._fill(self._slot)
        self._slot = (self._slot + 1) % self._num_slots

    def _fill_served(self, slot: int) -> None:
        """Actions come from an inference server."""
        units, control = self._plan.units, self._worker.control
        for unit, collector in zip(units, self._collectors):
            collector.begin(slot)
            unit.obs_ready.post()
        for t in range(self._plan.batch.num_steps):
            for unit, collector in zip(units, self._collectors):
                wait(unit.act_ready, control)
                if int(control.command) == STOP:  # another worker has failed: leave, and close the environments
                    return
                collector.step(slot, t)
                unit.obs_ready.post()

    def _local_fill(self) -> Callable[[int], None]:
        """Actions are chosen here, by a copy of the agent."""
        # The only place where a worker comes to import torch.
        from rlsurreal.samplers.local import LocalFill

        return LocalFill(self._plan, self._worker, self._collectors)
