"""This process among the ranks of a run: several learners with one gradient.

Algorithms, samplers and runners are handed a `Ranks`; alone, all of it is the identity.  Every rank calls the same
methods in the same order, or the run stands still until the process group's time limit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlsurreal.utils.seeding import derive_seed


@dataclass(frozen=True)
class Ranks:
    """Rank ``index`` of ``count``; the process group is there already where there are several."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(f"Ranks.index is {self.index}; it must lie in [0, count={self.count})")

    def own_seed(self, seed: int) -> int:
        """From a seed that all ranks share, one of this rank's own; the first rank's is the shared one."""
        return derive_seed(seed, "rank", self.index) if self.index else seed

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        return self._reduce(tensor, "SUM")

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over ranks, in place."""
        return tensor if self.count == 1 else self.sum(tensor).div_(self.count)

    def max(self, tensor: Tensor) -> Tensor:
        """The largest over ranks, in place."""
        return self._reduce(tensor, "MAX")

    def _reduce(self, tensor: Tensor, operation: str) -> Tensor:
        if self.count > 1:
            torch.distributed.all_reduce(tensor, getattr(torch.distributed.ReduceOp, operation))
        return tensor


ALONE = Ranks()
