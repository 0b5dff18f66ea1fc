"""Drawing in proportion to priorities, among millions.  Used by `selectors.Prioritized`.

Sums of blocks, of blocks of blocks, and so on up to one; each level is one array, so that a whole batch goes down the
tree in a few vectorised steps (the sum tree of Schaul et al. 2016, arXiv 1511.05952, with more than two branches).
Sums are taken anew from what is below, never by differences, so that rounding does not add up.  In float64: in float32
a sum over a million leaves is off by more than a small leaf.
"""

from __future__ import annotations

import numpy as np
import torch

_FAN_OUT = 32  # of each node: fewer levels cost wider rows; this is near the best for batches of 32 to 512


class SumTree:
    """Priorities of ``num_leaves`` leaves, all 0 at first."""

    def __init__(self, num_leaves: int) -> None:
        self.num_leaves = num_leaves
        self._levels: list[np.ndarray] = []  # leaves first; each padded with zeros to whole blocks
        size = num_leaves
        while True:
            size = -(-size // _FAN_OUT)  # blocks
            self._levels.append(np.zeros((size, _FAN_OUT)))
            if size == 1:
                break
        # The same memory: PyTorch's cumulative sum and search over rows are several times as fast as numpy's.
        self._from_root = [torch.from_numpy(level) for level in reversed(self._levels)]

    @property
    def leaves(self) -> np.ndarray:
        """All priorities; a view that must not be written."""
        return self._levels[0].reshape(-1)[: self.num_leaves]

    @property
    def total(self) -> float:
        """Sum of all priorities."""
        return float(self._levels[-1].sum())

    def set(self, leaves: np.ndarray, priorities: np.ndarray | float) -> None:
        """Set the priorities of ``leaves`` ``[k]``; where a leaf comes twice, the last one counts."""
        self._levels[0].reshape(-1)[leaves] = priorities
        self._sum_up(leaves // _FAN_OUT)

    def set_range(self, start: int, stop: int, priorities: np.ndarray | float) -> None:
        """Set the priorities of leaves ``start`` to ``stop - 1``."""
        if start < stop:
            self._levels[0].reshape(-1)[start:stop] = priorities
            blocks = np.arange(start // _FAN_OUT, (stop - 1) // _FAN_OUT + 1)
            self._sum_up(blocks)

    def _sum_up(self, blocks: np.ndarray) -> None:
        for below, above in zip(self._levels, self._levels[1:]):
            above.reshape(-1)[blocks] = below[blocks].sum(1)
            blocks = blocks // _FAN_OUT
            if len(blocks) > 2 * _FAN_OUT:  # most of them come many times over
                blocks = np.unique(blocks)

    def find(self, points: np.ndarray) -> np.ndarray:
        """The leaf at each of ``points`` ``[k]``, in [0, total), on the line of all priorities laid end to end.

        Leaves of priority 0 are never found; points at or beyond the end (by rounding) find the last leaf that is not.

        Raises:
            ValueError: all priorities are 0.
        """
        if not self._levels[-1].any():
            raise ValueError("all priorities are 0: there is nothing to draw from")
        found = torch.zeros(len(points), dtype=torch.int64)  # blocks, on the way down; leaves in the end
        left = torch.from_numpy(np.asarray(points, np.float64)).unsqueeze(1)
        zero = torch.zeros((), dtype=torch.float64)
        for level in self._from_root:
            sums = torch.index_select(level, 0, found).cumsum(1)
            left = torch.minimum(left, torch.nextafter(sums[:, -1:], zero))  # so that the search ends within the row
            child = torch.searchsorted(sums, left, right=True)
            before = torch.where(child > 0, sums.gather(1, (child - 1).clamp_(min=0)), zero)
            left = left - before
            found = found * _FAN_OUT + child.squeeze(1)
        return found.numpy()

    def check_valid(self) -> None:
        """AssertionError if a sum is not that of what is below, or a priority is negative or no number."""
        assert (self._levels[0] >= 0).all(), "a priority is negative or no number"
        assert not self._levels[0].reshape(-1)[self.num_leaves :].any(), "the padding is not 0"
        for below, above in zip(self._levels, self._levels[1:]):
            assert np.array_equal(above.reshape(-1)[: len(below)], below.sum(1)), "a sum is wrong"
            assert not above.reshape(-1)[len(below) :].any(), "the padding is not 0"
