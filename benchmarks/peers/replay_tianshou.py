"""Tianshou's replay buffers.  Runs in its own environment: SETTINGS-AS-JSON."""

import json
import sys
from typing import Any

import numpy as np
import tianshou
from gate import Gate
from tianshou.data import Batch, PrioritizedVectorReplayBuffer, VectorReplayBuffer


def make_buffer(settings: dict[str, Any]) -> Any:
    """The buffer for a kind of work."""
    size = (settings["capacity"], settings["num_envs"])
    if settings["kind"] == "prioritized":
        return PrioritizedVectorReplayBuffer(*size, alpha=0.6, beta=0.4)
    if settings["kind"] == "frames":
        return VectorReplayBuffer(*size, stack_num=4, ignore_obs_next=True, save_only_last_obs=True)
    return VectorReplayBuffer(*size)


def make_row(settings: dict[str, Any], rng: np.random.Generator) -> Batch:
    """A step of all environments."""
    num_envs = settings["num_envs"]
    if settings["kind"] == "frames":
        observation = rng.integers(0, 256, (num_envs, 4, 84, 84)).astype(np.uint8)
        action: Any = np.zeros(num_envs, np.int64)
    else:
        observation = rng.standard_normal((num_envs, 17)).astype(np.float32)
        action = rng.standard_normal((num_envs, 6)).astype(np.float32)
    flag = np.zeros(num_envs, bool)
    return Batch(
        obs=observation,
        act=action,
        rew=np.zeros(num_envs),
        terminated=flag,
        truncated=flag,
        done=flag,
        obs_next=observation,
        info=Batch(),
    )


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    gate, rng = Gate(tianshou.__version__), np.random.default_rng(1)
    buffer, row = make_buffer(settings), make_row(settings, rng)
    for _ in range(settings["capacity"] // settings["num_envs"]):
        buffer.add(row)
    num_batches = 0
    while True:
        gate.tick(num_batches)
        batch, indices = buffer.sample(settings["batch_size"])
        if settings["kind"] == "frames":
            assert batch.obs_next.shape[1:] == (4, 84, 84)
        if settings["kind"] == "prioritized":
            buffer.update_weight(indices, rng.random(settings["batch_size"]))
        num_batches += 1
