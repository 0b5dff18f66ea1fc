"""The agents of the policy-gradient algorithms that learn from replay: the policy alone; critics are the algorithm's.

`PolicyAgent` draws from a squashed Gaussian (SAC); `DeterministicAgent` adds noise to one action (DDPG, TD3, D4PG).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from gymnasium import spaces as gs
from torch import Tensor

from rlsurreal.agents.base import ModelAgent, ModelSpec
from rlsurreal.agents.parameter_noise import ParameterNoise
from rlsurreal.distributions import Distribution
from rlsurreal.models import DeterministicPolicy, StochasticPolicy
from rlsurreal.models.checks import check_deterministic_policy, check_stochastic_policy
from rlsurreal.ops.values import any_index
from rlsurreal.structs import AgentInputs, AgentStep, Noise, NoiseSpec, Spaces
from rlsurreal.utils.namedarraytuple import NamedArrayTuple, Tree
from rlsurreal.utils.schedules import Schedule, as_schedule


class NoiseState(NamedArrayTuple):
    """What `DeterministicAgent` carries from step to step."""

    drift: Any  # float32 [B, dim]: the Ornstein-Uhlenbeck process, 0 at an episode's start; None for normal noise
    env: Any  # float32 [B]: global index of the environment


def _check_actions(agent: object, space: Any) -> None:
    if not isinstance(space, gs.Box) or len(space.shape) != 1:
        if isinstance(space, gs.Discrete):
            fix = "use QAgent with DQN, or PolicyAgent with DiscreteSAC"
        elif isinstance(space, gs.Box):
            fix = "flatten it in the environment, or use ActorCriticAgent with PPO"
        else:
            fix = "use ActorCriticAgent with PPO"
        raise ValueError(
            f"{type(agent).__name__} needs actions that are one vector of numbers, and the action space is {space}; "
            f"{fix}"
        )


@dataclass(kw_only=True, eq=False)
class PolicyAgent(ModelAgent):
    """Draws actions from the policy: a squashed Gaussian, or a categorical for Discrete actions."""

    model: ModelSpec = field(default_factory=lambda: ModelSpec(cls=StochasticPolicy))

    def initialize(self, spaces: Spaces, *, seed: int, device: str | torch.device = "cpu") -> None:
        """Build the policy for ``spaces``, with initial weights drawn from ``seed``."""
        self.num_actions = int(spaces.action.n) if isinstance(spaces.action, gs.Discrete) else None
        if self.num_actions is None:
            _check_actions(self, spaces.action)
        module: Any = self.model.build(observation_space=spaces.observation, action_space=spaces.action, seed=seed)
        check_stochastic_policy(module, self._role, spaces)
        self.uses_previous: bool = module.recurrent
        self.distribution: Distribution = module.distribution
        module.register_buffer("exploration", torch.ones(()))  # 1: at random; published with the parameters
        own = self.distribution.noise_spec
        self.noise_spec = own + NoiseSpec(uniform=own.normal or 1)  # what actions at random take comes last
        self._set_up(spaces, module, device)

    def initial_state(self, num_envs: int, first_env: int = 0) -> Tree:
        """The null state on the agent's device, ``[B]``; None for a policy without memory."""
        module: Any = self.module
        return module.initial_state(num_envs)

    def explore(self, progress: float, num_envs: int, at_random: bool) -> dict[str, float]:
        """The policy explores by itself; ``at_random``: nothing is being learned yet, any action will do."""
        module: Any = self.module
        module.exploration.fill_(float(at_random))
        return {}

    def act(self, inputs: AgentInputs, state: Tree, noise: Noise | None) -> tuple[AgentStep, Tree]:
        """Draw actions for ``[B]`` inputs with ``noise``; without it, take the median or most likely ones."""
        params, state = self.module(inputs, state)
        if noise is None:
            return AgentStep(self.distribution.mode(params)), state
        num_uniform = self.distribution.noise_spec.uniform
        own = Noise(noise.normal, noise.uniform[..., :num_uniform] if num_uniform else None)
        action, rest = self.distribution.sample(params, own), noise.uniform[..., num_uniform:]
        if self.num_actions is None:
            anything = 2 * rest - 1
        else:
            anything = any_index(rest[..., 0], self.num_actions)
        module: Any = self.module
        return AgentStep(torch.where(module.exploration > 0, anything, action)), state

    def learn(self, inputs: AgentInputs) -> Tree:
        """The distribution's parameters, gradients and all, of a policy without memory."""
        return self.module(inputs, None)[0]


