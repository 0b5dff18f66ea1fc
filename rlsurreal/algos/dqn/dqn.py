"""Deep Q-networks: DQN and what was added to it, up to Rainbow.

DQN              Mnih et al. 2015, Nature 518               QAgent(head=Expected())
double           van Hasselt et al. 2016, arXiv 1509.06461  double=True
prioritized      Schaul et al. 2016, arXiv 1511.05952       Replay(selector=Prioritized())
dueling, noisy   Wang et al. 2016; Fortunato et al. 2018    QNetwork(dueling=True, noisy=True)
n-step           Sutton 1988                                Replay(extractor=NStep(num_steps=3))
C51              Bellemare et al. 2017, arXiv 1707.06887    QAgent(head=Categorical()), num_atoms=51
QR-DQN           Dabney et al. 2018, arXiv 1710.10044       QAgent(head=Quantile()), num_atoms=200
IQN              Dabney et al. 2018, arXiv 1806.06923       QAgent(head=Quantile()), num_cosines=64
Rainbow          Hessel et al. 2018, arXiv 1710.02298       all but the last two
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rlsurreal.agents.q import QAgent
from rlsurreal.agents.return_heads import ReturnHead
from rlsurreal.algos.off_policy import OffPolicy, Parts, Target
from rlsurreal.algos.update import GradientStep
from rlsurreal.ops.values import greedy, select
from rlsurreal.replays import ReplayRatio, Transitions
from rlsurreal.structs import AgentInputs, Noise
from rlsurreal.utils.schedules import Schedule


@dataclass(kw_only=True, eq=False)
class DQN(OffPolicy):
    """Hyperparameters of DQN."""

    batch_size: int = 32
    limiter: ReplayRatio = field(default_factory=lambda: ReplayRatio(ratio=8, min_steps=20_000))
    learning_rate: float | Schedule = 2.5e-4
    adam_eps: float = 1.5e-4
    max_grad_norm: float = 10.0
    double: bool = True
    target_interval: int = 2_000
    target_tau: float = 1.0
    num_taus: int | None = None  # quantiles in each pass of an implicit quantile network; None: as many as in acting

    _agent_class = QAgent
    metric_names: ClassVar[Sequence[str]] = ("loss/value", "value/mean", "value/error", "update/grad_norm")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_taus is not None and self.num_taus < 1:
            raise ValueError(f"{type(self).__name__}.num_taus is {self.num_taus}; it must be at least 1, or None")

    def _build(self, compiled: bool) -> Parts:
        agent: QAgent = self._agent
        if agent.uses_previous and not self._learns_sequences:
            raise ValueError("the Q-network is recurrent: learn from sequences, with R2D2")
        if self.num_taus is not None and not agent.num_drawn_taus:
            raise ValueError(
                f"{type(self).__name__}.num_taus is {self.num_taus}, and the Q-network draws no quantiles; give it "
                "num_cosines=64, say, or leave num_taus out"
            )
        self._target = Target(agent.module)
        self._gradient_step = GradientStep(
            agent.module,
            self._loss,
            len(self.metric_names) - 1,
            max_grad_norm=self.max_grad_norm,
            reads=[self._target.module],
            extra=torch.zeros(self.batch_size, device=agent.device),
            eps=self.adam_eps,
            compile=compiled,
            ranks=self._ranks,
        )
        return Parts({"q": (self._gradient_step, self.metric_names)}, {"q": self._target}, {})

    def _update(self, batch: Transitions, progress: float) -> Tensor:
        step = self._gradient_step
        step.learning_rate.fill_(self._learning_rate_at(progress))
        step(batch, self._noise())
        assert step.extra is not None
        return step.extra

    def _noise(self) -> Noise:
        """Random numbers ``[3, N, n]`` for three passes: of the network, its target, and the choice of actions."""
        spec, size = self._agent.noise_spec, (3, self.batch_size)
        options: Any = {"generator": self._generator, "device": self._agent.device}
        drawn = self._agent.num_drawn_taus  # in acting
        num_taus = (self.num_taus or drawn) if drawn else 0
        return Noise(
            normal=torch.randn(*size, spec.normal, **options) if spec.normal else None,
            uniform=torch.rand(*size, num_taus, **options) if num_taus else None,
        )

    def _loss(self, batch: Transitions, noise: Noise) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, metrics in the order of `metric_names` (the gradient's norm is added later), and priorities."""
        head: ReturnHead = self._agent.head
        successor = AgentInputs(batch.next_observation)
        online, target = self._agent.module, self._target.module
        values = select(_outputs(online, AgentInputs(batch.observation), noise[0]), batch.action)
        with torch.no_grad():
            chooser = next_values = _outputs(target, successor, noise[1])
            # Quantiles must not be evaluated on the draw that chose them: the best of a draw is too good.
            if self.double or noise.uniform is not None:
                chooser = _outputs(online if self.double else target, successor, noise[2])
            next_values = select(next_values, greedy(head.expected(chooser)))
        loss, error = head.loss(
            values, next_values, batch.reward, batch.discount, taus=None if noise.uniform is None else noise.uniform[0]
        )
        loss = (batch.weight * loss).mean()
        metrics = torch.stack([loss, head.expected(values).mean(), error.mean()]).detach()
        return loss, metrics, error


def _outputs(module: nn.Module, inputs: AgentInputs, noise: Noise) -> Tensor:
    values: Tensor = module(inputs, None, noise=noise.normal, taus=noise.uniform)[0]
    return values
