"""Environment steps per second of each sampler, with a policy in the loop, as a part of the bare limit.

The limit of Python environments: as many processes as cores, each stepping environments made the same way with a
recorded tape of actions and no learning code.  The limit of a native engine: its own send and receive loop with the
tape, in whichever of its modes is faster.  All contestants are measured in turn, several rounds; the ratio is the
median over rounds.

The policy has two hidden layers of 64; images are pooled to 10x10 for it, so that the sampler is measured and not a
network.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.rows import Row
from rlsurreal.agents import ActorCriticAgent, ModelSpec
from rlsurreal.distributed.processes import Child, Launcher
from rlsurreal.distributed.signals import Signal
from rlsurreal.distributed.zygote import send_to_master
from rlsurreal.envs import AleEnv, EnvPoolEnv, GymnasiumEnv, make_atari
from rlsurreal.models import ActorCritic
from rlsurreal.samplers import AsyncSampler, InferenceServer, ParallelSampler, SerialSampler
from rlsurreal.structs import AgentInputs, BatchSpec
from rlsurreal.utils.affinity import make_affinity, pin
from rlsurreal.utils.namedarraytuple import Tree

UNIT = "env steps/s"
TAPE_ROWS = 512
_WINDOW_S = 0.5  # of the bare processes' clock


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "--workloads", default="HalfCheetah,CartPole,Pong", help="comma-separated (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds over all contestants (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement (default: %(default)s)")
    parser.add_argument(
        "--device", default="cpu", help="where the inference server's policy runs (default: %(default)s)"
    )
    parser.add_argument("--only", default="", help="only contestants whose name contains this")


class Contestant(Protocol):
    """Something that steps environments."""

    def rate(self, seconds: float) -> float:
        """Environment steps per second, measured for about so long."""

    def close(self) -> None: ...


@dataclass
class Workload:
    """A task, its limits, and who is held against which."""

    name: str
    limits: dict[str, Callable[[], Contestant]]  # by kind of environment; the fastest of a kind is its limit
    samplers: list[tuple[str, str, Callable[[], Contestant]]]  # name, kind, how to make it


def run(args: argparse.Namespace) -> list[Row]:
    """Measure all workloads."""
    torch.set_num_threads(1)
    made = workloads(args.device)
    rows = []
    for name in args.workloads.split(","):
        if name not in made:
            raise SystemExit(f"--workloads: there is no {name!r}; choose from {','.join(made)}")
        rows += measure(made[name](), args.rounds, args.seconds, args.only)
    return rows


def measure(workload: Workload, rounds: int, seconds: float, only: str) -> list[Row]:
    """All contestants of a workload in turn, ``rounds`` times."""
    contestants: dict[tuple[str, str], Contestant] = {}
    rates: dict[tuple[str, str], list[float]] = {}
    try:
        for kind, make in workload.limits.items():
            contestants["limit", kind] = make()
        for name, kind, make in workload.samplers:
            if only in name:
                contestants[name, kind] = make()
        for contestant in contestants.values():
            contestant.rate(0.5)  # warm up
        for _ in range(rounds):
            for key, contestant in contestants.items():
                rates.setdefault(key, []).append(contestant.rate(seconds))
    finally:
        for contestant in contestants.values():
            contestant.close()
    rows = []
    for (name, kind), own in rates.items():
        if name == "limit":
            continue
        limits = [rates[key] for key in rates if key[0] == "limit" and key[1].split(":")[0] == kind]
        limit = max(limits, key=statistics.median)
        ratio = statistics.median(ours / theirs for ours, theirs in zip(own, limit))
        rows.append(Row(workload.name, name, UNIT, statistics.median(own), "limit", statistics.median(limit), ratio))
    return rows


# ---------------------------------------------------------------- limits


class BareProcesses:
    """As many processes as cores, stepping environments with a tape."""

    def __init__(self, env: GymnasiumEnv, num_envs: int) -> None:
        affinity = make_affinity()
        self._launcher = Launcher(env.preload_modules())
        self._order: list[tuple[Signal, Child]] = []
        for w in range(affinity.num_workers):
            go = Signal()
            share = len(range(w, num_envs, affinity.num_workers))
            child = self._launcher.start(f"bare-{w}", _step_bare, env, share, w, affinity.worker_cpus[w], go)
            self._order.append((go, child))
        for _, child in self._order:
            child.receive(60)

    def rate(self, seconds: float) -> float:
        num_windows = max(1, round(seconds / _WINDOW_S))
        for go, _ in self._order:
            for _ in range(num_windows):
                go.post()
        total: float = sum(child.receive(60) for _ in range(num_windows) for _, child in self._order)
        return total / num_windows

    def close(self) -> None:
        self._launcher.close()


def _step_bare(spec: GymnasiumEnv, num_envs: int, index: int, cpus: tuple[int, ...], go: Signal) -> None:
    """Child process: step environments in turn for a while whenever told to, and say the rate."""
    pin(cpus)
    envs = [spec.make_one() for _ in range(num_envs)]
    envs[0].action_space.seed(index)
    tape = [[envs[0].action_space.sample() for _ in envs] for _ in range(TAPE_ROWS)]
    for i, env in enumerate(envs):
        env.reset(seed=index * 1000 + i)
    send_to_master("ready")
    position = 0
    while True:
        go.wait()
        steps, start = 0, time.perf_counter()
        while time.perf_counter() - start < _WINDOW_S:
            for env, action in zip(envs, tape[position % TAPE_ROWS]):
                _, _, terminated, truncated, info = env.step(action)
                if (terminated or truncated) and info.get("game_over", True):
                    env.reset()
            position += 1
            steps += num_envs
        send_to_master(steps / (time.perf_counter() - start))


class BareEngine:
    """A native engine's own loop with a tape of actions."""

    def __init__(self, spec: Any, num_envs: int, batch_size: int) -> None:
        self._engine = spec.make_async(num_envs, 0, 0, batch_size)
        self._engine.start()
        self._batch_size = batch_size
        rng = np.random.default_rng(0)
        space = self._engine.spaces.action
        if hasattr(space, "n"):
            self._tape: list[Any] = [rng.integers(space.n, size=batch_size) for _ in range(TAPE_ROWS)]
        else:
            self._tape = [rng.uniform(-1, 1, (batch_size, *space.shape)).astype(np.float32) for _ in range(TAPE_ROWS)]
        self._position = 0

    def rate(self, seconds: float) -> float:
        steps, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            results = self._engine.recv()
            self._engine.send(self._tape[self._position % TAPE_ROWS], results.env_ids)
            self._position += 1
            steps += self._batch_size
        return steps / (time.perf_counter() - start)

    def close(self) -> None:
        self._engine.close()


