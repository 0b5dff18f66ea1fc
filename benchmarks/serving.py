"""Actions per second of one inference server: 2x64 MLP and Nature CNN, batches of 64 to 4,096, no environments.

The server's own path for each batch: observations from the sampler's slots to the device, random numbers, network and
distribution, actions and what is recorded with them back into the slots.  It is held against the same agent, eager, on
one batch that lies on the device already, and whose results stay there.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from benchmarks.rows import Row, compare_rounds
from benchmarks.turns import Contestant, Progress, take_turns
from rlsurreal.agents import ActorCriticAgent
from rlsurreal.samplers.actor import Actor, act_programs, agent_example
from rlsurreal.samplers.slots import allocate_slots
from rlsurreal.structs import AgentInputs, BatchSpec, Noise, Spaces

UNIT = "actions/s"
_BATCHES = (64, 256, 1024, 4096)
_NUM_STEPS = 4  # rows of the slot
_AGENT_ALONE = "the agent alone, eager"
_SPACES = {
    "2x64 MLP": Spaces(gym.spaces.Box(-np.inf, np.inf, (17,), np.float32), gym.spaces.Box(-1, 1, (6,), np.float32)),
    "Nature CNN": Spaces(gym.spaces.Box(0, 255, (4, 84, 84), np.uint8), gym.spaces.Discrete(6)),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--device", default="cpu", help="where the policy runs (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn (default: %(default)s)")
    parser.add_argument("--num-threads", type=int, default=1, help="of torch (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="two short rounds")


def run(args: argparse.Namespace) -> list[Row]:
    """Both networks, all batches."""
    if args.rounds < 1 or args.seconds <= 0 or args.num_threads < 1:
        raise SystemExit("--rounds and --num-threads must be at least 1, --seconds positive")
    torch.set_num_threads(args.num_threads)
    return run_rounds(args.device, *((2, 0.3) if args.quick else (args.rounds, args.seconds)))


def run_rounds(device: str, rounds: int = 5, seconds: float = 2.0) -> list[Row]:
    """One contest after the other."""
    progress = Progress(len(_SPACES) * len(_BATCHES) * 2 * rounds * seconds)
    rows = []
    for network, spaces in _SPACES.items():
        for size in _BATCHES:
            name = f"batch of {size:,}"
            contestants: dict[str, Contestant] = {
                f"{network}, {name}": Serving(spaces, size, device),
                f"{network}, {name}: {_AGENT_ALONE}": Resident(spaces, size, device),
            }
            for contestant in contestants.values():
                contestant.rate(0.2)
            ours, alone = take_turns(contestants, rounds, seconds, UNIT, progress).values()
            rows.append(compare_rounds(f"serving, {network}, {device}", name, UNIT, ours, _AGENT_ALONE, alone))
    return rows


def make_agent(spaces: Spaces, device: str) -> ActorCriticAgent:
    """The recipes' networks."""
    agent = ActorCriticAgent()
    agent.initialize(spaces, seed=0, device=device)
    return agent


class Serving:
    """The server's work for batch after batch."""

    def __init__(self, spaces: Spaces, size: int, device: str) -> None:
        agent, batch = make_agent(spaces, device), BatchSpec(_NUM_STEPS, size)
        example = agent_example(agent)
        slots = allocate_slots(1, batch, spaces, None, example, state_interval=_NUM_STEPS, shared=True)
        slots.env.observation[...] = np.random.default_rng(0).integers(0, 255, slots.env.observation.shape)
        self._columns = slice(0, size)
        self._actor = Actor(
            agent,
            slots,
            self._columns,
            first_env=0,
            seed=0,
            state_interval=_NUM_STEPS,
            programs=act_programs(agent, slots, [size], agent.device, torch.get_num_threads(), "on", None),
            capture=True,
        )

    def rate(self, seconds: float) -> float:
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            self._actor.begin(0)
            for t in range(_NUM_STEPS):
                self._actor.act(t, self._columns)
            self._actor.end()
            count += _NUM_STEPS
        return count * self._columns.stop / (time.perf_counter() - start)

    def close(self) -> None:
        """Nothing is open."""


class Resident:
    """The agent alone."""

    def __init__(self, spaces: Spaces, size: int, device: str) -> None:
        self._agent, self._size = make_agent(spaces, device), size
        shape, is_image = (size, *(spaces.observation.shape or ())), len(spaces.observation.shape or ()) == 3
        observation = torch.randint(0, 255, shape, dtype=torch.uint8 if is_image else torch.float32)
        spec = self._agent.noise_spec
        numbers = [torch.rand(size, n, device=device) if n else None for n in (spec.normal, spec.uniform)]
        self._arguments: Any = (AgentInputs(observation.to(device)), None, Noise(*numbers))

    @torch.inference_mode()
    def rate(self, seconds: float) -> float:
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            for _ in range(_NUM_STEPS):
                self._agent.act(*self._arguments)
            if self._agent.device.type == "cuda":
                torch.cuda.synchronize(self._agent.device)
            count += _NUM_STEPS
        return count * self._size / (time.perf_counter() - start)

    def close(self) -> None:
        """Nothing is open."""
