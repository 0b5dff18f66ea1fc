"""Components as configurations: written down, rebuilt, listed and overridden by dotted keys.

A component is a dataclass whose fields are its hyperparameters: plain values, other components, tuples, lists and dicts
of these, and classes or functions that other processes find by name.  Called by launchers, by runners (to log the whole
experiment) and by whatever sends an experiment to another process.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import math
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, TypeVar

import numpy as np

from rlsurreal.utils.components import annotation_of, field_names, is_component, join
from rlsurreal.utils.names import find_named, name_of
from rlsurreal.utils.text_values import parse_value

C = TypeVar("C")
_MAPPINGS = (dict, collections.abc.Mapping)
_ELSEWHERE = {  # what Stable-Baselines3 and CleanRL call our fields
    "buffer_size": "capacity",
    "clip_coef": "clip_range",
    "ent_coef": "entropy_coeff",
    "gamma": "discount",
    "learning_starts": "min_steps",
    "lr": "learning_rate",
    "n_envs": "num_envs",
    "n_epochs": "num_epochs",
    "n_steps": "num_steps",
    "target_kl": "kl_stop",
    "target_update_interval": "target_interval",
    "tau": "target_tau",
    "total_timesteps": "total_env_steps",
    "update_epochs": "num_epochs",
    "vf_coef": "value_loss_coeff",
}
_TAGS = frozenset({"class", "ref", "tuple", "float", "items", "path", "repr"})


# ---------------------------------------------------------------- to trees and back


def to_tree(component: Any, *, strict: bool = True) -> dict[str, Any]:
    """``component`` as plain data that JSON can hold; `from_tree` builds it anew.

    A component is ``{"class": "module:Name", "fields": {...}}``, a class or function ``{"ref": "module:name"}``, a
    tuple ``{"tuple": [...]}``, a path ``{"path": text}``; numbers, text, lists and dicts with text as keys are
    themselves.

    Raises:
        ValueError: a value has no name under which another process could find it; names the field and the fix.  Not
            with ``strict=False``, meant for logs: such a value becomes ``{"repr": text}``.
    """
    if not is_component(component):
        raise ValueError(f"{component!r} is not a component; give an instance of a dataclass")
    tree: dict[str, Any] = _to_tree(component, "", strict)
    return tree


def _to_tree(value: Any, path: str, strict: bool) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": repr(float(value))}
    if isinstance(value, PurePath):
        return {"path": str(value)}
    if type(value) in (list, tuple):
        items = [_to_tree(item, join(path, i), strict) for i, item in enumerate(value)]
        return items if type(value) is list else {"tuple": items}
    if type(value) is dict:
        entries = {key: _to_tree(item, join(path, key), strict) for key, item in value.items()}
        if all(type(key) is str for key in entries) and not _TAGS & entries.keys():
            return entries
        return {"items": [[_to_tree(key, join(path, key), strict), item] for key, item in entries.items()]}
    named = type(value) if is_component(value) else value
    try:
        name = name_of(named)
    except ValueError as error:
        if strict:
            raise _at(path, error) from None
        if named is value:
            qualname = getattr(value, "__qualname__", None)  # a function's text has its place in memory
            return {"repr": f"{value.__module__}:{qualname}" if qualname else repr(value)}
        name = f"{named.__module__}:{named.__qualname__}"
    if named is value:
        return {"ref": name}
    return {
        "class": name,
        "fields": {field: _to_tree(getattr(value, field), join(path, field), strict) for field in field_names(value)},
    }


def from_tree(tree: Mapping[str, Any]) -> Any:
    """The component that `to_tree` wrote.  Constructors run, so every check runs again.

    Modules named in the tree are imported: it must come from a source as trustworthy as the code.

    Raises:
        ValueError: something named is not there, is no component, or refuses its values; names the field.
    """
    return _from_tree(tree, "")


def _from_tree(tree: Any, path: str) -> Any:
    if isinstance(tree, list):
        return [_from_tree(item, join(path, i)) for i, item in enumerate(tree)]
    if not isinstance(tree, Mapping):
        return tree
    tag = next((tag for tag in tree if tag in _TAGS), None)
    if tag is None:
        return {key: _from_tree(item, join(path, key)) for key, item in tree.items()}
    content = tree[tag]
    if tag == "tuple":
        return tuple(_from_tree(item, join(path, i)) for i, item in enumerate(content))
    if tag == "items":
        return {_from_tree(key, path): _from_tree(item, join(path, key)) for key, item in content}
    if tag in ("float", "path"):
        return float(content) if tag == "float" else Path(content)
    fields = {name: _from_tree(value, join(path, name)) for name, value in tree.get("fields", {}).items()}
    try:
        if tag == "repr":
            raise ValueError(
                f"only the text {content!r} was saved, for it has no name by which another process finds it: define it "
                "at the top of a module, not in the script that runs (or, in that script, hand the whole experiment "
                "over: load_agent(run, experiment=...))"
            )
        found = find_named(content)
        if tag == "ref":
            return found
        if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
            raise ValueError(f"{content} is not a dataclass, so it cannot be a component")
        return found(**fields)
    except (TypeError, ValueError) as error:
        raise _at(path, error) from error


# ---------------------------------------------------------------- dotted keys


def flatten(component: Any) -> dict[str, Any]:
    """Every value in ``component`` by its dotted key.

    ``{"algo": "rlsurreal.algos.pg.ppo:PPO", "algo.learning_rate": 3e-4, ...}``.  Components within, classes and
    functions stand as their names.  Tuples and lists stand whole, unless they hold components.
    """
    return dict(_flatten(component, ""))


def _flatten(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if is_component(value):
        if path:
            yield path, f"{type(value).__module__}:{type(value).__qualname__}"
        children = {name: getattr(value, name) for name in field_names(value)}
    elif type(value) is dict and value:
        children = value
    elif type(value) in (list, tuple) and any(is_component(item) for item in value):
        children = {str(i): item for i, item in enumerate(value)}
    else:
        is_named = isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__"))
        yield path, f"{value.__module__}:{value.__qualname__}" if is_named else value
        return
    for key, child in children.items():
        yield from _flatten(child, join(path, key))


def parse_overrides(words: Iterable[str]) -> dict[str, str]:
    """The words ``dotted.key=value`` of a command line, for `override`."""
    overrides: dict[str, str] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not all(key.split(".")) or key.startswith("-"):
            raise ValueError(f"{word!r} is not an override; write dotted.key=value, e.g. algo.learning_rate=1e-4")
        if key in overrides:
            raise ValueError(f"{key} is given twice: {overrides[key]!r} and {text!r}; give it once")
        overrides[key] = text
    return overrides


def override(component: C, overrides: Mapping[str, Any]) -> C:
    """``component`` with other values at some dotted keys.

    What lies on the way to them is built anew, checks included; the rest is shared with ``component``.  Text is parsed
    as the field's annotation asks; other values are taken as they are.  Entries of dicts may be new, items of tuples
    and lists are addressed by number.  Without overrides ``component`` itself comes back.

    Raises:
        ValueError: names the key and, where it is unknown, the near ones; where the text does not fit, the type wanted.
    """
    changes: dict[str, Any] = {}
    for key, value in overrides.items():
        *parents, last = key.split(".")
        node = changes
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ValueError(f"{key}: {node.key} is replaced as a whole, too; give one of the two")
        if last in node:
            raise ValueError(f"{key} is replaced as a whole, and a part of it, too; give one of the two")
        node[last] = _New(key, value)
    known = list(flatten(component))
    changed: C = _apply(component, changes, "", type(component), known) if changes else component
    return changed


@dataclasses.dataclass(frozen=True)
class _New:
    key: str
    value: Any


def _apply(value: Any, changes: dict[str, Any] | _New, path: str, annotation: Any, known: list[str]) -> Any:
    """``value``, found at ``path`` in a field of type ``annotation``, with ``changes``; ``known`` are all keys."""
    if isinstance(changes, _New):
        if not isinstance(changes.value, str):
            return changes.value
        try:
            return parse_value(changes.value, annotation)
        except ValueError as error:
            raise ValueError(f"{changes.key}={changes.value}: {error}") from error

    def applied(key: str, child: Any, kind: Any) -> Any:
        return _apply(child, changes[key], join(path, key), kind, known)

    if value is None and _may_be_dict(annotation):
        value = {}
    if is_component(value):
        _check_known(changes, field_names(value), path, type(value).__name__, known)
        replaced = {key: applied(key, getattr(value, key), annotation_of(type(value), key)) for key in changes}
        try:
            return dataclasses.replace(value, **replaced)
        except (TypeError, ValueError) as error:
            given = ", ".join(join(path, key) for key in changes)
            raise ValueError(f"{path or type(value).__name__}, with {given} changed: {error}") from error
    if type(value) is dict:
        keys = {str(key): key for key in value}
        entries = {key: applied(key, value.get(keys.get(key, key), {}), _element(annotation, key)) for key in changes}
        return {**value, **{keys.get(key, key): entry for key, entry in entries.items()}}
    if type(value) in (list, tuple):
        numbers = [str(i) for i in range(len(value))]
        _check_known(changes, numbers, path, type(value).__name__, known)
        return type(value)(
            applied(key, item, _element(annotation, key)) if key in changes else item
            for key, item in zip(numbers, value)
        )
    _check_known(changes, (), path, f"{value!r}", known)
    raise AssertionError


def _check_known(changes: Mapping[str, Any], fields: Iterable[str], path: str, owner: str, known: list[str]) -> None:
    for name in changes:
        if name not in fields:
            key = join(path, name)
            ours = _ELSEWHERE.get(name, name)
            near = [] if name in _ELSEWHERE else difflib.get_close_matches(key, known, n=3)
            near += [k for k in known if k.rpartition(".")[2] == ours]
            hint = f"; did you mean {' or '.join(dict.fromkeys(near))}?" if near else "."
            listing = f"has the fields {', '.join(fields)}" if fields else "has no fields"
            raise ValueError(f"unknown key {key}{hint} {f'{path} ({owner})' if path else owner} {listing}")


# ---------------------------------------------------------------- annotations and places


def _element(annotation: Any, key: str) -> Any:
    """The type of entry ``key`` in a field that is annotated as a dict, tuple or list, or a union with one."""
    for kind in (annotation, *typing.get_args(annotation)):
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin in _MAPPINGS:
            return arguments[1]
        if origin is tuple and arguments[-1] is not ...:
            return arguments[int(key)]
        if origin in (tuple, list, collections.abc.Sequence):
            return arguments[0]
    return Any


def _may_be_dict(annotation: Any) -> bool:
    kinds = (annotation, *typing.get_args(annotation))
    return any((typing.get_origin(kind) or kind) in _MAPPINGS for kind in kinds)


def _at(path: str, error: Exception) -> ValueError:
    return ValueError(f"{path}: {error}" if path else str(error))
