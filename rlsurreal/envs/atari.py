"""Atari games one at a time, in Python: `make_atari` is the factory for `GymnasiumEnv`.

It is for states that can be saved, for rendering, and as the plain reference for the native batches (`AleEnv`,
`EnvPoolEnv`), which are faster.  The emulator is driven directly: Gymnasium's ``AtariPreprocessing`` shows the frame
of some steps before as the final observation, and does not tell a lost life from the end of the game.
"""

from __future__ import annotations

import difflib
import re
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from rlsurreal.envs.base import import_optional
from rlsurreal.envs.state import get_ale_state, set_ale_state

FRAMES_PER_GAME = 108_000
"""30 minutes at 60 frames a second, where evaluations cut games off (Machado et al. 2018)."""


_FRAMES_PER_SECOND = 60  # of the console


def rom_name(game: str) -> str:
    """The name of a game's file: "pong" from "pong", "Pong", "Pong-v5" or "ALE/Pong-v5".

    Raises:
        ValueError: there is no such game; the message names the near ones.
    """
    import_optional("ale_py", "atari")
    from ale_py import roms

    base = re.sub(r"(NoFrameskip)?-v\d+$", "", game.removeprefix("ALE/"))
    known = roms.get_all_rom_ids()
    plain = {rom.replace("_", ""): rom for rom in known}  # Gymnasium's names have capitals: UpNDown, TicTacToe3D
    name = plain.get(base.replace("_", "").lower(), base.lower())
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        raise ValueError(
            f"game is {game!r}, which is no Atari game; did you mean {' or '.join(map(repr, near)) or repr('pong')}?"
        )
    return name


def make_atari(game: str, **settings: Any) -> AtariGame:
    """One Atari game; ``settings`` are those of `AtariGame`."""
    return AtariGame(game, **settings)


