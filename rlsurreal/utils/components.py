"""What components are made of: dataclasses whose fields are their hyperparameters.

Called by `rlsurreal.utils.config` and `rlsurreal.utils.kinds`.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from typing import Any


def is_component(value: Any) -> bool:
    """Whether ``value`` is an instance of a dataclass."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def field_names(component: Any) -> list[str]:
    """The fields that the constructor takes."""
    return [field.name for field in dataclasses.fields(component) if field.init]


def annotation_of(cls: type, name: str) -> Any:
    """The type of a field.  Any, where its annotation cannot be resolved: names imported for type checkers only."""
    for base in cls.__mro__:
        annotation = inspect.get_annotations(base).get(name)
        if isinstance(annotation, str):
            try:
                return eval(annotation, vars(sys.modules[base.__module__]))
            except Exception:  # it may be any text at all
                return Any
        if annotation is not None:
            return annotation
    return Any


def join(path: str, key: Any) -> str:
    """The dotted key of what is found under ``key`` in the component at ``path``."""
    return f"{path}.{key}" if path else str(key)
