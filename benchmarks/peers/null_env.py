"""An environment that does nothing, of the size of HalfCheetah: what is left to measure is the framework's own work."""

from typing import Any

import gymnasium as gym
import numpy as np

ID = "Null"


class NullEnv(gym.Env[np.ndarray, np.ndarray]):
    """Observations ``[17]`` and actions ``[6]``; episodes of 1,000 steps."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (17,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (6,), np.float32)
        self._observation = np.zeros(17, np.float32)
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Count from zero."""
        self._steps = 0
        return self._observation, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Count."""
        self._steps += 1
        return self._observation, 0.0, False, self._steps == 1000, {}