class AtariGame(gym.Env[np.ndarray, Any]):
    """An Atari 2600 game with the preprocessing of Mnih et al. (2015), sticky actions after Machado et al. (2018).

    Observations are uint8 ``[frame_stack, size, size]``, or ``[3 * frame_stack, size, size]`` in colour: the maximum
    of the last two frames, resized.  Frames before the start of the game are zeros; a lost life does not clear them.

    ``info["score"]`` is the reward of the step before clipping, ``info["game_over"]`` tells the end of the game (or its
    cut-off) from a lost life, after which the game goes on: step again, without a reset.

    Args:
        game: such as "pong" or "ALE/Pong-v5".
        frame_skip: frames an action lasts.
        sticky: probability that a frame repeats the action of the frame before (Machado et al.: 0.25).
        noop_max: each game starts with 1 to ``noop_max`` frames without action; 0: none.
        fire_reset: start each game with the fire button where the game has one.
        episodic_life: a lost life is ``terminated``.
        clip_reward: clip rewards to [-1, 1].
        frame_stack: frames in an observation.
        size: height and width of a frame, pixels.
        grayscale: one channel, not three.
        full_action_space: all 18 actions, not only those the game knows.
        max_frames: frames until a game is ``truncated``.
        render_mode: "rgb_array" for `render`.

    Raises:
        ValueError: a setting is out of its range, or there is no such game.
        ImportError: ale-py or OpenCV is not installed.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 15}
    info_fields: ClassVar[dict[str, Any]] = {"score": 0.0, "game_over": False}

    def __init__(
        self,
        game: str,
        *,
        frame_skip: int = 4,
        sticky: float = 0.0,
        noop_max: int = 30,
        fire_reset: bool = True,
        episodic_life: bool = True,
        clip_reward: bool = True,
        frame_stack: int = 4,
        size: int = 84,
        grayscale: bool = True,
        full_action_space: bool = False,
        max_frames: int = FRAMES_PER_GAME,
        render_mode: str | None = None,
    ) -> None:
        check_atari_settings(
            "make_atari",
            frame_skip=frame_skip,
            sticky=sticky,
            noop_max=noop_max,
            frame_stack=frame_stack,
            size=size,
            max_frames=max_frames,
        )
        ale_py = import_optional("ale_py", "atari")
        self._cv2 = import_optional("cv2", "atari")
        self.game, self.render_mode = rom_name(game), render_mode
        self.metadata = {**self.metadata, "render_fps": max(1, round(_FRAMES_PER_SECOND / frame_skip))}
        self._frame_skip, self._noop_max = frame_skip, noop_max
        self._episodic_life, self._clip_reward, self._grayscale = episodic_life, clip_reward, grayscale
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self._ale = ale_py.ALEInterface()
        self._ale.setFloat("repeat_action_probability", sticky)
        self._ale.setInt("max_num_frames_per_episode", max_frames)
        self._load(seed=0)
        self._actions = self._ale.getLegalActionSet() if full_action_space else self._ale.getMinimalActionSet()
        self._fire = ale_py.Action.FIRE if fire_reset and ale_py.Action.FIRE in self._actions else None
        self._noop = ale_py.Action.NOOP

        height, width = self._ale.getScreenDims()
        screen = (height, width) if grayscale else (height, width, 3)
        self._newest, self._before = np.zeros(screen, np.uint8), np.zeros(screen, np.uint8)
        self._grab = self._ale.getScreenGrayscale if grayscale else self._ale.getScreenRGB
        channels = 1 if grayscale else 3
        self._stack = np.zeros((frame_stack * channels, size, size), np.uint8)
        self._channels, self._size = channels, size
        self._lives = 0
        self.observation_space = gym.spaces.Box(0, 255, self._stack.shape, np.uint8)
        self.action_space = gym.spaces.Discrete(len(self._actions))

    def _load(self, seed: int) -> None:
        from ale_py import roms

        self._ale.setInt("random_seed", seed)
        self._ale.loadROM(roms.get_rom_path(self.game))  # takes the seed

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start a new game."""
        super().reset(seed=seed)
        if seed is not None:
            self._load(int(self.np_random.integers(2**31)))
        self._ale.reset_game()
        if self._noop_max:
            for _ in range(int(self.np_random.integers(1, self._noop_max + 1))):
                self._start_with(self._noop)
        if self._fire is not None:
            self._start_with(self._fire)
        self._lives = self._ale.lives()
        self._stack[:] = 0
        self._grab(self._newest)
        self._push_newest()
        return self._stack.copy(), {"score": 0.0, "game_over": False, "lives": self._lives}

    def _start_with(self, action: Any) -> None:
        self._ale.act(action)
        if self._ale.game_over():
            self._ale.reset_game()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Hold ``action`` for ``frame_skip`` frames, or until the game is over."""
        ale, ale_action, score, has_two = self._ale, self._actions[action], 0, False
        for frames_left in range(self._frame_skip - 1, -1, -1):
            score += ale.act(ale_action)
            if ale.game_over():
                break
            if frames_left == 1:
                self._grab(self._before)
                has_two = True
        self._grab(self._newest)
        if has_two:
            np.maximum(self._newest, self._before, out=self._newest)
        self._push_newest()

        lives = ale.lives()
        life_lost = self._episodic_life and 0 < lives < self._lives
        self._lives = lives
        terminated = life_lost or ale.game_over(with_truncation=False)
        reward = float(np.sign(score)) if self._clip_reward else float(score)
        info = {"score": float(score), "game_over": ale.game_over(), "lives": lives}
        return self._stack.copy(), reward, terminated, ale.game_truncated(), info

    def _push_newest(self) -> None:
        frame = self._cv2.resize(self._newest, (self._size, self._size), interpolation=self._cv2.INTER_AREA)
        self._stack[: -self._channels] = self._stack[self._channels :]
        self._stack[-self._channels :] = frame if self._grayscale else np.moveaxis(frame, -1, 0)

    def render(self) -> Any:
        """The game's own screen, uint8 ``[210, 160, 3]``."""
        return self._ale.getScreenRGB()

    def get_state(self) -> dict[str, Any]:
        """The emulator with its random numbers, the frames of the observation, and the random numbers of resets."""
        return {
            "emulator": get_ale_state(self._ale),
            "stack": self._stack.copy(),
            "lives": self._lives,
            "np_random": self.np_random.bit_generator.state,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from a state of `get_state`."""
        set_ale_state(self._ale, state["emulator"])
        self._stack[:] = state["stack"]
        self._lives = state["lives"]
        self.np_random.bit_generator.state = state["np_random"]


def check_atari_settings(where: str, **settings: float) -> None:
    """Raise ValueError where a setting of an Atari environment is out of its range."""
    least = {"frame_skip": 1, "sticky": 0, "noop_max": 0, "frame_stack": 1, "size": 1, "max_frames": 1}
    for name, value in settings.items():
        if value < least[name] or (name == "sticky" and value > 1):
            bound = "between 0 and 1" if name == "sticky" else f"at least {least[name]}"
            raise ValueError(f"{where}: {name} is {value}; it must be {bound}")
