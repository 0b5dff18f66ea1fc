"""Native batches of environments: engines in C++ with threads of their own, in lock step or asynchronous.

`AleEnv` and `EnvPoolEnv` make an `AsyncVectorEnv` (send actions to some environments, receive whoever is ready).
Asynchronous collectors drive that itself; `NativeVectorEnv` turns one whose batch is all its environments into the
`VectorEnv` that every other collector drives.

    collector --action, env_ids--> send --> the engine's threads --> recv --AsyncResults--> collector
    start: every environment begins with a reset.          recv waits for `batch_size` environments.
"""

from __future__ import annotations

from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from rlsurreal.envs.base import EnvError, float_leaves
from rlsurreal.structs import EnvStep, Spaces
from rlsurreal.utils.namedarraytuple import NamedArrayTuple, Tree
from rlsurreal.utils.spaces import children, to_env_array


class AsyncResults(NamedArrayTuple):
    """What ``M`` environments did, each for the last action sent to it.  The arrays are the receiver's to keep."""

    env_ids: Any  # int64 [M], within this batch
    observation: Tree  # [M]: what the step led to
    reward: Any  # float32 [M]
    terminated: Any  # bool [M]
    truncated: Any  # bool [M]
    was_reset: Any  # bool [M]: this was a reset row: the action was ignored, the row is not valid
    first: Any  # bool [M]: the observation begins an episode (after a reset, or a lost life where the game goes on)
    env_info: Tree  # [M], or None


class AsyncVectorEnv(Protocol):
    """Environments that answer when they are ready."""

    num_envs: int
    batch_size: int  # environments in each answer
    spaces: Spaces
    info_example: Tree

    def start(self) -> None:
        """Reset all environments: the first result of each is a reset row.

        Raises:
            ValueError: called again where ``batch_size < num_envs``: steps under way cannot be called back.
        """

    def send(self, action: Tree, env_ids: np.ndarray) -> None:
        """Begin a step of ``env_ids`` ``[M]`` with ``action`` ``[M]``, without waiting.

        EnvPool takes any environments that wait for an action; ALE wants those of the last `recv`, in that order.
        """

    def recv(self) -> AsyncResults:
        """Wait for the next ``batch_size`` environments.  It waits for ever if fewer are under way."""

    def close(self) -> None:
        """Stop the engine's threads.  May be called twice."""


class NativeVectorEnv:
    """An engine in lock step (a `VectorEnv`)."""

    can_skip = False
    position: np.ndarray | None = None  # not kept: the engine steps all of them at once

    def __init__(self, engine: AsyncVectorEnv) -> None:
        if engine.batch_size != engine.num_envs:
            raise ValueError(
                f"batch_size is {engine.batch_size}, lock step needs all {engine.num_envs} environments; use the "
                "engine itself for smaller batches"
            )
        self.engine = engine
        self.num_envs = engine.num_envs
        self.spaces, self.info_example = engine.spaces, engine.info_example
        self._all = np.arange(engine.num_envs)

    def reset(self, observation: Tree) -> None:
        """Start new episodes everywhere and write their first observations ``[B]``."""
        self.engine.start()
        observation[...] = self.engine.recv().observation

    def step(self, action: Tree, out: EnvStep, skip: np.ndarray | None = None) -> None:
        """Apply ``action`` ``[B]`` and write one row (see `VectorEnv.step`).

        Raises:
            ValueError: ``skip`` is given.
            EnvError: an observation or reward is not finite.
        """
        if skip is not None:
            raise ValueError(
                "skip is given, but environments of a native batch cannot wait for the others; collect with reset "
                "in mid-batch (mid_batch_reset=True), or use GymnasiumEnv"
            )
        self.engine.send(action, self._all)
        results = self.engine.recv()
        out.observation[...] = results.observation
        out.reward[...] = results.reward
        out.terminated[...] = results.terminated
        out.truncated[...] = results.truncated
        np.logical_not(results.was_reset, out=out.valid)
        out.first[...] = results.first
        if out.env_info is not None:
            out.env_info[...] = results.env_info

    def close(self) -> None:
        """Stop the engine's threads.  May be called twice."""
        self.engine.close()


def check_finite(name: str, first_env: int, results: AsyncResults) -> None:
    """Raise `EnvError` naming the environment where an observation or reward is NaN or infinite."""
    for what, array in [
        ("reward", results.reward),
        *(("observation", leaf) for leaf in float_leaves(results.observation)),
    ]:
        if not np.isfinite(array).all():
            bad = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
            env = first_env + int(results.env_ids[np.flatnonzero(bad)[0]])
            raise EnvError(f"environment {env} ({name}) returned from step {what} that is not finite (NaN or infinity)")


class ActionConverter:
    """From a batch of the agent's actions to what an engine takes: an array, or a dictionary of arrays.

    Engines do not check actions; one out of range stops the whole engine or reads foreign memory.
    """

    def __init__(self, space: gym.Space) -> None:
        parts = children(space)
        self._parts = None if parts is None else [(key, ActionConverter(child)) for key, child in parts.values()]
        if parts is None:
            self._to_array = to_env_array(space)
            self._count = int(space.n) if isinstance(space, gym.spaces.Discrete) else None

    def __call__(self, action: Tree) -> Any:
        """Convert.

        Raises:
            ValueError: a discrete action is not one of the space.
        """
        if self._parts is not None:
            return {key: convert(part) for (key, convert), part in zip(self._parts, action)}
        if self._count is not None and (action.min() < 0 or action.max() >= self._count):
            raise ValueError(
                f"actions are {action.min()} to {action.max()}, the environments have 0 to {self._count - 1}"
            )
        return self._to_array(action)
