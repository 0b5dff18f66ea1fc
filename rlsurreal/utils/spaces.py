"""Gymnasium spaces and the arrays that hold their elements.

Called by environments (to convert at their border), by samplers (to allocate slots) and by models (to size layers).
Dict and Tuple spaces become `NamedArrayTuple`s; float64 becomes float32; Discrete and MultiDiscrete become int64.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces as gs

from rlsurreal.utils.namedarraytuple import Tree, is_field_name, namedarraytuple


def field_name(key: str) -> str:
    """The field that holds entry ``key`` of a Dict space: characters that no identifier may have become ``_``."""
    name = re.sub(r"\W", "_", key)
    return name if is_field_name(name) else f"f{name}"


def children(space: gym.Space) -> dict[str, tuple[Any, gym.Space]] | None:
    """Field name to (key in the space's own elements, space) of a Dict or Tuple space; None for all others."""
    if isinstance(space, gs.Dict):
        found = {field_name(key): (key, child) for key, child in space.spaces.items()}
        if len(found) != len(space.spaces):
            raise ValueError(f"keys {list(space.spaces)} of a Dict space collide as field names; rename one")
        return found
    if isinstance(space, gs.Tuple):
        return {f"f{i}": (i, child) for i, child in enumerate(space.spaces)}
    return None


def map_spaces(fn: Callable[[gym.Space], Any], space: gym.Space) -> Tree:
    """``fn`` of every leaf space, in the structure that elements of the space have."""
    parts = children(space)
    if parts is None:
        return fn(space)
    structure = namedarraytuple("Tuple" if isinstance(space, gs.Tuple) else "Dict", parts)
    return structure._make(map_spaces(fn, child) for _, child in parts.values())


def leaf_dtype(space: gym.Space) -> np.dtype:
    """The type in which a leaf space's elements are stored."""
    if isinstance(space, gs.Box):
        return np.dtype(np.float32) if space.dtype == np.float64 else np.dtype(space.dtype)
    if isinstance(space, (gs.Discrete, gs.MultiDiscrete)):
        return np.dtype(np.int64)
    if isinstance(space, gs.MultiBinary):
        return np.dtype(np.int8)
    raise ValueError(
        f"space {space} is not supported; use Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of "
        "these (a wrapper such as gymnasium.wrappers.FlattenObservation can convert others)"
    )


def null_value(space: gym.Space) -> Tree:
    """Zeros in the shape and type of one element."""
    return map_spaces(lambda leaf: np.zeros(leaf.shape or (), leaf_dtype(leaf)), space)


def writer(space: gym.Space) -> Callable[[Tree, int, Any], None]:
    """A function ``write(arrays, index, element)`` that stores one element of ``space`` in row ``index`` of ``arrays``.

    Shapes are checked at every write: numpy would silently broadcast a scalar over an observation of the wrong shape.
    """
    parts = children(space)
    if parts is None:
        shape, start = space.shape or (), getattr(space, "start", 0)
        shifted = bool(np.any(start))

        def write_leaf(array: Any, index: int, element: Any) -> None:
            if getattr(element, "shape", None) != shape and np.shape(element) != shape:
                raise ValueError(f"has shape {np.shape(element)}, the space says {shape}")
            array[index] = element - start if shifted else element

        return write_leaf
    parts_writers = [(i, key, writer(child)) for i, (key, child) in enumerate(parts.values())]
    get = tuple.__getitem__

    def write(arrays: Tree, index: int, element: Any) -> None:
        for i, key, write_part in parts_writers:
            try:
                part = element[key]
            except (KeyError, IndexError) as error:
                raise ValueError(f"entry {key!r} is missing") from error
            try:
                write_part(get(arrays, i), index, part)
            except ValueError as error:
                raise ValueError(f"entry {key!r}: {error}") from error

    return write


def policy_space(space: gym.Space) -> gym.Space:
    """The action space at the agent's side of the border.

    Bounded float boxes become [-1, 1], float64 becomes float32, whole numbers count from 0.
    """
    if isinstance(space, gs.Dict):
        return gs.Dict([(key, policy_space(child)) for key, child in space.spaces.items()])  # pairs keep their order
    if isinstance(space, gs.Tuple):
        return gs.Tuple([policy_space(child) for child in space.spaces])
    if isinstance(space, gs.Box):
        if not np.issubdtype(space.dtype, np.floating):
            raise ValueError(
                f"action space {space} has type {space.dtype}; use Discrete or MultiDiscrete for whole numbers"
            )
        low, high = np.broadcast_to(space.low, space.shape), np.broadcast_to(space.high, space.shape)
        bounded = np.isfinite(low) & np.isfinite(high)
        return gs.Box(
            np.where(bounded, -1, -np.inf).astype(np.float32), np.where(bounded, 1, np.inf).astype(np.float32)
        )
    if isinstance(space, gs.Discrete):
        return gs.Discrete(int(space.n))
    if isinstance(space, gs.MultiDiscrete):
        return gs.MultiDiscrete(space.nvec)
    return space


def to_env_action(space: gym.Space) -> Callable[[Tree], Any]:
    """A function from a batch of the agent's actions ``[B]`` to a list of ``B`` elements of ``space``.

    Bounded boxes are clipped to [-1, 1] and rescaled to the space's bounds.
    """
    parts = children(space)
    if parts is not None:
        converters = [(key, to_env_action(child)) for key, child in parts.values()]
        if isinstance(space, gs.Tuple):
            return lambda action: list(zip(*[convert(a) for (_, convert), a in zip(converters, action)]))
        keys = [key for key, _ in converters]
        return lambda action: [
            dict(zip(keys, row)) for row in zip(*[convert(a) for (_, convert), a in zip(converters, action)])
        ]
    to_array = to_env_array(space)
    if isinstance(space, gs.Discrete):
        return lambda action: to_array(action).tolist()
    return lambda action: list(to_array(action))


def to_env_array(space: gym.Space) -> Callable[[np.ndarray], np.ndarray]:
    """The same for a leaf space, from array ``[B, ...]`` to array ``[B, ...]`` (native batches take these)."""
    dtype = space.dtype
    if isinstance(space, gs.Box):
        if np.all(space.low == -1) and np.all(space.high == 1):
            return lambda action: np.minimum(np.maximum(action, -1), 1).astype(dtype, copy=False)
        floor, ceiling, scale, middle = box_border(space)

        def rescale(action: np.ndarray) -> np.ndarray:
            inside = np.minimum(np.maximum(action, floor), ceiling)
            # Clipped again, because rounding can lead past a bound.
            clipped: np.ndarray = np.clip((inside * scale + middle).astype(dtype), space.low, space.high)
            return clipped

        return rescale
    start = getattr(space, "start", 0)
    return lambda action: (action + start).astype(dtype, copy=False)


def box_border(space: gs.Box) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Bounds of the agent's actions; by what they are multiplied, and then moved, into the environment's units."""
    bounded = np.isfinite(space.low) & np.isfinite(space.high)
    low = np.where(bounded, space.low, -1).astype(np.float64)
    high = np.where(bounded, space.high, 1).astype(np.float64)
    scale, middle = (high - low) / 2, (high + low) / 2  # 1 and 0 where a bound is missing
    return np.where(bounded, -1, space.low), np.where(bounded, 1, space.high), scale, middle


def random_actions(space: gym.Space, rng: np.random.Generator) -> Tree:
    """One uniformly random element of the agent's action space ``space`` (unbounded boxes: standard normal)."""

    def draw(leaf: gym.Space) -> Any:
        if isinstance(leaf, gs.Box):
            bounded = np.isfinite(leaf.low)
            return np.where(bounded, rng.uniform(-1, 1, leaf.shape), rng.standard_normal(leaf.shape)).astype(np.float32)
        if isinstance(leaf, gs.Discrete):
            return np.int64(rng.integers(leaf.n))
        if isinstance(leaf, gs.MultiDiscrete):
            return rng.integers(leaf.nvec)
        return rng.integers(2, size=leaf.shape, dtype=np.int8)

    return map_spaces(draw, space)
