"""check_env finds what is wrong, all of it at once, and is content with what is right."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rlsurreal.envs import GymnasiumEnv, check_env
from rlsurreal.testing.envs import CountingEnv, FailingEnv, NestedEnv, RecallEnv


class Clean(gym.Env):
    """An environment in order, from which those below deviate."""

    def __init__(self) -> None:
        self.observation_space: gym.Space = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.action_space: gym.Space = gym.spaces.Discrete(2)
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def observe(self) -> Any:
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self.observe(), 0.5, self.steps == 5, False, {}


@pytest.mark.parametrize(
    "env",
    [
        "CartPole-v1",
        "Pendulum-v1",
        "Taxi-v4",
        "HalfCheetah-v5",
        CountingEnv,
        NestedEnv,
        RecallEnv,
        Clean,
        Clean(),
        GymnasiumEnv(factory=CountingEnv, kwargs={"lives": 3}),
    ],
)
def test_good_environments_pass(env: Any) -> None:
    assert check_env(env) == []


def deviate(**methods: Any) -> type[Clean]:
    return type("Deviating", (Clean,), methods)


def space(name: str, value: Any) -> Any:
    def __init__(self: Any) -> None:
        Clean.__init__(self)
        setattr(self, name, value)

    return __init__


def returning(position: int, value: Any) -> Any:
    def step(self: Any, action: Any) -> Any:
        result = list(Clean.step(self, action))
        result[position] = value
        return tuple(result)

    return step


BAD = {
    "no space": (deviate(__init__=space("action_space", None)), "action_space is None; set it to a gymnasium.Space"),
    "text": (
        deviate(__init__=space("observation_space", gym.spaces.Text(3))),
        "observation_space: space Text.* is not supported",
    ),
    "integer box": (
        deviate(__init__=space("action_space", gym.spaces.Box(0, 9, (2,), np.int64))),
        "action_space: .* use Discrete or MultiDiscrete",
    ),
    "keys": (
        deviate(
            __init__=space(
                "observation_space", gym.spaces.Dict({"a.b": gym.spaces.Discrete(2), "a_b": gym.spaces.Discrete(2)})
            )
        ),
        "collide",
    ),
    "shape": (deviate(observe=lambda self: np.zeros(3, np.float32)), r"reset returned an observation of shape \(3,\)"),
    "not numeric": (deviate(observe=lambda self: np.array(["a", "b"])), "which is not numeric"),
    "nan": (deviate(observe=lambda self: np.array([0, np.nan], np.float32)), "observation that is not finite"),
    "bounds": (
        deviate(observe=lambda self: np.array([0, 1.5], np.float32)),
        r"with 1.5 at \[1\], outside .*\[-1.0, 1.0\]",
    ),
    "not in discrete": (
        deviate(__init__=space("observation_space", gym.spaces.Discrete(3)), observe=lambda self: 3),
        r"observation 3, which is not in Discrete\(3\)",
    ),
    "old reset": (
        deviate(reset=lambda self, seed=None, options=None: self.observe()),
        r"reset returned a ndarray; return \(",
    ),
    "no seed": (deviate(reset=lambda self: (self.observe(), {})), "TypeError.*its signature must be reset"),
    "four values": (deviate(step=lambda self, action: (self.observe(), 0.0, False, {})), "4 values .*old gym"),
    "reward": (deviate(step=returning(1, [1.0])), r"reward \[1.0\] of type list"),
    "infinite reward": (deviate(step=returning(1, float("inf"))), "reward inf, which is not finite"),
    "terminated": (deviate(step=returning(2, 1)), "terminated 1 of type int; return a bool"),
    "truncated": (deviate(step=returning(3, 0.0)), "truncated 0.0 of type float; return a bool"),
    "info": (deviate(step=returning(4, None)), "info of type NoneType"),
    "seed": (
        deviate(observe=lambda self: np.random.uniform(-1, 1, 2).astype(np.float32)),
        "differ from reset on; draw",
    ),
    "seed of steps": (
        deviate(
            observe=lambda self: (
                np.zeros(2, np.float32) if self.steps == 0 else np.random.uniform(-1, 1, 2).astype(np.float32)
            )
        ),
        "differ from step 1 on",
    ),
    "shape of an info": (
        deviate(info_fields={"speed": 0.0}, step=returning(4, {"speed": np.zeros(3)})),
        r"info\['speed'\] of shape \(3,\)",
    ),
    "whole numbers of an info": (
        deviate(info_fields={"speed": 0}, step=returning(4, {"speed": 0.7})),
        r"info\['speed'\] is 0.7, and its example .*, 0, .* give 0.0",
    ),
    "raises": (deviate(step=lambda self, action: 1 / 0), "ZeroDivisionError"),
}


@pytest.mark.parametrize("name", BAD)
def test_problems(name: str) -> None:
    env, message = BAD[name]
    with pytest.raises(ValueError, match=message) as caught:
        check_env(env)
    assert "1 problem(s)" in str(caught.value), "one fault must not be reported as many"


def test_all_problems_are_listed() -> None:
    env = deviate(step=lambda self, action: (np.full(2, 7, np.float32), None, 0, "no", {}))
    with pytest.raises(ValueError, match=r"Deviating: 4 problem\(s\)") as caught:
        check_env(env)
    for text in ("outside observation_space", "reward None", "terminated 0", "truncated 'no'"):
        assert text in str(caught.value)


class InPlace(Clean):
    buffer = np.zeros(2, np.float32)

    def observe(self) -> Any:
        self.buffer[:] = super().observe()
        return self.buffer


class Sticks(Clean):
    """Forgets to set back its counter."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        steps = self.steps
        result = super().reset(seed=seed)
        self.steps = 0 if seed is not None else steps
        return result

    def step(self, action: Any) -> Any:
        *rest, _, truncated, info = super().step(action)
        return *rest, self.steps >= 50, truncated, info


