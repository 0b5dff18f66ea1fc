"""Attributes as a checkpoint has them: data without code, from which objects are made anew."""

from __future__ import annotations

import enum
import re
import threading
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rlsurreal.envs.attributes import SavedObject
from rlsurreal.envs.state import get_env_states, set_env_states, state_problem
from rlsurreal.testing.envs import CountingEnv
from rlsurreal.utils.plain import from_plain, to_plain


@dataclass
class Place:
    x: int
    near: list[Any] = field(default_factory=list)

    def move(self) -> None:
        self.x += 1


@dataclass(frozen=True)
class Point:
    x: int


class Color(enum.Enum):
    RED = 1


class Hues(enum.Flag):
    RED = 1
    BLUE = 2


class Closing(Place):
    def __del__(self) -> None:
        """More happens to it than what is in its attributes."""


HOME = Place(0)
PLACES = {"work": Place(1)}
ORIGIN = Point(0)
BOARD = np.zeros((3, 3))


class Empty(CountingEnv):
    """Has whatever a test gives it; its module names the classes above."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        vars(self).update(attributes)


def continued(env: gym.Env, other: Any) -> Any:
    """``other`` with the state of ``env``."""
    set_env_states([other], from_plain(to_plain(get_env_states([env]))))
    return other


def test_objects_are_made_anew() -> None:
    place = Place(3)
    place.near.append(place)
    live = Place(0)
    restored = continued(Empty(place=place, places=[place]), Empty(place=live))
    assert type(restored.place) is Place and restored.place.x == 3
    assert restored.places[0] is restored.place is restored.place.near[0]
    assert restored.place is not live and live.x == 0, "somebody else may hold what the environment began with"


def test_constants_stay_as_they_are() -> None:
    restored = continued(Empty(point=Point(3)), Empty(point=ORIGIN))
    assert restored.point == Point(3) and ORIGIN.x == 0


def test_what_environments_share_stays_shared() -> None:
    place, array = Place(0), np.zeros(2)
    state = from_plain(to_plain(get_env_states([Empty(place=place, array=array), Empty(place=place, array=array)])))
    restored: list[Any] = [Empty(), Empty()]
    set_env_states(restored, state)
    assert restored[0].place is restored[1].place and restored[0].array is restored[1].array


def test_references_to_the_environment_lead_to_the_one_that_goes_on() -> None:
    env = Empty()
    env.place = Place(0, [env])  # type: ignore[attr-defined]
    wrapper: Any = gym.wrappers.TimeLimit(env, 5)
    wrapper.base = env
    restored = continued(wrapper, gym.wrappers.TimeLimit(Empty(), 5))
    assert restored.base is restored.env and restored.env.place.near[0] is restored.env


@pytest.mark.parametrize(
    ("attributes", "problem"),
    [
        ({"place": Place(0, [1, threading.Lock()])}, "attribute 'place.near.1' of Empty is a _thread.lock; give Empty"),
        ({"by_name": {"a": [open]}}, "'by_name.a.0' of Empty is a builtins.builtin_function"),
        ({"place": HOME}, "'place' of Empty is a .*Place that a module or class holds, too"),
        ({"place": PLACES["work"]}, "'place' of Empty is a .*Place that a module or class holds, too"),
        ({"hues": Hues.RED | Hues.BLUE}, "'hues' of Empty is a .*Hues"),
        ({"closing": Closing(0)}, "'closing' of Empty is a .*Closing"),
        ({"inner": Empty()}, "'inner' of Empty is a .*Empty"),
        ({"local": type("Local", (), {"__qualname__": "f.<locals>.Local"})()}, "'local' .* not at the top of a module"),
        ({"rewards": np.zeros(2, [("x", int)])}, "'rewards' of Empty is an array of"),
        ({"board": BOARD, "flat": [BOARD.reshape(-1)]}, "'flat.0' of Empty shares memory with 'board'; give Empty"),
        ({"go": Place(0).move}, "'go' of Empty is a builtins.method"),
        ({"draw": np.random.default_rng(0).random}, "'draw' of Empty is a builtins.method"),
    ],
)
def test_what_cannot_be_saved_is_named_by_its_path(attributes: dict[str, Any], problem: str) -> None:
    assert re.search(problem, str(state_problem([Empty(**attributes)])))


def test_what_is_nested_too_deeply_is_refused() -> None:
    chain: list[Any] = []
    for _ in range(10_000):
        chain = [chain]
    assert "'chain' of Empty is nested too deeply" in str(state_problem([Empty(chain=chain)]))


def test_views_that_do_not_overlap_or_do_not_change_are_saved() -> None:
    fixed = np.arange(4)
    fixed.flags.writeable = False
    assert state_problem([Empty(columns=[BOARD[:, 0], BOARD[:, 1]], fixed=fixed, part=fixed[:2])]) is None


def test_methods_of_the_environment_are_constants() -> None:
    env: Any = Empty()
    env.go = env.step
    other: Any = Empty()
    other.go = other.step
    assert state_problem([env]) is None and continued(env, other).go.__self__ is other


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (SavedObject("subprocess:Popen", {"args": "true"}), "'x.0' was of the class subprocess:Popen .* import that"),
        (SavedObject(f"{__name__}:Gone", {}), "'x.0' was of the class .*Gone"),
        (SavedObject(f"{__name__}:Color", "GREEN"), "'x.0' was GREEN of .*Color"),
        (SavedObject(f"{__name__}:Closing", {}), "'x.0' was of the class .*Closing"),
        (SavedObject("builtins:int", {}), "'x.0' was of the class builtins:int"),
    ],
)
def test_only_classes_that_the_environment_knows_are_made(saved: SavedObject, message: str) -> None:
    state = get_env_states([Empty()])
    state[0][0]["plain"]["x"] = [saved]
    with pytest.raises(ValueError, match=message):
        set_env_states([Empty()], state)


def test_a_class_that_the_module_does_not_name_is_that_of_an_object_that_the_environment_has() -> None:
    env, other = gym.make("CartPole-v1"), gym.make("CartPole-v1")
    vars(env)["extra"], vars(other)["extra"] = [Place(1), Place(2)], Place(0)
    restored = continued(env, other)
    assert [place.x for place in restored.extra] == [1, 2]
    with pytest.raises(ValueError, match="Place"):
        continued(env, gym.make("CartPole-v1"))
