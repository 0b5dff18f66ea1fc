"""Gymnasium environments, stepped one after another in one Python loop and written straight into the slot.

Recipes name environments by `GymnasiumEnv`; collectors call its `GymnasiumVectorEnv`.  `GymnasiumVectorEnv.step` is the
hottest Python of the project: it must cost little beside the environments' own ``step``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec, find_highest_version, get_env_id, parse_env_id

from rlsurreal.envs.attributes import NotSavable
from rlsurreal.envs.base import (
    EnvError,
    agent_spaces,
    env_seed,
    import_optional,
    info_example,
    route_mujoco_warnings,
)
from rlsurreal.envs.problems import reset_problem, step_problem
from rlsurreal.envs.rows import InfoWriter, RowError, observation_writer, write_rewards
from rlsurreal.envs.state import get_env_states, set_env_states, state_problem
from rlsurreal.structs import EnvStep, Spaces
from rlsurreal.utils.namedarraytuple import Tree, leaves
from rlsurreal.utils.spaces import to_env_action


@dataclass(kw_only=True, eq=False)
class GymnasiumEnv:
    """A recipe for a batch of Gymnasium environments (an `EnvSpec`).

    Raises:
        ValueError: a field is not of its kind.
    """

    factory: str | Callable[..., gym.Env]
    """A Gymnasium id, or what makes one environment: a class or function at top level, so that it pickles."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of ``gymnasium.make`` or of the factory."""
    info_fields: Mapping[str, Any] | None = None
    """Entries of the info dictionaries to record, each with an example of its value.  Where an entry is missing, NaN
    is recorded for floating point and 0 for others.  None: what the environment declares in its attribute
    ``info_fields``."""
    index_argument: str | None = None
    """A keyword argument by which each environment is told its number, counted from 0 over the whole run: for ports,
    folders, or levels of its own.  Environments of an evaluation are counted from 0, too."""

    def __post_init__(self) -> None:
        if not (isinstance(self.factory, str) or callable(self.factory)):
            raise ValueError(
                f"GymnasiumEnv.factory is {self.factory!r}; give a Gymnasium id such as 'CartPole-v1', or a "
                "function that returns a gymnasium.Env"
            )
        if not isinstance(self.kwargs, Mapping):
            raise ValueError(f"GymnasiumEnv.kwargs is {self.kwargs!r}; give a dictionary of keyword arguments")
        if self.info_fields is not None:
            info_example(self.info_fields)

    @property
    def name(self) -> str:
        """What error messages call these environments."""
        return (
            self.factory if isinstance(self.factory, str) else getattr(self.factory, "__qualname__", repr(self.factory))
        )

    def make(self, num_envs: int, first_env: int, seed: int) -> GymnasiumVectorEnv:
        """Build the environments.

        Raises:
            EnvError: one could not be built.
            ValueError: its spaces are not supported.
        """
        envs: list[gym.Env] = []
        try:
            for i in range(num_envs):
                envs.append(self.make_one(first_env + i))
            return GymnasiumVectorEnv(
                envs, name=self.name, first_env=first_env, seed=seed, info_fields=self.info_fields
            )
        except Exception as error:
            for env in envs:
                env.close()
            if len(envs) == num_envs:
                raise
            raise EnvError(
                f"environment {first_env + len(envs)} ({self.name}) could not be made: {type(error).__name__}: {error}"
            ) from error

    def make_one(self, index: int = 0) -> gym.Env:
        """The environment of this number, neither seeded nor reset."""
        kwargs = {**self.kwargs, **({self.index_argument: index} if self.index_argument else {})}
        if isinstance(self.factory, str):
            spec = self._registered()
            module = _entry_module(spec)
            if module is not None:
                importlib.import_module(module)
            route_mujoco_warnings()
            return gym.make(spec, disable_env_checker=True, **kwargs)
        env = self.factory(**kwargs)
        if not isinstance(env, gym.Env):
            raise TypeError(
                f"the factory returned {type(env).__module__}.{type(env).__qualname__}, which is no gymnasium.Env; "
                "for environments of the old gym or of dm_control use the wrappers of the package shimmy"
            )
        return env

    def preload_modules(self) -> tuple[str, ...]:
        """Gymnasium, and the module that holds the environment's class."""
        if isinstance(self.factory, str):
            module = _entry_module(self._registered())
        else:
            module = getattr(self.factory, "__module__", None)
        return ("gymnasium",) if module in (None, "__main__") else ("gymnasium", module)

    def _registered(self) -> EnvSpec:
        assert isinstance(self.factory, str)
        return self.__dict__.get("_carried") or _find_spec(self.factory)

    def __getstate__(self) -> dict[str, Any]:
        """With what an id stands for: a worker has not run the script that registered it."""
        carried = None
        if isinstance(self.factory, str):
            with suppress(gym.error.Error, ImportError):  # where it is made this will be said
                carried = self._registered()
        return {**self.__dict__, "_carried": carried}


