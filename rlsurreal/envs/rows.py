"""Writing one row: what a batch of environments returned, as lists of single elements, into arrays ``[B]``.

`GymnasiumVectorEnv` calls these once a row.  One assignment for the whole batch costs a quarter of one for each
element, so that is the path for elements of the declared type and shape; anything else goes element by element and is
checked.  ``where`` says which rows of the arrays the elements are for: ``slice(None)``, or an array of indices.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np

from rlsurreal.envs.problems import element_problem, reward_problem
from rlsurreal.utils.namedarraytuple import Tree
from rlsurreal.utils.spaces import children, leaf_dtype, writer

RowWriter = Callable[[Tree, Any, list[Any]], None]


class RowError(Exception):
    """Element ``position`` of a row cannot be written."""

    def __init__(self, position: int, problem: str) -> None:
        super().__init__(position, problem)
        self.position, self.problem = position, problem


def observation_writer(space: gym.Space) -> RowWriter:
    """A function ``write(arrays, where, elements)`` for elements of ``space``.  It raises `RowError`."""
    parts = children(space)
    if parts is None:
        return _leaf_writer(space)
    part_writers = [(i, key, observation_writer(child)) for i, (key, child) in enumerate(parts.values())]
    get = tuple.__getitem__

    def write(arrays: Tree, where: Any, elements: list[Any]) -> None:
        for i, key, write_part in part_writers:
            try:
                column = [element[key] for element in elements]
            except (KeyError, IndexError, TypeError):
                _raise_first(partial(element_problem, space), elements)
                raise
            try:
                write_part(get(arrays, i), where, column)
            except RowError as error:
                raise RowError(error.position, f"with entry {key!r} {error.problem}") from None

    return write


def _leaf_writer(space: gym.Space) -> RowWriter:
    shape, dtype, is_float = space.shape or (), np.dtype(space.dtype), leaf_dtype(space).kind == "f"
    counts_from_zero = not np.any(getattr(space, "start", 0))
    is_number = counts_from_zero and isinstance(space, gym.spaces.Discrete)
    write_one = writer(space)

    def write(array: np.ndarray, where: Any, elements: list[Any]) -> None:
        if not elements:
            return
        if is_number and all(type(element) is int for element in elements):  # FrozenLake, Taxi, Blackjack
            with contextlib.suppress(OverflowError):
                array[where] = elements
                return
        # Numpy would broadcast one wrong shape that all have in common and convert any type without a word; shapes that
        # differ from each other it refuses.
        try:
            if (
                counts_from_zero
                and elements[0].shape == shape
                and [element.dtype for element in elements].count(dtype) == len(elements)
            ):
                array[where] = elements
                if not is_float or np.isfinite(array[where]).all():
                    return
        except (AttributeError, ValueError):
            pass  # the checks below say what is wrong, or convert
        _raise_first(partial(element_problem, space), elements)
        for i, element in zip(range(len(array)) if isinstance(where, slice) else where, elements):
            write_one(array, i, element)

    return write


def write_rewards(array: np.ndarray, where: Any, rewards: list[Any]) -> None:
    """Write rewards, which must be finite numbers.

    Raises:
        RowError: one is not.
    """
    try:
        array[where] = rewards
        if np.isfinite(array[where]).all():
            return
    except (ValueError, TypeError):
        pass
    _raise_first(reward_problem, rewards)
    array[where] = [float(reward) for reward in rewards]


class InfoWriter:
    """Writes chosen entries of info dictionaries; where an entry is missing NaN for floating point, 0 for others."""

    def __init__(self, keys: Mapping[str, Any], example: Tree) -> None:
        nulls = [np.full_like(null, np.nan) if null.dtype.kind == "f" else null for null in example or ()]
        self._fields = list(zip(keys, nulls))

    def __call__(self, env_info: Tree, where: Any, infos: list[Any]) -> None:
        """Write, or raise `RowError`."""
        for (key, null), array in zip(self._fields, env_info or ()):
            try:
                array[where] = [info.get(key, null) for info in infos]
            except (ValueError, TypeError, AttributeError):
                _raise_first(partial(info_problem, key, null), infos)
                raise

    def clear(self, env_info: Tree) -> None:
        """Write as if all entries were missing."""
        for (_, null), array in zip(self._fields, env_info or ()):
            array[...] = null


def info_problem(key: str, null: np.ndarray, info: Any) -> str | None:
    """What is wrong with an entry of which ``null`` is an example, or None."""
    if not isinstance(info, Mapping):
        return f"info of type {type(info).__name__}; return a dictionary"
    value = info.get(key, null)
    try:
        array = np.asarray(value)
    except ValueError:
        return f"info[{key!r}] that is ragged"
    if array.shape == null.shape and array.dtype.kind in "biuf":
        return None
    return (
        f"info[{key!r}] of shape {array.shape} and type {array.dtype}; its example in info_fields is numeric and "
        f"has shape {null.shape}: correct the example, or do not record the entry"
    )


def _raise_first(find: Callable[[Any], str | None], elements: list[Any]) -> None:
    for position, element in enumerate(elements):
        problem = find(element)
        if problem is not None:
            raise RowError(position, problem)
