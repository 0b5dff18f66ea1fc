"""Whether the fields of components hold what their annotations say.

From the command line values come so (`rlsurreal.utils.text_values`); from Python they may be anything.  Called by
`rlsurreal.runners.trainer`.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import numbers
import os
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlsurreal.utils.components import annotation_of, is_component, join
from rlsurreal.utils.text_values import type_name, with_article

_SEQUENCES = (tuple, list, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_PLAIN: dict[Any, Any] = {
    bool: (bool, np.bool_),
    int: numbers.Integral,
    float: numbers.Real,
    complex: numbers.Complex,
    str: (str, os.PathLike),
    Path: (str, os.PathLike),
}


def check_kinds(component: Any) -> None:
    """ValueError where a field of ``component``, or of a component within, is not of the kind that it is annotated as.

    Whole numbers are floats, too; numbers of numpy are numbers; lists and tuples are one kind, as are texts and paths.
    Where a protocol is wanted, whatever has one of its methods will do; where a class is wanted, what has all of its
    methods, too.  An annotation that cannot be resolved, or does not fit the field's own default, says nothing.
    """
    _check(component, "")


def _check(value: Any, path: str) -> None:
    if is_component(value):
        fields = [field for field in dataclasses.fields(value) if field.init]
        children: Any = {field.name: getattr(value, field.name) for field in fields}
        for field in fields:
            _check_field(children[field.name], annotation_of(type(value), field.name), field, path)
    elif isinstance(value, Mapping):
        children = value
    elif type(value) in (list, tuple):
        children = dict(enumerate(value))
    else:
        return
    for key, child in children.items():
        _check(child, join(path, key))


def _check_field(value: Any, annotation: Any, field: dataclasses.Field[Any], path: str) -> None:
    if _fits(value, annotation):
        return
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if default is dataclasses.MISSING or _fits(default, annotation):  # else the annotation says nothing
        raise ValueError(f"{join(path, field.name)} is {_described(value)}; {_wanted(value, annotation)}")


# ---------------------------------------------------------------- what fits


def _fits(value: Any, annotation: Any) -> bool:
    """Whether ``value`` is of the kind that ``annotation`` (a type, not its name) says; True where that is unclear."""
    kind, arguments = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if kind is typing.Union or kind is types.UnionType:
        return any(_fits(value, member) for member in arguments)
    if kind is typing.Annotated:
        return _fits(value, arguments[0])
    if kind is typing.Literal:
        return not isinstance(value, collections.abc.Hashable) or value in arguments
    if kind is None or kind is type(None):
        return value is None
    if kind is Any or kind is object or not isinstance(kind, type):
        return True
    if kind is type:
        return _makes(value, arguments[0] if arguments else Any)
    if kind is collections.abc.Callable:
        return callable(value)
    if kind in _PLAIN:
        return isinstance(value, _PLAIN[kind])
    if kind in _SEQUENCES:
        return _is_sequence_of(value, kind, arguments)
    if kind in _MAPPINGS:
        of_keys, of_values = arguments or (Any, Any)
        return isinstance(value, Mapping) and all(_fits(k, of_keys) and _fits(v, of_values) for k, v in value.items())
    if isinstance(value, type) and not (_is_protocol(kind) and "__call__" in vars(kind)):
        return False
    methods = _has_methods(value, kind)
    if _is_protocol(kind):
        return any(methods) or not methods
    return _is_a(value, kind) or (bool(methods) and all(methods))


def _makes(value: Any, wanted: Any) -> bool:
    """Whether ``value`` is a class, or a function in the place of one, and not an instance of ``wanted``."""
    return isinstance(value, type) or (callable(value) and not _is_a(value, wanted))


def _is_sequence_of(value: Any, kind: type, arguments: tuple[Any, ...]) -> bool:
    is_text = isinstance(value, (str, bytes))  # a sequence of letters, where any Sequence will do
    if kind in (tuple, list) and (is_text or isinstance(value, Mapping)):
        return False
    if not arguments or not (is_text or isinstance(value, (list, tuple))):
        return isinstance(value, collections.abc.Iterable)
    if kind is tuple and arguments[-1] is not ...:
        return len(value) == len(arguments) and all(map(_fits, value, arguments))
    return all(_fits(item, arguments[0]) for item in value)


def _is_a(value: Any, wanted: Any) -> bool:
    """Whether ``value`` is an instance of ``wanted``, or, being a class, makes some."""
    if not isinstance(wanted, type) or _is_protocol(wanted):
        return False
    try:
        return issubclass(value, wanted) if isinstance(value, type) else isinstance(value, wanted)
    except TypeError:  # a class that does not tell: a TypedDict
        return True


def _has_methods(value: Any, wanted: type) -> list[bool]:
    """Which of the methods of ``wanted`` has ``value``, an instance or its class."""
    names = [name for name in dir(wanted) if name == "__call__" or not name.startswith("_")]
    return [hasattr(value, name) for name in names if callable(getattr(wanted, name, None))]


def _is_protocol(wanted: type) -> bool:
    return bool(getattr(wanted, "_is_protocol", False))


# ---------------------------------------------------------------- in words


def _described(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__qualname__}"
    kind = with_article(type(value).__name__)
    return f"{value!r}, {kind}" if isinstance(value, (str, numbers.Number, list, tuple, dict)) else kind


def _wanted(value: Any, annotation: Any) -> str:
    """What to write instead of ``value``, or what it must be."""
    members = _members(annotation)
    for wanted in (typing.get_origin(member) or member for member in members):
        if isinstance(value, type) and isinstance(wanted, type) and _makes_one(value, wanted):
            return f"write {value.__qualname__}({'' if _can_be_called(value) else '...'})"
        required = _required_fields(wanted)
        if len(required) == 1 and _fits(value, annotation_of(wanted, required[0])):
            written = value.__qualname__ if isinstance(value, type) else repr(value)
            return f"write {wanted.__qualname__}({required[0]}={written})"
    number = f": write {int(value)}" if int in members and _is_whole(value) else ""
    return f"it must be {' or '.join(map(_named, members))}{number}"


def _members(annotation: Any) -> list[Any]:
    """The types of a union, or the one."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [member for part in typing.get_args(annotation) for member in _members(part)]
    return [annotation]


def _makes_one(value: type, wanted: type) -> bool:
    methods = _has_methods(value, wanted)
    return _is_a(value, wanted) or (bool(methods) and all(methods))


def _can_be_called(value: type) -> bool:
    try:
        inspect.signature(value).bind()
    except (TypeError, ValueError):
        return False
    return True


def _required_fields(wanted: Any) -> list[str]:
    if not (isinstance(wanted, type) and dataclasses.is_dataclass(wanted)):
        return []
    missing = dataclasses.MISSING
    return [f.name for f in dataclasses.fields(wanted) if f.init and f.default is f.default_factory is missing]


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Real) and float(value).is_integer()


def _named(annotation: Any) -> str:
    """A type in a sentence."""
    kind = typing.get_origin(annotation) or annotation
    if kind is type(None):
        return "None"
    if kind is typing.Literal:
        return " or ".join(map(repr, typing.get_args(annotation)))
    words = {type: "a class", collections.abc.Callable: "a function"}
    return words.get(kind) or with_article(type_name(annotation))
