"""Soft actor-critic (Haarnoja et al. 2018, arXiv 1812.05905): a stochastic policy that is rewarded for its entropy.

With dropout and layer normalisation in the critics, many updates for each step, few of them of the policy, and that
along the critics' mean, it is DroQ (Hiraoka et al. 2022, arXiv 2110.02034); see the recipe `droq_mujoco`.  Of the ways
to learn from fewer steps it is the one that needs no other parts: neither large ensembles (REDQ) nor batch
normalisation over two batches (CrossQ).

critics:      (Q_k(s, a) - y)^2 / 2,  y = r + discount * (min_k Q'_k(s', a') - alpha log pi(a'|s'))
policy:       alpha log pi(a|s) - min_k Q_k(s, a), or their mean
temperature:  -log alpha (log pi(a|s) + target_entropy)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from rlsurreal.agents import ModelSpec
from rlsurreal.agents.policy import PolicyAgent
from rlsurreal.algos.off_policy import OffPolicy, Parts, Target
from rlsurreal.algos.qpg.critics import build_critics
from rlsurreal.algos.qpg.shared_encoder import SharedEncoder
from rlsurreal.algos.update import GradientStep
from rlsurreal.models import CriticEnsemble
from rlsurreal.ops.values import bootstrapped_target, min_over_critics, temperature_loss
from rlsurreal.replays import ReplayRatio, Transitions
from rlsurreal.structs import AgentInputs, Noise
from rlsurreal.utils.namedarraytuple import Tree
from rlsurreal.utils.schedules import Schedule, as_schedule

CRITIC_METRICS = ("loss/value", "value/mean", "value/error", "update/critic_grad_norm")
POLICY_METRICS = ("loss/policy", "policy/entropy", "policy/temperature", "update/policy_grad_norm")


@dataclass(kw_only=True, eq=False)
class SAC(OffPolicy):
    """Hyperparameters of SAC."""

    limiter: ReplayRatio = field(default_factory=lambda: ReplayRatio(ratio=256, min_steps=5_000))
    critic_learning_rate: float | Schedule | None = None  # None: as `learning_rate`, that of policy and temperature
    critic: ModelSpec = field(default_factory=lambda: ModelSpec(cls=CriticEnsemble))
    policy_interval: int = 1  # updates from one of policy and temperature to the next
    policy_value: Literal["min", "mean"] = "min"  # of the critics: what the policy climbs
    temperature: float | Literal["auto"] = "auto"
    target_entropy: float | Literal["auto"] = "auto"  # in nats; "auto": minus the number of action dimensions
    initial_temperature: float = 1.0
    share_encoder: bool = False  # of images: the policy sees through the critics', which their loss alone trains

    _agent_class = PolicyAgent
    _critics_like: ClassVar[type] = CriticEnsemble

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        if self.policy_interval < 1:
            raise ValueError(f"{name}.policy_interval is {self.policy_interval}; it must be at least 1")
        if self.policy_value not in ("min", "mean"):
            raise ValueError(f"{name}.policy_value is {self.policy_value!r}; choose 'min' or 'mean'")
        for field_name, least in (("temperature", 0.0), ("target_entropy", -math.inf)):
            value = getattr(self, field_name)
            if value != "auto" and not (isinstance(value, (int, float)) and value >= least):
                what = "a number" if least == -math.inf else f"at least {least:g}"
                raise ValueError(f"{name}.{field_name} is {value!r}; it must be 'auto', or {what}")
        unused = (self.target_entropy, self.initial_temperature) != ("auto", 1.0)
        if unused and self.temperature != "auto":
            raise ValueError(
                f"{name}.temperature is fixed to {self.temperature}, where target_entropy={self.target_entropy} and "
                f"initial_temperature={self.initial_temperature} mean nothing; leave them out, or temperature"
            )
        if not self.initial_temperature > 0:
            raise ValueError(f"{name}.initial_temperature is {self.initial_temperature}; it must be positive")
        critic_rate = self.learning_rate if self.critic_learning_rate is None else self.critic_learning_rate
        self._critic_rate_at = as_schedule(critic_rate, f"{name}.critic_learning_rate", least=0)

    def _build(self, compiled: bool) -> Parts:
        agent: PolicyAgent = self._agent
        self._check(agent)
        self._critics = self._build_critics()
        self._encoder = None
        if self.share_encoder:
            self._encoder = SharedEncoder(agent.module, self._critics, type(self).__name__)
        self._target = Target(self._bootstrap())
        self._dim = agent.noise_spec.normal
        self._entropy = self._auto_entropy() if self.target_entropy == "auto" else self.target_entropy
        start = self.initial_temperature if self.temperature == "auto" else self.temperature
        self._temperature = _Temperature(start, learns=self.temperature == "auto").to(agent.device)
        actor = nn.ModuleList([agent.module, self._temperature])  # one optimizer's parameters
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
            reads=[self._target.module, actor],
            extra=torch.zeros(self.batch_size, device=agent.device),
            **options,
        )
        self._policy_step = GradientStep(
            actor,
            self._policy_loss,
            len(POLICY_METRICS) - 1,
            reads=[self._critics],
            num_apart=int(self._temperature.learns),
            **options,
        )
        return Parts(
            {"critic": (self._critic_step, CRITIC_METRICS), "policy": (self._policy_step, POLICY_METRICS)},
            {"target": self._target},
            {"critics": self._critics} | ({"temperature": self._temperature} if self._temperature.learns else {}),
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `OffPolicy.state_dict`; a fixed temperature may have been changed.

        Raises:
            ValueError: it is learned now and was not, or the other way.
        """
        learned = "temperature" in state["networks"]
        if learned != self._temperature.learns:
            was, now = ("learned", "'auto'") if learned else ("fixed", "a number")
            raise ValueError(
                f"{type(self).__name__}.temperature is {self.temperature!r}, and the temperature of the run that is "
                f"resumed was {was}; resume with {now}"
            )
        super().load_state_dict(state)

    def _build_critics(self) -> Any:
        critics = build_critics(self, self.critic, self._agent, self._critics_like)
        if getattr(critics, "num_atoms", None) is not None:
            raise ValueError(
                f"{type(self).__name__}.critic has num_atoms={critics.num_atoms}, and is to give expected returns; "
                "leave it out, or use D4PG"
            )
        return critics

    def _check(self, agent: PolicyAgent) -> None:
        """ValueError: the agent's policy is not one that this algorithm learns."""
        if agent.num_actions is not None:
            raise ValueError(
                f"SAC is for actions that are numbers, and the action space is {agent.spaces.action}; use DiscreteSAC"
            )
        if agent.uses_previous:
            raise ValueError("the policy is recurrent: learn from sequences, with RecurrentSAC")

    def _bootstrap(self) -> nn.Module:
        """The network whose target bootstraps."""
        critics: nn.Module = self._critics
        return critics

    def _auto_entropy(self) -> float:
        return -float(self._dim)

    def _update(self, batch: Transitions, progress: float) -> Tensor:
        self._critic_step.learning_rate.fill_(self._critic_rate_at(progress))
        self._policy_step.learning_rate.fill_(self._learning_rate_at(progress))
        self._critic_step(batch, self._noise(), self._dropout(2))
        if self._encoder is not None:
            self._encoder.follow()
        if (self._num_updates + 1) % self.policy_interval == 0:
            self._policy_step(self._policy_inputs(batch), self._noise(), self._dropout(1))
        assert self._critic_step.extra is not None
        return self._critic_step.extra

    def _policy_inputs(self, batch: Transitions) -> Tree:
        """What the policy's loss wants of a batch."""
        return batch.observation

    def _noise(self) -> Tensor:
        """Standard normal numbers ``[N, dim]``, for actions."""
        return self._normal(self.batch_size, self._dim)

    def _normal(self, *size: int) -> Tensor:
        return torch.randn(size, generator=self._generator, device=self._agent.device)

    def _dropout(self, num_passes: int) -> Tensor | None:
        """Uniform numbers ``[num_passes, K, N, n]`` for critics with dropout."""
        critics = self._critics
        if critics.num_noise == 0:
            return None
        size = (num_passes, critics.num_critics, self.batch_size, critics.num_noise)
        return torch.rand(size, generator=self._generator, device=self._agent.device)

    def _critic_loss(
        self, batch: Transitions, noise: Tensor, dropout: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, metrics in the order of `CRITIC_METRICS` (the gradient's norm is added later), and priorities."""
        target_dropout, own_dropout = (None, None) if dropout is None else dropout.unbind()
        with torch.no_grad():
            action, log_prob = self._act(batch.next_observation, noise)
            value = min_over_critics(self._target.module(batch.next_observation, action, target_dropout))
            target = bootstrapped_target(batch.reward, batch.discount, value - self._temperature.value * log_prob)
        return self._errors(self._critics(batch.observation, batch.action, own_dropout), target, batch.weight)

    @staticmethod
    def _errors(values: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`_critic_loss`, once there are values ``[K, N]`` and targets ``[N]``."""
        errors = values - target
        loss = (weight * errors.square().sum(0)).mean() / 2
        error = errors.detach().abs().mean(0)
        return loss, torch.stack([loss, values.mean(), error.mean()]).detach(), error

    def _policy_loss(self, observation: Tree, noise: Tensor, dropout: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Loss of policy and temperature, metrics in the order of `POLICY_METRICS` (less the gradient's norm)."""
        action, log_prob = self._act(observation, noise)
        value = self._climbed(self._critics(observation, action, None if dropout is None else dropout[0]))
        temperature = self._temperature.value.detach()
        loss = (temperature * log_prob - value).mean()
        return self._with_temperature(loss, log_prob.mean())

    def _climbed(self, values: Tensor) -> Tensor:
        """What the policy climbs, of critics' values ``[K, ...]``."""
        return min_over_critics(values) if self.policy_value == "min" else values.mean(0)

    def _with_temperature(self, loss: Tensor, log_prob: Tensor) -> tuple[Tensor, Tensor]:
        """The policy's loss with that of the temperature, and metrics; ``log_prob``: its mean, or minus the entropy."""
        whole, temperature = loss, self._temperature
        if temperature.learns:
            whole = loss + temperature_loss(temperature.log, log_prob.detach(), self._entropy)
        return whole, torch.stack([loss, -log_prob, temperature.value]).detach()

    def _act(self, observation: Tree, noise: Tensor) -> tuple[Tensor, Tensor]:
        agent: PolicyAgent = self._agent
        params = agent.learn(AgentInputs(observation))
        return agent.distribution.sample_with_log_prob(params, Noise(normal=noise))


class _Temperature(nn.Module):
    """Above 0, or 0 if it is fixed to that."""

    def __init__(self, start: float, learns: bool) -> None:
        super().__init__()
        self.learns = learns
        self.log = nn.Parameter(torch.tensor(math.log(start) if start > 0 else -math.inf), requires_grad=learns)

    @property
    def value(self) -> Tensor:
        return self.log.exp()
