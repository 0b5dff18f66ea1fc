"""Normalisation of observations by running statistics.  Owned by models; updated by algorithms, once per slot.

Between updates the statistics stand still (or PPO's first ratio would not be 1).  All of it is buffers, so it travels
with the parameters and with checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces as gs
from torch import Tensor, nn

from rlsurreal.ops.losses import identity, masked_moments
from rlsurreal.utils.namedarraytuple import Tree, leaves, tree_map
from rlsurreal.utils.spaces import map_spaces

_EPSILON = 1e-8  # added to variances: a number that never changed is scaled by at most 1e4


class RunningNorm(nn.Module):
    """Scales floating-point observations to mean 0 and variance 1, and clips them; other leaves pass unchanged.

    Count, mean and sum of squared differences are kept in float64 and merged batch by batch (Chan et al. 1983), so
    neither many samples nor a mean far from 0 spoil them.  Before the first update the module is the identity: it does
    not clip.

    Args:
        observation_space: a leaf space, or a Dict or Tuple; Box leaves of floats are normalised, number by number.
        clip: bound of the result's magnitude, in standard deviations.
    """

    def __init__(self, observation_space: gym.Space, *, clip: float = 10.0) -> None:
        super().__init__()
        # A module per leaf, in the structure of the observation.
        self._tree: Tree = map_spaces(
            lambda leaf: _LeafNorm(leaf.shape or (), clip) if _is_float(leaf) else nn.Identity(), observation_space
        )
        self.leaves = nn.ModuleList(norm for norm in leaves(self._tree) if isinstance(norm, _LeafNorm))

    def forward(self, observation: Tree) -> Tree:
        """The normalised observation; leading dimensions are free."""
        return tree_map(lambda x, norm: norm(x), observation, self._tree)

    def is_empty(self) -> bool:
        """Whether there are numbers to be normalised, and no statistics of them yet."""
        return any(not bool(leaf.count) for leaf in self.leaves)

    @torch.no_grad()
    def update(self, observation: Tree, valid: Tensor, reduce: Callable[[Tensor], Tensor] = identity) -> None:
        """Take in the observations of the ``valid`` rows of all ranks.

        Args:
            observation: leaves ``[T, B, ...]``, not normalised.
            valid: bool ``[T, B]``.
            reduce: maps a tensor of sums to its sum over ranks; called twice, on every rank alike.
        """
        found = [x for x, norm in zip(leaves(observation), leaves(self._tree)) if isinstance(norm, _LeafNorm)]
        if not found:
            return
        flat = torch.cat([x.flatten(valid.dim()) if x.dim() > valid.dim() else x.unsqueeze(-1) for x in found], -1)
        moments = masked_moments(flat.to(torch.float64), valid, reduce)
        start = 0
        leaf: Any
        for leaf in self.leaves:
            part = slice(start, start + leaf.mean.numel())
            leaf.merge(moments.num_rows, moments.mean[part], moments.variance[part])
            start = part.stop


class _LeafNorm(nn.Module):
    """Statistics of one leaf, and what `forward` needs of them in float32."""

    count: Tensor
    mean: Tensor
    m2: Tensor
    center: Tensor
    inv_std: Tensor
    shift: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, shape: tuple[int, ...], clip: float) -> None:
        super().__init__()
        self.clip = clip
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("m2", torch.zeros(shape, dtype=torch.float64))  # sum of squared differences from the mean
        self.register_buffer("center", torch.zeros(shape))
        self.register_buffer("inv_std", torch.ones(shape))
        self.register_buffer("shift", torch.zeros(shape))
        self.register_buffer("low", torch.tensor(-torch.inf))
        self.register_buffer("high", torch.tensor(torch.inf))

    def forward(self, x: Tensor) -> Tensor:
        # Not x * inv_std + constant: with a mean far from 0 that cancels, while x - center is exact.
        return torch.addcmul(self.shift, x - self.center, self.inv_std).clamp(self.low, self.high)

    def merge(self, num_rows: Tensor, mean: Tensor, variance: Tensor) -> None:
        """Add the moments of a batch; all ranks hand in the same."""
        mean, variance = mean.reshape(self.mean.shape), variance.reshape(self.mean.shape)
        total = self.count + num_rows
        divisor = total.clamp(min=1)
        difference = mean - self.mean
        self.mean += difference * (num_rows / divisor)
        self.m2 += variance * num_rows + difference.square() * (self.count * num_rows / divisor)
        self.count.copy_(total)
        filled = total > 0
        self.inv_std.copy_(torch.where(filled, (self.m2 / divisor + _EPSILON).rsqrt(), 1.0))
        self.center.copy_(self.mean)
        self.shift.copy_((self.center - self.mean) * self.inv_std)  # what float32 lost of the mean
        self.high.copy_(torch.where(filled, self.clip, torch.inf))
        self.low.copy_(-self.high)


def _is_float(space: gym.Space) -> bool:
    return isinstance(space, gs.Box) and np.issubdtype(space.dtype, np.floating)
