"""An algorithm of your own: another loss, and all else stays.

    python examples/9_own_algorithm.py

Simple policy optimization (Xie et al. 2024, arXiv 2401.16025) is PPO with a quadratic penalty where PPO clips:

    policy = -mean( ratio * A - |A| / (2 * clip_range) * (ratio - 1)^2 )

Epochs, minibatches, recurrent models, schedules, compiled updates, several ranks and resuming come with the base class.
An algorithm that shares less derives from `OnPolicy` or `OffPolicy`: see docs/adding_an_algorithm.md.
"""

import argparse
from dataclasses import dataclass

import torch
from torch import Tensor

from rlsurreal.agents import ActorCriticAgent
from rlsurreal.algos import PPO
from rlsurreal.algos.pg.on_policy import Rollout, minibatch
from rlsurreal.algos.pg.ppo import Coefficients
from rlsurreal.envs import GymnasiumEnv
from rlsurreal.ops.losses import masked_mean, value_loss
from rlsurreal.runners import Trainer
from rlsurreal.samplers import SerialSampler
from rlsurreal.structs import BatchSpec
from rlsurreal.utils.schedules import Linear


@dataclass(kw_only=True, eq=False)
class SimplePolicyOptimization(PPO):
    """Hyperparameters are PPO's; the objective has its maximum at ratios of 1 ± ``clip_range``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective != "clip" or self.value_clip_range is not None:
            raise ValueError("the loss is another one here: leave objective and value_clip_range as they are")

    def _loss(
        self, data: Rollout, index: Tensor, num_valid: Tensor | None, coefficients: Coefficients
    ) -> tuple[Tensor, Tensor]:
        rows = minibatch(data, index)
        (params, value), _ = self._agent.module(rows.inputs, rows.state, rows.first)
        distribution, valid = self._agent.distribution, rows.valid

        def mean(x: Tensor) -> Tensor:  # over valid rows, of all ranks if there are several
            return masked_mean(x, valid, num_valid)

        log_ratio = torch.where(valid, distribution.log_prob(params, rows.action) - rows.old_log_prob, 0.0)
        ratio = log_ratio.exp()
        penalty = rows.advantage.abs() / (2 * coefficients.clip_range) * (ratio - 1).square()
        policy = mean(penalty - ratio * rows.advantage)
        critic = value_loss(value, rows.target, valid, num_valid=num_valid)
        entropy = mean(distribution.entropy(params))
        loss = policy + self.value_loss_coeff * critic - coefficients.entropy_coeff * entropy
        kl, too_far = mean(ratio - 1 - log_ratio), mean(((ratio - 1).abs() > coefficients.clip_range).float())
        return loss, torch.stack([policy, critic, entropy, kl, too_far]).detach()  # in the order of ppo.METRICS


def make_trainer(total_env_steps: int = 100_000) -> Trainer:
    """Example 1 with another algorithm."""
    return Trainer(
        name="example_9",
        agent=ActorCriticAgent(),
        algo=SimplePolicyOptimization(
            learning_rate=Linear(1e-3, 0.0), discount=0.98, gae_lambda=0.8, num_epochs=10, num_minibatches=4
        ),
        sampler=SerialSampler(env=GymnasiumEnv(factory="CartPole-v1"), batch=BatchSpec(num_steps=32, num_envs=16)),
        total_env_steps=total_env_steps,
    )


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    make_trainer().train()
