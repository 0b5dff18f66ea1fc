"""EnvPool: native batches of Atari, MuJoCo, dm_control, classic control, Procgen and more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces as gs

from rlsurreal.envs.base import agent_spaces, env_seed, import_optional
from rlsurreal.envs.native import ActionConverter, AsyncResults, NativeVectorEnv, check_finite
from rlsurreal.utils.affinity import count_cpus
from rlsurreal.utils.namedarraytuple import Tree, namedarraytuple
from rlsurreal.utils.spaces import children, field_name, leaf_dtype

_OWN_SETTINGS = ("num_envs", "batch_size", "num_threads", "seed", "env_seed")


@dataclass(kw_only=True, eq=False)
class EnvPoolEnv:
    """A recipe for a batch of EnvPool's environments (an `EnvSpec`).

    For Atari the fields of ``env_info`` are ``score``, the reward before clipping, and ``game_over``.  Two things
    differ from `AleEnv`: with ``episodic_life`` a reset row follows each life, in which the game goes on for a random
    number of frames without action; and frames before the start repeat the first frame (as in `AleEnv`, the last
    observation of a game may miss the frame that ended it).  An episode that ends by itself in the very step that
    reaches its limit counts as truncated, for EnvPool does not tell (Atari excepted).
    """

    task_id: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Settings by EnvPool's names, such as ``{"episodic_life": True, "reward_clip": True}``."""
    info_fields: tuple[str, ...] = ()
    """More entries of EnvPool's info to record, by name."""
    num_threads: int = 0
    """Threads of the engine; 0: as many as this process may use CPU cores, and no more than environments."""

    def __post_init__(self) -> None:
        for name in _OWN_SETTINGS:
            if name in self.kwargs:
                raise ValueError(
                    f"EnvPoolEnv.kwargs[{name!r}] is {self.kwargs[name]!r}; leave it out: it is set by the sampler"
                    + (" and by EnvPoolEnv.num_threads" if name == "num_threads" else "")
                )

    def make(self, num_envs: int, first_env: int, seed: int) -> NativeVectorEnv:
        """Build the engine for lock step.

        Raises:
            ValueError: EnvPool has no such task, or a field's value does not fit.
            ImportError: EnvPool is not installed.
        """
        return NativeVectorEnv(self.make_async(num_envs, first_env, seed, batch_size=num_envs))

    def make_async(self, num_envs: int, first_env: int, seed: int, batch_size: int) -> EnvPoolEngine:
        """Build the engine to be driven by ``send`` and ``recv``, ``batch_size`` environments at a time."""
        return EnvPoolEngine(self, num_envs, first_env, seed, batch_size)

    def preload_modules(self) -> tuple[str, ...]:
        """EnvPool."""
        return ("envpool",)


