"""The agent of the DQN family: one Q-network, and epsilon-greedy exploration, each environment with its own epsilon."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from gymnasium import spaces as gs
from torch import Tensor

from rlsurreal.agents.base import ModelAgent, ModelSpec
from rlsurreal.agents.return_heads import Expected, Quantile, ReturnHead
from rlsurreal.models import QNetwork
from rlsurreal.models.checks import check_q_network
from rlsurreal.ops.values import any_index, greedy, select
from rlsurreal.structs import AgentInputs, AgentStep, Noise, NoiseSpec, Spaces
from rlsurreal.utils.namedarraytuple import NamedArrayTuple, Tree, leaves
from rlsurreal.utils.schedules import Schedule, as_schedule


class QState(NamedArrayTuple):
    """What the agent carries from step to step."""

    network: Tree  # of a recurrent network, or None
    env: Any  # float32 [B]: global index of the environment


class QInfo(NamedArrayTuple):
    """What is recorded with each action: expected returns, for first priorities."""

    value: Any  # float32, of the action
    best: Any  # float32, of the best action


@dataclass(kw_only=True, eq=False)
class QAgent(ModelAgent):
    """Takes the action of the highest expected return; with probability epsilon any.

    Environment ``i`` of ``N``, counted over all ranks, has ``epsilon ** (1 + epsilon_spread * i / (N - 1))`` (Horgan et
    al. 2018, Ape-X, arXiv 1803.00933: 0.4 and 7), so that few explore much, and many little: from ``epsilon`` to
    ``least`` with ``epsilon_spread = log(least) / log(epsilon) - 1``.  Of an ``epsilon`` that falls this is the end;
    each environment's goes in the same proportion from 1 to its own.
    """

    model: ModelSpec = field(default_factory=lambda: ModelSpec(cls=QNetwork))
    head: ReturnHead = field(default_factory=Expected)
    epsilon: float | Schedule = 0.05  # 0 with noisy networks, which explore by themselves
    epsilon_spread: float = 0.0
    eval_epsilon: float = 0.0  # in deterministic evaluation, where an agent may otherwise wait for ever
    num_taus: int = 32  # quantiles that an implicit quantile network acts by; K of its paper

    def __post_init__(self) -> None:
        self._epsilon_at = as_schedule(self.epsilon, "QAgent.epsilon", least=0, most=1)
        if not 0 <= self.eval_epsilon <= 1:
            raise ValueError(f"QAgent.eval_epsilon is {self.eval_epsilon}; it must lie in [0, 1]")
        if self.num_taus < 1:
            raise ValueError(f"QAgent.num_taus is {self.num_taus}; it must be at least 1")
        if self.epsilon_spread < 0:
            raise ValueError(f"QAgent.epsilon_spread is {self.epsilon_spread}; it must be at least 0")

    def initialize(self, spaces: Spaces, *, seed: int, device: str | torch.device = "cpu") -> None:
        """Build the network for ``spaces``, with initial weights drawn from ``seed``."""
        if not isinstance(spaces.action, gs.Discrete):
            raise ValueError(
                f"QAgent chooses one of several actions, and the action space is {spaces.action}, not Discrete; use "
                "ActorCriticAgent with PPO, or for a Box gymnasium.wrappers.DiscretizeAction(env, bins=5, "
                "multidiscrete=False)"
            )
        self.num_actions = int(spaces.action.n)
        module: Any = self.model.build(observation_space=spaces.observation, num_actions=self.num_actions, seed=seed)
        check_q_network(module, self._role, spaces, self.num_actions)
        # Of the last epsilon the logarithm, and what that is multiplied by, more for each environment; and how much of
        # the way from 1 to there is still to go.  Published with the parameters.
        module.register_buffer("exploration", torch.zeros(3))
        self.uses_previous: bool = module.recurrent
        has_taus = module.num_cosines is not None
        if not has_taus and self.num_taus != QAgent.num_taus:
            raise ValueError(
                f"QAgent.num_taus is {self.num_taus}, and the Q-network draws no quantiles; give it num_cosines=64, "
                "say, or leave num_taus out"
            )
        self.num_drawn_taus = self.num_taus if has_taus else 0
        if has_taus and not isinstance(self.head, Quantile):
            raise ValueError(
                f"the model has num_cosines={module.num_cosines}, so it gives quantiles, and the head is "
                f"{type(self.head).__name__}; use head=Quantile()"
            )
        self.head.check(self.num_taus if has_taus else module.num_atoms)
        self.noise_spec = NoiseSpec(
            normal=module.num_noise,
            uniform=2 + self.num_drawn_taus,
            evaluation=2 if self.eval_epsilon else 0,
        )
        self._set_up(spaces, module, device)
        self.explore(0.0, 1, at_random=True)

    def explore(self, progress: float, num_envs: int, at_random: bool) -> dict[str, float]:
        """Set epsilon as it is when ``progress`` of the run is done, for ``num_envs`` environments over all ranks.

        ``at_random``: nothing is being learned yet; epsilon is 1.  Returns the first environment's, as a metric.
        """
        now, last = (1.0 if at_random else self._epsilon_at(progress)), self._epsilon_at(1.0)
        if last == 1:  # it rises, and there is no way from 1 to 1
            last = now
        log_last = math.log(last) if last > 0 else -math.inf
        to_go = (now - last) / (1 - last) if last < 1 else 0.0
        module: Any = self.module
        module.exploration.copy_(torch.tensor([log_last, self.epsilon_spread / max(1, num_envs - 1), to_go]))
        return {"policy/epsilon": now}

    def initial_state(self, num_envs: int, first_env: int = 0) -> QState:
        """The null state on the agent's device, ``[B]``."""
        module: Any = self.module
        env = torch.arange(first_env, first_env + num_envs, dtype=torch.float32, device=self.device)
        return QState(module.initial_state(num_envs), env)

    def act(self, inputs: AgentInputs, state: QState, noise: Noise | None) -> tuple[AgentStep, QState]:
        """Epsilon-greedy actions for ``[B]`` inputs with ``noise``; without it, greedy ones."""
        module: Any = self.module
        of_network = None if noise is None or noise.evaluation is not None else noise
        taus = self._taus(inputs, of_network) if self.num_drawn_taus else None
        normal = None if of_network is None else of_network.normal
        values, network = module(inputs, state.network, noise=normal, taus=taus)
        expected = self.head.expected(values)
        action = greedy(expected)
        if noise is not None:
            chance = noise.evaluation if of_network is None else noise.uniform
            epsilon = self.eval_epsilon if of_network is None else self._own_epsilon(state)
            anything = any_index(chance[..., 1], self.num_actions)
            action = torch.where(chance[..., 0] < epsilon, anything, action)
        info = QInfo(select(expected, action), expected.amax(-1))
        return AgentStep(action, info), QState(network, state.env)

    def _own_epsilon(self, state: QState) -> Tensor:
        """Each environment's epsilon ``[B]``."""
        module: Any = self.module
        log_last, spread, to_go = module.exploration.unbind()
        last = torch.exp(log_last * (1 + spread * state.env))
        epsilon: Tensor = last + to_go * (1 - last)
        return epsilon

    def _taus(self, inputs: AgentInputs, noise: Noise | None) -> Tensor:
        """``[B, num_taus]``: at random; without noise the middles of equal parts."""
        if noise is not None:
            random: Tensor = noise.uniform[..., 2:]
            return random
        middles = (torch.arange(self.num_taus, device=self.device) + 0.5) / self.num_taus
        return middles.expand(leaves(inputs)[0].shape[0], -1)
