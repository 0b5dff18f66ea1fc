"""Reward scaling by the spread of the discounted return (Engstrom et al. 2020, arXiv 2005.12729, section 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlsurreal.ops.losses import identity
from rlsurreal.ops.returns import reverse_scan
from rlsurreal.structs import EnvSamples

_CLIP = 10.0  # of the scaled reward


class RewardScaler:
    """Divides rewards by the running standard deviation of ``R_t = discount * R_{t-1} + r_t``.

    ``R`` is kept for each environment, and starts from 0 where ``first`` is set.  The statistics of a slot are taken in
    before it is scaled.  Runs on the CPU, in float64.
    """

    def __init__(self, num_envs: int, discount: float, reduce: Callable[[Tensor], Tensor] = identity) -> None:
        """``reduce``: maps a tensor of sums to its sum over ranks, whose statistics are the same."""
        self._discount, self._reduce = discount, reduce
        self.discounted_return = torch.zeros(num_envs, dtype=torch.float64)
        self._count, self._mean, self._spread = 0.0, 0.0, 0.0  # spread: sum of squared differences from the mean
        self.scale = 1.0

    def __call__(self, env: EnvSamples) -> Tensor:
        """Scaled rewards ``[T + 1, B]`` of a slot; its own rewards are left as they are."""
        num_steps = len(env.reward) - 1
        reward, valid = env.reward[:num_steps].double(), env.valid[:num_steps]
        decay = torch.where(valid, torch.full_like(reward, self._discount), 1.0)
        decay[env.first[:num_steps]] = 0
        steps = torch.where(valid, reward, 0.0)
        steps[0] += decay[0] * self.discounted_return
        returns = reverse_scan(steps.flip(0), decay.flip(0)).flip(0)  # backwards in time, so that it runs forwards
        self.discounted_return = returns[-1].clone()
        self._take_in(returns[valid])
        if self._count > 1 and self._spread > 0:
            self.scale = (self._spread / self._count) ** 0.5
        scaled: Tensor = (env.reward / self.scale).clamp(-_CLIP, _CLIP)
        return scaled

    def _take_in(self, returns: Tensor) -> None:
        count, summed = self._reduce(torch.tensor([returns.numel(), returns.sum()], dtype=torch.float64)).tolist()
        if count == 0:
            return
        mean = summed / count
        difference, total = mean - self._mean, self._count + count
        squares = float(self._reduce((returns - mean).square().sum()))
        self._spread += squares + difference**2 * self._count * count / total
        self._mean += difference * count / total
        self._count = total

    def state_dict(self) -> dict[str, Any]:
        """The running statistics, which are the same on all ranks."""
        return {
            "count": self._count,
            "mean": self._mean,
            "spread": self._spread,
            "scale": self.scale,
        }

    def load_state_dict(self, state: dict[str, Any], discounted_return: Tensor | None) -> None:
        """Continue from `state_dict`, and from `discounted_return`, where it is known, of as many environments."""
        if discounted_return is not None and discounted_return.shape == self.discounted_return.shape:
            self.discounted_return = discounted_return.clone()
        self._count, self._mean, self._spread = state["count"], state["mean"], state["spread"]
        self.scale = state["scale"]
