"""Replay's work in `benchmarks.replay`, done by rlsurreal.  python -m benchmarks.replay_ours SETTINGS-AS-JSON"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import torch

import rlsurreal
from benchmarks.peers.gate import Gate
from benchmarks.tasks import Settings
from rlsurreal.replays import FrameStorage, FullStorage, NStep, Prioritized, Replay, Uniform, Windows
from rlsurreal.structs import AgentSamples, BatchSpec, EnvSamples, Samples
from rlsurreal.utils.namedarraytuple import leaves

_BURN_IN, _NUM_AHEAD, _INTERVAL = 40, 5, 40


def make_replay(settings: Settings) -> tuple[Replay, BatchSpec]:
    """The parts that the kind of work wants, and the slots that fill it."""
    kind, storage, selector, extractor = settings["kind"], FullStorage(), Uniform(), NStep()
    batch = BatchSpec(1_000, settings["num_envs"])
    parts: dict[str, Any] = {"storage": storage, "selector": selector, "extractor": extractor}
    if kind == "prioritized":
        parts["selector"] = Prioritized()
    elif kind == "frames":
        parts["storage"], batch = FrameStorage(), BatchSpec(40, settings["num_envs"])
    elif kind == "sequences":
        num_steps = settings["num_rows"] - _BURN_IN - _NUM_AHEAD
        parts["extractor"] = Windows(burn_in=_BURN_IN, num_steps=num_steps, num_ahead=_NUM_AHEAD, interval=_INTERVAL)
    return Replay(capacity=settings["capacity"], **parts), batch


def make_slot(settings: Settings, batch: BatchSpec, rng: np.random.Generator) -> Samples:
    """Random rows; an episode in each environment."""
    size = (batch.num_steps + 1, batch.num_envs)

    def normal(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal((*size, *shape), np.float32))

    if settings["kind"] == "frames":
        frames = torch.from_numpy(rng.integers(0, 256, (size[0] + 3, size[1], 84, 84), np.uint8))
        observation, action = frames.unfold(0, 4, 1).movedim(-1, 2).contiguous(), torch.zeros(size, dtype=torch.int64)
    else:
        observation, action = normal(17), normal(6)
    flag = torch.zeros(size, dtype=torch.bool)
    state = None
    if settings["kind"] == "sequences":
        state = torch.zeros(batch.num_steps // _INTERVAL + 1, batch.num_envs, settings["state_size"])
    return Samples(
        agent=AgentSamples(action, None, None, state),
        env=EnvSamples(observation, normal(), None, flag, flag.clone(), ~flag, flag.clone(), None),
        policy_version=None,
    )


def main() -> None:
    """Fill the replay, then draw in turns."""
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings["num_threads"])
    gate, rng = Gate(rlsurreal.__version__), np.random.default_rng(settings["seed"])
    replay, batch = make_replay(settings)
    replay.initialize(batch, seed=settings["seed"], discount=0.99, device=torch.device("cpu"))
    slot = make_slot(settings, batch, rng)
    for _ in range(-(-settings["capacity"] // batch.size)):
        replay.append(slot)
    has_priority = settings["kind"] == "prioritized"
    num_batches = 0
    while True:
        gate.tick(num_batches)
        drawn, ticket = replay.sample(settings["batch_size"])
        assert len(leaves(drawn)) > 1
        if has_priority:
            replay.update_priorities(ticket, rng.random(settings["batch_size"]))
        num_batches += 1


if __name__ == "__main__":
    main()
