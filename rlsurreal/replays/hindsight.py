"""Learning from failures as if their outcome had been the goal.  An extractor of `replay.Replay`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from rlsurreal.replays.extractors import Items, NStep, Past, Transitions, steps_of_return, transitions
from rlsurreal.replays.storage import Row
from rlsurreal.utils.namedarraytuple import Tree, tree_map

ComputeReward = Callable[[np.ndarray, np.ndarray, Any], Any]  # (achieved_goal, desired_goal, info) -> reward


@dataclass(kw_only=True, eq=False)
class Hindsight(NStep):
    """Makes `Transitions`, many of them with another goal (Andrychowicz et al. 2017, arXiv 1707.01495, ``future``).

    Observations are Dicts with the entries ``observation``, ``achieved_goal`` and ``desired_goal``.  With
    ``probability`` a transition that begins at row t gets as its goal what was achieved by a random row at or after t
    of the same episode, and its rewards are computed anew.  ``terminated`` stays as recorded: reaching the goal must
    not end episodes (in Gymnasium-Robotics' mazes that is ``continuing_task=True``, elsewhere it is so).

    ``compute_reward`` is theirs: arrays ``[k, ...]`` of goals achieved and desired, and the recorded ``env_info`` (a
    structure of arrays ``[k]``), or None where the environment records none; rewards ``[k]``.
    """

    compute_reward: ComputeReward
    probability: float = 0.8  # the paper's four goals in hindsight to each original one

    uses_env_info = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.probability <= 1:
            raise ValueError(f"Hindsight.probability is {self.probability}; it must lie in [0, 1]")

    def initialize(self, example: Row, *, discount: float) -> None:
        """See `Extractor`.

        Raises:
            ValueError: observations have no goals.
        """
        super().initialize(example, discount=discount)
        fields = getattr(example.observation, "_fields", ())
        if not {"achieved_goal", "desired_goal"} <= set(fields):
            raise ValueError(
                f"Hindsight wants observations with achieved_goal and desired_goal, these have {fields or 'no parts'}; "
                "use a goal environment, or NStep"
            )

    def extract(self, past: Past, items: Items, rng: np.random.Generator) -> Transitions:
        """See `Extractor`.

        Raises:
            ValueError: ``compute_reward`` returns another number of rewards, or one that is not finite.
        """
        times = steps_of_return(past.timeline, items.rows, items.envs, self.num_steps)
        places = past.ring.flat(times, items.envs)
        reward: Tensor = past.storage.read("reward", places)
        changed = np.flatnonzero(rng.random(len(items.rows)) < self.probability)
        if not len(changed):
            return transitions(past, items, times, places, reward, self._discount)
        goal, new_reward = self._relabel(past, items.rows[changed], items.envs[changed], times[:, changed], rng)
        index = past.to_device(changed)
        reward[:, index] = new_reward
        batch = transitions(past, items, times, places, reward, self._discount)
        for observation in (batch.observation, batch.next_observation):
            observation.desired_goal[index] = goal
        return batch

    def _relabel(
        self, past: Past, rows: np.ndarray, envs: np.ndarray, times: np.ndarray, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Goals ``[k]``, and the rewards ``[n, k]`` that rows ``times`` get for them."""
        future = rows + rng.integers(past.timeline.rows_left(rows, envs) + 1)
        goal: Tensor = past.read("observation.achieved_goal", future + 1, envs)
        achieved: Tensor = past.read("observation.achieved_goal", times + 1, envs)
        desired = goal.expand_as(achieved)
        info: Tree = tree_map(_to_numpy, past.read("env_info", times, envs))
        reward = np.asarray(self.compute_reward(_to_numpy(achieved), _to_numpy(desired), info), np.float32)
        if reward.shape != (times.size,):
            raise ValueError(
                f"Hindsight.compute_reward returned shape {reward.shape} for {times.size} goals; it must return one "
                "reward for each"
            )
        if not np.isfinite(reward).all():
            raise ValueError(
                f"Hindsight.compute_reward returned {reward[~np.isfinite(reward)][0]} for one of {times.size} goals; "
                "rewards must be finite"
            )
        return goal, past.to_device(reward.reshape(times.shape))


def _to_numpy(tensor: Tensor) -> np.ndarray:
    """``[n, k, ...]`` as an array ``[n * k, ...]``."""
    return tensor.flatten(0, 1).cpu().numpy()
