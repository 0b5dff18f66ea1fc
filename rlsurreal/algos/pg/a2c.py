"""Advantage actor-critic: one gradient step on each slot (Mnih et al. 2016, arXiv 1602.01783, synchronous form)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlsurreal.agents import ActorCriticAgent
from rlsurreal.algos.pg.on_policy import OnPolicy, Rollout, rows_of, sequences_of
from rlsurreal.ops.losses import masked_mean, masked_normalize, value_loss
from rlsurreal.structs import Samples
from rlsurreal.utils.namedarraytuple import tree_map
from rlsurreal.utils.schedules import Schedule

METRICS = ("loss/policy", "loss/value", "loss/entropy")


@dataclass(kw_only=True, eq=False)
class A2C(OnPolicy):
    """Hyperparameters of A2C."""

    learning_rate: float | Schedule = 7e-4
    gae_lambda: float = 1.0
    entropy_coeff: float | Schedule = 0.01

    def update(self, samples: Samples, progress: float) -> Mapping[str, Any]:
        """One gradient step.  ``progress``: the part of the run that is done, for schedules.  Metrics."""
        samples, rollout = self._prepare(samples)
        data = rows_of(rollout) if rollout.state is None else sequences_of(rollout)
        if data.state is not None:
            data = tree_map(lambda x: x.transpose(0, 1), data._replace(state=None))._replace(state=data.state)
        loss, parts = a2c_loss(
            self._agent,
            data,
            value_loss_coeff=self.value_loss_coeff,
            entropy_coeff=self._entropy_coeff_at(progress),
            normalize_advantage=self.normalize_advantage == "minibatch",
        )
        grad_norm = self._gradient_step(loss, self._learning_rate_at(progress))
        return {
            **dict(zip(METRICS, parts)),
            "update/grad_norm": grad_norm,
            "update/learning_rate": self._learning_rate_at(progress),
            **self._finish(samples, rollout),
        }


def a2c_loss(
    agent: ActorCriticAgent, data: Rollout, *, value_loss_coeff: float, entropy_coeff: float, normalize_advantage: bool
) -> tuple[Tensor, Tensor]:
    """The loss, and its parts in the order of `METRICS`.

    loss = mean( -A * log pi(a|s) ) + value_loss_coeff * mean( (V - target)^2 ) / 2 - entropy_coeff * mean( H(pi) )
    """
    (params, value), _ = agent.module(data.inputs, data.state, data.first)
    distribution = agent.distribution
    advantage = masked_normalize(data.advantage, data.valid) if normalize_advantage else data.advantage
    log_prob = distribution.log_prob(params, data.action)
    policy = masked_mean(-advantage * log_prob, data.valid)
    critic = value_loss(value, data.target, data.valid)
    entropy = masked_mean(distribution.entropy(params), data.valid)
    loss = policy + value_loss_coeff * critic - entropy_coeff * entropy
    return loss, torch.stack([policy, critic, entropy]).detach()
