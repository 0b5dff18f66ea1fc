"""What values stand for: the expected return, or its distribution.  A setting of `QAgent`, and of DDPG, TD3 and D4PG.

Agents ask a head for expected values, to act on; algorithms for the loss of values against a target
``reward + discount * next_values``, and for how wrong they were.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rlsurreal.ops.distributional import (
    categorical_kl,
    categorical_loss,
    categorical_support,
    project,
    quantile_huber_loss,
)
from rlsurreal.ops.values import bootstrapped_target, td_loss


class ReturnHead(Protocol):
    """What a Q-network's outputs mean."""

    def check(self, num_atoms: int | None) -> None:
        """ValueError unless this head can read a network with so many outputs an action (None: one, without axis)."""

    def expected(self, values: Tensor) -> Tensor:
        """Expected return ``[...]`` from outputs ``[...]`` or ``[..., Z]``."""

    def loss(
        self, values: Tensor, next_values: Tensor, reward: Tensor, discount: Tensor, taus: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Loss and absolute error ``[...]`` of outputs, ``next_values`` those of the successor; one action each.

        ``taus``: of the quantiles that ``values`` are, where they were drawn.
        """


@dataclass(frozen=True)
class Expected:
    """One number: the expected return (Mnih et al. 2015)."""

    delta_clip: float | None = 1.0  # Huber loss: the gradient's bound; None: squared

    def __post_init__(self) -> None:
        if self.delta_clip is not None and not self.delta_clip > 0:
            raise ValueError(f"Expected.delta_clip is {self.delta_clip}; it must be positive, or None")

    def check(self, num_atoms: int | None) -> None:
        """See `ReturnHead`."""
        if num_atoms is not None:
            raise ValueError(
                f"the model has num_atoms={num_atoms}, and the head is Expected, which wants none; leave it out, or "
                "use Categorical or Quantile"
            )

    def expected(self, values: Tensor) -> Tensor:
        """See `ReturnHead`."""
        return values

    def loss(
        self, values: Tensor, next_values: Tensor, reward: Tensor, discount: Tensor, taus: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `ReturnHead`."""
        error = bootstrapped_target(reward, discount, next_values) - values
        return self.delta_loss(error), error.detach().abs()

    def delta_loss(self, error: Tensor) -> Tensor:
        """The loss of errors, one by one."""
        return td_loss(error, self.delta_clip)


@dataclass(frozen=True)
class Categorical:
    """Logits of returns on a fixed grid from ``low`` to ``high`` (C51: Bellemare et al. 2017, arXiv 1707.06887)."""

    low: float = -10.0
    high: float = 10.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"Categorical.low is {self.low} and high is {self.high}; low must be the smaller one")

    def check(self, num_atoms: int | None) -> None:
        """See `ReturnHead`."""
        if num_atoms is None or num_atoms < 2:
            raise ValueError(
                f"the model has num_atoms={num_atoms}, and the head is Categorical; give the model num_atoms=51, say"
            )

    def expected(self, values: Tensor) -> Tensor:
        """See `ReturnHead`."""
        return (values.softmax(-1) * self._support(values)).sum(-1)

    def loss(
        self, values: Tensor, next_values: Tensor, reward: Tensor, discount: Tensor, taus: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `ReturnHead`; the error is the KL divergence."""
        support = self._support(values)
        shifted = reward.unsqueeze(-1) + discount.unsqueeze(-1) * support
        target = project(support, shifted, next_values.softmax(-1))
        return categorical_loss(values, target), categorical_kl(values, target).detach()

    def _support(self, values: Tensor) -> Tensor:
        return categorical_support(self.low, self.high, values.shape[-1], values.device)


@dataclass(frozen=True)
class Quantile:
    """Quantiles of the return: at the middles of equal parts (QR-DQN: Dabney et al. 2018, arXiv 1710.10044), or, of an
    implicit quantile network, anywhere (IQN, arXiv 1806.06923).
    """

    kappa: float = 1.0  # where the Huber loss becomes linear; 0: absolute

    def __post_init__(self) -> None:
        if not self.kappa >= 0:
            raise ValueError(f"Quantile.kappa is {self.kappa}; it must be at least 0")

    def check(self, num_atoms: int | None) -> None:
        """See `ReturnHead`."""
        if num_atoms is None:
            raise ValueError("the model has no num_atoms, and the head is Quantile; give the model num_atoms=200, say")

    def expected(self, values: Tensor) -> Tensor:
        """See `ReturnHead`."""
        return values.mean(-1)

    def loss(
        self, values: Tensor, next_values: Tensor, reward: Tensor, discount: Tensor, taus: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `ReturnHead`; the error is that of the mean."""
        if taus is None:
            taus = (torch.arange(values.shape[-1], device=values.device) + 0.5) / values.shape[-1]
        target = bootstrapped_target(reward.unsqueeze(-1), discount.unsqueeze(-1), next_values)
        error = (target.mean(-1) - values.mean(-1)).detach().abs()
        return quantile_huber_loss(values, taus, target, self.kappa), error
