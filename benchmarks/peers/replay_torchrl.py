"""TorchRL's replay buffers.  Runs in its own environment: SETTINGS-AS-JSON."""

import json
import sys
from typing import Any

import torch
import torchrl
from gate import Gate
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictPrioritizedReplayBuffer, TensorDictReplayBuffer
from torchrl.data.replay_buffers import SliceSampler


def make_buffer(settings: dict[str, Any]) -> Any:
    """The buffer for a kind of work, in memory."""
    storage = LazyTensorStorage(settings["capacity"])
    if settings["kind"] == "prioritized":
        return TensorDictPrioritizedReplayBuffer(
            alpha=0.6, beta=0.4, storage=storage, batch_size=settings["batch_size"]
        )
    if settings["kind"] == "sequences":
        rows = settings["num_rows"]
        sampler = SliceSampler(slice_len=rows, traj_key="episode", cache_values=True)
        return TensorDictReplayBuffer(storage=storage, sampler=sampler, batch_size=settings["batch_size"] * rows)
    return TensorDictReplayBuffer(storage=storage, batch_size=settings["batch_size"])


def make_rows(settings: dict[str, Any], start: int, count: int) -> TensorDict:
    """Random transitions."""
    flag = torch.zeros(count, 1, dtype=torch.bool)
    after = {"observation": torch.randn(count, 17), "reward": torch.randn(count, 1), "done": flag, "terminated": flag}
    rows: dict[str, Any] = {"observation": torch.randn(count, 17), "action": torch.randn(count, 6), "next": after}
    if settings["kind"] == "sequences":
        rows["state"] = torch.zeros(count, settings["state_size"])
        rows["episode"] = torch.arange(start, start + count) // 1_000
    return TensorDict(rows, [count])


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings["num_threads"])
    gate, buffer, chunk = Gate(torchrl.__version__), make_buffer(settings), 10_000
    for start in range(0, settings["capacity"], chunk):
        buffer.extend(make_rows(settings, start, chunk))
    num_batches = 0
    while True:
        gate.tick(num_batches)
        batch = buffer.sample()
        if settings["kind"] == "prioritized":
            batch["td_error"] = torch.rand(settings["batch_size"])
            buffer.update_tensordict_priority(batch)
        num_batches += 1
