"""The agent of the policy-gradient algorithms: one model that gives a policy and a value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from rlsurreal.agents.base import ModelAgent, ModelSpec
from rlsurreal.distributions import make_distribution
from rlsurreal.models import ActorCritic
from rlsurreal.models.checks import check_actor_critic
from rlsurreal.ops.losses import identity
from rlsurreal.structs import AgentInputs, AgentStep, Noise, Spaces
from rlsurreal.utils.namedarraytuple import NamedArrayTuple, Tree


class ActorCriticInfo(NamedArrayTuple):
    """What is recorded with each action."""

    params: Tree  # of the action distribution
    value: Any  # float32
    log_prob: Any  # float32, of the action


@dataclass(kw_only=True, eq=False)
class ActorCriticAgent(ModelAgent):
    """Draws actions from the policy that the model's outputs describe.

    Discrete actions are categorical, bits Bernoulli, boxes Gaussian; Dict and Tuple action spaces combine them.
    """

    model: ModelSpec = field(default_factory=lambda: ModelSpec(cls=ActorCritic))
    squash: bool = False  # Gaussian: tanh into the action bounds; otherwise the environment's border clips
    std: Literal["free", "state"] = "free"  # Gaussian: parameters of their own, or outputs of the model
    init_std: float = 1.0  # Gaussian: at the start

    def initialize(self, spaces: Spaces, *, seed: int, device: str | torch.device = "cpu") -> None:
        """Build the model for ``spaces``, with initial weights drawn from ``seed``."""
        self.distribution = make_distribution(spaces.action, squash=self.squash, std=self.std, init_std=self.init_std)
        self.noise_spec = self.distribution.noise_spec
        module: Any = self.model.build(observation_space=spaces.observation, distribution=self.distribution, seed=seed)
        check_actor_critic(module, self._role, spaces, self.distribution)
        self.uses_previous: bool = module.recurrent
        self._set_up(spaces, module, device)

    def initial_state(self, num_envs: int, first_env: int = 0) -> Tree:
        """The null state on the agent's device, leading dimension ``[B]``; None for models without memory."""
        return self.module.initial_state(num_envs)  # type: ignore[operator]

    def act(self, inputs: AgentInputs, state: Tree, noise: Noise | None) -> tuple[AgentStep, Tree]:
        """Draw actions for ``[B]`` inputs with ``noise``; without it, take the most likely ones."""
        (params, value), state = self.module(inputs, state)
        action = self.distribution.mode(params) if noise is None else self.distribution.sample(params, noise)
        return AgentStep(action, ActorCriticInfo(params, value, self.distribution.log_prob(params, action))), state

    def value(self, inputs: AgentInputs, state: Tree) -> Tensor:
        """The value of ``[B]`` inputs, float ``[B]``."""
        value: Tensor = self.module.value(inputs, state)  # type: ignore[operator]
        return value

    def lacks_statistics(self) -> bool:
        """Whether the model normalizes observations and has seen none yet.  Waits for the device."""
        normalizer = getattr(self.module, "normalizer", None)
        return normalizer is not None and normalizer.is_empty()

    def update_normalizer(
        self, observation: Tree, valid: Tensor, reduce: Callable[[Tensor], Tensor] = identity
    ) -> None:
        """Take observations ``[T, B]`` of ``valid`` rows into the model's running statistics, if it keeps any.

        ``reduce``: maps a tensor of sums to its sum over ranks.
        """
        normalizer = getattr(self.module, "normalizer", None)
        if normalizer is not None:
            normalizer.update(observation, valid, reduce)
