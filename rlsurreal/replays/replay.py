"""Experience replay: a ring of rows, composed of where they are kept, how they are chosen, and what a batch looks like.

    append(samples) --> ring --> storage
    sample(n)       --> selector: which starts --> extractor: batch --> with a ticket for update_priorities

Rows arrive slot by slot, all environments together.  A start is offered to the selector as soon as everything that an
item beginning there needs has arrived, and taken back before its first row is overwritten.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from rlsurreal.replays.extractors import Extractor, Items, NStep, Past, Windows
from rlsurreal.replays.ring import Ring, Rows, flat_rows, gather, write
from rlsurreal.replays.selectors import Fifo, Selector, Starts, Uniform
from rlsurreal.replays.storage import FullStorage, Row, Storage, allocate_rows, copy_leaves, fill_leaves
from rlsurreal.replays.timeline import Timeline
from rlsurreal.structs import BatchSpec, Samples
from rlsurreal.utils.namedarraytuple import Tree, leaves
from rlsurreal.utils.torch_tree import to_device

FirstPriority = Callable[[Callable[[str], Tree]], np.ndarray]


@dataclass(frozen=True)
class Ticket:
    """Which items a batch was made of."""

    starts: np.ndarray
    envs: np.ndarray
    largest_weight: float  # see `Drawn`


@dataclass(kw_only=True, eq=False)
class Replay:
    """What users choose of a replay."""

    capacity: int = 1_000_000  # rows over all environments of this process
    storage: Storage = field(default_factory=FullStorage)
    selector: Selector = field(default_factory=Uniform)
    extractor: Extractor = field(default_factory=NStep)
    device: str | None = None  # where rows are kept; None: in the host's memory

    def __post_init__(self) -> None:
        if self.capacity < 1:
            raise ValueError(f"Replay.capacity is {self.capacity}; it must be at least 1")

    def of_rank(self, index: int) -> Replay:
        """For one of several ranks: those whose rows are in files have one each."""
        if self.storage.file is None:
            return self
        storage: Any = self.storage
        return dataclasses.replace(self, storage=dataclasses.replace(storage, file=f"{storage.file}.rank{index}"))

    def initialize(
        self, batch: BatchSpec, *, seed: int, discount: float, device: torch.device, keep_agent_info: bool = False
    ) -> None:
        """Get ready for slots of size ``batch``; memory is taken with the first one, which shows what rows look like.

        Args:
            batch: the slots to come.
            seed: of what is drawn.
            discount: of n-step returns.
            device: where batches go.
            keep_agent_info: what the agent recorded with its actions, too.

        Raises:
            ValueError: the capacity is too small for slots of this size.
        """
        self._batch, self._discount, self._device, self._keep_agent_info = batch, discount, device, keep_agent_info
        stride = self.extractor.stride
        if batch.num_steps % stride:
            raise ValueError(
                f"Replay.extractor.interval is {stride}, which does not divide batch.num_steps={batch.num_steps}; "
                "use a divisor"
            )
        self._check_capacity()
        num_starts = self.capacity // batch.num_envs // stride  # they lie at the same places in every round
        self.ring = Ring(num_starts * stride, batch.num_envs)
        self.starts = Starts(num_starts, batch.num_envs)
        self.selector.initialize(self.starts)
        self.timeline = Timeline(self.ring)
        self._past = Past(self.ring, self.storage, self.timeline)
        self._rng = np.random.default_rng(seed)
        self._states: Tree = None
        self._may_be_cut = False  # the next slot may not go on from the last row
        self._begins = True  # nothing goes on in the next slot
        self._saved: dict[str, Any] | None = None  # rows to be restored when the first slot shows what they look like
        self._is_allocated = False

    def _check_capacity(self) -> None:
        batch, reach = self._batch, self.extractor.reach
        needed = max(batch.num_steps, self._gap) + reach + self._lookback + 2 * self.extractor.stride
        if self.capacity // batch.num_envs < needed:
            raise ValueError(
                f"Replay.capacity is {self.capacity}, which is {self.capacity // batch.num_envs} rows of each of "
                f"{batch.num_envs} environments; slots of {batch.num_steps} steps and items of {reach} need {needed}: "
                f"use capacity={needed * batch.num_envs} or more, or a smaller batch.num_steps"
            )

    @property
    def _lookback(self) -> int:
        return max(self.storage.lookback, self.extractor.lookback)

    @property
    def _gap(self) -> int:
        """Rows between what was there and a slot that does not go on from it: room for frames, and whole strides."""
        return -(-(self.storage.lookback + 1) // self.extractor.stride) * self.extractor.stride

    # ------------------------------------------------------------ in

    def append(self, samples: Samples, priority: FirstPriority | None = None) -> None:
        """Take in a slot.

        Args:
            samples: copied; may be released.
            priority: gives the priorities ``[N]`` of the items that are complete now.  It is called with a function
                from the name of a field to its entries in all rows of these items, ``[reach, N]`` tensors.

        Raises:
            ValueError: the slot does not fit the replay's parts, or ``priority`` returns another number of them.
        """
        values = self._rows_of(samples)
        if not self._is_allocated:
            self._allocate(values, samples.agent.agent_state)
        if self._may_be_cut:
            self._leave_gap_if_cut(values, priority)
        rows = self._advance(self._batch.num_steps)
        self.storage.append(rows, values, self._begins)
        env = samples.env
        if self._begins and self.extractor.lookback and samples.agent.prev_action is not None:
            # Perhaps in the middle of an episode, whose last action and reward the first sequences want.
            before = Rows(rows.start - 1, rows.start)
            write(self.ring, self.storage.rows.action, before, samples.agent.prev_action[:1])
            write(self.ring, self.storage.rows.reward, before, env.prev_reward[:1])
        self._begins = False
        self.timeline.append(rows, env.valid.numpy(), (env.terminated | env.truncated).numpy())
        if self._states is not None:
            self._append_states(rows, samples.agent.agent_state)
        self._offer(priority)

    def _rows_of(self, samples: Samples) -> Row:
        env, agent = samples.env, samples.agent
        return Row(
            observation=env.observation,
            action=agent.action,
            reward=env.reward,
            terminated=env.terminated,
            truncated=env.truncated,
            first=env.first,
            agent_info=agent.agent_info if self._keep_agent_info else None,
            env_info=env.env_info if self.extractor.uses_env_info else None,
        )

    def _allocate(self, values: Row, states: Tree) -> None:
        device = torch.device(self.device or "cpu")
        if device.type == self._device.type and device.index is None:
            device = self._device  # of several GPUs the learner's
        example = values[0]
        self.extractor.initialize(example, discount=self._discount)
        self.storage.initialize(self.ring, example, device)
        self._check_capacity()  # how many frames there are to a stack is known only now
        if states is not None and self.extractor.uses_state:
            self._states = allocate_rows(self.starts.ring.num_rows, states[0], device, None)
            self._flat_states = flat_rows(self._states)
        self._is_allocated = True
        if self._saved is not None:
            self.storage.load_state_dict(self._saved["storage"])
            fill_leaves(self._states, self._saved["states"])
            self._saved = None

    def _leave_gap_if_cut(self, values: Row, priority: FirstPriority | None) -> None:
        """The first slot of a resumed run may begin with other environments: then nothing goes on from the last row."""
        self._may_be_cut = False
        envs = np.arange(self._batch.num_envs)
        newest = np.full_like(envs, self.ring.newest)
        last = self.storage.observation(self.ring.flat(newest, envs)), self._past.read("first", newest, envs)
        now = values.observation[0], values.first[0]
        if not all(torch.equal(a.cpu(), b) for x, y in zip(last, now) for a, b in zip(leaves(x), leaves(y))):
            rows = self._advance(self._gap)
            nothing = np.zeros((len(rows), self._batch.num_envs), bool)
            self.timeline.append(rows, nothing, nothing)
            self._offer(priority)
            self._begins = True

    def _advance(self, num_steps: int) -> Rows:
        """Take back the starts whose rows, or the rows before them that they need, are about to go; then go on."""
        oldest = self.ring.newest + num_steps - self.ring.num_rows + 1 + self._lookback
        self.selector.remove(self.starts.remove_until(-(-oldest // self.extractor.stride)))
        return self.ring.advance(num_steps)

    def _append_states(self, rows: Rows, states: Tree) -> None:
        stride = self.extractor.stride
        num_states = self._batch.num_steps // stride
        num_recorded = len(leaves(states)[0]) - 1
        if num_recorded != num_states:
            raise ValueError(
                f"the agent's state is recorded every {self._batch.num_steps // num_recorded} rows, and items begin "
                f"every {stride}; set the sampler's state_interval={stride}"
            )
        start = rows.start // stride
        write(self.starts.ring, self._states, Rows(start, start + num_states), states[:-1])

    def _offer(self, priority: FirstPriority | None) -> None:
        """Make available the starts whose items are complete now."""
        stride, num_envs = self.extractor.stride, self._batch.num_envs
        stop = max(self.starts.stop, (self.ring.newest - self.extractor.reach) // stride + 1)
        rows = np.arange(self.starts.stop, stop)[:, None] * stride
        suits = self.extractor.suits(self.timeline, rows, np.arange(num_envs))
        given = None
        if priority is not None and self.selector.uses_priority and suits.any():
            given = self._first_priority(priority, rows, suits)
        self.selector.add(self.starts.extend(suits), given)

    def _first_priority(self, priority: FirstPriority, rows: np.ndarray, suits: np.ndarray) -> np.ndarray:
        which, envs = np.nonzero(suits)
        times = rows[which, 0] + np.arange(self.extractor.reach)[:, None]
        found = priority(lambda name: self._past.read(name, times, envs))
        if found.shape != envs.shape:
            raise ValueError(f"priority returned shape {found.shape} for {len(envs)} items; it must be {envs.shape}")
        given = np.zeros(suits.shape)
        given[suits] = found
        return given

    # ------------------------------------------------------------ out

    @property
    def num_starts(self) -> int:
        """How many items there are to draw from, those included that do not suit."""
        return (self.starts.stop - self.starts.first) * self._batch.num_envs

    def num_batches(self, num_items: int) -> int | None:
        """How many batches can be drawn now; None: any number."""
        if self.num_starts == 0:
            return 0
        return self.selector.num_waiting() // num_items if isinstance(self.selector, Fifo) else None

    def sample(self, num_items: int, progress: float = 0.0) -> tuple[Tree, Ticket]:
        """A batch on the learner's device, drawn with replacement; and what `update_priorities` wants.

        Raises:
            ValueError: there is nothing to draw from yet.
        """
        if self.num_starts == 0 or not self._is_allocated:
            raise ValueError("the replay is empty; collect more before learning (min_steps)")
        drawn = self.selector.draw(num_items, self._rng, progress)
        state = None
        if self._states is not None:
            state = gather(self._flat_states, self.starts.ring.flat(drawn.starts, drawn.envs))
        items = Items(drawn.starts * self.extractor.stride, drawn.envs, drawn.weight, state)
        batch = self.extractor.extract(self._past, items, self._rng)
        if self.storage.device != self._device:
            batch = to_device(batch, self._device)
        return batch, Ticket(drawn.starts, drawn.envs, drawn.largest_weight)

    def update_priorities(self, ticket: Ticket, priority: np.ndarray) -> None:
        """New priorities of the items of a batch, ``[N]``; those of items that are gone are dropped."""
        self.selector.update(ticket.starts, ticket.envs, priority)

    def close(self) -> None:
        """Give up the memory of rows, and their file.  May be called twice."""
        if getattr(self, "_is_allocated", False):
            self.storage.close()
            self._states = self._flat_states = None
            self._is_allocated = False

    # ------------------------------------------------------------ kept

    def state_dict(self) -> dict[str, Any]:
        """Everything, to go on as if nothing had happened."""
        rows = self._saved
        if self._is_allocated:
            rows = {"storage": self.storage.state_dict(), "states": copy_leaves(self._states)}
        return {
            "kind": self._kind,
            "rng": self._rng.bit_generator.state,
            "newest": self.ring.newest,
            "starts": self.starts.state_dict(),
            "selector": self.selector.state_dict(),
            "timeline": self.timeline.state_dict(),
            "rows": rows,
        }

    @property
    def _kind(self) -> dict[str, Any]:
        """What a saved replay must have in common with this one."""
        return {
            "rows": self.ring.num_rows,
            "num_envs": self.ring.num_envs,
            "rows between starts": self.extractor.stride,
            "rows of a sequence": self.extractor.reach if isinstance(self.extractor, Windows) else None,
            "storage": type(self.storage).__name__,
            "padding": getattr(self.storage, "padding", None),
            "selector": type(self.selector).__name__,
            "alpha": getattr(self.selector, "alpha", None),  # to whose power priorities are kept
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; to be called before the first slot is appended.

        Should the next slot not go on from the last row (environments that could not be restored), a gap is left.

        Raises:
            ValueError: it is the state of a replay of another size or kind.
        """
        own_kind = self._kind
        other = {name: value for name, value in state["kind"].items() if value != own_kind[name]}
        if other:
            own = {name: own_kind[name] for name in other}
            raise ValueError(
                f"the saved replay has {other}, this one {own}; resume with the same settings, or with "
                "save_replay=False, which leaves the saved one aside"
            )
        assert not self._is_allocated, "a replay is restored before its first slot"
        self._rng.bit_generator.state = state["rng"]
        self.ring.newest = state["newest"]
        self.starts.load_state_dict(state["starts"])
        self.selector.load_state_dict(state["selector"])
        self.timeline.load_state_dict(state["timeline"])
        self._saved = state["rows"]
        self._may_be_cut = state["rows"] is not None
        self._begins = not self._may_be_cut
