"""Advantage actor-critic: one gradient step on each slot (Mnih et al. 2016, arXiv 1602.01783, synchronous form)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlsurreal.agents import ActorCriticAgent
from rlsurreal.algos.pg.on_policy import OnPolicy, Rollout, rows_of, sequences_of, time_first
from rlsurreal.ops.losses import masked_mean, value_loss
from rlsurreal.structs import Samples
from rlsurreal.utils.schedules import Schedule

METRICS = ("loss/policy", "loss/value", "loss/entropy", "update/grad_norm")


@dataclass(kw_only=True, eq=False)
class A2C(OnPolicy):
    """Hyperparameters of A2C."""

    learning_rate: float | Schedule = 7e-4
    gae_lambda: float = 1.0
    entropy_coeff: float | Schedule = 0.01

    def _learn(self, samples: Samples, progress: float) -> Mapping[str, Any]:
        """One gradient step; its metrics."""
        samples, rollout = self._prepare(samples)
        data = rows_of(rollout) if rollout.state is None else time_first(sequences_of(rollout))
        self._gradient_step.learning_rate.fill_(self._learning_rate_at(progress))
        everything = torch.arange(len(data.valid), device=self._agent.device)
        data, (num_valid,) = self._for_steps(data, [everything])
        entropy_coeff = torch.tensor(float(self._entropy_coeff_at(progress)), device=self._agent.device)
        self._gradient_step(data._replace(num_valid=num_valid), entropy_coeff)
        return {
            **dict(zip(METRICS, self._gradient_step.take_metrics())),
            "update/learning_rate": self._learning_rate_at(progress),
            **self._finish(samples, rollout),
        }

    def _loss(self, data: Rollout, entropy_coeff: Tensor) -> tuple[Tensor, Tensor]:
        return a2c_loss(self._agent, data, value_loss_coeff=self.value_loss_coeff, entropy_coeff=entropy_coeff)

    @property
    def _num_steps_per_update(self) -> int:
        return 1

    @property
    def _num_metrics(self) -> int:
        return len(METRICS) - 1


def a2c_loss(
    agent: ActorCriticAgent,
    data: Rollout,
    *,
    value_loss_coeff: float,
    entropy_coeff: float | Tensor,
) -> tuple[Tensor, Tensor]:
    """The loss, and its metrics in the order of `METRICS` (the gradient's norm is added later).

    loss = mean( -A * log pi(a|s) ) + value_loss_coeff * mean( (V - target)^2 ) / 2 - entropy_coeff * mean( H(pi) )
    """
    (params, value), _ = agent.module(data.inputs, data.state, data.first)
    distribution, valid, num_valid = agent.distribution, data.valid, data.num_valid
    log_prob = distribution.log_prob(params, data.action)
    policy = masked_mean(-data.advantage * log_prob, valid, num_valid)
    critic = value_loss(value, data.target, valid, num_valid=num_valid)
    entropy = masked_mean(distribution.entropy(params), valid, num_valid)
    loss = policy + value_loss_coeff * critic - entropy_coeff * entropy
    return loss, torch.stack([policy, critic, entropy]).detach()