@dataclass(kw_only=True, eq=False)
class DeterministicAgent(ModelAgent):
    """Takes the policy's action, with noise while it explores.

    Environment ``i`` of ``N``, counted over all ranks, has noise of standard deviation
    ``noise * (1 + noise_spread * i / (N - 1))``, in units of half the action range.  Of an Ornstein-Uhlenbeck process
    that is what each step adds: its own is larger by ``1 / sqrt(1 - (1 - theta)^2)``, 1.9 for theta 0.15.
    """

    model: ModelSpec = field(default_factory=lambda: ModelSpec(cls=DeterministicPolicy))
    noise: float | Schedule = 0.1
    noise_spread: float = 0.0
    process: Literal["normal", "ornstein_uhlenbeck"] = "normal"
    theta: float = 0.15  # Ornstein-Uhlenbeck: the part of the drift that is lost in each step
    parameter_noise: ParameterNoise | None = None  # besides the noise on actions, which may be 0
    uses_previous = False

    def __post_init__(self) -> None:
        self._noise_at = as_schedule(self.noise, "DeterministicAgent.noise", least=0)
        if self.noise_spread < 0:
            raise ValueError(f"DeterministicAgent.noise_spread is {self.noise_spread}; it must be at least 0")
        if self.process not in ("normal", "ornstein_uhlenbeck"):
            raise ValueError(f"DeterministicAgent.process is {self.process!r}; choose 'normal' or 'ornstein_uhlenbeck'")
        if not 0 < self.theta <= 1:
            raise ValueError(f"DeterministicAgent.theta is {self.theta}; it must lie in (0, 1]")

    def initialize(self, spaces: Spaces, *, seed: int, device: str | torch.device = "cpu") -> None:
        """Build the policy for ``spaces``, with initial weights drawn from ``seed``."""
        _check_actions(self, spaces.action)
        module: Any = self.model.build(observation_space=spaces.observation, action_space=spaces.action, seed=seed)
        check_deterministic_policy(module, self._role, spaces)
        if module.recurrent:
            raise ValueError(
                "DeterministicAgent's policy is recurrent, which DDPG and what came of it do not learn; leave it out, "
                "or use PolicyAgent with RecurrentSAC"
            )
        if self.parameter_noise is not None:
            self.parameter_noise.equip(module)
        # 1: at random; by which part of the first environment's noise each one's is larger than that of the one before;
        # and the first one's.  Published with the parameters.
        module.register_buffer("exploration", torch.zeros(3))
        self._dim = math.prod(spaces.action.shape or ())
        self.noise_spec = NoiseSpec(normal=self._dim, uniform=self._dim)
        self._set_up(spaces, module, device)
        self.explore(0.0, 1, at_random=True)

    def explore(self, progress: float, num_envs: int, at_random: bool) -> dict[str, float]:
        """Lay the noise out over ``num_envs`` environments of all ranks, when ``progress`` of the run is done.

        ``at_random``: see `PolicyAgent.explore`.  Returns the first environment's noise, as a metric.
        """
        module: Any = self.module
        noise, spread = self._noise_at(progress), self.noise_spread / max(1, num_envs - 1)
        module.exploration.copy_(torch.tensor([float(at_random), spread, noise]))
        return {"policy/noise": noise}

    def initial_state(self, num_envs: int, first_env: int = 0) -> NoiseState:
        """The null state on the agent's device, ``[B]``."""
        env = torch.arange(first_env, first_env + num_envs, dtype=torch.float32, device=self.device)
        drifts = self.process == "ornstein_uhlenbeck"
        return NoiseState(torch.zeros(num_envs, self._dim, device=self.device) if drifts else None, env)

    def act(self, inputs: AgentInputs, state: NoiseState, noise: Noise | None) -> tuple[AgentStep, NoiseState]:
        """Actions for ``[B]`` inputs; without ``noise`` the policy's own."""
        if noise is None:
            return AgentStep(self.learn(inputs)), state
        module: Any = self.module
        action = (module if self.parameter_noise is None else module.explorer)(inputs, None)[0]
        drift = None if state.drift is None else (1 - self.theta) * state.drift + noise.normal
        at_random, spread, first = module.exploration.unbind()
        scale = first * (1 + spread * state.env)
        action = (action + scale.unsqueeze(-1) * (noise.normal if drift is None else drift)).clamp(-1, 1)
        anything = 2 * noise.uniform - 1
        return AgentStep(torch.where(at_random > 0, anything, action)), NoiseState(drift, state.env)

    def learn(self, inputs: AgentInputs) -> Tensor:
        """The policy's action, gradients and all."""
        action: Tensor = self.module(inputs, None)[0]
        return action