gym.register("EndsAtItsLimit-v0", lambda: Clean(), max_episode_steps=5, disable_env_checker=True, order_enforce=False)

WARNED = {
    "aliasing": (InPlace, "return a copy"),
    "unbounded": (
        deviate(__init__=space("action_space", gym.spaces.Box(-np.inf, np.inf, (1,), np.float32))),
        "have no bounds",
    ),
    "endless": (deviate(step=returning(2, False)), "no episode ended"),
    "type": (
        deviate(observe=lambda self: self.np_random.uniform(-1, 1, 2)),
        "of type float64, observation_space says float32",
    ),
    "sticks": (Sticks, "reset does not set back"),
    "limit": (lambda: _TerminatesAtLimit(), "a time limit must be truncated"),
    "info": (deviate(step=returning(4, {"a.b": 1, "a_b": 2})), "have the same field name 'a_b'"),
    "missing": (
        GymnasiumEnv(factory=Clean, info_fields={"score": 0.0}),
        "info_fields has 'score', which no info dictionary had",
    ),
}


class _TerminatesAtLimit(Clean):
    spec = gym.spec("EndsAtItsLimit-v0")


@pytest.mark.parametrize("name", WARNED)
def test_warnings(name: str) -> None:
    env, message = WARNED[name]
    warnings = check_env(env)
    assert len(warnings) == 1 and message in warnings[0], warnings


def test_a_limit_of_a_wrapper_is_a_limit() -> None:
    endless = deviate(step=returning(2, False))
    assert not check_env(lambda: gym.wrappers.TimeLimit(endless(), 5_000))


def test_failures_later_on_are_found() -> None:
    with pytest.raises(ValueError, match="raised RuntimeError: FailingEnv fails in step"):
        check_env(GymnasiumEnv(factory=FailingEnv, kwargs={"mode": "raise_in_step", "at": 300}))


def test_a_given_environment_is_left_open() -> None:
    class Closing(Clean):
        closed = False

        def close(self) -> None:
            self.closed = True

    env = Closing()
    check_env(env)
    assert not env.closed


def test_what_the_environment_raised_is_the_cause() -> None:
    """Its traceback says where."""
    with pytest.raises(ValueError, match="raised RuntimeError") as caught:
        check_env(GymnasiumEnv(factory=FailingEnv, kwargs={"mode": "raise_in_step", "at": 3}))
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_images_with_their_channels_last_are_noticed() -> None:
    image = gym.spaces.Box(0, 255, (36, 36, 3), np.uint8)
    env = deviate(__init__=space("observation_space", image), observe=lambda self: np.zeros((36, 36, 3), np.uint8))
    assert any("ChannelsFirst" in warning for warning in check_env(env))
