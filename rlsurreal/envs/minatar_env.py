"""MinAtar: five Atari games on a grid of 10 x 10 (Young and Tian 2019, arXiv 1903.03176).

    GymnasiumEnv(factory=make_minatar, kwargs={"game": "breakout"})

Needs the extra ``minatar``.  Sticky actions and rising difficulty are on, as in the published results.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces as gs

from rlsurreal.envs.base import import_optional

GAMES = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")


class MinAtarEnv(gym.Env[np.ndarray, Any]):
    """One game.  Observations are uint8 ``[C, 10, 10]``, 0 or 255: a plane for each kind of thing.

    Args:
        game: one of `GAMES`.
        sticky_action_prob: how often the last action is repeated instead.
        difficulty_ramping: get harder in the course of a game.
        minimal_actions: offer the actions that do something in this game only, not all six.
        max_episode_steps: then a game is truncated.

    Raises:
        ValueError: the game is not known.
    """

    def __init__(
        self,
        game: str,
        *,
        sticky_action_prob: float = 0.1,
        difficulty_ramping: bool = True,
        minimal_actions: bool = False,
        max_episode_steps: int = 5_000,
    ) -> None:
        if game not in GAMES:
            raise ValueError(f"game is {game!r}; choose one of {', '.join(GAMES)}")
        module = import_optional("minatar.environment", "minatar")
        self._game = module.Environment(
            game, sticky_action_prob=sticky_action_prob, difficulty_ramping=difficulty_ramping
        )
        height, width, channels = self._game.state_shape()
        self.observation_space = gs.Box(0, 255, (channels, height, width), np.uint8)
        self._actions = self._game.minimal_action_set() if minimal_actions else range(self._game.num_actions())
        self.action_space = gs.Discrete(len(self._actions))
        self._max_episode_steps, self._steps = max_episode_steps, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start a game."""
        super().reset(seed=seed)
        if seed is not None:
            self._game.seed(seed)
            self._game.last_action = 0  # which a sticky action would repeat
        self._game.reset()
        self._steps = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One frame."""
        reward, terminated = self._game.act(self._actions[int(action)])
        self._steps += 1
        return self._observation(), float(reward), bool(terminated), self._steps >= self._max_episode_steps, {}

    def _observation(self) -> np.ndarray:
        planes: np.ndarray = np.moveaxis(self._game.state(), -1, 0).astype(np.uint8) * np.uint8(255)
        return planes


def make_minatar(game: str, **settings: Any) -> gym.Env:
    """A MinAtar game; ``settings``: see `MinAtarEnv`."""
    return MinAtarEnv(game, **settings)
