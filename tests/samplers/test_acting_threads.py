"""Small networks choose actions on one thread of torch, whatever the process has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces as gs

from rlsurreal.agents import ActorCriticAgent
from rlsurreal.envs import GymnasiumEnv
from rlsurreal.samplers import SerialSampler
from rlsurreal.structs import BatchSpec


class _StillEnv(gym.Env[np.ndarray, Any]):
    """Nothing ever happens."""

    action_space = gs.Discrete(2)

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.observation_space = gs.Box(0, 255, shape, np.uint8)

    def reset(self, **_: Any) -> tuple[np.ndarray, dict[str, Any]]:
        return np.zeros(self.observation_space.shape or (), np.uint8), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self.reset()[0], 0.0, False, False, {}


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape, expected", [((3,), 1), ((3, 36, 36), 2)])
def test_vectors_get_one_thread_images_all(
    shape: tuple[int, ...], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    act = ActorCriticAgent.act
    monkeypatch.setattr(ActorCriticAgent, "act", lambda *args: (seen.append(torch.get_num_threads()), act(*args))[1])
    env = GymnasiumEnv(factory=_StillEnv, kwargs={"shape": shape})
    sampler = SerialSampler(env=env, batch=BatchSpec(2, 1))
    agent = ActorCriticAgent()
    agent.initialize(sampler.connect(seed=0), seed=0)
    sampler.initialize(agent, discount=0.9)
    sampler.obtain()
    assert seen[-2:] == [expected, expected] and torch.get_num_threads() == 2
