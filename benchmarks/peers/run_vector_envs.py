"""Gymnasium's and EnvPool's vector environments with a PyTorch policy in the loop, as a user would write it.

Runs in its own environment: SETTINGS-AS-JSON.
"""

import json
import sys
from typing import Any

import gymnasium as gym
import null_env
import numpy as np
import torch
from gate import Gate
from torch import Tensor, nn
from torch.distributions import Categorical, Normal


class Policy(nn.Module):
    """Two hidden layers of 64 for the action, and as many for the value; images as every eighth pixel."""

    def __init__(self, observation_space: Any, action_space: Any) -> None:
        super().__init__()
        self.is_image = len(observation_space.shape) == 3
        self.is_discrete = isinstance(action_space, gym.spaces.Discrete)
        num_inputs = 400 if self.is_image else observation_space.shape[0]
        num_outputs = int(action_space.n) if self.is_discrete else action_space.shape[0]

        def network(outputs: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(num_inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs)
            )

        self.actor, self.critic = network(num_outputs), network(1)
        self.log_std = nn.Parameter(torch.zeros(num_outputs))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.is_image:
            x = x[..., 2::8, 2::8][..., :10, :10].flatten(1).float() / 255
        policy = Categorical(logits=self.actor(x)) if self.is_discrete else Normal(self.actor(x), self.log_std.exp())
        action = policy.sample()
        log_prob = policy.log_prob(action)
        return action, log_prob if self.is_discrete else log_prob.sum(-1), self.critic(x)


def make_gymnasium(settings: dict[str, Any]) -> Any:
    """`SyncVectorEnv` or `AsyncVectorEnv`."""

    def make_one() -> gym.Env[Any, Any]:
        if settings["env_id"] == "Pong":
            import ale_py
            from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

            gym.register_envs(ale_py)
            env = AtariPreprocessing(gym.make("PongNoFrameskip-v4"))
            return gym.wrappers.RecordEpisodeStatistics(FrameStackObservation(env, 4))
        is_null = settings["env_id"] == null_env.ID
        return gym.wrappers.RecordEpisodeStatistics(null_env.NullEnv() if is_null else gym.make(settings["env_id"]))

    cls = {"sync": gym.vector.SyncVectorEnv, "async": gym.vector.AsyncVectorEnv}[settings["vector"]]
    return cls([make_one] * settings["num_envs"])


def step_gymnasium(settings: dict[str, Any], gate: Gate) -> None:
    """Act and step for ever."""
    envs = make_gymnasium(settings)
    policy = Policy(envs.single_observation_space, envs.single_action_space)
    is_box = not policy.is_discrete
    obs, _ = envs.reset(seed=settings["seed"])
    steps = 0
    while True:
        gate.tick(steps)
        for _ in range(settings["num_steps"]):
            with torch.no_grad():
                action = policy(torch.as_tensor(obs, dtype=None if policy.is_image else torch.float32))[0].numpy()
            obs, *_ = envs.step(np.clip(action, -1, 1) if is_box else action)
        steps += settings["num_steps"] * settings["num_envs"]


def step_envpool(settings: dict[str, Any], gate: Gate) -> None:
    """Send and receive for ever: all environments at once, or ``batch_size`` of them while the others step."""
    import envpool

    task_id = "Pong-v5" if settings["env_id"] == "Pong" else settings["env_id"]
    options = {"num_envs": settings["num_envs"], "batch_size": settings["batch_size"], "seed": settings["seed"]}
    envs = envpool.make(task_id, "gymnasium", **options)
    policy = Policy(envs.observation_space, envs.action_space)
    dtype = envs.action_space.dtype
    envs.async_reset()
    steps = 0
    while True:
        gate.tick(steps)
        for _ in range(settings["num_steps"]):
            obs, _, _, _, info = envs.recv()
            with torch.no_grad():
                action = policy(torch.as_tensor(obs, dtype=None if policy.is_image else torch.float32))[0].numpy()
            envs.send(
                action.astype(dtype) if policy.is_discrete else np.clip(action, -1, 1).astype(dtype), info["env_id"]
            )
        steps += settings["num_steps"] * settings["batch_size"]


def main() -> None:
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings["num_threads"])
    if "batch_size" in settings:
        from importlib.metadata import version

        step_envpool(settings, Gate(version("envpool")))
    else:
        step_gymnasium(settings, Gate(gym.__version__))


if __name__ == "__main__":
    main()
