"""What is wrong with what an environment returned, in words that say how to mend it.

Called when writing a row has failed (`rlsurreal.envs.rows`), so that the hot path needs no checks of its own, and by
`check_env`.  Each function returns None where nothing is wrong, otherwise a phrase that goes on from "returned from
step".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from rlsurreal.utils.spaces import children, leaf_dtype


def reset_problem(result: Any) -> str | None:
    """``result`` of an environment's ``reset``, but for the observation."""
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping):
        return None
    return (
        f"{_describe(result)}; return (observation, info), info being a dictionary "
        "(environments of the old gym return the observation alone: make them with the package shimmy)"
    )


def step_problem(result: Any) -> str | None:
    """``result`` of an environment's ``step``, but for the observation and the reward."""
    if not isinstance(result, tuple) or len(result) != 5:
        old = (
            "; this is the interface of the old gym: make the environment with the package shimmy, or return"
            if isinstance(result, tuple) and len(result) == 4
            else "; return"
        )
        return f"{_describe(result)}{old} (observation, reward, terminated, truncated, info)"
    for name, flag in (("terminated", result[2]), ("truncated", result[3])):
        if np.shape(flag) != ():
            return f"{name} of shape {np.shape(flag)}; return one bool"
    if not isinstance(result[4], Mapping):
        return f"info of type {type(result[4]).__name__}; return a dictionary"
    return None


def reward_problem(reward: Any) -> str | None:
    """``reward`` of one step."""
    array = np.asarray(reward)
    if array.shape != () or array.dtype.kind not in "biuf":
        return f"reward {reward!r} of type {type(reward).__name__}; return one number"
    with np.errstate(over="ignore"):
        if not np.isfinite(array.astype(np.float32)):
            return f"reward {reward!r}, which is not finite in float32; find where it comes from in the environment"
    return None


def element_problem(space: gym.Space, element: Any) -> str | None:
    """``element`` that is to be stored as one of ``space``: structure, shape, type and finiteness, not the bounds."""
    parts = children(space)
    if parts is None:
        return _leaf_problem(space, element)
    for key, child in parts.values():
        try:
            part = element[key]
        except (KeyError, IndexError, TypeError):
            return f"without the entry {key!r}; observation_space declares {space}"
        problem = element_problem(child, part)
        if problem is not None:
            return f"with entry {key!r} {problem}"
    return None


def _leaf_problem(space: gym.Space, element: Any) -> str | None:
    shape, dtype = space.shape or (), leaf_dtype(space)
    try:
        array = np.asarray(element)
    except ValueError:
        return "that is ragged; return one array"
    mend = "return that, or declare in observation_space what is returned"
    if array.dtype.kind not in "biuf":
        return f"of type {array.dtype}, which is not numeric; observation_space says {space.dtype}: {mend}"
    if array.shape != shape:
        return f"of shape {array.shape}; observation_space says {shape}: {mend}"
    if array.dtype.kind == "f" and dtype.kind != "f":
        return f"of type {array.dtype}; observation_space says {space.dtype}: {mend}"
    if dtype.kind in "iu" and array.size:
        bounds = np.iinfo(dtype)
        if array.min() < bounds.min or array.max() > bounds.max:
            values = f"with values from {array.min()} to {array.max()}, beyond {dtype}"
            return f"{values}; observation_space says {space}: {mend}"
    with np.errstate(over="ignore"):
        if dtype.kind == "f" and not np.isfinite(array.astype(dtype)).all():
            return "that is not finite (NaN or infinity); find where it comes from in the environment"
    return None


def _describe(result: Any) -> str:
    if isinstance(result, tuple):
        kinds = ", ".join(type(value).__name__ for value in result)
        return f"{len(result)} values ({kinds})"
    return f"a {type(result).__name__}"
