"""Atari games as a native batch of ale-py, for speed; `make_atari` is the same games one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rlsurreal.envs.atari import FRAMES_PER_GAME, check_atari_settings, rom_name
from rlsurreal.envs.base import agent_spaces, env_seed, import_optional, info_example
from rlsurreal.envs.native import ActionConverter, AsyncResults, NativeVectorEnv
from rlsurreal.utils.affinity import count_cpus
from rlsurreal.utils.namedarraytuple import Tree


@dataclass(kw_only=True, eq=False)
class AleEnv:
    """A recipe for a batch of Atari games in ale-py's vector environment (an `EnvSpec`).

    Observations are uint8 ``[frame_stack, size, size]``; the fields of ``env_info`` are ``score``, the reward before
    clipping, and ``game_over``.  The settings are those of `rlsurreal.envs.atari.AtariGame`; the engine draws 0 to
    ``noop_max - 1`` frames without action, and shows in the last observation of a game what came before the frame that
    ended it.
    """

    game: str
    frame_skip: int = 4
    sticky: float = 0.0
    noop_max: int = 30
    fire_reset: bool = True
    episodic_life: bool = True
    clip_reward: bool = True
    frame_stack: int = 4
    size: int = 84
    full_action_space: bool = False
    max_frames: int = FRAMES_PER_GAME
    num_threads: int = 0
    """Threads of the engine; 0: as many as this process may use CPU cores."""

    def __post_init__(self) -> None:
        check_atari_settings(
            "AleEnv",
            frame_skip=self.frame_skip,
            sticky=self.sticky,
            noop_max=self.noop_max,
            frame_stack=self.frame_stack,
            size=self.size,
            max_frames=self.max_frames,
        )

    def make(self, num_envs: int, first_env: int, seed: int) -> NativeVectorEnv:
        """Build the engine for lock step.

        Raises:
            ValueError: there is no such game.
            ImportError: ale-py is not installed.
        """
        return NativeVectorEnv(self.make_async(num_envs, first_env, seed, batch_size=num_envs))

    def make_async(self, num_envs: int, first_env: int, seed: int, batch_size: int) -> AleEngine:
        """Build the engine to be driven by ``send`` and ``recv``, ``batch_size`` environments at a time."""
        return AleEngine(self, num_envs, first_env, seed, batch_size)

    def preload_modules(self) -> tuple[str, ...]:
        """ale-py."""
        return ("ale_py.vector_env",)


class AleEngine:
    """ale-py's ``AtariVectorEnv`` (an `AsyncVectorEnv`)."""

    def __init__(self, spec: AleEnv, num_envs: int, first_env: int, seed: int, batch_size: int) -> None:
        if not 1 <= batch_size <= num_envs:
            raise ValueError(f"batch_size is {batch_size}; it must lie between 1 and num_envs={num_envs}")
        vector_env = import_optional("ale_py.vector_env", "atari")
        # Its own episodic_life restarts the game after each life; life_loss_info lets it go on.  Rewards are clipped
        # here, so that the score is known.
        self._engine: Any = vector_env.AtariVectorEnv(
            rom_name(spec.game),
            num_envs,
            batch_size=batch_size,
            num_threads=spec.num_threads or count_cpus(),
            max_num_frames_per_episode=spec.max_frames,
            repeat_action_probability=spec.sticky,
            full_action_space=spec.full_action_space,
            img_height=spec.size,
            img_width=spec.size,
            stack_num=spec.frame_stack,
            frameskip=spec.frame_skip,
            maxpool=spec.frame_skip > 1,
            noop_max=spec.noop_max,
            life_loss_info=spec.episodic_life,
            reward_clipping=False,
            use_fire_reset=spec.fire_reset,
        )
        self.num_envs, self.batch_size = num_envs, batch_size
        self.spaces = agent_spaces(self._engine.single_observation_space, self._engine.single_action_space)
        self.info_example: Tree = info_example({"score": 0.0, "game_over": False})
        self._info_type = type(self.info_example)
        self._to_env_action = ActionConverter(self._engine.single_action_space)
        self._clip_reward, self._frame_skip, self._max_frames = spec.clip_reward, spec.frame_skip, spec.max_frames
        self._seeds: np.ndarray | None = np.array([env_seed(seed, first_env + i) for i in range(num_envs)])
        self._pending: tuple[Any, Any] | None = None  # the engine's reset() receives as well
        self._waiting = np.arange(0)  # whom the engine will take the next actions to be for
        self._ended = np.ones(num_envs, bool)
        self._lives = np.zeros(num_envs, np.int64)
        self._frames = np.zeros(num_envs, np.int64)

    def start(self) -> None:
        """Reset all environments (see `AsyncVectorEnv`)."""
        if self._seeds is None and self.batch_size < self.num_envs:
            raise ValueError(
                f"batch_size {self.batch_size} is less than num_envs {self.num_envs}, so steps may be under way "
                "and the engine can be started only once; make a new one"
            )
        self._pending = self._engine.reset(seed=self._seeds)
        self._seeds = None
        self._ended[:] = True

    def send(self, action: Tree, env_ids: np.ndarray) -> None:
        """Begin a step of the environments of the last `recv`.

        Raises:
            ValueError: ``env_ids`` are others, or an action is out of range.
        """
        if not np.array_equal(env_ids, self._waiting):
            raise ValueError(
                f"env_ids are {env_ids}, but ALE takes the actions to be for those of the last recv, "
                f"{self._waiting}; send to those, or use EnvPoolEnv"
            )
        self._engine.send(np.asarray(self._to_env_action(action), np.int64))

    def recv(self) -> AsyncResults:
        """Wait for the next ``batch_size`` environments."""
        if self._pending is not None:
            (observation, info), self._pending = self._pending, None
            score = np.zeros(self.batch_size, np.float32)
            terminated, truncated = np.zeros(self.batch_size, bool), np.zeros(self.batch_size, bool)
        else:
            observation, score, terminated, truncated, info = self._engine.recv()
        env_ids, lives = info["env_id"].astype(np.int64), info["lives"]
        self._waiting = env_ids
        was_reset = self._ended[env_ids]
        frames = np.where(was_reset, 0, self._frames[env_ids] + self._frame_skip)
        # Not "no lives left": some games have none or go on without, others keep one at the end.
        life_lost = terminated & (lives > 0) & (lives < self._lives[env_ids])
        # A life lost in the step that reaches the limit is reported as terminated alone, and yet the game starts anew.
        game_over = (terminated & ~life_lost) | truncated | (frames >= self._max_frames)
        self._lives[env_ids], self._frames[env_ids], self._ended[env_ids] = lives, frames, game_over
        score = score.astype(np.float32)
        return AsyncResults(
            env_ids=env_ids,
            observation=observation,
            reward=np.sign(score) if self._clip_reward else score,
            terminated=terminated,
            truncated=truncated,
            was_reset=was_reset,
            first=was_reset | (life_lost & ~game_over),
            env_info=self._info_type(score, game_over),
        )

    def close(self) -> None:
        """Stop the engine's threads.  May be called twice."""
        self._engine = None
