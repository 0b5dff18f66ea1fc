"""Checkpoint contents as plain data: what `torch.load(weights_only=True)` can read back without executing anything.

Called by `rlsurreal.utils.files`.  Numpy arrays become tensors over the same memory; what has no plain form of its own
becomes a dict with the entry ``__kind__``.
"""

from __future__ import annotations

import random
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from rlsurreal.utils.namedarraytuple import NamedArrayTuple, namedarraytuple
from rlsurreal.utils.names import find_named, name_of

_KIND = "__kind__"
_BIT_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")
_NUMBERS = (bool, int, float, complex, str, type(None))
_CONTAINERS = (list, tuple, set, frozenset, deque, dict, OrderedDict, defaultdict)
_FACTORIES: dict[str, Any] = {  # of defaultdicts
    kind.__name__: kind for kind in (bool, int, float, complex, str, bytes, list, tuple, set, dict, deque, OrderedDict)
}
_Seen = dict[int, tuple[Any, Any]]  # by its identity: a value, which lives as long thereby, and its plain form


def to_plain(value: Any, where: str = "") -> Any:
    """``value`` as dicts, lists, tuples, numbers, text and tensors.

    A container, array or random generator that comes several times, or within itself, is one object again afterwards.

    Takes those, and: sets (not their order), deques, ranges, slices, `collections.defaultdict` of Python's own types,
    numpy arrays (not of records), numpy scalars, random generators of numpy and of Python, bytes, and
    `NamedArrayTuple`s of classes at module level or from `namedarraytuple`.  Tensors that view a part of a larger one
    are copied: torch would save the whole.

    Raises:
        ValueError: naming the entry, dotted from the root.
    """
    try:
        return _to_plain(value, where, {})
    except RecursionError:
        raise ValueError(f"{_entry(where)} is nested too deeply to be saved") from None


def own_problem(value: Any) -> str | None:
    """Why ``value`` cannot be saved, whatever it holds ("is a _thread.lock"), or None if it can.

    Without PyTorch, and so not for tensors.
    """
    kind = type(value)
    if kind in (np.ndarray, np.memmap) or isinstance(value, np.generic):  # a masked array would lose its mask
        is_odd = value.dtype.kind == "V" or (value.dtype.hasobject and value.dtype != object)
        return f"is an array of {value.dtype}" if is_odd else None
    if isinstance(value, (np.random.Generator, np.random.RandomState)):
        name = _generator_state(value)["bit_generator"]
        return None if name in _BIT_GENERATORS else f"is a random generator {name!r}; known are {_BIT_GENERATORS}"
    if kind is defaultdict and value.default_factory not in (None, *_FACTORIES.values()):
        return f"is a defaultdict of {value.default_factory!r}, which is none of {', '.join(_FACTORIES)}"
    if kind in _NUMBERS or kind in _CONTAINERS or kind in (bytes, random.Random, range):
        return None
    if kind is slice:
        return next(filter(None, map(own_problem, _bounds(value))), None)
    return f"is a {kind.__module__}.{kind.__qualname__}"


def _to_plain(value: Any, where: str, seen: _Seen) -> Any:
    kind = type(value)
    if kind in _NUMBERS:
        return {_KIND: "int", "hex": hex(value)} if _is_long(value) else value
    if kind is tuple:
        return tuple(_to_plain(item, f"{where}.{i}", seen) for i, item in enumerate(value))
    if isinstance(value, NamedArrayTuple):
        fields = [_to_plain(item, f"{where}.{name}", seen) for name, item in value.items()]
        name = _class_name(kind, where)
        return {_KIND: "namedarraytuple", "class": name, "fields": list(kind._fields), "values": fields}
    torch = sys.modules.get("torch")  # a value can be a tensor only if torch is imported
    if torch is not None and isinstance(value, torch.Tensor):
        is_part = not value.is_sparse and value.untyped_storage().nbytes() > value.nbytes
        return value.detach().clone() if is_part else value.detach()
    if torch is not None and isinstance(value, (torch.Size, torch.dtype, torch.device)):
        return value
    if id(value) in seen:
        return seen[id(value)][1]
    problem = own_problem(value)
    if problem is not None:
        raise ValueError(
            f"{_entry(where)} {problem}, which cannot be saved; save numbers, text, arrays or tensors (its "
            "state_dict() or get_state(), perhaps)"
        )
    plain = _empty_form(value) if _has_items(value) else _form(value)
    seen[id(value)] = value, plain  # before its items, which may hold it
    if _has_items(value):
        _write_items(value, plain, where, seen)
    return plain


