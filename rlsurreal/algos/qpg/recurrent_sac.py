"""SAC with memory: SAC on sequences, for tasks where one observation does not say enough.

    recorded state --burn-in rows, no gradient--> state --learned rows--> policy         } losses over valid rows
    null state     --burn-in rows, no gradient--> state --learned rows--> critics        }

Separate memories for policy and critics, as Ni et al. 2022 (arXiv 2110.05038) found best; recorded states and burn-in
as in R2D2 (Kapturowski et al. 2019).  Critics record none: theirs begin empty, and the burn-in fills them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlsurreal.agents import ModelSpec
from rlsurreal.agents.policy import PolicyAgent
from rlsurreal.algos.qpg.sac import SAC
from rlsurreal.algos.sequences import after_burn_in
from rlsurreal.models import RecurrentCritics
from rlsurreal.ops.losses import masked_mean
from rlsurreal.ops.values import min_over_critics, n_step_targets, sequence_priority, weighted_masked_mean
from rlsurreal.replays import Replay, ReplayRatio, Sequences, Windows
from rlsurreal.structs import AgentInputs, Noise
from rlsurreal.utils.namedarraytuple import Tree

_ETA = 0.9  # of the largest error in a sequence's priority, as in R2D2


@dataclass(kw_only=True, eq=False)
class RecurrentSAC(SAC):
    """Hyperparameters of recurrent SAC."""

    batch_size: int = 16  # sequences
    replay: Replay = field(
        default_factory=lambda: Replay(extractor=Windows(burn_in=8, num_steps=32, num_ahead=1, interval=8))
    )
    limiter: ReplayRatio = field(default_factory=lambda: ReplayRatio(ratio=64, min_steps=5_000))  # learned rows
    critic: ModelSpec = field(default_factory=lambda: ModelSpec(cls=RecurrentCritics))

    _learns_sequences = True
    _critics_like = RecurrentCritics

    def __post_init__(self) -> None:
        super().__post_init__()
        self._windows: Windows = self.replay.extractor  # type: ignore[assignment]

    def _check(self, agent: PolicyAgent) -> None:
        if not agent.uses_previous or agent.num_actions is not None:
            raise ValueError(
                "RecurrentSAC needs a recurrent policy of actions that are numbers: "
                "PolicyAgent(model=ModelSpec(cls=StochasticPolicy, kwargs={'recurrent': 'lstm'}))"
            )

    def _policy_inputs(self, batch: Any) -> Sequences:
        return batch  # type: ignore[no-any-return]

    def _noise(self) -> Tensor:
        """``[num_steps + n, N, dim]``, for actions after the burn-in."""
        return self._normal(self._windows.num_rows - self._windows.burn_in, self.batch_size, self._dim)

    def _critic_loss(  # type: ignore[override]
        self, batch: Sequences, noise: Tensor, dropout: None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        learned = slice(self._windows.burn_in, None)
        with torch.no_grad():
            action, log_prob = self._act_along(batch, noise)
            after = min_over_critics(self._target.module(self._remembered(self._target.module, batch), action))
            soft = after - self._temperature.value * log_prob
            flags = (batch.terminated[learned], batch.truncated[learned], batch.valid[learned])
            target, valid = n_step_targets(batch.reward[learned], *flags, soft, self.discount, self._windows.num_ahead)
        num_steps = len(target)
        features = self._remembered(self._critics, batch)[:num_steps]
        values = self._critics(features, batch.action[learned][:num_steps])
        errors = torch.where(valid, values - target, 0.0)
        # Gradients are averaged over ranks: so the rows that count are the mean of theirs.
        num_valid = self._ranks.mean(valid.sum().float())
        loss = weighted_masked_mean(errors.square().sum(0), batch.weight, valid, num_valid) / 2
        error = errors.detach().abs().mean(0)
        means = [masked_mean(x, valid, num_valid) for x in (values.detach().mean(0), error)]
        return loss, torch.stack([loss.detach(), *means]), sequence_priority(error, valid, _ETA)

    def _policy_loss(  # type: ignore[override]
        self, batch: Sequences, noise: Tensor, dropout: None = None
    ) -> tuple[Tensor, Tensor]:
        action, log_prob = self._act_along(batch, noise)
        with torch.no_grad():
            features = self._remembered(self._critics, batch)
        valid = batch.valid[self._windows.burn_in :]
        value = self._climbed(self._critics(features, action))
        num_valid = self._ranks.mean(valid.sum().float())
        loss = masked_mean(self._temperature.value.detach() * log_prob - value, valid, num_valid)
        return self._with_temperature(loss, masked_mean(log_prob, valid, num_valid))

    def _act_along(self, batch: Sequences, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions of the present policy in the rows after the burn-in, and their log-probabilities."""
        params = self._after_burn_in(self._agent.module, batch, batch.state)
        return self._agent.distribution.sample_with_log_prob(params, Noise(normal=noise))  # type: ignore[no-any-return]

    def _remembered(self, critics: Any, batch: Sequences) -> Tensor:
        """What critics remember after each of the rows after the burn-in."""
        features: Tensor = self._after_burn_in(critics.remember, batch, critics.initial_state(self.batch_size))
        return features

    def _after_burn_in(self, run: Any, batch: Sequences, state: Tree) -> Any:
        """What ``run(inputs, state, first)`` gives for the rows after the burn-in."""
        inputs = AgentInputs(batch.observation, batch.prev_action, batch.prev_reward)
        return after_burn_in(
            lambda rows, state: run(inputs[rows], state, batch.first[rows]), state, self._windows.burn_in
        )
