"""Rows in a ring: which are there, and where they lie.

Rows are numbered from the start of the run, for ever; row ``r`` of environment ``b`` lies at ``(r % num_rows, b)``.

    oldest                                     newest
      |  .  .  .  .  .  .  .  .  .  .  .  .  .  .  |
      a row: observation, action, reward, ...      the last row: its observation alone, no action yet

A slot of T + 1 rows is appended at ``newest``: its row 0 is the row that was last, its row T is the new last one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlsurreal.utils.namedarraytuple import Tree, tree_map


@dataclass(frozen=True)
class Rows:
    """Rows ``[start, stop)`` of all environments."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class Ring:
    """The numbers of a ring of ``num_rows`` rows by ``num_envs`` columns."""

    def __init__(self, num_rows: int, num_envs: int) -> None:
        self.num_rows, self.num_envs = num_rows, num_envs
        self.newest = 0  # number of the last row

    @property
    def oldest(self) -> int:
        """Number of the oldest row that is still there."""
        return max(0, self.newest - self.num_rows + 1)

    def advance(self, num_steps: int) -> Rows:
        """Count a slot of ``num_steps`` rows and the one after them; the rows that it writes."""
        start = self.newest
        self.newest += num_steps
        return Rows(start, self.newest + 1)

    def parts(self, rows: Rows) -> list[tuple[slice, slice]]:
        """Where ``rows`` lie: pairs of a slice of them, counted from their start, and a slice of the ring."""
        assert len(rows) <= self.num_rows, f"{len(rows)} rows do not fit a ring of {self.num_rows}"
        first = rows.start % self.num_rows
        head = min(len(rows), self.num_rows - first)
        found = [(slice(0, head), slice(first, first + head))]
        if head < len(rows):
            found.append((slice(head, len(rows)), slice(0, len(rows) - head)))
        return found

    def flat(self, rows: np.ndarray, envs: np.ndarray) -> np.ndarray:
        """Places in arrays whose first two dimensions are made one."""
        places: np.ndarray = rows % self.num_rows * self.num_envs + envs
        return places

    def shift(self, places: np.ndarray, num_rows: int | np.ndarray) -> np.ndarray:
        """Places so many rows after flat ``places``."""
        found: np.ndarray = (places + num_rows * self.num_envs) % (self.num_rows * self.num_envs)
        return found


def write(ring: Ring, storage: Tree, rows: Rows, values: Tree) -> None:
    """Write ``values`` ``[len(rows), B, ...]`` into arrays ``[num_rows, B, ...]``."""
    for source, place in ring.parts(rows):
        tree_map(torch.Tensor.copy_, storage[place], values[source])


def flat_rows(storage: Tree) -> Tree:
    """For `gather`: views ``[num_rows * B, ...]`` of tensors ``[num_rows, B, ...]``, arrays where the host has them."""
    return tree_map(lambda t: t.flatten(0, 1).numpy() if t.device.type == "cpu" else t.flatten(0, 1), storage)


def gather(rows: Tree, places: np.ndarray) -> Tree:
    """The entries at ``places`` (any shape) of `flat_rows`: tensors ``[*places.shape, ...]`` beside them."""
    if isinstance(rows, np.ndarray):
        # Places are within by their making; "clip" spares numpy the check, and a copy.  torch.index_select takes
        # two to three times as long for hundreds of small rows.
        return torch.from_numpy(rows.take(places, axis=0, mode="clip"))
    if isinstance(rows, Tensor):
        index = torch.from_numpy(places.reshape(-1)).to(rows.device, non_blocking=True)
        return torch.index_select(rows, 0, index).view(*places.shape, *rows.shape[1:])
    return tree_map(lambda leaf: gather(leaf, places), rows)
