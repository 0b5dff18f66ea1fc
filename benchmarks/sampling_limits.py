"""The limits that samplers are held against: environments in bare processes, and native engines' own loops.

Actions come from a recorded tape, and there is no learning code.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from rlsurreal.distributed.processes import Child, Launcher
from rlsurreal.distributed.signals import Signal
from rlsurreal.distributed.zygote import send_to_master
from rlsurreal.envs import GymnasiumEnv
from rlsurreal.utils.affinity import make_affinity, pin

_TAPE_ROWS = 512
_WINDOW_S = 0.5  # of the bare processes' clock


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
    tape = [[envs[0].action_space.sample() for _ in envs] for _ in range(_TAPE_ROWS)]
    for i, env in enumerate(envs):
        env.reset(seed=index * 1000 + i)
    send_to_master("ready")
    position = 0
    while True:
        go.wait()
        steps, start = 0, time.perf_counter()
        while time.perf_counter() - start < _WINDOW_S:
            for env, action in zip(envs, tape[position % _TAPE_ROWS]):
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
            self._tape: list[Any] = [rng.integers(space.n, size=batch_size) for _ in range(_TAPE_ROWS)]
        else:
            self._tape = [rng.uniform(-1, 1, (batch_size, *space.shape)).astype(np.float32) for _ in range(_TAPE_ROWS)]
        self._position = 0

    def rate(self, seconds: float) -> float:
        steps, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            results = self._engine.recv()
            self._engine.send(self._tape[self._position % _TAPE_ROWS], results.env_ids)
            self._position += 1
            steps += self._batch_size
        return steps / (time.perf_counter() - start)

    def close(self) -> None:
        self._engine.close()