def _has_items(value: Any) -> bool:
    return type(value) in _CONTAINERS or (isinstance(value, np.ndarray) and value.dtype == object)


def _form(value: Any) -> dict[str, Any]:
    """Of what has no items."""
    if isinstance(value, np.ndarray):
        return {_KIND: "array", **_array_form(value)}
    if isinstance(value, np.generic):
        return {_KIND: "scalar", **_array_form(np.asarray(value))}
    if isinstance(value, bytes):
        return {_KIND: "bytes", **_array_form(np.frombuffer(value, np.uint8))}
    if isinstance(value, random.Random):
        return {_KIND: "Random", "state": value.getstate()}
    if isinstance(value, (range, slice)):
        return {_KIND: type(value).__name__, "bounds": to_plain(_bounds(value))}
    kind = "generator" if isinstance(value, np.random.Generator) else "RandomState"
    return {_KIND: kind, "state": to_plain(_generator_state(value))}


def _bounds(value: range | slice) -> tuple[Any, Any, Any]:
    return value.start, value.stop, value.step


def _array_form(array: np.ndarray) -> dict[str, Any]:
    import torch

    try:
        return {"data": torch.from_numpy(np.require(array, requirements=("C", "W")))}
    except (TypeError, ValueError):  # PyTorch has no text, no dates, and no other byte order than the machine's
        data = np.array(array, order="C").reshape(-1).view(np.uint8)
        return {"data": torch.from_numpy(data), "dtype": array.dtype.str, "shape": array.shape}


def _empty_form(value: Any) -> Any:
    kind = type(value)
    if kind is list or (kind in (dict, OrderedDict) and all(map(_is_plain_key, value))):
        return kind()
    if kind is deque:
        return {_KIND: "deque", "maxlen": value.maxlen}
    if kind is defaultdict:
        return {_KIND: "defaultdict", "factory": getattr(value.default_factory, "__name__", None)}
    return {_KIND: "objects", "shape": value.shape} if isinstance(value, np.ndarray) else {_KIND: kind.__name__}


def _write_items(value: Any, plain: Any, where: str, seen: _Seen) -> None:
    def of(item: Any, name: Any) -> Any:
        return _to_plain(item, f"{where}.{name}", seen)

    if isinstance(value, dict) and _KIND in plain:
        plain["keys"] = [of(key, key) for key in value]
        plain["values"] = [of(item, key) for key, item in value.items()]
    elif isinstance(value, dict):
        plain.update((key, of(item, key)) for key, item in value.items())
        _copy_attributes(value, plain)
    else:
        items = [of(item, i) for i, item in enumerate(value.flat if isinstance(value, np.ndarray) else value)]
        if isinstance(value, list):
            plain.extend(items)
        else:
            plain["items"] = items


def _is_plain_key(key: Any) -> bool:
    return type(key) in _NUMBERS and not _is_long(key) and key != _KIND


def _is_long(value: Any) -> bool:
    """Whether it is an integer that the safe loader does not read."""
    return type(value) is int and value.bit_length() > 63


def from_plain(value: Any) -> Any:
    """The inverse of `to_plain`.

    Raises:
        ValueError: a structure's class is gone, or has other fields than it had.
    """
    return _from_plain(value, {})


def _from_plain(value: Any, made: dict[Any, Any]) -> Any:
    """``made``: what has been made already, by the identity of its plain form."""
    if type(value) is tuple:
        return tuple(_from_plain(item, made) for item in value)
    if type(value) not in (list, dict, OrderedDict):
        return value
    if id(value) in made:
        return made[id(value)]
    read = partial(_from_plain, made=made)
    kind = None if isinstance(value, list) else value.get(_KIND)
    if kind == "same":  # older checkpoints number what comes again
        return made["number", value["number"]]
    new = made[id(value)] = type(value)() if kind is None else _make(kind, value, read)
    if kind is not None and "number" in value:
        made["number", value["number"]] = new
    _read_items(new, kind, value, read)
    return new


