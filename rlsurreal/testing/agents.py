"""`TapeAgent`: acts by exact arithmetic on all an agent is given, so that any difference between samplers shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from rlsurreal.distributed.parameters import Publication, SharedParameters
from rlsurreal.structs import AgentInputs, AgentStep, Noise, NoiseSpec, Spaces
from rlsurreal.utils.namedarraytuple import NamedArrayTuple, Tree, leaves
from rlsurreal.utils.spaces import map_spaces

_MODULUS = 1_000_003


class TapeInfo(NamedArrayTuple):
    """What is recorded with each action."""

    score: Any  # int64: what the action was made from
    steps: Any  # int64: how many steps the agent remembers


class TapeState(NamedArrayTuple):
    """Memory: the steps since the last reset, and a running score."""

    steps: Any  # int64 [B]
    score: Any  # int64 [B]; after a reset the number of the environment, counted from 1


@dataclass(kw_only=True, eq=False)
class TapeAgent:
    """An agent with memory whose actions depend, bit for bit, on everything it is given.

    That is: observation, previous action and reward, state and noise.  Whole numbers only, so that the size of a batch
    changes nothing.
    """

    memory: bool = True

    def initialize(self, spaces: Spaces, *, seed: int, device: str | torch.device = "cpu") -> None:
        """Remember the spaces; ``seed`` is added to every score."""
        self.spaces, self.device = spaces, torch.device(device)
        self.noise_spec = NoiseSpec(uniform=2, evaluation=1)
        self.uses_previous = self.memory
        self.version = 0
        self.parameters = {"seed": torch.tensor(seed % _MODULUS)}
        self._link: SharedParameters | None = None

    def initial_state(self, num_envs: int, first_env: int = 0) -> Tree:
        """No steps, and a score that says which environment it is; or nothing without memory."""
        if not self.memory:
            return None
        env = torch.arange(first_env, first_env + num_envs, device=self.device)
        return TapeState(torch.zeros_like(env), 1 + env)

    def act(self, inputs: AgentInputs, state: Tree, noise: Noise | None) -> tuple[AgentStep, Tree]:
        """Actions from a hash of all inputs."""
        num_envs = len(leaves(inputs.observation)[0])
        score = self.parameters["seed"].expand(num_envs).clone()
        for i, leaf in enumerate(leaves(inputs)):
            score = (score * 31 + (7 + i) * _whole(leaf)) % _MODULUS
        if noise is not None:
            numbers = noise.uniform if noise.evaluation is None else noise.evaluation
            score = (score * 31 + _whole(numbers * 1024)) % _MODULUS
        steps = torch.zeros_like(score)
        if state is not None:
            score = (score * 31 + state.score + 1000 * state.steps) % _MODULUS
            steps = state.steps
            state = TapeState(state.steps + 1, score)
        action = map_spaces(lambda space: _action(space, score), self.spaces.action)
        return AgentStep(action, TapeInfo(score, steps)), state

    def share(self) -> SharedParameters:
        """Open the way to copies in other processes."""
        self._link = SharedParameters(self.parameters)
        self._link.publish(self.parameters, self.version)
        return self._link

    def publish(self, version: int) -> None:
        """Hand the present parameters to all copies."""
        self.version = version
        if self._link is not None:
            self._link.publish(self.parameters, version)

    def follow(self, link: SharedParameters) -> None:
        """Be a copy."""
        self._followed = link
        self._taken: Publication | None = None
        self.pull()

    def pull(self) -> None:
        """Take the newest parameters."""
        self.version, self._taken = self._followed.pull(self.parameters, self._taken)


def _whole(leaf: Tensor) -> Tensor:
    """One whole number for each environment, int64 ``[B]``."""
    scaled = leaf.flatten(1) if leaf.dim() > 1 else leaf[:, None]
    if scaled.is_floating_point():
        scaled = (scaled.double().clamp(-1e6, 1e6) * 4096).round()
    return scaled.to(torch.int64).sum(1) % _MODULUS


def _action(space: gym.Space, score: Tensor) -> Tensor:
    if isinstance(space, gym.spaces.Discrete):
        return score % int(space.n)
    if isinstance(space, gym.spaces.MultiDiscrete):
        return score[:, None] // torch.arange(1, len(space.nvec) + 1) % torch.as_tensor(space.nvec)
    shape = space.shape or ()
    flat = score[:, None] // torch.arange(1, int(torch.tensor(shape).prod()) + 1)
    if isinstance(space, gym.spaces.MultiBinary):
        return (flat % 2).to(torch.int8).reshape(-1, *shape)
    return (flat % 201 - 100).float().div(100).reshape(-1, *shape)
