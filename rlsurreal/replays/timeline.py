"""Which rows are valid, and where the episode of each ends.  Kept by `replay.Replay`, read by extractors.

This knowledge stays in the host's memory wherever the rows themselves are, so that what is drawn is decided without
waiting for a GPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rlsurreal.replays.ring import Ring, Rows


class Timeline:
    """For each row of ``ring``: whether its action was applied, and how many rows of its episode follow.

    An episode ends where a row is terminated or truncated, or before a row that is not valid (its successor's
    observation is there all the same).  One that goes on still ends, for the time being, with the last row that has an
    action.
    """

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self.valid = np.zeros((ring.num_rows, ring.num_envs), bool)
        self._left = np.zeros((ring.num_rows, ring.num_envs), np.int32)  # rows to the episode's last, or _UNKNOWN
        self._begun = np.zeros(ring.num_envs, np.int64)  # first row of the episode that has not ended yet

    def append(self, rows: Rows, valid: np.ndarray, ended: np.ndarray) -> None:
        """Take in flags ``[len(rows), B]``; the last row has none yet.  The ring has advanced already."""
        for source, place in self._ring.parts(rows):
            self.valid[place] = valid[source]
            self._left[place] = _UNKNOWN
        self.valid[(rows.stop - 1) % self._ring.num_rows] = False
        for env, t in np.argwhere((ended | ~valid)[:-1].T).tolist():
            row = rows.start + t
            self._end(env, row if valid[t, env] else row - 1)
            self._begun[env] = row + 1

    def _end(self, env: int, last: int) -> None:
        first = max(int(self._begun[env]), self._ring.oldest)
        if first <= last:
            left = np.arange(last - first, -1, -1)
            for source, place in self._ring.parts(Rows(first, last + 1)):
                self._left[place, env] = left[source]

    def is_valid(self, rows: np.ndarray, envs: np.ndarray) -> np.ndarray:
        """Whether the actions of ``rows`` of ``envs`` (of one shape, or broadcast) were applied."""
        found: np.ndarray = self.valid.reshape(-1)[self._ring.flat(rows, envs)]
        return found

    def rows_left(self, rows: np.ndarray, envs: np.ndarray) -> np.ndarray:
        """How many rows of its episode follow each of ``rows`` of ``envs``, all of them valid."""
        left = self._left.reshape(-1)[self._ring.flat(rows, envs)]
        return np.where(left == _UNKNOWN, self._ring.newest - 1 - rows, left)

    def state_dict(self) -> dict[str, Any]:
        """All flags."""
        return {"valid": self.valid.copy(), "left": self._left.copy(), "begun": self._begun.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.valid[:], self._left[:], self._begun[:] = state["valid"], state["left"], state["begun"]


_UNKNOWN = -1  # the episode goes on
