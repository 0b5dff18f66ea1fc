"""What every kind of environment shares: its error, its seeds, its spaces at the agent's side, and its recorded
information.

Used by the modules of this package only.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces as gs

from rlsurreal.structs import Spaces
from rlsurreal.utils.namedarraytuple import Tree, leaves, namedarraytuple
from rlsurreal.utils.spaces import children, field_name, leaf_dtype, policy_space

_log = logging.getLogger(__name__)


class EnvError(RuntimeError):
    """An environment failed or broke its interface.  The message names the environment by its global index."""


def env_seed(seed: int, env: int) -> int:
    """The seed, in [0, 2**31), of the environment with global index ``env`` in a run with ``seed``."""
    return int(np.random.SeedSequence((seed, env)).generate_state(1)[0] >> 1)


def agent_spaces(observation: gym.Space, action: gym.Space) -> Spaces:
    """The spaces at the agent's side of the border: as their elements are stored, with bounded actions in [-1, 1].

    Raises:
        ValueError: a space is of a kind that cannot be stored.
    """
    return Spaces(observation=_as_stored(observation), action=_as_stored(policy_space(action)))


def _as_stored(space: gym.Space) -> gym.Space:
    children(space)  # raises where names collide
    if isinstance(space, gs.Dict):
        # From pairs, which keep their order: everything pairs entries with fields by position.
        return gs.Dict([(key, _as_stored(child)) for key, child in space.spaces.items()])
    if isinstance(space, gs.Tuple):
        return gs.Tuple([_as_stored(child) for child in space.spaces])
    leaf_dtype(space)  # raises where the space is not supported
    if isinstance(space, gs.Box) and space.dtype == np.float64:
        with np.errstate(over="ignore"):  # bounds beyond float32 become infinite
            low, high = (np.asarray(bound).astype(np.float32) for bound in (space.low, space.high))
        return gs.Box(low, high, dtype=np.float32)
    if isinstance(space, gs.Discrete) and space.start != 0:
        return gs.Discrete(int(space.n))
    if isinstance(space, gs.MultiDiscrete) and np.any(space.start):
        return gs.MultiDiscrete(space.nvec)
    return space


def info_example(fields: Mapping[str, Any]) -> Tree:
    """The structure of ``env_info`` for one environment: ``fields`` maps keys of info dictionaries to examples.

    Floating point becomes float32, whole numbers become int64.

    Raises:
        ValueError: there are no examples, one is not numeric, or two keys make the same field name.
    """
    if not fields:
        return None
    if not isinstance(fields, Mapping):
        raise ValueError(
            f"info_fields is {fields!r}; give a dictionary with an example of each value, such as {{'x': 0.0}}"
        )
    values: dict[str, np.ndarray] = {}
    for key, example in fields.items():
        array = np.asarray(example)
        if array.dtype.kind not in "biuf":
            raise ValueError(
                f"info_fields[{key!r}] is {example!r}; give a number or an array of numbers as the example"
            )
        name = field_name(key)
        if name in values:
            raise ValueError(
                f"info_fields[{key!r}] becomes field {name!r}, which another key has taken; record one of them"
            )
        dtype = {"f": np.float32, "b": np.bool_}.get(array.dtype.kind, np.int64)
        values[name] = np.zeros(array.shape, dtype)
    return namedarraytuple("EnvInfo", values)._make(values.values())


def float_leaves(tree: Tree) -> list[np.ndarray]:
    """The arrays in which NaN and infinity can occur."""
    return [leaf for leaf in leaves(tree) if leaf.dtype.kind == "f"]


def import_optional(module: str, extra: str) -> Any:
    """Import a module of an optional package.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module} could not be imported ({error}); install it with: pip install rlsurreal[{extra}]"
        ) from error


_mujoco_said: set[str] = set()


def route_mujoco_warnings() -> None:
    """Have MuJoCo's warnings, if it is loaded, go to the log, each once in this process.

    MuJoCo itself writes each warning of each model to stderr and to a file in the working directory; Gymnasium's models
    alone would fill the screen with notes on deprecated attributes.
    """
    mujoco: Any = sys.modules.get("mujoco")
    if mujoco is not None and hasattr(mujoco, "set_mju_user_warning"):
        mujoco.set_mju_user_warning(_log_mujoco_warning)


def _log_mujoco_warning(message: Any) -> None:
    text = message.decode(errors="replace") if isinstance(message, bytes) else str(message)
    if text not in _mujoco_said:
        _mujoco_said.add(text)
        _log.log(logging.DEBUG if "deprecated" in text else logging.WARNING, "MuJoCo: %s", text)
