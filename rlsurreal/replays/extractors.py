"""What a batch from replay looks like: transitions over n steps, or sequences.  Used by `replay.Replay`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rlsurreal.replays.ring import Ring
from rlsurreal.replays.storage import Row, Storage
from rlsurreal.replays.timeline import Timeline
from rlsurreal.utils.namedarraytuple import NamedArrayTuple, Tree, tree_map
from rlsurreal.utils.torch_tree import where_first


class Transitions(NamedArrayTuple):
    """``N`` transitions over up to n steps.

        reward   = r_t + discount * r_{t+1} + ... + discount^(m-1) * r_{t+m-1}
        discount = discount^m, or 0 where the MDP ended
        target   = reward + discount * V(next_observation)

    m is n, or less where the episode ends earlier: then ``next_observation`` is its true last one.
    """

    observation: Tree  # [N]
    action: Tree
    reward: Any  # float32 [N]
    discount: Any  # float32 [N]
    next_observation: Tree
    weight: Any  # float32 [N]: importance weights


class Sequences(NamedArrayTuple):
    """``N`` sequences of ``burn_in + num_steps + n`` rows, time first, ready for a recurrent model."""

    observation: Tree  # [L, N]
    prev_action: Tree  # [L, N]; null where `first`
    prev_reward: Any  # float32 [L, N]; 0 where `first`
    action: Tree  # [L, N]
    reward: Any  # float32 [L, N]: of one step
    terminated: Any  # bool [L, N]
    truncated: Any
    valid: Any
    first: Any
    state: Tree  # [N]: the agent's, recorded before row 0
    weight: Any  # float32 [N]


@dataclass(frozen=True)
class Past:
    """What extractors read: all that has been appended and is still there."""

    ring: Ring
    storage: Storage
    timeline: Timeline

    def read(self, field: str, rows: np.ndarray, envs: np.ndarray) -> Tree:
        """Entries of ``valid`` or a field of `storage.Row` (dotted, if it lies deeper), shaped as rows and envs."""
        if field == "valid":
            return self.to_device(self.timeline.is_valid(rows, envs))
        return self.storage.read(field, self.ring.flat(rows, envs))

    def to_device(self, array: np.ndarray) -> Tensor:
        """A tensor beside the rows."""
        return torch.from_numpy(array).to(self.storage.device, non_blocking=True)


@dataclass(frozen=True)
class Items:
    """What a batch is to be made of."""

    rows: np.ndarray  # int64 [N]: absolute rows, at which items begin
    envs: np.ndarray  # int64 [N]
    weight: np.ndarray  # float32 [N]
    state: Tree  # [N], recorded there, or None


class Extractor(Protocol):
    """What `Replay` asks of an extractor."""

    uses_state: bool  # whether recorded states of the agent are wanted
    uses_env_info: bool  # whether the environment's recorded entries are
    lookback: int  # an item needs so many rows before its start, too

    @property
    def num_learned(self) -> int:
        """Rows of an item that are learned from."""

    @property
    def stride(self) -> int:
        """Rows between possible starts."""

    @property
    def reach(self) -> int:
        """An item needs the observation of row start + reach."""

    def initialize(self, example: Row, *, discount: float) -> None:
        """Get ready for rows like ``example`` ``[B]``, and for the algorithm's discount.

        Raises:
            ValueError: there can be no items of such rows.
        """

    def suits(self, timeline: Timeline, rows: np.ndarray, envs: np.ndarray) -> np.ndarray:
        """Whether an item may begin there, bool, of the shape of ``rows`` and ``envs`` together."""

    def extract(self, past: Past, items: Items, rng: np.random.Generator) -> Tree:
        """The batch."""


@dataclass(kw_only=True, eq=False)
class NStep:
    """Makes `Transitions`."""

    num_steps: int = 1  # n

    uses_state = uses_env_info = False
    num_learned = 1
    lookback = 0
    stride = 1

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"{type(self).__name__}.num_steps is {self.num_steps}; it must be at least 1")

    @property
    def reach(self) -> int:
        """See `Extractor`."""
        return self.num_steps

    def initialize(self, example: Row, *, discount: float) -> None:
        """See `Extractor`."""
        self._discount = discount

    def suits(self, timeline: Timeline, rows: np.ndarray, envs: np.ndarray) -> np.ndarray:
        """Valid rows."""
        return timeline.is_valid(rows, envs)

    def extract(self, past: Past, items: Items, rng: np.random.Generator) -> Transitions:
        """See `Extractor`."""
        times = steps_of_return(past.timeline, items.rows, items.envs, self.num_steps)
        places = past.ring.flat(times, items.envs)
        return transitions(past, items, times, places, past.storage.read("reward", places), self._discount)


def steps_of_return(timeline: Timeline, rows: np.ndarray, envs: np.ndarray, num_steps: int) -> np.ndarray:
    """The rows ``[n, N]`` that n-step returns from ``rows`` ``[N]`` go over; the last one of an episode repeats."""
    if num_steps == 1:
        return rows[None]
    times: np.ndarray = rows + np.minimum(np.arange(num_steps)[:, None], timeline.rows_left(rows, envs))
    return times


def transitions(
    past: Past, items: Items, times: np.ndarray, places: np.ndarray, reward: Tensor, discount: float
) -> Transitions:
    """The batch of n-step returns over rows ``times`` ``[n, N]``, at flat ``places``, with ``reward`` ``[n, N]``."""
    storage, here, end = past.storage, places[0], places[-1]
    what_follows: Tensor | float = discount
    if len(times) == 1:
        reward = reward[0]
    else:
        length = times[-1] - items.rows + 1  # m
        is_counted = np.arange(len(times))[:, None] < length
        factors = np.where(is_counted, discount ** np.arange(len(times))[:, None], 0.0).astype(np.float32)
        reward = torch.where(past.to_device(is_counted), past.to_device(factors) * reward, 0.0).sum(0)
        what_follows = past.to_device((discount**length).astype(np.float32))
    return Transitions(
        observation=storage.observation(here),
        action=storage.read("action", here),
        reward=reward,
        discount=storage.read("terminated", end).logical_not() * what_follows,
        next_observation=storage.observation(past.ring.shift(end, 1)),
        weight=past.to_device(items.weight),
    )


@dataclass(kw_only=True, eq=False)
class Windows:
    """Makes `Sequences`: ``burn_in`` rows that only bring the state up to date, ``num_steps`` rows that are learned
    from, ``num_ahead`` more for their targets (Kapturowski et al. 2019, R2D2).

    They begin where an agent's state was recorded: at multiples of ``interval`` rows, the sampler's ``state_interval``.
    """

    burn_in: int = 40
    num_steps: int = 80
    num_ahead: int = 5
    interval: int = 40

    uses_state, uses_env_info = True, False
    lookback = 1  # previous action and reward

    def __post_init__(self) -> None:
        for name, least in (("burn_in", 0), ("num_steps", 1), ("num_ahead", 1), ("interval", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"Windows.{name} is {getattr(self, name)}; it must be at least {least}")

    @property
    def stride(self) -> int:
        """See `Extractor`."""
        return self.interval

    @property
    def num_learned(self) -> int:
        """See `Extractor`."""
        return self.num_steps

    @property
    def num_rows(self) -> int:
        """Of a sequence."""
        return self.burn_in + self.num_steps + self.num_ahead

    @property
    def reach(self) -> int:
        """See `Extractor`."""
        return self.num_rows

    def initialize(self, example: Row, *, discount: float) -> None:
        """Nothing: rewards are those of single steps."""

    def suits(self, timeline: Timeline, rows: np.ndarray, envs: np.ndarray) -> np.ndarray:
        """There is something to learn: a valid row after the burn-in."""
        learned = np.arange(self.burn_in, self.burn_in + self.num_steps)
        valid = timeline.is_valid(rows[..., None] + learned, envs[..., None])
        return np.asarray(valid.any(-1))

    def extract(self, past: Past, items: Items, rng: np.random.Generator) -> Sequences:
        """See `Extractor`."""
        times = items.rows + np.arange(self.num_rows)[:, None]  # [L, N]
        places = past.ring.flat(times, items.envs)
        before = past.ring.shift(places, -1)
        read = past.storage.read
        first: Tensor = read("first", places)
        prev_action: Tree = read("action", before)
        return Sequences(
            observation=past.storage.observation(places),
            prev_action=where_first(first, tree_map(torch.zeros_like, prev_action), prev_action),
            prev_reward=torch.where(first, 0.0, read("reward", before)),
            action=read("action", places),
            reward=read("reward", places),
            terminated=read("terminated", places),
            truncated=read("truncated", places),
            valid=past.to_device(past.timeline.is_valid(times, items.envs)),
            first=first,
            state=items.state,
            weight=past.to_device(items.weight),
        )
