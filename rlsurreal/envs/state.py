"""Saving one environment in mid-episode and continuing it bit for bit, in this process or another.

Called by `GymnasiumVectorEnv` for checkpoints.  An environment is a chain of wrappers around a core.  Of each link
all attributes are saved, provided they are plain data; three kinds of object that are not are known and treated
apart: MuJoCo's data, the Arcade Learning Environment's emulator, and constants such as spaces, models and renderers,
which the environment that the state is restored into has already.  A link that has ``get_state()`` and
``set_state(state)`` of its own is asked instead, for itself and everything within it.  Where anything else turns up
the environment counts as not savable: a state that left something out would resume to other trajectories without a
word.
"""

from __future__ import annotations

import collections
import copy
import copyreg
import enum
import inspect
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

_ATOMS = (type(None), bool, int, float, complex, str, bytes, np.generic, enum.Enum)
_CONTAINERS = (tuple, list, set, frozenset, collections.deque)
# Constructor arguments that Gymnasium's classes keep.
_ARGUMENTS = {"_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs"}
_VIEWER_MODULES = ("pygame", "pyglet", "glfw", "gymnasium.envs.mujoco.mujoco_rendering")


def state_problem(env: gym.Env) -> str | None:
    """Why the state of ``env`` cannot be saved, or None if it can."""
    for link in _links(env):
        if _has_own_state(link):
            return None
        for name, value in _variables(link):
            if not (_is_mujoco(value, "MjData") or _is_ale(value) or _is_plain(value)):
                kind = f"{type(value).__module__}.{type(value).__qualname__}"
                return (
                    f"attribute {name!r} of {type(link).__name__} is a {kind}; "
                    f"give {type(link).__name__} methods get_state() and set_state(state)"
                )
    return None


def get_env_state(env: gym.Env) -> list[dict[str, Any]]:
    """The state of ``env``, for which `state_problem` is None: picklable, and apart from what ``env`` does next."""
    states = []
    for link in _links(env):
        if _has_own_state(link):
            states.append({"class": type(link).__qualname__, "own": link.get_state()})  # type: ignore[attr-defined]
            break
        state: dict[str, Any] = {"class": type(link).__qualname__, "plain": {}, "mujoco": {}, "ale": {}}
        for name, value in _variables(link):
            if _is_mujoco(value, "MjData"):
                state["mujoco"][name] = _get_mujoco(_mujoco_model(link), value)
            elif _is_ale(value):
                state["ale"][name] = get_ale_state(value)
            else:
                state["plain"][name] = value
        states.append(state)
    return copy.deepcopy(states)  # all at once: arrays that links share stay shared


def set_env_state(env: gym.Env, states: list[dict[str, Any]]) -> None:
    """Bring ``env`` to a state from `get_env_state`.

    Raises:
        ValueError: the state is of another kind of environment.
    """
    links = list(_links(env))[: len(states)]
    names, saved = [type(link).__qualname__ for link in links], [state["class"] for state in states]
    if names != saved:
        raise ValueError(
            f"the state is of {' > '.join(saved)}, the environment is {' > '.join(names)}; resume with the "
            "environment and the wrappers that the state was saved with"
        )
    states = copy.deepcopy(states)
    for link, state in zip(links, states):
        if "own" in state:
            link.set_state(state["own"])  # type: ignore[attr-defined]
            continue
        for name, value in state["mujoco"].items():
            _set_mujoco(_mujoco_model(link), getattr(link, name), value)
        for name, value in state["ale"].items():
            set_ale_state(getattr(link, name), value)
        vars(link).update(state["plain"])


def _links(env: gym.Env) -> Iterator[gym.Env]:
    """The environment, what it wraps, and so on to the core."""
    yield env
    while isinstance(env, gym.Wrapper):
        env = env.env
        yield env


