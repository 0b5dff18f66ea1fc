"""Deep deterministic policy gradient (Lillicrap et al. 2016, arXiv 1509.02971), and the base of TD3 and D4PG.

critics:  loss of Q_k(s, a) against r + discount * min_k Q'_k(s', pi'(s') + clipped noise)
policy:   -Q_1(s, pi(s))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlsurreal.agents import ModelSpec
from rlsurreal.agents.policy import DeterministicAgent
from rlsurreal.agents.return_heads import Expected, ReturnHead
from rlsurreal.algos.off_policy import OffPolicy, Parts, Target
from rlsurreal.algos.qpg.critics import build_critics
from rlsurreal.algos.qpg.shared_encoder import SharedEncoder
from rlsurreal.algos.update import GradientStep
from rlsurreal.models import CriticEnsemble
from rlsurreal.ops.values import min_over_critics
from rlsurreal.replays import ReplayRatio, Transitions
from rlsurreal.structs import AgentInputs
from rlsurreal.utils.namedarraytuple import Tree
from rlsurreal.utils.schedules import Schedule, as_schedule

CRITIC_METRICS = ("loss/value", "value/mean", "value/error", "update/critic_grad_norm")
POLICY_METRICS = ("loss/policy", "update/policy_grad_norm")


@dataclass(kw_only=True, eq=False)
class DDPG(OffPolicy):
    """Hyperparameters of DDPG, and of what was made of it."""

    batch_size: int = 100
    limiter: ReplayRatio = field(default_factory=lambda: ReplayRatio(ratio=100, min_steps=10_000))
    learning_rate: float | Schedule = 1e-3  # of the policy
    critic_learning_rate: float | Schedule = 1e-3
    critic_l2: float = 0.0  # of the critics' parameters: half the sum of squares, times this
    critic: ModelSpec = field(default_factory=lambda: ModelSpec(cls=CriticEnsemble, kwargs={"num_critics": 1}))
    head: ReturnHead = field(default_factory=lambda: Expected(delta_clip=None))
    policy_interval: int = 1  # updates from one step of the policy to the next
    target_noise: float = 0.0  # standard deviation, on the target policy's actions
    target_noise_clip: float = 0.5
    share_encoder: bool = False  # of images: the policy sees through the critics', which their loss alone trains

    _agent_class = DeterministicAgent

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        if self.policy_interval < 1:
            raise ValueError(f"{name}.policy_interval is {self.policy_interval}; it must be at least 1")
        for field_name in ("target_noise", "target_noise_clip", "critic_l2"):
            if getattr(self, field_name) < 0:
                raise ValueError(f"{name}.{field_name} is {getattr(self, field_name)}; it must be at least 0")
        self._critic_rate_at = as_schedule(self.critic_learning_rate, f"{name}.critic_learning_rate", least=0)

    def _build(self, compiled: bool) -> Parts:
        agent: DeterministicAgent = self._agent
        self._critics = build_critics(self, self.critic, agent, CriticEnsemble)
        if self._critics.num_noise:
            raise ValueError(
                f"{type(self).__name__}.critic has dropout, which is not used here; leave it out, or use SAC"
            )
        self.head.check(self._critics.num_atoms)
        if self._critics.num_atoms is not None and self._critics.num_critics > 1:
            raise ValueError(
                f"{type(self).__name__}.critic has num_critics={self._critics.num_critics} and num_atoms="
                f"{self._critics.num_atoms}: the least of several is of numbers, not distributions; use num_critics=1"
            )
        self._encoder = None
        if self.share_encoder:
            self._encoder = SharedEncoder(agent.module, self._critics, type(self).__name__)
        self._target, self._target_policy = Target(self._critics), Target(agent.module)
        if self._encoder is not None:
            self._encoder.tie(self._target_policy.module, self._target.module)
        options: Any = {
            "max_grad_norm": self.max_grad_norm,
            "eps": self.adam_eps,
            "compile": compiled,
            "ranks": self._ranks,
        }
        self._critic_step = GradientStep(
            self._critics,
            self._critic_loss,
            len(CRITIC_METRICS) - 1,
            reads=[self._target.module, self._target_policy.module],
            extra=torch.zeros(self.batch_size, device=agent.device),
            **options,
        )
        self._policy_step = GradientStep(
            agent.module, self._policy_loss, len(POLICY_METRICS) - 1, reads=[self._critics], **options
        )
        return Parts(
            {"critic": (self._critic_step, CRITIC_METRICS), "policy": (self._policy_step, POLICY_METRICS)},
            {"critics": self._target, "policy": self._target_policy},
            {"critics": self._critics},
        )

    def _update(self, batch: Transitions, progress: float) -> Tensor:
        self._critic_step.learning_rate.fill_(self._critic_rate_at(progress))
        self._policy_step.learning_rate.fill_(self._learning_rate_at(progress))
        noise = None
        if self.target_noise:
            noise = torch.randn(batch.action.shape, generator=self._generator, device=self._agent.device)
        self._critic_step(batch, noise)
        if self._encoder is not None:
            self._encoder.follow()
        if (self._num_updates + 1) % self.policy_interval == 0:
            self._policy_step(batch.observation)
        parameter_noise = self._agent.parameter_noise
        if parameter_noise is not None and self._num_updates % parameter_noise.interval == 0:
            parameter_noise.draw(self._agent.module, batch.observation, self._generator, self._ranks.mean)
        assert self._critic_step.extra is not None
        return self._critic_step.extra

    def _read_metrics(self, means: Callable[[GradientStep], Tensor]) -> dict[str, Any]:
        metrics = super()._read_metrics(means)
        if self._agent.parameter_noise is not None:
            metrics["exploration/parameter_std"] = self._agent.module.parameter_std.clone()
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """See `OffPolicy.state_dict`: each rank explores with a noise of its own."""
        state = super().state_dict()
        if self._agent.parameter_noise is not None:
            explorer = self._agent.module.explorer.state_dict()
            state["own"]["explorer"] = {name: tensor.clone() for name, tensor in explorer.items()}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        super().load_state_dict(state)
        if state["own"] is not None and "explorer" in state["own"]:
            self._agent.module.explorer.load_state_dict(state["own"]["explorer"])
            self._agent.publish(self._agent.version)

    def _critic_loss(self, batch: Transitions, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, metrics in the order of `CRITIC_METRICS` (the gradient's norm is added later), and priorities."""
        with torch.no_grad():
            action = self._target_policy.module(AgentInputs(batch.next_observation), None)[0]
            if noise is not None:
                shift = (noise * self.target_noise).clamp(-self.target_noise_clip, self.target_noise_clip)
                action = (action + shift).clamp(-1, 1)
            next_values = self._target.module(batch.next_observation, action)
            # A distribution has no minimum: distributional critics are alone.
            next_values = next_values[0] if len(next_values) == 1 else min_over_critics(next_values)
        values = self._critics(batch.observation, batch.action)
        found = [self.head.loss(each, next_values, batch.reward, batch.discount) for each in values]
        loss = (batch.weight * torch.stack([each for each, _ in found]).sum(0)).mean()
        error = torch.stack([each for _, each in found]).mean(0)
        if self.critic_l2:
            loss = loss + self.critic_l2 / 2 * sum(p.square().sum() for p in self._critics.parameters())
        value = self.head.expected(values).mean()
        return loss, torch.stack([loss, value, error.mean()]).detach(), error

    def _policy_loss(self, observation: Tree) -> tuple[Tensor, Tensor]:
        """Loss, and it alone as metrics."""
        agent: DeterministicAgent = self._agent
        action = agent.learn(AgentInputs(observation))
        loss = -self.head.expected(self._critics(observation, action)[0]).mean()
        return loss, loss.detach().unsqueeze(0)
