"""Fake environments for tests of environments, samplers and whole experiments; users may build theirs on them too.

`CountingEnv` lets a test verify every row, `FailingEnv` fails in a chosen way at a chosen step, `NestedEnv` has nested
observations and actions, `RecallEnv` can be solved with memory only, `BitFlipEnv` with hindsight.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces as gs

_IDENTITIES = 2**20


def identity(seed: int) -> int:
    """How `CountingEnv` names itself when it has been reset with ``seed``: exact in float32."""
    return seed % _IDENTITIES


class CountingEnv(gym.Env[np.ndarray, Any]):
    """Observations say which environment, episode and step they belong to.

    They are float32 ``[4]``: ``identity(seed)``, the number of the game since the reset with this seed, the number of
    the step within the game, and the last action (its first component), all counted from 0; the last action is 0 after
    a reset.  The reward of a step is its number within the game, counted from 1; ``info["score"]`` is ten times that.

    Args:
        lengths: steps of the games, in turn; one number for all.
        end: "terminated", "truncated", or "alternate" (terminated first, then truncated, and so on).
        lives: each game is cut into this many episodes: after every ``length // lives`` steps a life is lost, that is
            ``terminated`` with ``info["game_over"]`` False.
        continuous: actions are a Box ``[-2, 2]`` of shape ``[2]``, otherwise Discrete(4).
    """

    info_fields: ClassVar[dict[str, Any]] = {"score": 0.0, "game_over": False}

    def __init__(
        self, lengths: int | Sequence[int] = 10, end: str = "terminated", lives: int = 1, continuous: bool = False
    ) -> None:
        if end not in ("terminated", "truncated", "alternate"):
            raise ValueError(f"CountingEnv: end is {end!r}; choose 'terminated', 'truncated' or 'alternate'")
        self.lengths = (lengths,) if isinstance(lengths, int) else tuple(lengths)
        self.end, self.lives = end, lives
        high = np.array([_IDENTITIES, np.inf, np.inf, np.inf], np.float32)
        self.observation_space = gs.Box(-high, high)
        self.action_space = gs.Box(-2, 2, (2,), np.float32) if continuous else gs.Discrete(4)
        self.identity = 0
        self.game, self.steps = -1, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start the next game."""
        super().reset(seed=seed)
        if seed is not None:
            self.identity, self.game = identity(seed), -1
        self.game += 1
        self.steps = 0
        return self._observation(0), {"score": 0.0, "game_over": False}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Count on; end as told."""
        length = self.lengths[self.game % len(self.lengths)]
        if self.game < 0 or self.steps >= length:
            raise RuntimeError("CountingEnv was stepped without a reset")
        self.steps += 1
        game_over = self.steps == length
        truncated = game_over and (self.end == "truncated" or (self.end == "alternate" and self.game % 2 == 1))
        life_lost = self.lives > 1 and self.steps % max(1, length // self.lives) == 0
        terminated = (game_over and not truncated) or (life_lost and not game_over)
        info = {"score": 10.0 * self.steps, "game_over": game_over}
        return self._observation(np.ravel(action)[0]), float(self.steps), terminated, truncated, info

    def _observation(self, action: Any) -> np.ndarray:
        return np.array([self.identity, self.game, self.steps, action], np.float32)


FAILURES = (
    "raise_in_reset",
    "raise_in_step",
    "wrong_shape",
    "wrong_dtype",
    "nan",
    "nan_reward",
    "old_api",
    "block",
    "die",
)


class FailingEnv(CountingEnv):
    """A `CountingEnv` that fails, once, in one way.

    Args:
        mode: one of `FAILURES`.  "old_api" returns four values, "block" sleeps, "die" kills its own process.
        at: the step, counted over the environment's life from 1, that fails ("raise_in_reset": the reset).
        only_seed: only the environment whose last reset with a seed had this one fails; None: every one.
        block_seconds: how long "block" sleeps.
        **counting: settings of `CountingEnv`.
    """

    def __init__(
        self, mode: str, at: int = 1, only_seed: int | None = None, block_seconds: float = 3600.0, **counting: Any
    ) -> None:
        if mode not in FAILURES:
            raise ValueError(f"FailingEnv: mode is {mode!r}; choose from {FAILURES}")
        super().__init__(**counting)
        self.mode, self.at, self.only_seed, self.block_seconds = mode, at, only_seed, block_seconds
        self.fails = only_seed is None
        self.num_resets, self.num_steps = 0, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start the next game, or fail."""
        if seed is not None and self.only_seed is not None:
            self.fails = seed == self.only_seed
        self.num_resets += 1
        if self.fails and self.mode == "raise_in_reset" and self.num_resets == self.at:
            raise RuntimeError("FailingEnv fails in reset, as it was told to")
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        """Step, or fail."""
        self.num_steps += 1
        result = super().step(action)
        if not self.fails or self.num_steps != self.at:
            return result
        observation, reward, *rest = result
        if self.mode == "raise_in_step":
            raise RuntimeError("FailingEnv fails in step, as it was told to")
        if self.mode == "block":
            time.sleep(self.block_seconds)
        if self.mode == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.mode == "old_api":
            return observation, reward, rest[0] or rest[1], rest[2]
        if self.mode == "nan_reward":
            return observation, float("nan"), *rest
        if self.mode in ("wrong_shape", "wrong_dtype", "nan"):
            bad = {"wrong_shape": observation[:-1], "wrong_dtype": observation.astype(str), "nan": observation * np.nan}
            return bad[self.mode], reward, *rest
        return result


