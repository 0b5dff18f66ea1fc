"""Sampling in worker processes.

    inference=None                           inference=InferenceServer(...)
    worker: environments + copy of agent     worker: environments        server: agent
    master: obtain() waits                   one slot: the server runs in the master, inside obtain()
                                             more slots: in processes of its own

With one slot, sampling and learning take turns.  With more, workers fill the next slots while the learner holds one;
the number of slots bounds how old the parameters behind a sample can be.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from typing_extensions import Self

from rlsurreal.distributed.processes import Launcher
from rlsurreal.distributed.shared_arrays import SharedFile, allocate
from rlsurreal.distributed.signals import Signal
from rlsurreal.samplers.actor import act_programs, agent_example
from rlsurreal.samplers.base import (
    EvalSpec,
    SamplerSettings,
    SlotBoard,
    check_engine_can_wait,
    check_spaces_agree,
    play_episodes,
    replica,
)
from rlsurreal.samplers.crew import Crew, LostInEvaluation, Member
from rlsurreal.samplers.plans import (
    COLLECT,
    EVALUATE_AFRESH,
    EVALUATE_ON,
    Control,
    Layout,
    Lost,
    StationPlan,
    Unit,
    WorkerPlan,
)
from rlsurreal.samplers.server import InferenceServer, Server, ServerPlan, make_server, run_server
from rlsurreal.samplers.slots import allocate_slots
from rlsurreal.samplers.trajectories import TrajectoryTracker
from rlsurreal.samplers.worker import describe_env, run_worker
from rlsurreal.structs import Agent, BatchSpec, EnvSamples, Samples, Spaces, TrajInfo, never
from rlsurreal.utils.affinity import Affinity, make_affinity
from rlsurreal.utils.programs import Compile
from rlsurreal.utils.seeding import derive_seed

_log = logging.getLogger(__name__)
_CLOSE_S = 5.0  # for environments that were only looked at
_WORKER_MODULES = ("rlsurreal.samplers.worker",)
_ACTING_MODULES = ("rlsurreal.samplers.local", "rlsurreal.agents")


@dataclass(kw_only=True, eq=False)
class ParallelSampler(SamplerSettings):
    """Environments in worker processes; the agent in them, or behind an inference server."""

    num_workers: int | None = None  # None: one for each CPU
    num_slots: int = 1  # 1: sampling and learning take turns; more: they overlap
    inference: InferenceServer | None = None  # None: each worker has a copy of the agent
    affinity: Affinity | None = None  # None: all CPUs that this process may use, workers apart from each other
    step_timeout_s: float = 300.0  # without a step for so long, the run fails
    startup_timeout_s: float = 600.0
    on_worker_failure: Literal["stop", "replace"] = "stop"  # "replace": log it, and go on with new environments

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_workers is not None and self.num_workers < 1:
            raise ValueError(f"num_workers is {self.num_workers}; it must be at least 1, or None for one for each CPU")
        if self.num_slots < 1:
            raise ValueError(f"num_slots is {self.num_slots}; it must be at least 1")
        if self.on_worker_failure not in ("stop", "replace"):
            raise ValueError(f"on_worker_failure is {self.on_worker_failure!r}; choose 'stop' or 'replace'")
        if self.on_worker_failure == "replace" and self.inference is not None:
            raise ValueError("on_worker_failure='replace' needs workers that act for themselves: inference=None")
        for name in ("step_timeout_s", "startup_timeout_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")

    def divided(self, batch: BatchSpec, evaluation: EvalSpec) -> Self:
        """See `SamplerSettings.divided`.

        Raises:
            ValueError: all ranks of a machine would use the same CPUs or GPU.
        """
        if self.affinity is not None and any(self.affinity.worker_cpus):
            raise ValueError("affinity names CPUs, which all ranks would use; leave it out: ranks share the CPUs")
        devices = self.inference.devices if self.inference else ()
        if set(devices) - {"cpu"}:
            raise ValueError(
                f"inference.devices is {devices}, which all ranks would use; leave it out: each rank's server is on "
                "the rank's own GPU"
            )
        return super().divided(batch, evaluation)

    # ------------------------------------------------------------ start

    def connect(self, *, seed: int) -> Spaces:
        """Start the zygote and ask a short-lived child what the environments are like."""
        self._seed, self._generation = seed, 0
        self._crew: Crew | None = None
        self._broken = False
        preload = _WORKER_MODULES + self.env.preload_modules() + self.eval_env.preload_modules()
        self._launcher = Launcher(preload if self.inference else preload + _ACTING_MODULES)
        probe = self._launcher.start("probe of the environment", describe_env, self.env, self.eval_env, seed)
        train, evaluation = probe.receive(self.startup_timeout_s)
        if not probe.join(_CLOSE_S):  # the workers' environments may want the same port or folder
            _log.warning("an environment takes more than %g s to close; its process is killed", _CLOSE_S)
            probe.kill()
        spaces: Spaces
        spaces, self._info_example, can_skip = train
        check_engine_can_wait(self, can_skip)
        eval_spaces, self._eval_info_example, self._eval_can_skip = evaluation
        check_spaces_agree(spaces, eval_spaces)
        return spaces

    def initialize(
        self, agent: Agent, *, discount: float, compile: Compile = "off", num_iterations: int | None = None
    ) -> None:
        """Allocate the slots.  Processes are started when samples are first asked for."""
        self._agent, self._discount = agent, discount
        num_groups = self.inference.num_groups if self.inference else 1
        asked = self.num_workers or (self.affinity or make_affinity()).num_workers
        num_workers = min(asked, max(1, self.batch.num_envs // num_groups))
        self._affinity = self.affinity or make_affinity(num_workers)  # of so many: CPUs for each, hyperthreads together
        num_servers = max(1, len(self.inference.devices)) if self.inference else 0
        if num_servers > num_workers:
            raise ValueError(
                f"inference.devices names {num_servers} devices for {num_workers} workers; each server needs a worker"
            )
        self._layout = Layout(self.batch.num_envs, num_workers, num_groups, max(1, num_servers))
        self._eval_layout = Layout(self.evaluation.num_envs, num_workers, 1, max(1, num_servers))
        self._allocate(agent)
        acting = (self._act_sizes(), self._act_device(agent.device), self._act_threads())
        self._programs = act_programs(agent, self._slots, *acting, compile, num_iterations)
        self._capture = compile != "off"
        self._trajectories: list[TrajInfo] = []

    def _act_sizes(self) -> list[int]:
        """How many environments actions are chosen for at once."""
        if self.inference is None:
            return [u.num_envs for w in range(self._layout.num_workers) for u in self._layout.units_of_worker(w)]
        if self.inference.schedule == "dynamic":
            return []  # any number
        servers = range(self._layout.num_servers)
        return [sum(u.num_envs for u in group) for s in servers for group in self._layout.groups_of_server(s)]

    def _act_device(self, own: torch.device) -> torch.device:
        if self.inference is None:
            return torch.device("cpu")
        return torch.device(self.inference.devices[0]) if self.inference.devices else own

    def _act_threads(self) -> int:
        """Threads of torch where actions are chosen."""
        if self.inference is None:
            return self._affinity.worker_threads
        in_master = self.num_slots == 1 and not self.inference.devices
        return torch.get_num_threads() if in_master else self.inference.num_threads

    def _started(self) -> Crew:
        """The processes, started if they are not."""
        if self._crew is None:
            self._crew = Crew(
                self._launcher,
                self.step_timeout_s,
                self._replacement if self.on_worker_failure == "replace" else None,
            )
            self._start_processes(self._crew)
            self._tracker = TrajectoryTracker(
                self.batch.num_envs,
                self.batch.first_env,
                self._discount,
                drop_first=self.max_decorrelation_steps > 0,
            )
            self._next_slot = self._next_to_dispatch = 0
            if self.num_slots > 1:
                self._dispatch_free()
        return self._crew

    def _start_processes(self, crew: Crew) -> None:
        agent, inference = self._agent, self.inference
        in_master = inference is not None and self.num_slots == 1 and not inference.devices
        link = None if in_master else agent.share()
        worker_cpus = self._affinity.worker_cpus
        for w in range(self._layout.num_workers):
            plan = WorkerPlan(
                train=self._train_plan(self._layout.units_of_worker(w), self._worker_view(self._slots)),
                evaluate=self._eval_plan(self._eval_layout.units_of_worker(w), self._worker_view(self._eval_slots)),
                spaces=agent.spaces,
                cpus=worker_cpus[w % len(worker_cpus)],
                num_threads=self._affinity.worker_threads,
                agent=None if inference else replica(agent),
                link=None if inference else link,
                **self._channels(len(crew.members)),
            )
            crew.add(self._worker_name(w), run_worker, plan)
        self._train_server: Server | None = None
        if inference is not None and in_master:
            self._serve_here(inference, crew)
        elif inference is not None:
            self._start_servers(inference, crew, link)
        crew.wait_until_ready(self.startup_timeout_s)

    def _allocate(self, agent: Agent) -> None:
        example = agent_example(agent)
        self._slots = allocate_slots(
            self.num_slots,
            self.batch,
            agent.spaces,
            self._info_example,
            example,
            shared=True,
            state_interval=self._interval,
        )
        self._eval_slots = allocate_slots(
            1,
            self.eval_batch,
            agent.spaces,
            self._eval_info_example,
            example,
            shared=True,
            state_interval=self.eval_batch.num_steps,
        )
        num_processes = self._layout.num_workers + self._layout.num_servers
        self._controls = allocate(Control(*[np.int64(0)] * 5), (num_processes,))
        self._controls.environment[:] = -1
        self._waited = (time.perf_counter_ns(), self._controls.waited_ns.copy())
        self._on_hold = allocate(np.bool_(False), (self.evaluation.num_envs,))
        self._board, self._eval_board = SlotBoard(self._slots, agent.device), SlotBoard(self._eval_slots, agent.device)

    @property
    def _interval(self) -> int:
        return self.state_interval or self.batch.num_steps

    @property
    def _run_seed(self) -> int:
        """Of environments and actions: a resumed run must not repeat the episodes of the one before."""
        return self._seed if self._generation == 0 else derive_seed(self._seed, "resumed", self._generation)

    def _channels(self, process: int) -> dict[str, Any]:
        return {"control": self._controls[process, ...], "go": Signal(), "done": Signal(), "stack": SharedFile()}

    def _replacement(self, member: Member) -> WorkerPlan:
        """The plan for a worker in the place of one that was lost."""
        plan, control = member.plan, member.plan.control
        assert isinstance(plan, WorkerPlan)
        lost = Lost(
            num_slots_done=member.num_slots_done,
            has_begun=int(control.slots_begun) > member.num_slots_done,
            generation=1 if plan.lost is None else plan.lost.generation + 1,
        )
        return dataclasses.replace(plan, lost=lost, go=Signal(), done=Signal(), stack=SharedFile())

    def _worker_view(self, slots: Samples) -> Samples:
        """What a worker gets of the slots.  Where it does not act, nothing whose class would bring torch with it."""
        if self.inference is None:
            return slots
        return slots._replace(agent=slots.agent._replace(agent_info=None, agent_state=None))

    def _worker_name(self, w: int) -> str:
        parts = [
            f"{u.columns.start + self.batch.first_env} to {u.columns.stop - 1 + self.batch.first_env}"
            for u in self._layout.units_of_worker(w)
        ]
        return f"worker-{w} (environments {' and '.join(parts)})"

    def _train_plan(self, units: list[Unit], slots: Samples | None = None) -> StationPlan:
        return StationPlan(
            env=self.env,
            slots=self._slots if slots is None else slots,
            batch=self.batch,
            units=units,
            seed=self._run_seed,
            purpose="act",
            state_interval=self._interval,
            mid_batch_reset=self.mid_batch_reset,
            max_decorrelation_steps=self.max_decorrelation_steps,
            decorrelation_seed=derive_seed(self._run_seed, "decorrelation"),
            programs=self._programs if self.inference is None or not units else {},
            capture=self._capture,
        )

    def _eval_plan(self, units: list[Unit], slots: Samples | None = None) -> StationPlan:
        return StationPlan(
            env=self.eval_env,
            slots=self._eval_slots if slots is None else slots,
            batch=self.eval_batch,
            units=units,
            seed=derive_seed(self._seed, "evaluation"),
            purpose="evaluate",
            on_hold=self._on_hold,
            state_interval=self.eval_batch.num_steps,
            deterministic=self.evaluation.deterministic,
        )

    def _serve_here(self, settings: InferenceServer, crew: Crew) -> None:
        watch = crew.watch
        self._train_server = make_server(
            settings, self._agent, self._train_plan([]), self._layout.groups_of_server(0), watch
        )
        self._eval_server = make_server(
            settings, self._agent, self._eval_plan([]), self._eval_layout.groups_of_server(0), watch
        )

    def _start_servers(self, settings: InferenceServer, crew: Crew, link: Any) -> None:
        agent = self._agent
        for i, device in enumerate(settings.devices or (str(agent.device),)):
            crew.add(
                f"inference-server-{i} ({device})",
                run_server,
                ServerPlan(
                    settings=settings,
                    train=self._train_plan([]),
                    evaluate=self._eval_plan([]),
                    train_groups=self._layout.groups_of_server(i),
                    evaluate_groups=self._eval_layout.groups_of_server(i),
                    spaces=agent.spaces,
                    cpus=self._affinity.server_cpus,
                    agent=replica(agent),
                    link=link,
                    device=device,
                    **self._channels(len(crew.members)),
                ),
            )

    # ------------------------------------------------------------ work

    @contextlib.contextmanager
    def _working(self) -> Iterator[Crew]:
        """An exception in here, Ctrl-C included, leaves processes in the middle of things: nothing can follow."""
        if self._broken:
            raise RuntimeError("an earlier obtain() or evaluate() did not come to its end; close() this sampler")
        try:
            yield self._started()
        except BaseException:
            self._broken = True
            raise

    def _dispatch_free(self) -> None:
        """Have the next slots filled, as many as are free."""
        assert self._crew is not None
        while self._board.states[self._next_to_dispatch] == "FREE":
            self._board.advance(self._next_to_dispatch, "FILLING")
            self._next_to_dispatch = (self._next_to_dispatch + 1) % self.num_slots
            self._crew.order(COLLECT)

    def _await(self, slot: int, crew: Crew) -> None:
        """Wait until a slot that is being filled is full."""
        if self._board.states[slot] == "FILLING":
            if self._train_server is not None:
                self._train_server.serve(slot)
            crew.wait_all_done(COLLECT)
            self._board.advance(slot, "READY")

    def obtain(self) -> Samples:
        """The next slot; with one slot it is filled now."""
        if self.num_slots == 1:
            self._board.check_all_free()
        with self._working() as crew:
            slot = self._next_slot
            if self.num_slots == 1:
                self._dispatch_free()
            self._await(slot, crew)
            self._next_slot = (slot + 1) % self.num_slots
            self._trajectories += self._tracker.update(self._board.numpy[slot].env)
            return self._board.lease(slot)

    def release(self, samples: Samples) -> None:
        """Give the slot back; with several, it is filled anew at once."""
        self._board.free(samples)
        if self.num_slots > 1 and not self._broken:
            self._dispatch_free()

    def pop_trajectories(self) -> list[TrajInfo]:
        """Games that ended since the last call."""
        ended, self._trajectories = self._trajectories, []
        return ended

    def wait_shares(self) -> dict[str, float]:
        """The parts of the time since the last call that workers and servers spent waiting, on average."""
        now, waited = time.perf_counter_ns(), self._controls.waited_ns.copy()
        (since, before), self._waited = self._waited, (now, waited)
        shares = (waited - before) / max(now - since, 1)
        parts = {"workers": shares[: self._layout.num_workers], "servers": shares[self._layout.num_workers :]}
        in_processes = {"workers": True, "servers": self.inference is not None and self._train_server is None}
        return {name: float(np.mean(part)) for name, part in parts.items() if in_processes[name] and len(part)}

    def evaluate(self, give_up: Callable[[], bool] = never) -> list[TrajInfo] | None:
        """Play ``evaluation.episodes_per_env`` games in each evaluation environment; workers go on afterwards."""
        with self._working() as crew:
            for i in range(self.num_slots):
                self._await((self._next_slot + i) % self.num_slots, crew)
            crew.revive()
            while True:
                self._eval_command = EVALUATE_AFRESH
                with contextlib.suppress(LostInEvaluation):  # a worker that is lost twice in a row ends the run
                    return play_episodes(
                        self.evaluation,
                        self._fill_evaluation,
                        self._on_hold,
                        self._eval_can_skip,
                        self._discount,
                        give_up,
                    )

    def _fill_evaluation(self) -> EnvSamples:
        assert self._crew is not None
        command, self._eval_command = self._eval_command, EVALUATE_ON
        self._crew.order(command)
        if self._train_server is not None:
            self._eval_server.serve(0)
        self._crew.wait_all_done(command)
        return self._eval_board.numpy[0].env

    def get_state(self, *, exact: bool = True) -> dict[str, Any]:
        """Which generation of environments this is: their own state stays in their processes."""
        return {"generation": self._generation}

    def set_state(self, state: dict[str, Any]) -> bool:
        """False: environments start new episodes, other ones than before.  Comes before the first samples."""
        assert self._crew is None, "set_state() comes before obtain()"
        self._generation = state["generation"] + 1
        return False

    def close(self) -> None:
        """Stop all processes."""
        if hasattr(self, "_launcher"):
            if self._crew is not None:
                self._crew.stop(gracefully=not self._broken)
            self._crew = None
            self._launcher.close()
