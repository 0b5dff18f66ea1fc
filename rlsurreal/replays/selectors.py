"""Which rows a batch is made of: all alike, or in proportion to priorities.  Used by `replay.Replay`.

Starts are the rows at which an item may begin, ``stride`` rows apart: start ``s`` is row ``s * stride``.  `Starts`
knows which are there; selectors draw among those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from rlsurreal.replays.ring import Ring, Rows
from rlsurreal.replays.sum_tree import SumTree
from rlsurreal.utils.schedules import Schedule, as_schedule

_MAX_REDRAWS = 16  # then all starts are looked at, which takes long for millions


class Starts:
    """The starts ``[first, stop)`` of all environments that are there, and which of them suit."""

    def __init__(self, num_starts: int, num_envs: int) -> None:
        self.ring = Ring(num_starts, num_envs)  # at most so many at a time
        self.first = self.stop = 0
        self.suits = np.zeros((num_starts, num_envs), bool)

    def extend(self, suits: np.ndarray) -> Rows:
        """The next ones are there; ``suits`` ``[num_new, B]``."""
        new = Rows(self.stop, self.stop + len(suits))
        assert new.stop - self.first <= self.ring.num_rows, "more starts than the ring has places for"
        for source, place in self.ring.parts(new):
            self.suits[place] = suits[source]
        self.stop = new.stop
        return new

    def remove_until(self, first: int) -> Rows:
        """Those before ``first`` are gone."""
        gone = Rows(self.first, max(self.first, min(first, self.stop)))
        self.first = gone.stop
        return gone

    def are_there(self, starts: np.ndarray) -> np.ndarray:
        """Bool ``[N]``."""
        return (starts >= self.first) & (starts < self.stop)

    def at(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which starts of which environments are at flat ``places`` ``[N]`` now."""
        place, envs = np.divmod(places, self.ring.num_envs)
        return self.first + (place - self.first) % self.ring.num_rows, envs

    def suitable_places(self) -> np.ndarray:
        """Flat places of all starts that are there and suit."""
        places = self.ring.flat(np.arange(self.first, self.stop)[:, None], np.arange(self.ring.num_envs)).reshape(-1)
        suitable: np.ndarray = places[self.suits.reshape(-1)[places]]
        return suitable

    def state_dict(self) -> dict[str, Any]:
        """All of it."""
        return {"first": self.first, "stop": self.stop, "suits": self.suits.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.first, self.stop, self.suits[:] = state["first"], state["stop"], state["suits"]


@dataclass
class Drawn:
    """Items that were drawn."""

    starts: np.ndarray  # int64 [N]
    envs: np.ndarray  # int64 [N]
    weight: np.ndarray  # float32 [N]: importance weights, the largest of the batch is 1
    largest_weight: float = 1.0  # what they were divided by, up to a factor that all shards of a replay have in common


class Selector(Protocol):
    """What `Replay` asks of a selector."""

    uses_priority: bool

    def initialize(self, starts: Starts) -> None:
        """Draw from ``starts``, of which none is there yet."""

    def add(self, new: Rows, priority: np.ndarray | None) -> None:
        """These starts have come; ``priority`` ``[len(new), B]``."""

    def remove(self, gone: Rows) -> None:
        """These starts, the oldest, have gone."""

    def draw(self, num_items: int, rng: np.random.Generator, progress: float) -> Drawn:
        """Draw among those that are there and suit.  ValueError if there are none."""

    def update(self, starts: np.ndarray, envs: np.ndarray, priority: np.ndarray) -> None:
        """New priorities ``[N]``; those of starts that are gone are dropped."""

    def state_dict(self) -> dict[str, Any]:
        """What the next draw depends on, besides the starts and the random generator."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""


@dataclass(kw_only=True, eq=False)
class Uniform:
    """Every item as often as every other."""

    uses_priority = False

    def initialize(self, starts: Starts) -> None:
        """See `Selector`."""
        self._starts = starts

    def add(self, new: Rows, priority: np.ndarray | None) -> None:
        """Nothing: here are no priorities."""

    def remove(self, gone: Rows) -> None:
        """Nothing: here are no priorities."""

    def draw(self, num_items: int, rng: np.random.Generator, progress: float) -> Drawn:
        """Those that do not suit are drawn again, until all do.

        Raises:
            ValueError: no item suits.
        """
        there, num_envs = self._starts, self._starts.ring.num_envs  # items are counted over starts and environments
        low, high = there.first * num_envs, there.stop * num_envs
        suits, num_places = there.suits.reshape(-1), there.suits.size
        drawn = rng.integers(low, high, num_items)
        suit = suits[drawn % num_places]
        if not suit.all():
            self._draw_again(drawn, np.flatnonzero(~suit), rng)
        return Drawn(*np.divmod(drawn, num_envs), np.ones(num_items, np.float32))

    def _draw_again(self, drawn: np.ndarray, wrong: np.ndarray, rng: np.random.Generator) -> None:
        there, num_envs = self._starts, self._starts.ring.num_envs
        suits = there.suits.reshape(-1)
        for _ in range(_MAX_REDRAWS):
            drawn[wrong] = rng.integers(there.first * num_envs, there.stop * num_envs, len(wrong))
            wrong = wrong[~suits[drawn[wrong] % suits.size]]
            if not len(wrong):
                return
        starts, envs = there.at(rng.choice(_some(there.suitable_places()), len(wrong)))
        drawn[wrong] = starts * num_envs + envs

    def update(self, starts: np.ndarray, envs: np.ndarray, priority: np.ndarray) -> None:
        """Nothing: here are no priorities."""

    def state_dict(self) -> dict[str, Any]:
        """See `Selector`."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Selector`."""


@dataclass(kw_only=True, eq=False)
class Fifo:
    """Every item once, in the order in which they came: for learning that wants data of the present policy.

    With ``ReplayRatio(ratio=1, min_steps=1)`` nothing waits for long, and next to nothing is lost.  What is overwritten
    before it is drawn is left out.
    """

    uses_priority = False

    def initialize(self, starts: Starts) -> None:
        """See `Selector`."""
        self._starts = starts
        self._next = 0  # number of the next item, counted over all starts and environments

    def add(self, new: Rows, priority: np.ndarray | None) -> None:
        """Nothing: here are no priorities."""

    def remove(self, gone: Rows) -> None:
        """Nothing: here are no priorities."""

    def draw(self, num_items: int, rng: np.random.Generator, progress: float) -> Drawn:
        """The oldest ones that have not been drawn.

        Raises:
            ValueError: there are fewer.
        """
        waiting = self._waiting()
        if len(waiting) < num_items:
            raise ValueError(f"{len(waiting)} items have not been drawn yet, and the batch has {num_items}")
        drawn = waiting[:num_items]
        self._next = int(drawn[-1]) + 1
        return Drawn(*np.divmod(drawn, self._starts.ring.num_envs), np.ones(num_items, np.float32))

    def num_waiting(self) -> int:
        """Items that have not been drawn."""
        return len(self._waiting())

    def _waiting(self) -> np.ndarray:
        there, num_envs = self._starts, self._starts.ring.num_envs
        self._next = max(self._next, there.first * num_envs)
        waiting = np.arange(self._next, there.stop * num_envs)
        return waiting[there.suits.reshape(-1)[waiting % there.suits.size]]

    def update(self, starts: np.ndarray, envs: np.ndarray, priority: np.ndarray) -> None:
        """Nothing: here are no priorities."""

    def state_dict(self) -> dict[str, Any]:
        """See `Selector`."""
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._next = state["next"]


def _some(places: np.ndarray) -> np.ndarray:
    if not len(places):
        raise ValueError("the replay holds no item to draw; collect more before learning (min_steps)")
    return places


@dataclass(kw_only=True, eq=False)
class Prioritized:
    """In proportion to priority ** alpha (Schaul et al. 2016, arXiv 1511.05952).

    Importance weights are ``P ** -beta``, divided by the largest of the batch.
    """

    alpha: float = 0.6
    beta: float | Schedule = 0.4
    initial_priority: float | None = None  # of new items; None: the algorithm's (R2D2), or the largest so far
    unique: bool = False  # no item twice in a batch

    uses_priority = True

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"Prioritized.alpha is {self.alpha}; it must lie in [0, 1] (0 is uniform)")
        if self.initial_priority is not None and not 0 < self.initial_priority < float("inf"):
            raise ValueError(
                f"Prioritized.initial_priority is {self.initial_priority}; it must be positive and finite, or None"
            )
        self._beta_at = as_schedule(self.beta, "Prioritized.beta", least=0, most=1)

    def initialize(self, starts: Starts) -> None:
        """See `Selector`."""
        self._starts = starts
        self.tree = SumTree(starts.suits.size)
        self._largest = 1.0

    def add(self, new: Rows, priority: np.ndarray | None) -> None:
        """See `Selector`."""
        given = self._largest if self.initial_priority is None else self.initial_priority
        raised = given**self.alpha if priority is None else self._raised(priority)
        for source, place in self._starts.ring.parts(new):
            suits = self._starts.suits[place]
            self._write(place, suits * (raised if priority is None else raised[source]))

    def remove(self, gone: Rows) -> None:
        """See `Selector`."""
        for _, place in self._starts.ring.parts(gone):
            self._write(place, 0.0)

    def _write(self, place: slice, leaves: np.ndarray | float) -> None:
        num_envs = self._starts.ring.num_envs
        self.tree.set_range(place.start * num_envs, place.stop * num_envs, np.ravel(leaves))

    def draw(self, num_items: int, rng: np.random.Generator, progress: float) -> Drawn:
        """One item from each of ``num_items`` equal parts of the whole, as in the paper.

        Raises:
            ValueError: there is nothing to draw, or less than ``unique`` needs.
        """
        total = self.tree.total
        if total == 0:
            _some(np.empty(0))
        leaves = self.tree.find((np.arange(num_items) + rng.random(num_items)) * (total / num_items))
        if self.unique:
            leaves = self._without_repeats(leaves, rng)
        priority = self.tree.leaves[leaves]
        least, beta = priority.min(), self._beta_at(progress)
        weight = (priority / least) ** -beta
        return Drawn(*self._starts.at(leaves), weight.astype(np.float32), float((least / total) ** -beta))

    def _without_repeats(self, leaves: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        for _ in range(_MAX_REDRAWS):
            kept, position = np.unique(leaves, return_index=True)
            if len(kept) == len(leaves):
                return leaves
            again = np.setdiff1d(np.arange(len(leaves)), position)
            leaves[again] = self.tree.find(rng.random(len(again)) * self.tree.total)
        kept = np.unique(leaves)
        others = np.setdiff1d(np.flatnonzero(self.tree.leaves), kept)
        num_missing = len(leaves) - len(kept)
        if len(others) < num_missing:
            raise ValueError(
                f"the replay holds {len(kept) + len(others)} items, and the batch has {len(leaves)}; collect more "
                "before learning (min_steps), or use unique=False"
            )
        priority = self.tree.leaves[others]
        more = rng.choice(others, num_missing, replace=False, p=priority / priority.sum())
        return np.concatenate([kept, more])

    def update(self, starts: np.ndarray, envs: np.ndarray, priority: np.ndarray) -> None:
        """See `Selector`; where an item comes twice, the last one counts."""
        raised = self._raised(priority)
        self._largest = max(self._largest, float(np.max(priority, initial=0.0)))
        there = self._starts.are_there(starts)
        self.tree.set(self._starts.ring.flat(starts[there], envs[there]), raised[there])

    def _raised(self, priority: np.ndarray) -> np.ndarray:
        priority = np.asarray(priority, np.float64)
        if not (np.isfinite(priority) & (priority >= 0)).all():
            raise ValueError("a priority is negative or not finite; has the loss diverged?")
        raised: np.ndarray = np.maximum(priority, _LEAST_PRIORITY) ** self.alpha
        return raised

    def state_dict(self) -> dict[str, Any]:
        """See `Selector`."""
        return {"leaves": self.tree.leaves.copy(), "largest": self._largest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Selector`."""
        self.tree.set_range(0, self.tree.num_leaves, state["leaves"])
        self._largest = state["largest"]


_LEAST_PRIORITY = 1e-6  # what has been learned well is still seen now and then
