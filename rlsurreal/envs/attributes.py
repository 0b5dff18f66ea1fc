"""Copies of what an environment's attributes hold, without objects of its own classes, and back.

Called by `rlsurreal.envs.state` for checkpoints, which have no code in them.  Containers, numbers, text, arrays and
random generators are copied as they are.  Of an object of a Python class its attributes are kept, and its class's name.
It is made anew without a call of the class, and only if the environment has an object of that class already, or the
class is named in the module of one that it has: nothing is imported because a checkpoint says so.
"""

from __future__ import annotations

import copy
import enum
import inspect
import sys
from abc import abstractmethod
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from rlsurreal.utils.namedarraytuple import NamedArrayTuple
from rlsurreal.utils.plain import own_problem


class SavedObject(NamedArrayTuple):
    """What is of a class that is not Python's or numpy's."""

    kind: str  # module:qualname of the class; "" for one of the environments themselves
    content: Any  # attributes by name; a named tuple's items, the name of an enum's member, an environment's number


class NotSavable(Exception):
    """An attribute that cannot be saved: where it is, dotted, and what it is ("is a _thread.lock")."""

    def __init__(self, where: str, problem: str, owner: str = "the environment") -> None:
        super().__init__(where, problem, owner)
        self.where, self.problem, self.owner = where, problem, owner

    def __str__(self) -> str:
        return (
            f"attribute {self.where!r} of {self.owner} {self.problem}; give {self.owner} methods get_state() and "
            "set_state(state)"
        )


class _Copier:
    """Copies values with all they hold.  What comes several times, or within itself, does so in the copies."""

    def __init__(self) -> None:
        self._copies: dict[int, tuple[Any, Any]] = {}  # by identity: a value, which lives as long thereby, and its copy

    def copy(self, value: Any, where: str) -> Any:
        """A copy of ``value``, which is the attribute ``where`` (dotted, for errors)."""
        if id(value) in self._copies:
            return self._copies[id(value)][1]
        kind = type(value)
        if kind in (tuple, frozenset):
            return kind(self.copy(item, f"{where}.{i}") for i, item in enumerate(value))
        if kind in (list, set, deque):
            items: Any = self._keep(value, deque(maxlen=value.maxlen) if kind is deque else kind())
            add = items.add if kind is set else items.append
            for i, item in enumerate(value):
                add(self.copy(item, f"{where}.{i}"))
            return items
        if kind in (dict, OrderedDict, defaultdict) and own_problem(value) is None:
            mapping = self._keep(value, defaultdict(value.default_factory) if kind is defaultdict else kind())
            for key, item in value.items():
                mapping[self.copy(key, f"{where}.{key}")] = self.copy(item, f"{where}.{key}")
            return mapping
        if kind is np.ndarray and value.dtype == object:
            array = self._keep(value, np.empty(value.shape, object))
            for i, item in enumerate(value.flat):
                array.reshape(-1)[i] = self.copy(item, f"{where}.{i}")
            return array
        if isinstance(value, NamedArrayTuple) and kind is not SavedObject:
            return kind._make(self.copy(item, f"{where}.{name}") for name, item in value.items())
        return self._copy_other(value, where)

    def _keep(self, value: Any, made: Any) -> Any:
        self._copies[id(value)] = value, made
        return made

    @abstractmethod
    def _copy_other(self, value: Any, where: str) -> Any:
        """A copy of what is no container."""


class Saver(_Copier):
    """Copies with `SavedObject`s in place of objects.

    ``envs``, of which attributes are copied, are not copied themselves where something refers to them.
    """

    def __init__(self, envs: Iterable[gym.Env]) -> None:
        super().__init__()
        self.kinds: set[type] = set()  # classes of the objects so far
        self._arrays: dict[int, list[tuple[np.ndarray, str]]] = {}  # those so far, by the identity of their memory
        self._owners: set[type] = set()
        self._held: dict[type, set[int]] = {}  # by class: what it and its module hold, by identity
        for number, env in enumerate(envs):
            self._owners.update(type(env).__mro__[:-1])
            self._keep(env, SavedObject("", number))

    def copy(self, value: Any, where: str) -> Any:
        """``value`` with `SavedObject`s in it.

        Raises:
            NotSavable: ``value``, or something that it holds, would not be the same afterwards.
        """
        if isinstance(value, np.ndarray) and id(value) not in self._copies:
            self._check_memory(value, where)
        return super().copy(value, where)

    def _check_memory(self, array: np.ndarray, where: str) -> None:
        """Two views of one memory would be two arrays."""
        memory: Any = array
        while isinstance(memory.base, np.ndarray):
            memory = memory.base
        known = self._arrays.setdefault(id(memory), [])
        for other, name in known:
            if (array.flags.writeable or other.flags.writeable) and _overlap(array, other):
                raise NotSavable(where, f"shares memory with {name!r}")
        known.append((array, where))

    def _copy_other(self, value: Any, where: str) -> Any:
        problem = own_problem(value)
        if problem is None:
            return self._keep(value, copy.deepcopy(value))
        kind = type(value)
        is_member, is_named_tuple = _is_member(value), isinstance(value, tuple) and hasattr(kind, "_fields")
        attributes = _attributes(value)
        if not is_member and not is_named_tuple and attributes is None:
            raise NotSavable(where, problem)
        if "<" in kind.__qualname__:
            raise NotSavable(where, f"{problem}, a class that is not at the top of a module")
        if attributes is not None and self._is_held_elsewhere(value):
            raise NotSavable(where, f"{problem} that a module or class holds, too: afterwards they would be two")
        self.kinds.add(kind)
        if is_member:
            return SavedObject(_name(kind), value.name)
        if is_named_tuple:
            return SavedObject(_name(kind), [self.copy(item, f"{where}.{i}") for i, item in enumerate(value)])
        content: dict[str, Any] = {}
        saved = self._keep(value, SavedObject(_name(kind), content))
        content.update((name, self.copy(item, f"{where}.{name}")) for name, item in (attributes or {}).items())
        return saved

    def _is_held_elsewhere(self, value: Any) -> bool:
        """Whether the object is also a global one.  Those of frozen dataclasses are as good as their copies."""
        if getattr(getattr(value, "__dataclass_params__", None), "frozen", False):
            return False
        owners = self._owners.union(type(value).__mro__[:-1])
        for owner in owners - self._held.keys():
            self._held[owner] = {id(item) for named in _named_by(owner) for item in (named, *_items(named))}
        return any(id(value) in self._held[owner] for owner in owners)


