"""Drawing in proportion to priorities, among millions.  Used by `selectors.Prioritized`.

Sums of blocks, of blocks of blocks, and so on up to one (the sum tree of Schaul et al. 2016, arXiv 1511.05952, with
more than two branches).  Sums are taken anew from what is below, never by differences, so that rounding does not add
up.  In float64: in float32 a sum over a million leaves is off by more than a small leaf.

The loops are in `sum_tree.c`; where that cannot be compiled, numpy takes a whole batch down the tree level by level,
in a few vectorised steps each.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import numpy as np

from rlsurreal.utils.native_code import load_native

_FAN_OUT = 16  # of each node, as in sum_tree.c: fewer levels cost wider rows


class SumTree:
    """Priorities of ``num_leaves`` leaves, all 0 at first.

    ``native``: use the compiled loops where there are some.
    """

    def __init__(self, num_leaves: int, native: bool = True) -> None:
        self.num_leaves = num_leaves
        self._levels: list[np.ndarray] = []  # leaves first; each padded with zeros to whole blocks
        size = num_leaves
        while True:
            size = -(-size // _FAN_OUT)  # blocks
            self._levels.append(np.zeros((size, _FAN_OUT)))
            if size == 1:
                break
        self._native = _load() if native else None
        pointers = [level.ctypes.data for level in reversed(self._levels)]
        self._pointers = (ctypes.c_void_p * len(pointers))(*pointers)

    @property
    def leaves(self) -> np.ndarray:
        """All priorities; a view that must not be written."""
        return self._levels[0].reshape(-1)[: self.num_leaves]

    @property
    def total(self) -> float:
        """Sum of all priorities."""
        return float(self._levels[-1].sum())

    def set(self, leaves: np.ndarray, priorities: np.ndarray) -> None:
        """Set the priorities of ``leaves`` ``[k]``; where a leaf comes twice, the last one counts.

        Raises:
            IndexError: there is no such leaf.
        """
        if self._native is None or not len(leaves):
            self._levels[0].reshape(-1)[leaves] = priorities
            self._sum_up(leaves // _FAN_OUT)
            return
        if leaves.min() < 0 or leaves.max() >= self.num_leaves:
            raise IndexError(f"leaves go from {leaves.min()} to {leaves.max()}; the tree has {self.num_leaves}")
        leaves = np.ascontiguousarray(leaves, np.int64)
        priorities = np.ascontiguousarray(priorities, np.float64)
        touched = np.empty_like(leaves)
        self._native.set_leaves(
            self._pointers, len(self._levels), _address(leaves), _address(priorities), len(leaves), _address(touched)
        )

    def set_range(self, start: int, stop: int, priorities: np.ndarray | float) -> None:
        """Set the priorities of leaves ``start`` to ``stop - 1``."""
        if start < stop:
            self._levels[0].reshape(-1)[start:stop] = priorities
            self._sum_up(np.arange(start // _FAN_OUT, (stop - 1) // _FAN_OUT + 1))

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
        left = np.array(points, np.float64)  # a copy: it is used up
        found = np.zeros(len(left), np.int64)  # blocks, on the way down; leaves in the end
        if self._native is None:
            return self._find_by_levels(left, found)
        self._native.find_leaves(self._pointers, len(self._levels), _address(left), len(left), _address(found))
        return found

    def _find_by_levels(self, left: np.ndarray, found: np.ndarray) -> np.ndarray:
        rows = np.arange(len(left))
        for level in reversed(self._levels):
            sums = level[found].cumsum(1)
            left = np.minimum(left, np.nextafter(sums[:, -1], 0.0))  # so that the search ends within the row
            child = (sums <= left[:, None]).sum(1)
            left = left - np.where(child > 0, sums[rows, child - 1], 0.0)
            found = found * _FAN_OUT + child
        return found

    def check_valid(self) -> None:
        """AssertionError if a sum is not that of what is below, or a priority is negative or no number."""
        assert (self._levels[0] >= 0).all(), "a priority is negative or no number"
        assert not self._levels[0].reshape(-1)[self.num_leaves :].any(), "the padding is not 0"
        for below, above in zip(self._levels, self._levels[1:]):
            assert np.array_equal(above.reshape(-1)[: len(below)], below.sum(1)), "a sum is wrong"
            assert not above.reshape(-1)[len(below) :].any(), "the padding is not 0"


@functools.cache
def _load() -> ctypes.CDLL | None:
    native = load_native(Path(__file__).with_suffix(".c"))
    if native is not None:
        number, pointer = ctypes.c_int64, ctypes.c_void_p
        native.set_leaves.argtypes = (pointer, number, pointer, pointer, number, pointer)
        native.find_leaves.argtypes = (pointer, number, pointer, number, pointer)
        native.set_leaves.restype = native.find_leaves.restype = None
    return native


def _address(array: np.ndarray) -> int:
    address: int = array.__array_interface__["data"][0]  # a third of the time of array.ctypes
    return address
