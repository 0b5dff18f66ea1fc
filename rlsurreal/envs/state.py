"""Saving environments in mid-episode and continuing them bit for bit, in this process or another.

Called by `GymnasiumVectorEnv` for checkpoints.  An environment is a chain of wrappers around a core.  Of each link
all attributes are saved, provided that they are plain data, or objects that are all in their attributes; three kinds
of object that are not are known and treated apart: MuJoCo's data, the Arcade Learning Environment's emulator, and
constants such as models, renderers and spaces (but for what these draw), which the environment that the state is
restored into has already.  A
link that has ``get_state()`` and ``set_state(state)`` of its own is asked instead, for itself and everything within it.
Where anything else turns up the environment counts as not savable: a state that left something out would resume to
other trajectories without a word.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from rlsurreal.envs.attributes import NotSavable, Restorer, Saver

# Constructor arguments that Gymnasium's classes keep.
_ARGUMENTS = {"_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs"}
_VIEWER_MODULES = ("pygame", "pyglet", "glfw", "gymnasium.envs.mujoco.mujoco_rendering")

State = list[dict[str, Any]]  # of one environment's links


def state_problem(envs: Sequence[gym.Env]) -> str | None:
    """Why the state of ``envs`` cannot be saved, or None if it can."""
    try:
        get_env_states(envs)
    except NotSavable as error:
        return str(error)
    return None


def get_env_states(envs: Sequence[gym.Env]) -> list[State]:
    """The states of ``envs``: picklable, and apart from what they do next.  What they share stays shared.

    Raises:
        NotSavable: names the attribute, and what to do.
    """
    saver = Saver(link for env in envs for link in _links(env))
    return [[_get_state(link, saver) for link in _own_links(env)] for env in envs]


def _get_state(link: gym.Env, saver: Saver) -> dict[str, Any]:
    kind = type(link)
    if _has_own_state(link):
        return {"class": kind.__qualname__, "own": copy.deepcopy(link.get_state())}  # type: ignore[attr-defined]
    state: dict[str, Any] = {"class": kind.__qualname__, "plain": {}, "mujoco": {}, "ale": {}}
    state["spaces"] = [_generator_state(space) for space in _spaces(link)]
    for name, value in _variables(link):
        if _is_mujoco(value, "MjData"):
            state["mujoco"][name] = copy.deepcopy(_get_mujoco(_mujoco_model(link), value))
        elif _is_ale(value):
            state["ale"][name] = get_ale_state(value)
        else:
            try:
                state["plain"][name] = saver.copy(value, name)
            except NotSavable as error:
                raise NotSavable(error.where, error.problem, kind.__name__) from None
            except RecursionError:
                raise NotSavable(name, "is nested too deeply", kind.__name__) from None
    return state


def set_env_states(envs: Sequence[gym.Env], states: Sequence[State]) -> None:
    """Bring ``envs`` to states from `get_env_states`.

    Raises:
        ValueError: the states are of another kind of environment.
    """
    for env, state in zip(envs, states):
        names, saved = [type(link).__qualname__ for link in _own_links(env)], [link["class"] for link in state]
        if names != saved:
            raise ValueError(
                f"the state is of {' > '.join(saved)}, the environment is {' > '.join(names)}; resume with the "
                "environment and the wrappers that the state was saved with"
            )
    restorer = Restorer([link for env in envs for link in _links(env)], _classes_held(envs))
    for env, state in zip(envs, states):
        for link, own in zip(_own_links(env), state):
            _set_state(link, own, restorer)


def _set_state(link: gym.Env, state: dict[str, Any], restorer: Restorer) -> None:
    if "own" in state:
        link.set_state(copy.deepcopy(state["own"]))  # type: ignore[attr-defined]
        return
    for name, value in state["mujoco"].items():
        _set_mujoco(_mujoco_model(link), getattr(link, name), value)
    for name, value in state["ale"].items():
        set_ale_state(getattr(link, name), value)
    for space, generator in zip(_spaces(link), state.get("spaces", ())):
        if generator is not None:
            space.np_random.bit_generator.state = copy.deepcopy(generator)
    vars(link).update((name, restorer.copy(value, name)) for name, value in state["plain"].items())


def _classes_held(envs: Sequence[gym.Env]) -> set[type]:
    """The classes of the objects that ``envs`` hold now."""
    saver = Saver(link for env in envs for link in _links(env))
    for env in envs:
        for link in _own_links(env):
            for name, value in _variables(link):
                with contextlib.suppress(NotSavable):
                    saver.copy(value, name)
    return saver.kinds


def _links(env: gym.Env) -> Iterator[gym.Env]:
    """The environment, what it wraps, and so on to the core."""
    yield env
    while isinstance(env, gym.Wrapper):
        env = env.env
        yield env


def _own_links(env: gym.Env) -> Iterator[gym.Env]:
    """Those that are saved: all, or up to the first that saves itself and what is within it."""
    for link in _links(env):
        yield link
        if _has_own_state(link):
            return


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


def _spaces(link: gym.Env) -> Iterator[gym.Space]:
    """The spaces that the link holds, and those within them."""
    for value in vars(link).values():
        if isinstance(value, gym.Space):
            yield from _with_parts(value)


def _with_parts(space: gym.Space) -> Iterator[gym.Space]:
    yield space  # first: asked for its generator, it may seed its parts
    parts = getattr(space, "spaces", ())
    for part in parts.values() if isinstance(parts, Mapping) else parts:
        yield from _with_parts(part)
    for name in ("feature_space", "node_space", "edge_space"):
        part = getattr(space, name, None)
        if part is not None:
            yield from _with_parts(part)


def _generator_state(space: gym.Space) -> Any:
    """None where the space has none yet: it draws its seed when it is first asked."""
    return None if space._np_random is None else copy.deepcopy(space._np_random.bit_generator.state)


def _variables(link: gym.Env) -> Iterator[tuple[str, Any]]:
    for name, value in vars(link).items():
        if not (name in _ARGUMENTS or (name == "env" and isinstance(link, gym.Wrapper)) or _is_constant(value)):
            yield name, value


def _is_constant(value: Any) -> bool:
    """Whether ``value`` never changes after construction, or only shows the environment to people."""
    if inspect.isroutine(value):
        owner = getattr(
            value, "__self__", None
        )  # of a method: the environment itself stays, other objects are made anew
        return owner is None or inspect.ismodule(owner) or isinstance(owner, gym.Env) or _is_constant(owner)
    return (
        isinstance(value, (gym.Space, EnvSpec, type, partial))
        or _is_mujoco(value, "MjModel")
        or type(value).__module__.startswith(_VIEWER_MODULES)
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
