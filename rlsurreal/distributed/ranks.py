"""This process among the ranks of a run: several learners with one gradient.

Algorithms, samplers and runners are handed a `Ranks`; alone, all of it is the identity.  Every rank calls the same
methods in the same order.  `rlsurreal.distributed.group` has the ranks of a process group.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from rlsurreal.utils.seeding import derive_seed

Operation = Literal["SUM", "MAX"]


@dataclass(frozen=True)
class Ranks:
    """Rank ``index`` of ``count``.  This class is a rank alone; others override what crosses ranks."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(f"Ranks.index is {self.index}; it must lie in [0, count={self.count})")

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that logs and saves."""
        return self.index == 0

    def own_seed(self, seed: int) -> int:
        """From a seed that all ranks share, one of this rank's own; the first rank's is the shared one."""
        return derive_seed(seed, "rank", self.index) if self.index else seed

    def part(self, num_items: int) -> slice:
        """This rank's items of ``num_items``: parts are neighbours, in order, and differ in size by at most one."""
        return slice(num_items * self.index // self.count, num_items * (self.index + 1) // self.count)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        return self._reduce(tensor, "SUM")

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over ranks, in place."""
        return tensor if self.count == 1 else self.sum(tensor).div_(self.count)

    def max(self, tensor: Tensor) -> Tensor:
        """The largest over ranks, in place."""
        return self._reduce(tensor, "MAX")

    def gather(self, value: Any) -> list[Any]:
        """On the first rank, what each rank has handed in, in order; on the others nothing.  Values are pickled."""
        return [value]

    def scatter(self, values: Sequence[Any]) -> Any:
        """What the first rank has handed in for this one; the others hand in nothing.  Values are pickled."""
        return values[0]

    def share(self, value: Any = None) -> Any:
        """What the first rank has handed in, on every rank."""
        return self.scatter([value] * self.count if self.is_first else [])

    def waiting(self) -> contextlib.AbstractContextManager[None]:
        """In here something that does not know of ranks may wait for others: RankError if one has failed."""
        return contextlib.nullcontext()

    def busy(self) -> contextlib.AbstractContextManager[None]:
        """In here the others may have to wait for this rank for longer than usual, as it evaluates or saves."""
        return contextlib.nullcontext()

    def average_gradients(self, module: nn.Module) -> nn.Module | None:
        """``module``, whose gradients backward passes will average over ranks.

        None: there is nothing that does it in backward passes; then it is the caller's part.
        """
        return None

    def _reduce(self, tensor: Tensor, operation: Operation) -> Tensor:
        return tensor


ALONE = Ranks()
