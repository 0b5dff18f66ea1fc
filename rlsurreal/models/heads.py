"""The last layers: from features to a policy's parameters, and to a value.  Called by `actor_critic`."""

from __future__ import annotations

from torch import Tensor, nn

from rlsurreal.distributions import Distribution
from rlsurreal.models.mlp import init_orthogonal
from rlsurreal.models.trunk import in_float32
from rlsurreal.utils.namedarraytuple import Tree


class PolicyHead(nn.Module):
    """Parameters of a distribution from features; owns the distribution's free parameters.

    Args:
        distribution: of the actions.
        in_features: length of the input's last dimension.
        gain: of the orthogonal initialisation; small, so that the first policy depends little on the observation
            (Andrychowicz et al. 2021, arXiv 2006.05990, section 3.2).
    """

    def __init__(self, distribution: Distribution, in_features: int, gain: float = 0.01) -> None:
        super().__init__()
        self.distribution = distribution
        self.linear = nn.Linear(in_features, distribution.num_features)
        init_orthogonal(self.linear, gain)
        self.free = nn.Parameter(distribution.free_init()) if distribution.num_free else None

    def forward(self, x: Tensor) -> Tree:
        """Parameters ``[...]`` from ``[..., in_features]``."""
        return self.distribution.params(in_float32(self.linear, x), self.free)


class ValueHead(nn.Module):
    """One number from features."""

    def __init__(self, in_features: int, gain: float = 1.0) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, 1)
        init_orthogonal(self.linear, gain)

    def forward(self, x: Tensor) -> Tensor:
        """``[...]`` from ``[..., in_features]``."""
        return in_float32(self.linear, x).squeeze(-1)