_SUITES = {  # packages that register the environments of these names, and the extra that brings them
    ("ALE/",): ("ale_py", "atari"),
    ("dm_control/",): ("shimmy", "dm-control"),
    ("Fetch", "Hand", "Adroit", "FrankaKitchen", "PointMaze", "AntMaze"): ("gymnasium_robotics", "robotics"),
}


def _find_spec(env_id: str) -> EnvSpec:
    """As `gymnasium.make` finds it: a module before a colon is imported, and no version means the newest."""
    module, _, name = env_id.rpartition(":")
    if module:
        importlib.import_module(module)
    namespace, base, version = parse_env_id(name)

    def full_name() -> str:
        return get_env_id(namespace, base, find_highest_version(namespace, base) if version is None else version)

    if full_name() not in gym.registry:
        for prefixes, (suite, extra) in _SUITES.items():
            if name.startswith(prefixes):
                gym.register_envs(import_optional(suite, extra))
    return gym.spec(full_name())


def _entry_module(spec: EnvSpec) -> str | None:
    entry = spec.entry_point
    return entry.partition(":")[0] if isinstance(entry, str) else getattr(entry, "__module__", None)


class GymnasiumVectorEnv:
    """Environments stepped in turn, with next-step reset (a `VectorEnv`; a `HasState` without a `state_problem`).

    An environment that returns ``terminated`` with ``info["game_over"] == False`` (a life lost) goes on without a
    reset.

    Every error of an environment, and everything it returns that breaks its interface, raises `EnvError`, which names
    the environment's global index; the batch cannot be used any more.
    """

    can_skip = True

    def __init__(
        self,
        envs: Sequence[gym.Env],
        *,
        name: str,
        first_env: int,
        seed: int,
        info_fields: Mapping[str, Any] | None = None,
    ) -> None:
        self.envs = list(envs)
        self.num_envs = len(self.envs)
        self._name, self._first_env = name, first_env
        space, action_space = envs[0].observation_space, envs[0].action_space
        for i, env in enumerate(self.envs):
            if env.observation_space != space or env.action_space != action_space:
                raise ValueError(
                    f"{self._who(i)} has spaces {env.observation_space} and {env.action_space}, {self._who(0)} "
                    f"has {space} and {action_space}; all environments of a batch must have the same spaces"
                )
        self.spaces: Spaces = agent_spaces(space, action_space)
        fields = declared_info_fields(envs[0]) if info_fields is None else info_fields
        self.info_example: Tree = info_example(fields)

        self._to_env_actions = to_env_action(action_space)
        self._write_observations = observation_writer(space)
        self._write_infos = InfoWriter(fields, self.info_example)
        self._keep_infos = bool(fields)
        self._seeds: list[int | None] = [env_seed(seed, first_env + i) for i in range(self.num_envs)]
        for env, own_seed in zip(self.envs, self._seeds):
            env.action_space.seed(own_seed)
        self._steps = [env.step for env in self.envs]
        self._resets = [_reset_as_step(env) for env in self.envs]
        # What the next row calls for each environment: its step, or its reset where an episode has ended, so that the
        # loop over environments needs no branch.
        self._calls: list[Callable[[Any], Any]] = list(self._steps)
        self._ended: list[int] = []
        self._closed = False
        self.position: np.ndarray | None = None

    def reset(self, observation: Tree) -> None:
        """Start new episodes everywhere and write their first observations ``[B]``.  The first call seeds.

        Raises:
            EnvError: an environment failed, or returned what its spaces or the interface do not allow.
        """
        observations = []
        for i, env in enumerate(self.envs):
            if self.position is not None:
                self.position[...] = self._first_env + i
            try:
                result = env.reset(seed=self._seeds[i])
            except Exception as error:
                raise EnvError(f"{self._who(i)} raised in reset: {_describe(error)}") from error
            problem = reset_problem(result)
            if problem is not None:
                raise EnvError(f"{self._who(i)} returned from reset {problem}")
            observations.append(result[0])
            self._seeds[i] = None
        if self.position is not None:
            self.position[...] = -1
        self._calls, self._ended = list(self._steps), []
        try:
            self._write_observations(observation, slice(None), observations)
        except RowError as error:
            raise EnvError(f"{self._who(error.position)} returned from reset an observation {error.problem}") from error

    def step(self, action: Tree, out: EnvStep, skip: np.ndarray | None = None) -> None:
        """Apply ``action`` ``[B]`` and write one row (see `VectorEnv.step`).

        Raises:
            EnvError: an environment failed, or returned what its spaces or the interface do not allow.
        """
        actions, calls, resets = self._to_env_actions(action), self._calls, self._ended
        where: Any = slice(None)
        stepped: Sequence[int] = range(self.num_envs)
        if skip is not None:
            where = np.flatnonzero(~skip)
            stepped = where.tolist()
            actions, calls = [actions[i] for i in stepped], [calls[i] for i in stepped]
            resets = [i for i in resets if not skip[i]]
            out.reward[...] = 0
            self._write_infos.clear(out.env_info)

        observations: list[Any] = []
        rewards, infos, ends = [], [], []
        result: Any = None
        i, first_env, position, keep_infos = 0, self._first_env, self.position, self._keep_infos
        try:
            for i, call, env_action in zip(stepped, calls, actions):
                if position is not None:
                    position[...] = first_env + i
                result = None
                result = call(env_action)
                observation, reward, terminated, truncated, info = result
                if terminated or truncated:
                    ends.append((i, terminated, truncated, info.get("game_over", True)))
                rewards.append(reward)
                if keep_infos:
                    infos.append(info)
                observations.append(observation)
        except Exception as error:
            raise self._step_error(i, error, result, action) from error
        if position is not None:
            position[...] = -1

        what = "an observation "
        try:
            self._write_observations(out.observation, where, observations)
            what = ""
            write_rewards(out.reward, where, rewards)
            self._write_infos(out.env_info, where, infos)
        except RowError as error:
            i = stepped[error.position]
            verb = "reset" if i in resets else "step"
            note = self._note_on_action(i, action) if verb == "step" else ""
            raise EnvError(f"{self._who(i)} returned from {verb} {what}{error.problem}{note}") from error
        self._write_flags(out, skip, where, resets, ends)

    def _write_flags(
        self,
        out: EnvStep,
        skip: np.ndarray | None,
        where: Any,
        resets: list[int],
        ends: list[tuple[int, bool, bool, bool]],
    ) -> None:
        out.valid[...] = True if skip is None else ~skip
        out.terminated[...] = False
        out.truncated[...] = False
        out.first[where] = False
        if resets:
            for i in resets:
                self._calls[i] = self._steps[i]
                out.valid[i], out.first[i] = False, True
            self._ended = [i for i in self._ended if i not in resets]
        for i, terminated, truncated, game_over in ends:
            out.terminated[i], out.truncated[i] = terminated, truncated
            if terminated and game_over and out.env_info is not None and "game_over" in out.env_info:
                out.env_info.game_over[i] = True  # also where the environment says so only when it is not
            if game_over or truncated:
                self._calls[i] = self._resets[i]
                self._ended.append(i)
            else:  # a life lost: the learner's next episode begins with the observation that ended this one
                out.first[i] = True

    def _who(self, index: int) -> str:
        return f"environment {self._first_env + index} ({self._name})"

    def _note_on_action(self, index: int, action: Tree) -> str:
        """Whose fault it may be instead."""
        own = [leaf[index] for leaf in leaves(action) if leaf.dtype.kind == "f"]
        if all(np.isfinite(leaf).all() for leaf in own):
            return ""
        return (
            ".  It was given an action that is not finite: the agent's parameters are spoilt, perhaps by too large a "
            "learning rate or reward"
        )

    def _step_error(self, index: int, error: Exception, result: Any, action: Tree) -> EnvError:
        """``result`` None: the environment itself raised ``error``."""
        if isinstance(error, _BadReset):
            return EnvError(f"{self._who(index)} returned from reset {error}")
        problem = None if result is None else step_problem(result)
        if problem is not None:
            return EnvError(f"{self._who(index)} returned from step {problem}{self._note_on_action(index, action)}")
        if index in self._ended:
            return EnvError(f"{self._who(index)} raised in reset: {_describe(error)}")
        note = self._note_on_action(index, action)
        return EnvError(f"{self._who(index)} raised in step: {_describe(error)}{note}")

    def render(self) -> Any:
        """The frame of environment 0 (give ``render_mode="rgb_array"`` among the environment's keyword arguments)."""
        return self.envs[0].render()

    @property
    def render_fps(self) -> int:
        """Frames per second at which the environments' time is real."""
        return int(self.envs[0].metadata.get("render_fps", 30))

    def state_problem(self) -> str | None:
        """Why `get_state` cannot save these environments, or None if it can."""
        return state_problem(self.envs)

    def get_state(self) -> dict[str, Any] | None:
        """All that the next steps depend on, picklable; None where an environment cannot be saved."""
        try:
            states = get_env_states(self.envs)
        except NotSavable:
            return None
        return {"envs": states, "ended": list(self._ended), "seeds": list(self._seeds)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from ``state``, which `get_state` of environments made alike has saved; no reset is needed.

        Raises:
            ValueError: the state is of another number or another kind of environments.
        """
        if len(state["envs"]) != self.num_envs:
            raise ValueError(
                f"the state is of {len(state['envs'])} environments, here are {self.num_envs}; resume with the "
                "same number of environments in each batch"
            )
        set_env_states(self.envs, state["envs"])
        self._ended, self._seeds = list(state["ended"]), list(state["seeds"])
        self._calls = list(self._steps)
        for i in self._ended:
            self._calls[i] = self._resets[i]

    def close(self) -> None:
        """Close all environments.  May be called twice."""
        if self._closed:
            return
        self._closed = True
        with ExitStack() as stack:  # closes all of them, even if one raises
            for env in self.envs:
                stack.callback(env.close)


class _BadReset(Exception):
    """An environment's reset returned what breaks the interface."""


def _reset_as_step(env: gym.Env) -> Callable[[Any], tuple[Any, float, bool, bool, Mapping[str, Any]]]:
    def reset(_action: Any) -> tuple[Any, float, bool, bool, Mapping[str, Any]]:
        result: Any = env.reset()
        problem = reset_problem(result)
        if problem is not None:
            raise _BadReset(problem)
        return result[0], 0.0, False, False, result[1]

    return reset


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def declared_info_fields(env: gym.Env) -> Mapping[str, Any]:
    """The attribute ``info_fields`` of an environment or of the wrappers around it; empty where there is none."""
    return env.get_wrapper_attr("info_fields") if env.has_wrapper_attr("info_fields") else {}
