"""Checkpoint contents as plain data: what `torch.load(weights_only=True)` can read back without executing anything.

Called by `rlsurreal.utils.files`.  Numpy arrays become tensors over the same memory; what has no plain form of its own
becomes a dict with the entry ``__kind__``.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from rlsurreal.utils.namedarraytuple import NamedArrayTuple, namedarraytuple
from rlsurreal.utils.names import find_named, name_of

_KIND = "__kind__"
_BIT_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")
_NUMBERS = (bool, int, float, complex, str, type(None))


def to_plain(value: Any, where: str = "") -> Any:
    """``value`` as dicts, lists, tuples, numbers, text and tensors.

    An array or random generator that comes several times is one object again afterwards.

    Takes those, and: numpy arrays (not of objects or text), numpy scalars, `numpy.random.Generator`, bytes, and
    `NamedArrayTuple`s of classes at module level or from `namedarraytuple`.  Keys of dicts are numbers or text.
    Tensors that view a part of a larger one are copied: torch would save the whole.

    Raises:
        ValueError: naming the entry, dotted from the root.
    """
    return _to_plain(value, where, _Seen())


class _Seen:
    """Objects that were written, by identity: those that come again are referred to by number."""

    def __init__(self) -> None:
        self._written: dict[int, tuple[Any, dict[str, Any]]] = {}  # with the object, so that it lives as long
        self._count = 0

    def write(self, value: Any, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if id(value) not in self._written:
            self._written[id(value)] = value, make()
            return self._written[id(value)][1]
        first = self._written[id(value)][1]
        if "number" not in first:
            first["number"], self._count = self._count, self._count + 1
        return {_KIND: "same", "number": first["number"]}


def _to_plain(value: Any, where: str, seen: _Seen) -> Any:
    kind = type(value)
    if kind in _NUMBERS:
        return {_KIND: "int", "hex": hex(value)} if kind is int and value.bit_length() > 63 else value
    if kind in (list, tuple):
        return kind(_to_plain(item, f"{where}.{i}", seen) for i, item in enumerate(value))
    if kind in (dict, OrderedDict):
        return _plain_dict(value, where, seen)
    if isinstance(value, NamedArrayTuple):
        fields = [_to_plain(item, f"{where}.{name}", seen) for name, item in value.items()]
        name = _class_name(kind, where)
        return {_KIND: "namedarraytuple", "class": name, "fields": list(kind._fields), "values": fields}
    if kind in (np.ndarray, np.memmap):  # a masked array would lose its mask
        return seen.write(value, lambda: {_KIND: "array", "data": _as_tensor(value, where)})
    if isinstance(value, np.generic):
        return {_KIND: "scalar", "data": _as_tensor(np.asarray(value), where)}
    if isinstance(value, np.random.Generator):
        state = value.bit_generator.state
        return seen.write(value, lambda: {_KIND: "generator", "state": _to_plain(state, where, seen)})
    if kind is bytes:
        return {_KIND: "bytes", "data": _as_tensor(np.frombuffer(value, np.uint8), where)}
    torch = sys.modules.get("torch")  # a value can be a tensor only if torch is imported
    if torch is not None and isinstance(value, torch.Tensor):
        is_part = not value.is_sparse and value.untyped_storage().nbytes() > value.nbytes
        return value.detach().clone() if is_part else value.detach()
    if torch is not None and isinstance(value, (torch.Size, torch.dtype, torch.device)):
        return value
    raise ValueError(
        f"{_entry(where)} is a {kind.__module__}.{kind.__qualname__}, which cannot be saved; save "
        "numbers, text, arrays or tensors (its state_dict() or get_state(), perhaps)"
    )


def from_plain(value: Any) -> Any:
    """The inverse of `to_plain`.

    Raises:
        ValueError: a structure's class is gone, or has other fields than it had.
    """
    return _from_plain(value, {})


def _from_plain(value: Any, numbered: dict[int, Any]) -> Any:
    """``numbered``: objects that come again."""
    if type(value) in (list, tuple):
        return type(value)(_from_plain(item, numbered) for item in value)
    if not isinstance(value, dict):
        return value
    kind = value.get(_KIND)
    if kind is None:
        return _like(value, [(key, _from_plain(item, numbered)) for key, item in value.items()])
    if kind == "same":
        return numbered[value["number"]]
    made = _make(kind, value, numbered)
    if "number" in value:
        numbered[value["number"]] = made
    return made


def _make(kind: str, value: dict[str, Any], numbered: dict[int, Any]) -> Any:
    if kind == "int":
        return int(value["hex"], 16)
    if kind == "array":
        return value["data"].cpu().numpy()
    if kind == "scalar":
        return value["data"].cpu().numpy()[()]
    if kind == "bytes":
        return value["data"].cpu().numpy().tobytes()
    if kind == "generator":
        return _make_generator(_from_plain(value["state"], numbered))
    if kind == "namedarraytuple":
        values = [_from_plain(item, numbered) for item in value["values"]]
        return _find_class(value["class"], tuple(value["fields"]))._make(values)
    raise ValueError(f"checkpoint has an entry of unknown kind {kind!r}; it was written by a newer version")


def _plain_dict(value: dict[Any, Any], where: str, seen: _Seen) -> dict[Any, Any]:
    for key in value:
        if type(key) not in _NUMBERS or key == _KIND:
            raise ValueError(f"{_entry(where)} has the key {key!r}; keys must be numbers or text, and not {_KIND!r}")
    return _like(value, [(key, _to_plain(item, f"{where}.{key}", seen)) for key, item in value.items()])


def _like(value: dict[Any, Any], items: list[tuple[Any, Any]]) -> dict[Any, Any]:
    made = type(value)(items)
    if isinstance(value, OrderedDict):
        made.__dict__.update(value.__dict__)  # state_dict() of modules keeps format versions there
    return made


def _as_tensor(array: np.ndarray, where: str) -> Any:
    import torch

    try:
        return torch.from_numpy(np.require(array, requirements=("C", "W")))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{_entry(where)} is an array of {array.dtype}, which PyTorch does not have; convert it to "
            "numbers of the machine's own byte order"
        ) from error


def _entry(where: str) -> str:
    return f"checkpoint entry {where.lstrip('.')!r}" if where else "the checkpoint"


def _make_generator(state: dict[str, Any]) -> np.random.Generator:
    name = state["bit_generator"]
    if name not in _BIT_GENERATORS:
        raise ValueError(f"the checkpoint has a random generator {name!r}; known are {_BIT_GENERATORS}")
    bit_generator = getattr(np.random, name)()
    bit_generator.state = state
    return np.random.Generator(bit_generator)


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
