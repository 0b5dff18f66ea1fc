"""How much is learned from what has been collected.  Used by the off-policy algorithms.

The replay ratio is the number of rows learned from (a transition is one, a sequence as many as its ``num_steps``), over
the number of valid environment steps appended: with batches of 256 and one update a step it is 256.  (Reverb calls it
samples per insert: Cassirer et al. 2021.)
"""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

_MAX_DENOMINATOR = 10**9  # 0.1 is a tenth here, not the binary fraction next to it


@dataclass(kw_only=True, eq=False)
class ReplayRatio:
    """Says how many updates are due; what is left over is kept for later, so that the ratio is held exactly."""

    ratio: float
    min_steps: int = 1_000  # valid steps over all environments before the first update; they are not made up for

    def __post_init__(self) -> None:
        if not isinstance(self.ratio, (float, numbers.Real)) or not _MAX_DENOMINATOR**-1 <= self.ratio < float("inf"):
            raise ValueError(f"ReplayRatio.ratio is {self.ratio!r}; it must be a number, positive and finite")
        if self.min_steps < 1:
            raise ValueError(f"ReplayRatio.min_steps is {self.min_steps}; it must be at least 1")
        self._exact_ratio = Fraction(self.ratio).limit_denominator(_MAX_DENOMINATOR)
        self.initialize()

    def initialize(self) -> None:
        """Count from the start."""
        self.num_steps = 0  # that were appended
        self.num_items = 0  # that were learned from since `_start`
        self._start = self.min_steps  # steps after which the ratio counts

    def appended(self, num_steps: int) -> None:
        """Count valid steps."""
        self.num_steps += num_steps

    @property
    def has_begun(self) -> bool:
        """Whether there have been enough steps to learn from."""
        return self.num_steps >= self._start

    def take(self, batch_size: int, most: int | None = None) -> int:
        """How many updates with so many items each are due now, ``most`` at most; they count as made."""
        due = self._exact_ratio * self._num_counted - self.num_items
        num_updates = max(0, due // batch_size)
        if most is not None:
            num_updates = min(num_updates, most)
        self.num_items += num_updates * batch_size
        return num_updates

    @property
    def _num_counted(self) -> int:
        """Steps since learning began."""
        return max(0, self.num_steps - self._start)

    @property
    def achieved(self) -> float:
        """The ratio so far, since learning began."""
        return self.num_items / max(1, self._num_counted)

    def state_dict(self) -> dict[str, Any]:
        """All counts."""
        return {"num_steps": self.num_steps, "num_items": self.num_items, "start": self._start, "ratio": self.ratio}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; with another ratio, or `min_steps` before learning began, from now on.

        What had come in before is not learned from once more, and not too much: the new ratio holds for new steps.
        """
        self.num_steps, self.num_items, self._start = state["num_steps"], state["num_items"], state["start"]
        if not self.has_begun:
            self._start = max(self.min_steps, self.num_steps)
        elif state["ratio"] != self.ratio:
            self._start, self.num_items = self.num_steps, 0
