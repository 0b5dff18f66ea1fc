"""Recurrent replay distributed DQN (Kapturowski et al. 2019, R2D2): DQN on sequences, from the state as recorded.

    recorded state --burn-in rows, no gradient--> state --learned rows--> values
                                                        --n more rows---> what their targets bootstrap with

Values are rescaled (Pohlen et al. 2018), so that rewards need not be clipped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlsurreal.agents.return_heads import Expected
from rlsurreal.algos.dqn.dqn import DQN
from rlsurreal.algos.off_policy import Parts
from rlsurreal.algos.sequences import after_burn_in
from rlsurreal.ops.losses import masked_mean
from rlsurreal.ops.values import (
    greedy,
    n_step_targets,
    select,
    sequence_priority,
    value_rescale,
    value_unscale,
    weighted_masked_mean,
)
from rlsurreal.replays import Prioritized, Replay, ReplayRatio, Sequences, Windows
from rlsurreal.structs import AgentInputs, Noise
from rlsurreal.utils.namedarraytuple import Tree
from rlsurreal.utils.schedules import Schedule


@dataclass(kw_only=True, eq=False)
class R2D2(DQN):
    """Hyperparameters of R2D2."""

    discount: float = 0.997
    batch_size: int = 64  # sequences
    replay: Replay = field(
        default_factory=lambda: Replay(selector=Prioritized(alpha=0.9, beta=0.6), extractor=Windows())
    )
    limiter: ReplayRatio = field(default_factory=lambda: ReplayRatio(ratio=1.0, min_steps=50_000))  # learned rows
    learning_rate: float | Schedule = 1e-4
    adam_eps: float = 1e-3
    max_grad_norm: float = 80.0
    target_interval: int = 2_500
    eta: float = 0.9  # of the largest error in a sequence's priority; the rest is the mean
    rescale_values: bool = True
    _learns_sequences = True
    _keeps_agent_info = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise ValueError(f"R2D2.eta is {self.eta}; it must lie in [0, 1]")
        self._windows: Windows = self.replay.extractor  # type: ignore[assignment]

    def _build(self, compiled: bool) -> Parts:
        if not self._agent.module.recurrent or not isinstance(self._agent.head, Expected):
            raise ValueError("R2D2 needs a recurrent Q-network and the head Expected; see the recipe r2d2_atari")
        return super()._build(compiled)

    def _noise(self) -> Noise:
        count = self._agent.noise_spec.normal
        size = (3, self._windows.num_rows, self.batch_size, count)
        options: Any = {"generator": self._generator, "device": self._agent.device}
        return Noise(normal=torch.randn(size, **options) if count else None)

    def _loss(self, batch: Sequences, noise: Noise) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        online, target = self._agent.module, self._target.module
        values = self._pass(online, batch, noise[0])
        with torch.no_grad():
            next_values = self._pass(target, batch, noise[1])
            chooser = next_values
            if self.double:  # without noise a second pass would give the same
                chooser = values if noise.normal is None else self._pass(online, batch, noise[2])
            best = select(next_values, greedy(chooser))
        learned = slice(self._windows.burn_in, None)
        flags = (batch.terminated[learned], batch.truncated[learned], batch.valid[learned])
        wanted, valid = self._targets(batch.reward[learned], *flags, best)
        chosen = select(values[: len(wanted)], batch.action[learned][: len(wanted)])
        error = torch.where(valid, wanted - chosen, 0.0)
        # Gradients are averaged over ranks: so the rows that count are the mean of theirs.
        num_valid = self._ranks.mean(valid.sum().float())
        loss = weighted_masked_mean(self._agent.head.delta_loss(error), batch.weight.expand_as(error), valid, num_valid)
        magnitude = error.detach().abs()
        value = value_unscale(chosen.detach()) if self.rescale_values else chosen
        means = [masked_mean(x, valid, num_valid) for x in (value, magnitude)]
        return loss, torch.stack([loss, *means]).detach(), sequence_priority(magnitude, valid, self.eta)

    def _pass(self, module: nn.Module, batch: Sequences, noise: Noise) -> Tensor:
        """Values ``[num_steps + n, N, A]``."""
        inputs = AgentInputs(batch.observation, batch.prev_action, batch.prev_reward)

        def run(rows: slice, state: Tree) -> Any:
            normal = None if noise.normal is None else noise.normal[rows]
            return module(inputs[rows], state, batch.first[rows], noise=normal)

        values: Tensor = after_burn_in(run, batch.state.network, self._windows.burn_in)
        return values

    def _targets(
        self, reward: Tensor, terminated: Tensor, truncated: Tensor, valid: Tensor, best: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Targets ``[num_steps, N]`` of rows whose observations bootstrap with ``best``, and where they are defined."""
        if self.rescale_values:
            best = value_unscale(best)
        flags = (terminated, truncated, valid)
        wanted, valid = n_step_targets(reward, *flags, best, self.discount, self._windows.num_ahead)
        return (value_rescale(wanted) if self.rescale_values else wanted), valid

    def _first_priority(self) -> Callable[[Callable[[str], Tree]], np.ndarray] | None:
        """From the values that the acting network recorded: a first guess that costs no pass."""
        if getattr(self.replay.selector, "initial_priority", None) is not None:
            return None

        def priority(read: Callable[[str], Tree]) -> np.ndarray:
            names = ("reward", "terminated", "truncated", "valid", "agent_info")
            reward, terminated, truncated, valid, info = (read(name)[self._windows.burn_in :] for name in names)
            wanted, valid = self._targets(reward, terminated, truncated, valid, info.best)
            error = (wanted - info.value[: len(wanted)]).abs()
            found: np.ndarray = sequence_priority(error, valid, self.eta).cpu().numpy()
            return found

        return priority