def _has_own_state(link: gym.Env) -> bool:
    get, put = getattr(link, "get_state", None), getattr(link, "set_state", None)
    if not (callable(get) and callable(put)):
        return False
    required = [
        [
            p
            for p in inspect.signature(method).parameters.values()
            if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        for method in (get, put)
    ]
    return [len(parameters) for parameters in required] == [0, 1]  # set_state(qpos, qvel) is another thing


def _variables(link: gym.Env) -> Iterator[tuple[str, Any]]:
    for name, value in vars(link).items():
        if not (name in _ARGUMENTS or (name == "env" and isinstance(link, gym.Wrapper)) or _is_constant(value)):
            yield name, value


def _is_constant(value: Any) -> bool:
    """Whether ``value`` never changes after construction, or only shows the environment to people."""
    return (
        inspect.isroutine(value)
        or isinstance(value, (gym.Space, EnvSpec, type, partial))
        or _is_mujoco(value, "MjModel")
        or type(value).__module__.startswith(_VIEWER_MODULES)
    )


def _is_plain(value: Any, above: frozenset[int] = frozenset()) -> bool:
    """Whether a deep copy or a pickle of ``value`` holds all of it."""
    if isinstance(value, _ATOMS):
        return True
    if id(value) in above:
        return True
    above = above | {id(value)}
    if isinstance(value, np.ndarray):
        return value.dtype != object or all(_is_plain(item, above) for item in value.flat)
    if isinstance(value, (np.random.Generator, np.random.RandomState)):
        return True
    if isinstance(value, dict):
        return all(_is_plain(key, above) and _is_plain(item, above) for key, item in value.items())
    if isinstance(value, _CONTAINERS):
        return all(_is_plain(item, above) for item in value)
    return not isinstance(value, type) and _is_plain_object(value, above)


def _is_plain_object(value: Any, above: frozenset[int]) -> bool:
    """Whether ``value`` is of a Python class and is all in its attributes: pickled by the default way and no other."""
    kind = type(value)
    default_getstate = getattr(object, "__getstate__", None)  # none before Python 3.11
    if hasattr(kind, "__setstate__") or getattr(kind, "__getstate__", None) is not default_getstate:
        return False
    try:
        maker, arguments, attributes, *items = value.__reduce_ex__(2)
    except (TypeError, ValueError):
        return False
    return (
        maker is getattr(copyreg, "__newobj__")  # noqa: B009  (typeshed does not know it)
        and arguments == (kind,)
        and not any(items)
        and _is_plain(attributes, above)
    )


def _is_mujoco(value: Any, class_name: str) -> bool:
    mujoco = sys.modules.get("mujoco")  # not there: the value cannot be of its classes
    return mujoco is not None and isinstance(value, getattr(mujoco, class_name))


def _is_ale(value: Any) -> bool:
    ale_py = sys.modules.get("ale_py")
    return ale_py is not None and isinstance(value, ale_py.ALEInterface)


def get_ale_state(ale: Any) -> bytes:
    """The emulator with its random numbers."""
    state: bytes = ale.cloneState(include_rng=True).serialize()
    return state


def set_ale_state(ale: Any, saved: bytes) -> None:
    """Bring the emulator to a state from `get_ale_state`."""
    import ale_py

    state: Any = ale_py.ALEState.__new__(ale_py.ALEState)
    state.__setstate__(saved)
    ale.restoreState(state)


def _mujoco_model(link: gym.Env) -> Any:
    return next(value for value in vars(link).values() if _is_mujoco(value, "MjModel"))


def _get_mujoco(model: Any, data: Any) -> dict[str, np.ndarray]:
    """The integration state, and everything derived from it.

    The derived arrays lag one sub-step behind (``mj_step`` ends with the integration), so they cannot be computed
    anew; and environments read them before they step, as Ant reads the position of its body for the reward.
    """
    import mujoco

    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    integration = np.empty(mujoco.mj_stateSize(model, kind))
    mujoco.mj_getState(model, data, integration, kind)
    return {"": integration, **_mujoco_arrays(data)}


def _set_mujoco(model: Any, data: Any, saved: dict[str, np.ndarray]) -> None:
    import mujoco

    mujoco.mj_setState(model, data, saved[""], mujoco.mjtState.mjSTATE_INTEGRATION)
    mujoco.mj_forward(model, data)  # for the lists of contacts and constraints, whose length is part of the state
    own = _mujoco_arrays(data)
    for name, array in saved.items():
        if name and own[name].shape == array.shape:
            own[name][...] = array


def _mujoco_arrays(data: Any) -> dict[str, np.ndarray]:
    arrays = {}
    for name in dir(data):
        if not name.startswith("_"):
            value = getattr(data, name)
            if isinstance(value, np.ndarray):
                arrays[name] = value
    return arrays
