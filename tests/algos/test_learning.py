"""Short runs that must learn, in one process; seconds each."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces as gs

from rlsurreal.agents import ActorCriticAgent, ModelSpec
from rlsurreal.algos import A2C, PPO
from rlsurreal.envs import GymnasiumEnv
from rlsurreal.models import ActorCritic
from rlsurreal.samplers import SerialSampler
from rlsurreal.structs import BatchSpec
from rlsurreal.testing.envs import RecallEnv
from rlsurreal.utils.schedules import Linear

torch.set_num_threads(1)


class Aim(gym.Env[np.ndarray, np.ndarray]):
    """Name a point as exactly as possible: the reward is minus the squared distance.  The space is not [-1, 1]."""

    observation_space = gs.Box(-1, 1, (2,), np.float32)
    action_space = gs.Box(np.array([0, -4], np.float32), np.array([4, 0], np.float32))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self._draw(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        target = np.array([2, -2]) + 1.4 * self.point
        reward = -float(np.sum((action - target) ** 2))
        self.steps += 1
        return self._draw(), reward, False, self.steps == 8, {}

    def _draw(self) -> np.ndarray:
        self.point = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.point


class PressAndAim(Aim):
    """The same with a button beside it, to be pressed where the first number is positive."""

    action_space = gs.Dict({"aim": Aim.action_space, "press": gs.Discrete(2)})

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        right = action["press"] == (self.point[0] > 0)
        observation, reward, *rest = super().step(action["aim"])
        return observation, reward + 2 * float(right), *rest


def train(
    algo: Any, env: Any, *, total: int, num_steps: int, num_envs: int, agent: Any = (), model: Any = ()
) -> tuple[float, float]:
    """Mean return of the first and of the last tenth of the games."""
    actor_critic = ActorCriticAgent(
        model=ModelSpec(cls=ActorCritic, kwargs={"hidden_sizes": (32,), **dict(model)}), **dict(agent)
    )
    sampler = SerialSampler(env=GymnasiumEnv(factory=env), batch=BatchSpec(num_steps, num_envs))
    actor_critic.initialize(sampler.connect(seed=0), seed=0)
    algo.initialize(actor_critic, sampler.batch, seed=0)
    sampler.initialize(actor_critic, discount=algo.discount)
    num_slots = total // (num_steps * num_envs)
    for i in range(num_slots):
        samples = sampler.obtain()
        algo.update(samples, i / num_slots)
        actor_critic.publish(i + 1)
        sampler.release(samples)
    games = [info.total_reward for info in sampler.pop_trajectories()]
    sampler.close()
    tenth = len(games) // 10
    return float(np.mean(games[:tenth])), float(np.mean(games[-tenth:]))


PPO_SETTINGS: dict[str, Any] = {"learning_rate": 1e-3, "num_epochs": 5, "num_minibatches": 4, "gae_lambda": 0.9}
CARTPOLE = {
    "a2c": (lambda: A2C(learning_rate=4e-3), 16),
    "ppo": (lambda: PPO(**PPO_SETTINGS), 64),
    "ppo-all-options": (
        lambda: PPO(
            **{**PPO_SETTINGS, "learning_rate": Linear(2e-3, 1e-4)},
            kl_stop=0.05,
            value_clip_range=1.0,
            recompute_advantages=True,
            scale_rewards=True,
            normalize_advantage="batch",
        ),
        64,
    ),
    "kl-penalty": (lambda: PPO(**PPO_SETTINGS, objective="kl_penalty", kl_target=0.01), 64),
    "adaptive-clip": (lambda: PPO(**PPO_SETTINGS, adaptive_clip=True, kl_target=0.01), 64),
}


@pytest.mark.parametrize("name", CARTPOLE)
def test_cartpole(name):
    make, num_steps = CARTPOLE[name]
    total = 40_000 if name == "a2c" else 24_000
    before, after = train(make(), "CartPole-v1", total=total, num_steps=num_steps, num_envs=8)
    assert before < 35 and after > 80, (before, after)  # other seeds: 119 to 300


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("std", ["free", "state"])
def test_continuous_actions(squash, std):
    algo = PPO(**{**PPO_SETTINGS, "learning_rate": 3e-3, "discount": 0.0})
    settings = {"squash": squash, "std": std, "init_std": 0.6}
    before, after = train(algo, Aim, total=12_000, num_steps=32, num_envs=8, agent=settings)
    assert before < -12 and after > -2, (before, after)  # of 8 steps each


def test_mixed_actions_with_a2c():
    algo = A2C(learning_rate=5e-3, discount=0.0, entropy_coeff=0.0)
    before, after = train(algo, PressAndAim, total=24_000, num_steps=8, num_envs=16, agent={"init_std": 0.6})
    assert before < 2 and after > 10, (before, after)  # at most 16


@pytest.mark.parametrize(("recurrent", "low", "high"), [("lstm", 0.9, 1.0), (None, 0.3, 0.7)])
def test_only_memory_recalls(recurrent, low, high):
    algo = PPO(learning_rate=5e-3, num_epochs=4, num_minibatches=2, gae_lambda=0.9, entropy_coeff=0.01)
    model = {"recurrent": recurrent, "recurrent_size": 16}
    _, after = train(algo, RecallEnv, total=16_000, num_steps=32, num_envs=16, model=model)
    assert low <= after <= high, after
