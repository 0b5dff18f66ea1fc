"""The slots that experience is collected into.

Torch-free: worker processes use it.  All samplers allocate here, so serial and parallel runs have one layout:
``[num_slots, T + 1, B, ...]``, in one shared block where there are worker processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rlsurreal.distributed.shared_arrays import allocate, plain
from rlsurreal.structs import AgentSamples, BatchSpec, EnvSamples, EnvStep, Samples, Spaces
from rlsurreal.utils.namedarraytuple import Tree, tree_map
from rlsurreal.utils.spaces import null_value


@dataclass(frozen=True)
class AgentExample:
    """One environment's worth of what an agent writes, as numpy: what a slot needs to know of the agent."""

    action: Tree
    agent_info: Tree
    agent_state: Tree
    uses_previous: bool


def allocate_slots(
    num_slots: int,
    batch: BatchSpec,
    spaces: Spaces,
    info_example: Tree,
    agent: AgentExample,
    *,
    state_interval: int,
    shared: bool,
) -> Samples:
    """Zeroed slots, fields ``[num_slots, T + 1, B]`` (``agent_state``: ``[num_slots, T / state_interval + 1, B]``)."""
    if batch.num_steps % state_interval:
        raise ValueError(
            f"state_interval={state_interval} does not divide the slot's num_steps={batch.num_steps}; choose a divisor"
        )
    flag, number = np.bool_(False), np.float32(0)
    previous = (null_value(spaces.action), number) if agent.uses_previous else (None, None)
    per_row = Samples(
        agent=AgentSamples(action=agent.action, prev_action=previous[0], agent_info=agent.agent_info, agent_state=None),
        env=EnvSamples(
            observation=null_value(spaces.observation),
            reward=number,
            prev_reward=previous[1],
            terminated=flag,
            truncated=flag,
            valid=flag,
            first=flag,
            env_info=info_example,
        ),
        policy_version=np.int64(0),
    )
    rows: Samples = allocate(per_row, (num_slots, batch.num_steps + 1, batch.num_envs), shared=shared)
    states = allocate(
        agent.agent_state, (num_slots, batch.num_steps // state_interval + 1, batch.num_envs), shared=shared
    )
    return rows._replace(agent=rows.agent._replace(agent_state=states))


class SlotViews:
    """Views of some columns of every slot, made once: building a view costs about as much as a small step."""

    def __init__(self, slots: Samples, columns: slice) -> None:
        slots = plain(slots)
        self.num_slots, num_rows = slots.env.reward.shape[:2]
        self.num_steps = num_rows - 1
        self.num_envs = columns.stop - columns.start
        self.slots: list[Samples] = [slots[s, :, columns] for s in range(self.num_slots)]
        self.steps: list[list[EnvStep]] = [
            [_env_step(slot.env, t) for t in range(self.num_steps)] for slot in self.slots
        ]
        self.actions: list[list[Any]] = [[slot.agent.action[t] for t in range(self.num_steps)] for slot in self.slots]


class FlatRows:
    """The rows of all slots one after the other, for columns that stand at different rows: one index finds them all."""

    def __init__(self, slots: Samples, columns: slice) -> None:
        slots = plain(slots)
        self._num_slots, num_rows, self.num_envs = slots.env.reward.shape
        self._num_steps, self._first_column = num_rows - 1, columns.start
        self.samples: Samples = tree_map(_flat, slots._replace(agent=slots.agent._replace(agent_state=None)))

    def index(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Where row ``rows[i]``, counted from the start, of ``columns[i]`` lies.

        The row after it in the same slot lies ``num_envs`` further, also after a slot's last step.
        """
        slot, t = np.divmod(rows, self._num_steps)
        row = slot % self._num_slots * (self._num_steps + 1) + t
        where: np.ndarray = row * self.num_envs + (columns + self._first_column)
        return where


def _flat(array: np.ndarray) -> np.ndarray:
    view: np.ndarray = array.view()
    view.shape = (-1, *array.shape[3:])  # it raises where a copy would be needed
    return view


def _env_step(env: EnvSamples, t: int) -> EnvStep:
    info = None if env.env_info is None else env.env_info[t]
    return EnvStep(
        env.observation[t + 1], env.reward[t], env.terminated[t], env.truncated[t], env.valid[t], env.first[t + 1], info
    )


def copy_rows(destination: Tree, to_row: int, source: Tree, from_row: int) -> None:
    """``destination[to_row] = source[from_row]``, leaf by leaf."""
    tree_map(lambda d, s: d.__setitem__(to_row, s[from_row]), destination, source)
