"""Every sampler of ours with the benchmark's policy in the loop, as contestants."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from benchmarks.turns import Contestant
from rlsurreal.agents import ActorCriticAgent, ModelSpec
from rlsurreal.envs import GymnasiumEnv
from rlsurreal.models import ActorCritic
from rlsurreal.samplers import AsyncSampler, InferenceServer, ParallelSampler, SerialSampler
from rlsurreal.structs import AgentInputs, BatchSpec
from rlsurreal.utils.namedarraytuple import Tree

Makers = list[tuple[str, str, Callable[[], Contestant]]]  # name, kind of environment, how to make it


class SamplerRate:
    """A sampler with the benchmark's policy."""

    def __init__(self, sampler: Any, model: ModelSpec, device: str = "cpu") -> None:
        self._sampler = sampler
        agent = ActorCriticAgent(model=model)
        agent.initialize(sampler.connect(seed=0), seed=0, device=device)
        sampler.initialize(agent, discount=0.99, compile="on")
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


def python_samplers(env: GymnasiumEnv, model: ModelSpec, sizes: Sequence[int], num_steps: int, device: str) -> Makers:
    """Every sampler of Python environments at several numbers of environments."""
    made: Makers = []

    def add(name: str, make: Callable[[], Any], on: str = "cpu") -> None:
        made.append((name, "python", lambda: SamplerRate(make(), model, on)))

    for n in sizes:
        batch = BatchSpec(num_steps, n)
        add(f"serial, {n} envs", lambda batch=batch: SerialSampler(env=env, batch=batch))  # type: ignore[misc]
        add(f"workers, {n} envs", lambda batch=batch: ParallelSampler(env=env, batch=batch))  # type: ignore[misc]
        for schedule in ("lock_step", "alternating", "dynamic"):
            server = InferenceServer(schedule=schedule, min_batch=max(1, n // 2) if schedule == "dynamic" else 1)
            add(
                f"server, {schedule}, {n} envs",
                lambda batch=batch, server=server: ParallelSampler(env=env, batch=batch, inference=server),  # type: ignore[misc]
                device,
            )
    return made


def native_samplers(spec: Any, name: str, model: ModelSpec, sizes: Sequence[int], num_steps: int) -> Makers:
    """A native engine in lock step, and asynchronously by half of its environments."""
    made: Makers = []

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
