"""SAC for Discrete actions (Christodoulou 2019, arXiv 1910.07207): expectations over actions are sums, not samples.

critics:  (Q_k(s, a) - y)^2 / 2,  y = r + discount * sum_a' pi(a'|s') (min_k Q'_k(s', a') - alpha log pi(a'|s'))
policy:   sum_a pi(a|s) (alpha log pi(a|s) - min_k Q_k(s, a))
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlsurreal.agents import ModelSpec
from rlsurreal.agents.policy import PolicyAgent
from rlsurreal.algos.qpg.sac import SAC
from rlsurreal.models import QEnsemble
from rlsurreal.ops.values import bootstrapped_target, min_over_critics, select
from rlsurreal.replays import Transitions
from rlsurreal.structs import AgentInputs
from rlsurreal.utils.namedarraytuple import Tree

_ENTROPY_SHARE = 0.98  # of the greatest entropy there is: the paper's target


@dataclass(kw_only=True, eq=False)
class DiscreteSAC(SAC):
    """Hyperparameters of SAC for Discrete actions; ``target_entropy`` "auto" is nearly that of random actions."""

    critic: ModelSpec = field(default_factory=lambda: ModelSpec(cls=QEnsemble))

    _critics_like = QEnsemble

    def _check(self, agent: PolicyAgent) -> None:
        if agent.num_actions is None:
            raise ValueError("DiscreteSAC is for Discrete actions; for numbers use SAC")
        if agent.uses_previous:
            raise ValueError("the policy is recurrent, which DiscreteSAC does not learn; leave it out, or use R2D2")

    def _auto_entropy(self) -> float:
        assert self._agent.num_actions is not None
        return _ENTROPY_SHARE * math.log(self._agent.num_actions)

    def _critic_loss(
        self, batch: Transitions, noise: Tensor, dropout: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            log_pi: Tensor = self._agent.learn(AgentInputs(batch.next_observation)).logits
            after = min_over_critics(self._target.module(batch.next_observation))
            value = (log_pi.exp() * (after - self._temperature.value * log_pi)).sum(-1)
            target = bootstrapped_target(batch.reward, batch.discount, value)
        values = self._critics(batch.observation)
        return self._errors(select(values, batch.action.expand(len(values), -1)), target, batch.weight)

    def _policy_loss(self, observation: Tree, noise: Tensor, dropout: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_pi: Tensor = self._agent.learn(AgentInputs(observation)).logits
        with torch.no_grad():
            value = self._climbed(self._critics(observation))
        temperature = self._temperature.value.detach()
        loss = (log_pi.exp() * (temperature * log_pi - value)).sum(-1).mean()
        return self._with_temperature(loss, (log_pi.exp() * log_pi).sum(-1).mean())