# ---------------------------------------------------------------- samplers


class SamplerRate:
    """A sampler with the benchmark's policy."""

    def __init__(self, sampler: Any, model: ModelSpec, device: str = "cpu") -> None:
        self._sampler = sampler
        agent = ActorCriticAgent(model=model)
        agent.initialize(sampler.connect(seed=0), seed=0, device=device)
        sampler.initialize(agent, discount=0.99)
        self._waiting = False

    def rate(self, seconds: float) -> float:
        steps, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            samples = self._sampler.obtain()
            steps += int(samples.env.valid[:-1].sum())
            self._sampler.release(samples)
            self._sampler.pop_trajectories()
        return steps / (time.perf_counter() - start)

    def close(self) -> None:
        self._sampler.close()


class PooledActorCritic(nn.Module):
    """The benchmark's policy for images ``[4, 84, 84]``: pooled to 10x10, then the usual two layers."""

    def __init__(self, observation_space: Any, distribution: Any) -> None:
        super().__init__()
        from gymnasium.spaces import Box

        pooled = Box(0, 1, (observation_space.shape[0] * 100,), np.float32)
        self.inner = ActorCritic(pooled, distribution, shared=True)
        self.recurrent, self.normalizer = False, None

    def initial_state(self, num_envs: int) -> None:
        """None: no memory."""

    def _pool(self, inputs: AgentInputs) -> AgentInputs:
        image = inputs.observation
        # Every eighth pixel: a real pooling of all pixels would be most of the work that is measured.
        small = image[..., 2::8, 2::8][..., :10, :10].float().div(255)
        return AgentInputs(small.flatten(-3))

    def forward(self, inputs: AgentInputs, state: Tree = None, first: Tensor | None = None) -> Any:
        """Policy parameters and value."""
        return self.inner(self._pool(inputs), None, None)

    def value(self, inputs: AgentInputs, state: Tree = None, first: Tensor | None = None) -> Tensor:
        """The value alone."""
        return self.inner.value(self._pool(inputs))


