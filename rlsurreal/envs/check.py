"""`check_env`: what is wrong with a user's environment, and how to mend it.  People call it before they train."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces as gs
from gymnasium.wrappers import TimeLimit

from rlsurreal.envs.base import agent_spaces, info_example
from rlsurreal.envs.gymnasium_env import GymnasiumEnv, declared_info_fields
from rlsurreal.envs.problems import element_problem, reset_problem, reward_problem, step_problem
from rlsurreal.envs.rows import info_problem
from rlsurreal.envs.wrappers import is_channels_last
from rlsurreal.utils.spaces import children, field_name

_SEED = 12345
_SAME_SEED_STEPS = 30


def check_env(
    env: gym.Env | GymnasiumEnv | str | Callable[..., gym.Env], *, max_steps: int = 2000, max_seconds: float = 3.0
) -> list[str]:
    """Try an environment out with random actions.

    Args:
        env: an environment, a recipe, a Gymnasium id, or a factory.
        max_steps: steps to try.
        max_seconds: time after which no further step is tried.

    Returns:
        Warnings: what works, but is probably not meant.

    Raises:
        ValueError: the environment cannot be trained on; lists all problems found.
    """
    spec = None if isinstance(env, gym.Env) else env if isinstance(env, GymnasiumEnv) else GymnasiumEnv(factory=env)
    made = env if isinstance(env, gym.Env) else spec.make_one()  # type: ignore[union-attr]
    check = _Check(made, None if spec is None else spec.info_fields, max_steps, time.monotonic() + max_seconds)
    try:
        check.run()
    finally:
        if spec is not None:
            made.close()
    if check.problems:
        listed = "\n".join(f"  {i}. {text}" for i, text in enumerate(check.problems.values(), 1))
        raise ValueError(f"{spec.name if spec else made}: {len(check.problems)} problem(s)\n{listed}") from check.cause
    return list(check.warnings.values())


class _Stop(Exception):
    """No further checks are possible."""


class _Check:
    """One run of checks; each kind of problem is kept once."""

    def __init__(self, env: gym.Env, info_fields: Mapping[str, Any] | None, max_steps: int, deadline: float) -> None:
        self.env, self.max_steps, self.deadline = env, max_steps, deadline
        self.info_fields = declared_info_fields(env) if info_fields is None else info_fields
        self.problems: dict[str, str] = {}
        self.cause: Exception | None = None  # what the environment raised
        self.warnings: dict[str, str] = {}
        self.info_keys: set[str] = set()
        self.info_examples: dict[str, np.ndarray] = {}
        with suppress(ValueError):  # which `check_infos` reports
            info_example(self.info_fields)
            self.info_examples = {key: np.asarray(example) for key, example in self.info_fields.items()}

    def problem(self, kind: str, text: str) -> None:
        self.problems.setdefault(kind, text)

    def warn(self, kind: str, text: str) -> None:
        self.warnings.setdefault(kind, text)

    def run(self) -> None:
        try:
            self.check_spaces()
            self.check_seeding()
            self.check_episodes()
        except _Stop:
            return
        self.check_infos()

    # ------------------------------------------------------------ calls

    def reset(self, seed: int | None = None) -> Any:
        try:
            result = self.env.reset(seed=seed)
        except Exception as error:
            hint = (
                "; its signature must be reset(self, *, seed=None, options=None)"
                if isinstance(error, TypeError)
                else ""
            )
            self.problem("reset", f"reset(seed={seed}) raised {type(error).__name__}: {error}{hint}")
            self.cause = error
            raise _Stop from error
        problem = reset_problem(result)
        if problem is not None:
            self.problem("reset", f"reset returned {problem}")
            raise _Stop
        self.check_observation("reset", result[0])
        self.check_info(result[1])
        return result[0]

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, Mapping[str, Any]]:
        try:
            result: Any = self.env.step(action)
        except Exception as error:
            self.problem(
                "step",
                f"step({action!r}) raised {type(error).__name__}: {error}; every action of action_space "
                f"{self.env.action_space} must be possible until the episode ends",
            )
            self.cause = error
            raise _Stop from error
        problem = step_problem(result)
        if problem is not None:
            self.problem("step", f"step returned {problem}")
            raise _Stop
        observation, reward, terminated, truncated, info = result
        self.check_observation("step", observation)
        problem = reward_problem(reward)
        if problem is not None:
            self.problem("reward", f"step returned {problem}")
        for name, flag in (("terminated", terminated), ("truncated", truncated)):
            if not isinstance(flag, (bool, np.bool_)):
                self.problem(name, f"step returned {name} {flag!r} of type {type(flag).__name__}; return a bool")
        self.check_info(info)
        return observation, reward, bool(terminated), bool(truncated), info

    # ------------------------------------------------------------ checks

    def check_spaces(self) -> None:
        for name in ("observation_space", "action_space"):
            if not isinstance(getattr(self.env, name, None), gym.Space):
                self.problem(
                    name, f"{name} is {getattr(self.env, name, None)!r}; set it to a gymnasium.Space in __init__"
                )
        if self.problems:
            raise _Stop
        for name in ("observation_space", "action_space"):
            space = getattr(self.env, name)
            try:
                agent_spaces(*((space, gs.Discrete(2)) if name == "observation_space" else (gs.Discrete(2), space)))
            except ValueError as error:
                self.problem(name, f"{name}: {error}")
        if self.problems:
            raise _Stop
        if any(
            isinstance(leaf, gs.Box) and not (np.isfinite(leaf.low).all() and np.isfinite(leaf.high).all())
            for leaf in _leaf_spaces(self.env.action_space)
        ):
            self.warn(
                "unbounded",
                f"action_space is {self.env.action_space}, with components that have no bounds: they are "
                "neither clipped nor rescaled, random actions are standard normal, and SAC, TD3 and DDPG refuse them; "
                "give bounds if there are any",
            )

        for leaf in _leaf_spaces(self.env.observation_space):
            if is_channels_last(leaf):
                self.warn(
                    "channels",
                    f"observation_space has {leaf.shape}, which looks like an image [H, W, C]; models take [C, H, W]: "
                    "wrap the environment in rlsurreal.envs.ChannelsFirst",
                )

    def check_seeding(self) -> None:
        first, second = self.seeded_rollout(), self.seeded_rollout()
        for step, (ours, again) in enumerate(zip(first, second)):
            if not _equal(ours, again):
                what = "reset" if step == 0 else f"step {step}"
                self.problem(
                    "seed",
                    f"two episodes with reset(seed={_SEED}) and the same actions differ from {what} on; draw "
                    "all random numbers from self.np_random, and call super().reset(seed=seed) in reset",
                )
                return

    def seeded_rollout(self) -> list[Any]:
        self.env.action_space.seed(_SEED)
        rollout = [_copied(self.reset(seed=_SEED))]
        for _ in range(_SAME_SEED_STEPS):
            observation, reward, terminated, truncated, _ = self.step(self.env.action_space.sample())
            rollout.append((_copied(observation), reward))
            if terminated or truncated:
                break
        return rollout

    def check_episodes(self) -> None:
        limit = _time_limit(self.env)
        observation, length, lengths = self.reset(), 0, list[int]()
        for _ in range(self.max_steps):
            if time.monotonic() > self.deadline:
                break
            before = _copied(observation)
            previous = observation
            observation, _, terminated, truncated, info = self.step(self.env.action_space.sample())
            length += 1
            if not _equal(before, previous):
                self.warn(
                    "aliasing",
                    "step writes into the array that the step before returned: observations that are kept "
                    "change later on; return a copy",
                )
            if terminated and not truncated and length == limit:
                self.warn(
                    "limit",
                    f"an episode ended with terminated=True at step {limit}, its time limit; a time limit must be "
                    "truncated, or the agent learns that nothing comes after it",
                )
            if terminated or truncated:
                lengths.append(length)
                if truncated or info.get("game_over", True):
                    observation, length = self.reset(), 0
        if len(lengths) > 2 and lengths[0] > 1 and set(lengths[1:]) == {1}:
            self.warn(
                "reset",
                f"the first episode had {lengths[0]} steps, all others ended in their first step; is there "
                "something that reset does not set back?",
            )
        if not lengths and limit is None:
            self.warn(
                "endless",
                f"no episode ended within {self.max_steps} steps or the time of this check, and there is no time "
                "limit that it can see; set max_episode_steps when you register the environment, or wrap it in "
                "gymnasium.wrappers.TimeLimit",
            )

    def check_observation(self, origin: str, observation: Any) -> None:
        space = self.env.observation_space
        problem = element_problem(space, observation)
        if problem is not None:
            self.problem("observation", f"{origin} returned an observation {problem}")
            return
        for name, leaf, value in _leaf_elements(space, observation):
            array = np.asarray(value)
            if isinstance(leaf, gs.Box):
                outside = (array < leaf.low) | (array > leaf.high)
                if outside.any():
                    where = tuple(int(i) for i in np.argwhere(outside)[0])
                    self.problem(
                        "bounds",
                        f"{origin} returned an observation{name} with {array[where]} at {list(where)}, "
                        f"outside observation_space [{leaf.low[where]}, {leaf.high[where]}]; widen the bounds, or clip",
                    )
                if array.dtype != leaf.dtype:
                    self.warn(
                        "dtype",
                        f"{origin} returned an observation{name} of type {array.dtype}, observation_space says "
                        f"{leaf.dtype}; it is converted, at some cost: return the type declared",
                    )
            elif not leaf.contains(value):
                self.problem("bounds", f"{origin} returned an observation{name} {value!r}, which is not in {leaf}")

    def check_info(self, info: Mapping[str, Any]) -> None:
        self.info_keys.update(info)
        for key in self.info_examples.keys() & info.keys():
            example = self.info_examples[key]
            problem = info_problem(key, example, info)
            if problem is not None:
                self.problem("info", problem)
            elif example.dtype.kind in "biu" and np.asarray(info[key]).dtype.kind == "f":
                self.problem(
                    "info",
                    f"info[{key!r}] is {info[key]!r}, and its example in info_fields, {self.info_fields[key]!r}, is no "
                    "floating-point number: what is recorded is cut to whole numbers; give 0.0 as the example",
                )

    def check_infos(self) -> None:
        try:
            info_example(self.info_fields)
        except ValueError as error:
            self.problem("info_fields", str(error))
        names: dict[str, str] = {}
        for key in sorted(map(str, self.info_keys)):
            other = names.setdefault(field_name(key), key)
            if other != key:
                self.warn(
                    "info",
                    f"info keys {other!r} and {key!r} have the same field name {field_name(key)!r}, so only one of "
                    "them can be recorded; rename one",
                )
        for key in self.info_fields:
            if key not in self.info_keys:
                self.warn(
                    "missing", f"info_fields has {key!r}, which no info dictionary had; it had {sorted(self.info_keys)}"
                )


def _time_limit(env: gym.Env) -> int | None:
    """Steps, by the environment's registration or a wrapper around it."""
    while isinstance(env, gym.Wrapper):
        if isinstance(env, TimeLimit):
            return int(env._max_episode_steps)
        env = env.env
    return env.spec.max_episode_steps if env.spec is not None else None


def _leaf_spaces(space: gym.Space) -> list[gym.Space]:
    parts = children(space)
    return [space] if parts is None else [leaf for _, child in parts.values() for leaf in _leaf_spaces(child)]


def _leaf_elements(space: gym.Space, element: Any, name: str = "") -> list[tuple[str, gym.Space, Any]]:
    parts = children(space)
    if parts is None:
        return [(name, space, element)]
    return [leaf for key, child in parts.values() for leaf in _leaf_elements(child, element[key], f"{name}[{key!r}]")]


def _copied(element: Any) -> Any:
    if isinstance(element, Mapping):
        return {key: _copied(value) for key, value in element.items()}
    if isinstance(element, (tuple, list)):
        return type(element)(_copied(value) for value in element)
    return element.copy() if isinstance(element, np.ndarray) else element


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_equal(value, other[key]) for key, value in one.items())
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(_equal, one, other))
    one, other = np.asarray(one), np.asarray(other)
    return np.array_equal(one, other, equal_nan=one.dtype.kind == other.dtype.kind == "f")