class NestedEnv(gym.Env[dict[str, Any], dict[str, Any]]):
    """Nested observations and actions of every supported kind.

    The observation repeats the last action (``move`` as the environment gets it, ``button`` counted from its start)
    beside a counter and a noisy image, so that a test sees whether each part arrives where it should.

    Args:
        length: steps of an episode, then ``terminated``.
    """

    def __init__(self, length: int = 10) -> None:
        self.length, self.steps = length, 0
        # Keyword arguments keep their order; the keys of a dictionary would be sorted.
        self.action_space = gs.Dict(
            move=gs.Box(np.array([-2, 0], np.float32), np.array([2, 10], np.float32)),
            button=gs.Discrete(3, start=1),
            switches=gs.MultiDiscrete([2, 5]),
        )
        self.observation_space = gs.Dict(
            image=gs.Box(0, 255, (1, 4, 4), np.uint8),
            past=gs.Tuple([gs.Box(-np.inf, np.inf, (2,), np.float64), gs.Discrete(3, start=1)]),
            switches=gs.MultiDiscrete([2, 5]),
            bits=gs.MultiBinary(3),  # the counter in binary
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode."""
        super().reset(seed=seed)
        self.steps = 0
        return self._observation(np.zeros(2), 1, np.zeros(2, np.int64)), {}

    def step(self, action: dict[str, Any]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Repeat the action in the observation."""
        self.steps += 1
        observation = self._observation(
            np.asarray(action["move"], np.float64), int(action["button"]), action["switches"]
        )
        return observation, float(action["button"]), self.steps == self.length, False, {}

    def _observation(self, move: np.ndarray, button: int, switches: np.ndarray) -> dict[str, Any]:
        return {
            "image": self.np_random.integers(0, 256, (1, 4, 4), np.uint8),
            "past": (move, button),
            "switches": np.asarray(switches, np.int64),
            "bits": (self.steps >> np.arange(3) & 1).astype(np.int8),
        }


class RecallEnv(gym.Env[np.ndarray, Any]):
    """A cue is shown in the first observation only, and must be named ``delay`` steps later: reward 1 if right, else 0.

    Observations are float32 ``[num_cues + 1]``: the cue as one-hot (zeros after the first), and 1 when it is asked
    for.  The episode ends with the answer, ``terminated``.  Without memory the mean return is 1 / ``num_cues``.
    """

    def __init__(self, num_cues: int = 2, delay: int = 5) -> None:
        if num_cues < 2 or delay < 1:
            raise ValueError(
                f"RecallEnv: num_cues is {num_cues}, delay is {delay}; at least 2 cues and 1 step are needed"
            )
        self.num_cues, self.delay = num_cues, delay
        self.observation_space = gs.Box(0, 1, (num_cues + 1,), np.float32)
        self.action_space = gs.Discrete(num_cues)
        self.cue, self.steps = 0, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Draw a cue."""
        super().reset(seed=seed)
        self.cue, self.steps = int(self.np_random.integers(self.num_cues)), 0
        return self._observation(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Judge the action where the cue is asked for."""
        asked = self.steps == self.delay
        self.steps += 1
        return self._observation(), float(asked and action == self.cue), asked, False, {}

    def _observation(self) -> np.ndarray:
        observation = np.zeros(self.num_cues + 1, np.float32)
        if self.steps == 0:
            observation[self.cue] = 1
        observation[-1] = self.steps == self.delay
        return observation


class BitFlipEnv(gym.Env[Any, Any]):
    """Bits to be brought into a given state, one flip a step (Andrychowicz et al. 2017, arXiv 1707.01495, section 3.1).

    Observations are Dicts of int8 bits ``[num_bits]``: ``observation`` and ``achieved_goal``, the present state, and
    ``desired_goal``.  Action i flips bit i, the last one none.  The reward is 0 where the state is as desired, else -1;
    games are truncated after ``num_bits`` steps.  By chance the goal is next to never met: 1 in ``2 ** num_bits``.
    """

    def __init__(self, num_bits: int = 15) -> None:
        if num_bits < 1:
            raise ValueError(f"BitFlipEnv: num_bits is {num_bits}; it must be at least 1")
        self.num_bits = num_bits
        names = ("observation", "achieved_goal", "desired_goal")
        self.observation_space = gs.Dict({name: gs.MultiBinary(num_bits) for name in names})
        self.action_space = gs.Discrete(num_bits + 1)
        self._bits = self._goal = np.zeros(num_bits, np.int8)
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Draw a state and a goal."""
        super().reset(seed=seed)
        self._bits, self._goal = self.np_random.integers(0, 2, (2, self.num_bits), np.int8)
        self._steps = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Flip a bit, or none."""
        if action < self.num_bits:
            self._bits[action] ^= 1
        self._steps += 1
        reward = float(self.compute_reward(self._bits, self._goal, None))
        return self._observation(), reward, False, self._steps == self.num_bits, {}

    def _observation(self) -> dict[str, np.ndarray]:
        bits = self._bits.copy()
        return {"observation": bits, "achieved_goal": bits, "desired_goal": self._goal.copy()}

    @staticmethod
    def compute_reward(achieved_goal: np.ndarray, desired_goal: np.ndarray, info: Any) -> np.ndarray:
        """0 where the goals ``[..., num_bits]`` agree, else -1."""
        reward: np.ndarray = (achieved_goal == desired_goal).all(-1) - np.float32(1)
        return reward


def make_still_pendulum() -> gym.Env[Any, Any]:
    """Pendulum-v1 that shows where it is, as cosine and sine, and not how fast it turns."""
    env = gym.make("Pendulum-v1")
    seen = gs.Box(-1, 1, (2,), np.float32)
    return gym.wrappers.TransformObservation(env, _without_speed, seen)


def _without_speed(observation: np.ndarray) -> np.ndarray:
    return observation[:2]