def _make(kind: str, value: dict[str, Any], read: Callable[[Any], Any]) -> Any:
    """What the plain form ``value`` stands for, as yet empty where it may hold itself."""
    if kind == "int":
        return int(value["hex"], 16)
    if kind in ("array", "scalar", "bytes"):
        array = _read_array(value)
        return array if kind == "array" else array[()] if kind == "scalar" else array.tobytes()
    if kind in ("set", "dict", "OrderedDict"):
        return {"set": set, "dict": dict, "OrderedDict": OrderedDict}[kind]()
    if kind == "frozenset":
        return frozenset(map(read, value["items"]))
    if kind == "deque":
        return deque(maxlen=value["maxlen"])
    if kind == "defaultdict":
        return defaultdict(None if value["factory"] is None else _FACTORIES[value["factory"]])
    if kind == "objects":
        return np.empty(value["shape"], object)
    if kind in ("generator", "RandomState"):
        return _make_generator(kind, from_plain(value["state"]))
    if kind in ("range", "slice"):
        return {"range": range, "slice": slice}[kind](*from_plain(value["bounds"]))
    if kind == "Random":
        python_generator = random.Random()
        python_generator.setstate(value["state"])
        return python_generator
    if kind == "namedarraytuple":
        values = [read(item) for item in value["values"]]
        return _find_class(value["class"], tuple(value["fields"]))._make(values)
    raise ValueError(f"checkpoint has an entry of unknown kind {kind!r}; it was written by a newer version")


def _read_items(new: Any, kind: str | None, value: Any, read: Callable[[Any], Any]) -> None:
    if kind is None and isinstance(value, list):
        new.extend(map(read, value))
    elif kind is None:
        new.update((key, read(item)) for key, item in value.items())
        _copy_attributes(value, new)
    elif isinstance(new, dict):
        new.update((read(key), read(item)) for key, item in zip(value["keys"], value["values"]))
    elif kind in ("set", "deque"):
        (new.update if kind == "set" else new.extend)(map(read, value["items"]))
    elif kind == "objects":
        flat = new.reshape(-1)
        for i, item in enumerate(value["items"]):
            flat[i] = read(item)


def _copy_attributes(source: dict[Any, Any], target: dict[Any, Any]) -> None:
    if isinstance(source, OrderedDict):
        vars(target).update(vars(source))  # state_dict() of modules keeps format versions there


def _read_array(value: dict[str, Any]) -> np.ndarray:
    array: np.ndarray = value["data"].cpu().numpy()
    return array.view(value["dtype"]).reshape(value["shape"]) if "dtype" in value else array  # numpy refuses objects


def _generator_state(generator: np.random.Generator | np.random.RandomState) -> dict[str, Any]:
    if isinstance(generator, np.random.Generator):
        return dict(generator.bit_generator.state)
    state: Any = generator.get_state(legacy=False)
    return dict(state)


def _make_generator(kind: str, state: dict[str, Any]) -> np.random.Generator | np.random.RandomState:
    name = state["bit_generator"]
    if name not in _BIT_GENERATORS:
        raise ValueError(f"the checkpoint has a random generator {name!r}; known are {_BIT_GENERATORS}")
    bit_generator = getattr(np.random, name)()
    if kind == "RandomState":
        generator = np.random.RandomState(bit_generator)
        generator.set_state(state)
        return generator
    bit_generator.state = state
    return np.random.Generator(bit_generator)


def _entry(where: str) -> str:
    return f"checkpoint entry {where.lstrip('.')!r}" if where else "the checkpoint"


def _class_name(cls: type[NamedArrayTuple], where: str) -> str:
    """``module:qualname``, or the bare name of a class that `namedarraytuple` made."""
    if cls.__module__ == NamedArrayTuple.__module__:  # no class statement made it
        return cls.__name__
    try:
        return name_of(cls)
    except ValueError as error:
        raise ValueError(f"{_entry(where)}: {error}, or make it with namedarraytuple()") from error


def _find_class(name: str, fields: tuple[str, ...]) -> type[NamedArrayTuple]:
    if ":" not in name:
        return namedarraytuple(name, fields)
    found = find_named(name)
    if not (isinstance(found, type) and issubclass(found, NamedArrayTuple) and found._fields == fields):
        raise ValueError(f"checkpoint needs the structure {name} with fields {fields}; there is {found!r} now")
    return found
