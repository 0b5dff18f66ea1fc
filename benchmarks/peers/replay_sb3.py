"""Stable-Baselines3's replay buffer.  Runs in its own environment: SETTINGS-AS-JSON."""

import json
import sys
from typing import Any

import numpy as np
import stable_baselines3
import torch
from gate import Gate
from gymnasium.spaces import Box
from stable_baselines3.common.buffers import ReplayBuffer

if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings["num_threads"])
    gate, rng, num_envs = Gate(stable_baselines3.__version__), np.random.default_rng(1), settings["num_envs"]
    observation = Box(-np.inf, np.inf, (17,), np.float32)
    action = Box(-1, 1, (6,), np.float32)
    buffer = ReplayBuffer(settings["capacity"], observation, action, device="cpu", n_envs=num_envs)
    normal = lambda *shape: rng.standard_normal((num_envs, *shape), np.float32)  # noqa: E731
    row: tuple[Any, ...] = (
        normal(17),
        normal(17),
        normal(6),
        normal(),
        np.zeros(num_envs),
        [{} for _ in range(num_envs)],
    )
    for _ in range(settings["capacity"] // num_envs):
        buffer.add(*row)
    num_batches = 0
    while True:
        gate.tick(num_batches)
        buffer.sample(settings["batch_size"])
        num_batches += 1
