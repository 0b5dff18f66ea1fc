"""Values that change over a run, as functions of progress.

Held by algorithms as hyperparameters (learning rate, clip range, exploration rate) and called with the fraction of the
run's environment steps that is done.  Progress is clipped to [0, 1]: the last slot of a run may go past its budget.
"""

from __future__ import annotations

import math
import numbers
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

Schedule = Callable[[float], float]


@dataclass(frozen=True)
class Constant:
    """The same value always."""

    value: float

    def __call__(self, progress: float) -> float:
        """The value when the fraction ``progress`` of the run is done."""
        return self.value


@dataclass(frozen=True)
class Linear:
    """A straight line from ``start`` to ``end``, which it reaches when the fraction ``until`` of the run is done."""

    start: float
    end: float = 0.0
    until: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.until <= 1:
            raise ValueError(f"Linear.until is {self.until}; it is a fraction of the run, above 0 and at most 1")

    def __call__(self, progress: float) -> float:
        """The value when the fraction ``progress`` of the run is done."""
        fraction = min(max(progress / self.until, 0.0), 1.0)
        return (1 - fraction) * self.start + fraction * self.end


@dataclass(frozen=True)
class PiecewiseLinear:
    """Straight lines between ``points``, pairs of progress and value; constant before the first and after the last.

    Two points of equal progress make a jump: the later one holds from there on.
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        places = [place for place, _ in self.points]
        if not places or places != sorted(places) or places[0] < 0 or places[-1] > 1:
            raise ValueError(
                f"PiecewiseLinear.points is {self.points}; it must be pairs (progress, value), at least "
                "one, with progress in [0, 1] and never falling"
            )

    def __call__(self, progress: float) -> float:
        """The value when the fraction ``progress`` of the run is done."""
        after = bisect_right(self.points, progress, key=lambda point: point[0])
        if after == 0 or after == len(self.points):
            return self.points[min(after, len(self.points) - 1)][1]
        (x0, y0), (x1, y1) = self.points[after - 1], self.points[after]
        fraction = (progress - x0) / (x1 - x0)
        return (1 - fraction) * y0 + fraction * y1


def as_schedule(value: float | Schedule, name: str, *, least: float = -math.inf, most: float = math.inf) -> Schedule:
    """``value`` itself where it is a schedule, else the constant schedule of that number.

    Raises:
        ValueError: with ``name``: it is neither, or is not within [least, most] at the start of a run, in the middle,
            or at the end.
    """
    schedule = value if callable(value) else _constant(value, name)
    for progress in (0.0, 0.5, 1.0):
        found = schedule(progress)
        if not least <= found <= most:
            when = "" if isinstance(schedule, Constant) else f", so {found:g} when {progress:.0%} of the run is done"
            bounds = f"at least {least:g}" if most == math.inf else f"in [{least:g}, {most:g}]"
            raise ValueError(f"{name} is {value}{when}; it must be {bounds}")
    return schedule


def _constant(value: float, name: str) -> Constant:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}; it must be a finite number, or a schedule such as Linear(1e-3, 0.0)")
    return Constant(float(value))
