"""Wrappers around Gymnasium environments that users put into their factories."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces as gs


class ChannelsFirst(gym.ObservationWrapper):
    """Images ``[H, W, C]`` as ``[C, H, W]``, which models take: the observation, or entries of a Dict or Tuple.

    An image is what has three dimensions, the last of at most four.
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.observation_space = _moved_space(env.observation_space)

    def observation(self, observation: Any) -> Any:
        """The observation with its images' channels first."""
        return _moved(self.env.observation_space, observation)


def _moved_space(space: gym.Space) -> gym.Space:
    if isinstance(space, gs.Dict):
        return gs.Dict([(key, _moved_space(child)) for key, child in space.spaces.items()])
    if isinstance(space, gs.Tuple):
        return gs.Tuple(_moved_space(child) for child in space.spaces)
    if not is_channels_last(space):
        return space
    assert isinstance(space, gs.Box)
    return gs.Box(np.moveaxis(space.low, -1, 0), np.moveaxis(space.high, -1, 0), dtype=space.dtype)


def _moved(space: gym.Space, observation: Any) -> Any:
    if isinstance(space, gs.Dict):
        return {key: _moved(child, observation[key]) for key, child in space.spaces.items()}
    if isinstance(space, gs.Tuple):
        return tuple(_moved(child, part) for child, part in zip(space.spaces, observation))
    return np.ascontiguousarray(np.moveaxis(observation, -1, 0)) if is_channels_last(space) else observation


def is_channels_last(space: gym.Space) -> bool:
    """Whether it looks like images ``[H, W, C]``."""
    shape = space.shape if isinstance(space, gs.Box) else ()
    return len(shape) == 3 and shape[2] <= 4 < min(shape[:2])
