"""SAC as first published (Haarnoja et al. 2018, arXiv 1801.01290): critics bootstrap with a network for state values.

value:    (V(s) - (min_k Q_k(s, a) - alpha log pi(a|s)))^2 / 2,  a drawn from the policy
critics:  (Q_k(s, a) - y)^2 / 2,  y = r + discount * V'(s')

V' follows V; the critics need no targets of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rlsurreal.agents import ModelSpec
from rlsurreal.algos.off_policy import Parts
from rlsurreal.algos.qpg.sac import SAC
from rlsurreal.algos.update import GradientStep
from rlsurreal.models import QNetwork
from rlsurreal.models.checks import check_q_network
from rlsurreal.ops.values import bootstrapped_target, min_over_critics
from rlsurreal.replays import Transitions
from rlsurreal.structs import AgentInputs
from rlsurreal.utils.namedarraytuple import Tree

VALUE_METRICS = ("loss/state_value", "update/state_value_grad_norm")


@dataclass(kw_only=True, eq=False)
class StateValueSAC(SAC):
    """Hyperparameters of SAC with a network for state values: a `QNetwork` of one action."""

    value: ModelSpec = field(default_factory=lambda: ModelSpec(cls=QNetwork))

    def _build(self, compiled: bool) -> Parts:
        parts = super()._build(compiled)
        self._value_step = GradientStep(
            self._value,
            self._value_loss,
            len(VALUE_METRICS) - 1,
            reads=[self._critics, self._agent.module, self._temperature],
            max_grad_norm=self.max_grad_norm,
            eps=self.adam_eps,
            compile=compiled,
            ranks=self._ranks,
        )
        return Parts(
            {**parts.steps, "value": (self._value_step, VALUE_METRICS)},
            parts.targets,
            {**parts.networks, "value": self._value},
        )

    def _bootstrap(self) -> nn.Module:
        agent = self._agent
        value: Any = self.value.build(observation_space=agent.spaces.observation, num_actions=1, seed=self._seed)
        check_q_network(value, "a model of state values of StateValueSAC", agent.spaces, num_actions=1)
        self._value: Any = value.to(agent.device)
        for name in ("num_atoms", "num_cosines", "num_noise", "recurrent"):
            if getattr(self._value, name):
                raise ValueError(
                    f"StateValueSAC.value has {name}={getattr(self._value, name)}, and is to be a plain QNetwork; "
                    "leave that out"
                )
        network: nn.Module = self._value
        return network

    def _update(self, batch: Transitions, progress: float) -> Tensor:
        self._value_step.learning_rate.fill_(self._critic_rate_at(progress))
        self._value_step(batch.observation, self._noise(), self._dropout(1))
        return super()._update(batch, progress)

    def _value_loss(self, observation: Tree, noise: Tensor, dropout: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Loss, and it alone as metrics."""
        with torch.no_grad():
            action, log_prob = self._act(observation, noise)
            value = min_over_critics(self._critics(observation, action, None if dropout is None else dropout[0]))
            target = value - self._temperature.value * log_prob
        loss = (_values(self._value, observation) - target).square().mean() / 2
        return loss, loss.detach().unsqueeze(0)

    def _critic_loss(
        self, batch: Transitions, noise: Tensor, dropout: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            value = _values(self._target.module, batch.next_observation)
            target = bootstrapped_target(batch.reward, batch.discount, value)
        own_dropout = None if dropout is None else dropout[1]
        return self._errors(self._critics(batch.observation, batch.action, own_dropout), target, batch.weight)


def _values(network: Any, observation: Tree) -> Tensor:
    values: Tensor = network(AgentInputs(observation), None)[0].squeeze(-1)
    return values