def python_samplers(
    env: GymnasiumEnv, model: ModelSpec, sizes: Sequence[int], num_steps: int, device: str
) -> list[tuple[str, str, Callable[[], Contestant]]]:
    """Every sampler of Python environments at several numbers of environments."""
    made: list[tuple[str, str, Callable[[], Contestant]]] = []

    def add(name: str, make: Callable[[], Any], on: str = "cpu") -> None:
        made.append((name, "python", lambda: SamplerRate(make(), model, on)))

    for n in sizes:
        batch = BatchSpec(num_steps, n)
        add(f"serial, {n} envs", lambda batch=batch: SerialSampler(env=env, batch=batch))  # type: ignore[misc]
        add(f"workers, {n} envs", lambda batch=batch: ParallelSampler(env=env, batch=batch))  # type: ignore[misc]
        for schedule in ("lock_step", "alternating", "dynamic"):
            server = InferenceServer(schedule=schedule, min_batch=max(1, n // 2))
            add(
                f"server, {schedule}, {n} envs",
                lambda batch=batch, server=server: ParallelSampler(env=env, batch=batch, inference=server),  # type: ignore[misc]
                device,
            )
    return made


def native_samplers(
    spec: Any, name: str, model: ModelSpec, sizes: Sequence[int], num_steps: int
) -> list[tuple[str, str, Callable[[], Contestant]]]:
    """A native engine in lock step, and asynchronously by half of its environments."""
    made: list[tuple[str, str, Callable[[], Contestant]]] = []

    def add(title: str, make: Callable[[], Any]) -> None:
        made.append((f"{name} {title}", name, lambda: SamplerRate(make(), model)))

    for n in sizes:
        batch, half = BatchSpec(num_steps, n), n // 2
        add(f"lock step, {n} envs", lambda batch=batch: SerialSampler(env=spec, batch=batch))  # type: ignore[misc]
        if name != "ale":  # its asynchronous mode can starve an environment, which ends the run
            add(
                f"asynchronous, {n} envs by {half}",
                lambda batch=batch, half=half: AsyncSampler(env=spec, batch=batch, num_ready=half),  # type: ignore[misc]
            )
    return made


def workloads(device: str) -> dict[str, Callable[[], Workload]]:
    """The tasks."""
    mlp = ModelSpec(cls=ActorCritic)
    pooled = ModelSpec(cls=PooledActorCritic)

    def mujoco() -> Workload:
        env, engine = GymnasiumEnv(factory="HalfCheetah-v5"), EnvPoolEnv(task_id="HalfCheetah-v5")
        return Workload(
            "HalfCheetah-v5",
            {
                "python": lambda: BareProcesses(env, 64),
                "envpool": lambda: BareEngine(engine, 64, 64),
                "envpool:async": lambda: BareEngine(engine, 64, 32),
            },
            python_samplers(env, mlp, (16, 64, 128), 64, device)
            + native_samplers(engine, "envpool", mlp, (64, 128), 64),
        )

    def cartpole() -> Workload:
        env, engine = GymnasiumEnv(factory="CartPole-v1"), EnvPoolEnv(task_id="CartPole-v1")
        return Workload(
            "CartPole-v1",
            {
                "python": lambda: BareProcesses(env, 64),
                "envpool": lambda: BareEngine(engine, 64, 64),
                "envpool:async": lambda: BareEngine(engine, 64, 32),
            },
            python_samplers(env, mlp, (16, 64, 128), 64, device)
            + native_samplers(engine, "envpool", mlp, (64, 128), 64),
        )

    def pong() -> Workload:
        env = GymnasiumEnv(factory=make_atari, kwargs={"game": "Pong"})
        ale, pool = AleEnv(game="pong"), EnvPoolEnv(task_id="Pong-v5")
        limits: dict[str, Callable[[], Contestant]] = {"python": lambda: BareProcesses(env, 16)}
        for name, spec in (("ale", ale), ("envpool", pool)):
            limits[name] = lambda spec=spec: BareEngine(spec, 32, 32)  # type: ignore[misc]
            limits[f"{name}:async"] = lambda spec=spec: BareEngine(spec, 32, 16)  # type: ignore[misc]
        samplers = python_samplers(env, pooled, (16, 32), 32, device)
        samplers += native_samplers(ale, "ale", pooled, (32,), 32) + native_samplers(pool, "envpool", pooled, (32,), 32)
        return Workload("Pong", limits, samplers)

    return {"HalfCheetah": mujoco, "CartPole": cartpole, "Pong": pong}