class Restorer(_Copier):
    """Copies with objects in place of `SavedObject`s.

    ``envs`` are as `Saver` had them; objects are of ``kinds``, or of classes that these, or their modules, name.
    """

    def __init__(self, envs: Sequence[gym.Env], kinds: Iterable[type]) -> None:
        super().__init__()
        self._envs = envs
        self._learned: set[type] = set()
        self._kinds: dict[str, type] = {}
        for kind in (*map(type, envs), *kinds):
            self._learn(kind)

    def _learn(self, kind: type) -> None:
        """Get to know ``kind``, and the classes that it and its module name."""
        if kind in self._learned:
            return
        self._learned.add(kind)
        for named in (named for base in kind.__mro__[:-1] for named in _named_by(base)):
            if isinstance(named, type):
                self._kinds.setdefault(_name(named), named)
        self._kinds[_name(kind)] = kind

    def _copy_other(self, value: Any, where: str) -> Any:
        if not isinstance(value, SavedObject):
            return self._keep(value, copy.deepcopy(value))
        if not value.kind:
            return self._envs[value.content]
        kind = self._kinds.get(value.kind)
        if kind is None or not (issubclass(kind, (enum.Enum, tuple)) or _is_plain_class(kind)):
            raise ValueError(
                f"{where!r} was of the class {value.kind} when the state was saved, which the environment does not "
                "know now; import that class by its name in the environment's module"
            )
        self._learn(kind)
        if issubclass(kind, enum.Enum):
            if value.content not in kind.__members__:
                raise ValueError(
                    f"{where!r} was {value.content} of {value.kind} when the state was saved; there is none"
                )
            return kind.__members__[value.content]
        if issubclass(kind, tuple):
            return tuple.__new__(kind, [self.copy(item, f"{where}.{i}") for i, item in enumerate(value.content)])
        if id(value.content) in self._copies:
            return self._copies[id(value.content)][1]
        made = self._keep(value.content, object.__new__(kind))
        for name, item in value.content.items():
            _set_attribute(made, name, self.copy(item, f"{where}.{name}"))
        return made


def _name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _named_by(kind: type) -> Iterator[Any]:
    """What the class and its module have names for."""
    yield from vars(kind).values()
    yield from vars(sys.modules.get(kind.__module__, kind)).values()


def _items(value: Any) -> Iterable[Any]:
    return list(value.values()) if type(value) is dict else value if type(value) in (list, tuple, set) else ()


def _overlap(one: np.ndarray, other: np.ndarray) -> bool:
    try:
        return np.shares_memory(one, other, max_work=1_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def _is_member(value: Any) -> bool:
    """Whether ``value`` is an enum's member that has a name (a combination of flags has none)."""
    return isinstance(value, enum.Enum) and type(value).__members__.get(value.name) is value


def _attributes(value: Any) -> dict[str, Any] | None:
    """All attributes of an object that is nothing else: copied and pickled by the default way."""
    kind = type(value)
    if isinstance(value, (gym.Env, type)) or not _is_plain_class(kind):
        return None
    try:
        _, arguments, state, *items = value.__reduce_ex__(2)
    except TypeError:  # it has more than attributes
        return None
    if arguments != (kind,) or any(items):
        return None
    own, slots = state if isinstance(state, tuple) else (state, None)
    return {**(own or {}), **(slots or {})}


def _is_plain_class(kind: type) -> bool:
    default_getstate = getattr(object, "__getstate__", None)  # none before Python 3.11
    return (
        all(getattr(kind, name) is getattr(object, name) for name in ("__new__", "__reduce__", "__reduce_ex__"))
        and getattr(kind, "__getstate__", None) is default_getstate
        and not any(hasattr(kind, name) for name in ("__setstate__", "__deepcopy__", "__del__"))
    )


def _set_attribute(made: Any, name: str, value: Any) -> None:
    """Past the class's own __setattr__ and properties: a frozen dataclass refuses."""
    if inspect.ismemberdescriptor(inspect.getattr_static(type(made), name, None)):  # a slot
        object.__setattr__(made, name, value)
    else:
        vars(made)[name] = value