class EnvPoolEngine:
    """An EnvPool with Gymnasium's interface (an `AsyncVectorEnv`)."""

    def __init__(self, spec: EnvPoolEnv, num_envs: int, first_env: int, seed: int, batch_size: int) -> None:
        if not 1 <= batch_size <= num_envs:
            raise ValueError(f"batch_size is {batch_size}; it must lie between 1 and num_envs={num_envs}")
        envpool = import_optional("envpool", "envpool")
        if spec.task_id not in envpool.list_all_envs():
            raise ValueError(
                f"EnvPoolEnv.task_id is {spec.task_id!r}, which EnvPool does not have; see envpool.list_all_envs()"
            )
        self._engine: Any = envpool.make(
            spec.task_id,
            "gymnasium",
            num_envs=num_envs,
            batch_size=batch_size,
            num_threads=min(num_envs, spec.num_threads or count_cpus()),
            env_seed=[env_seed(seed, first_env + i) for i in range(num_envs)],
            **spec.kwargs,
        )
        self.num_envs, self.batch_size = num_envs, batch_size
        self._name, self._first_env = spec.task_id, first_env
        self._space = _with_true_bounds(self._engine.observation_space)
        self.spaces = agent_spaces(self._space, self._engine.action_space)
        self._to_env_action = ActionConverter(self._engine.action_space)
        state = self._engine.spec.state_array_spec
        self._is_atari = "info:lives" in state and "info:terminated" in state
        self.info_example: Tree = self._make_info_example(spec, state)
        self._recorded = spec.info_fields
        self._ended = np.ones(num_envs, bool)
        self._started = False

    def _make_info_example(self, spec: EnvPoolEnv, state: Mapping[str, Any]) -> Tree:
        values: dict[str, np.ndarray] = {}
        if self._is_atari:
            values = {"score": np.zeros((), np.float32), "game_over": np.zeros((), np.bool_)}
        for name in spec.info_fields:
            if f"info:{name}" not in state:
                known = [key.removeprefix("info:") for key in state if key.startswith("info:")]
                raise ValueError(f"EnvPoolEnv.info_fields has {name!r}, {spec.task_id} has {known}; choose from these")
            array = state[f"info:{name}"]
            dtype = np.float32 if array.dtype == np.float64 else array.dtype
            values[field_name(name)] = np.zeros([size for size in array.shape if size != -1], dtype)
        return namedarraytuple("EnvInfo", values)._make(values.values()) if values else None

    def start(self) -> None:
        """Reset all environments (see `AsyncVectorEnv`)."""
        if self._started and self.batch_size < self.num_envs:
            raise ValueError(
                f"batch_size {self.batch_size} is less than num_envs {self.num_envs}, so steps may be under way "
                "and the engine can be started only once; make a new one"
            )
        self._started = True
        self._ended[:] = True
        self._engine.async_reset()

    def send(self, action: Tree, env_ids: np.ndarray) -> None:
        """Begin a step of ``env_ids``.

        Raises:
            ValueError: an action is out of range.
        """
        self._engine.send(self._to_env_action(action), env_ids)

    def recv(self) -> AsyncResults:
        """Wait for the next ``batch_size`` environments.

        Raises:
            EnvError: an observation or reward is not finite.
        """
        observation, reward, terminated, truncated, info = self._engine.recv()
        env_ids = info["env_id"].astype(np.int64)
        was_reset = self._ended[env_ids]
        env_info = None
        if self._is_atari:
            is_over = info["terminated"].astype(bool)
            terminated = terminated | (truncated & is_over)  # EnvPool lets the limit win
            values = [info["reward"], is_over | truncated]
        else:
            values = []
        values += [info[name] for name in self._recorded]
        if values:
            env_info = type(self.info_example)._make(values)
        self._ended[env_ids] = terminated | truncated
        results = AsyncResults(
            env_ids=env_ids,
            observation=_to_tree(self._space, observation),
            reward=np.where(was_reset, 0, reward),
            terminated=terminated,
            truncated=truncated,
            was_reset=was_reset,
            first=was_reset,
            env_info=env_info,
        )
        check_finite(self._name, self._first_env, results)
        return results

    def close(self) -> None:
        """Stop the engine's threads.  May be called twice."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None


def _to_tree(space: gym.Space, observation: Any) -> Tree:
    """Arrays in the structure of ``space`` and the types of the slots; discrete values counted from 0."""
    parts = children(space)
    if parts is not None:
        structure = namedarraytuple("Dict", parts)
        return structure._make(_to_tree(child, observation[key]) for key, child in parts.values())
    if isinstance(space, gs.Discrete) and space.start != 0:
        observation = observation - space.start
    return observation.astype(leaf_dtype(space), copy=False)


def _with_true_bounds(space: gym.Space) -> gym.Space:
    """EnvPool gives the least positive float where it means no lower bound."""
    if isinstance(space, gs.Dict):
        return gs.Dict([(key, _with_true_bounds(child)) for key, child in space.spaces.items()])
    if isinstance(space, gs.Box) and space.dtype.kind == "f":
        tiny, most = np.finfo(space.dtype).tiny, np.finfo(space.dtype).max
        low = np.where((space.low == tiny) | (space.low == -most), -np.inf, space.low)
        high = np.where(space.high == most, np.inf, space.high)
        return gs.Box(low.astype(space.dtype), high.astype(space.dtype), dtype=space.dtype)
    return space
