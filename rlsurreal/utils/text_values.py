"""Text from the command line as the value that a field's annotation asks for.

Called by `rlsurreal.utils.config`.
"""

from __future__ import annotations

import ast
import collections.abc
import itertools
import math
import re
import types
import typing
from pathlib import PurePath
from typing import Any

from rlsurreal.utils.names import find_named

_WORDS = {"true": True, "false": False, "none": None, "null": None}
_SEQUENCES = {tuple: tuple, list: list, collections.abc.Sequence: tuple}
_MAPPINGS = (dict, collections.abc.Mapping)
_SCALARS = (bool, int, float, str, type(None))


def parse_value(text: str, annotation: Any) -> Any:
    """The value that ``text`` says, of the type that ``annotation`` (a type, not its name) asks for.

    Whole numbers may be written ``1_000_000`` or ``1e6``, tuples ``(64,64)`` or ``64,64``, classes and functions
    ``module:name``, None ``none``.  Where anything goes (``Any``) the text is a Python literal, else it stays text.

    Raises:
        ValueError: says what is wanted.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return parse_value(text, arguments[0])
    if origin is typing.Literal:
        for choice in arguments:
            if str(choice) == text or (choice is None and text.lower() == "none"):
                return choice
    elif origin in (typing.Union, types.UnionType):
        return _parse_union(text, annotation, arguments)
    elif annotation in (Any, object):
        return _parse_anything(text)
    elif annotation in (None, type(None)):
        if text.lower() in ("none", "null"):
            return None
    elif (origin or annotation) in _SEQUENCES:
        return _parse_sequence(text, _SEQUENCES[origin or annotation], annotation, arguments)
    elif (origin or annotation) in _MAPPINGS:
        value = _parse_anything(text)
        if isinstance(value, dict):
            return value
    elif (origin or annotation) in (type, collections.abc.Callable):
        return find_named(text)
    elif isinstance(annotation, type):
        return _parse_scalar(text, annotation)
    raise _refused(text, annotation)


def _parse_scalar(text: str, wanted: type) -> Any:
    if wanted is str or _is_path(wanted):
        return wanted(text)
    if wanted is bool and isinstance(_WORDS.get(text.lower()), bool):
        return _WORDS[text.lower()]
    try:
        if wanted is int:
            return _parse_int(text)
        if wanted is float and not math.isnan(float(text)):
            return float(text)
    except ValueError:
        pass
    raise _refused(text, wanted)


def _is_path(wanted: Any) -> bool:
    return isinstance(wanted, type) and issubclass(wanted, PurePath)


def _parse_int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        number = float(text)
    if not number.is_integer() or abs(number) > 2**53:  # beyond, a float does not say which whole number is meant
        raise ValueError
    return int(number)


def _parse_union(text: str, annotation: Any, members: tuple[Any, ...]) -> Any:
    listed = any(letter in text for letter in ",([")

    def rank(member: Any) -> int:  # text fits every string, and a single value every sequence
        if (typing.get_origin(member) or member) in _SEQUENCES:
            return 0 if listed else 3
        return 4 if member in (Any, object) else 2 if member is str or _is_path(member) else 1

    for member in sorted(members, key=rank):
        try:
            return parse_value(text, member)
        except ValueError:
            continue
    raise _refused(text, annotation)


def _parse_sequence(text: str, make: Any, annotation: Any, arguments: tuple[Any, ...]) -> Any:
    items = _split(text)
    fixed = make is tuple and bool(arguments) and arguments[-1] is not ... and typing.get_origin(annotation) is tuple
    if items is None or (fixed and len(items) != len(arguments)):
        raise _refused(text, annotation)
    kinds = arguments if fixed else (arguments[:1] or (Any,)) * len(items)
    try:
        return make(parse_value(item, kind) for item, kind in zip(items, kinds))
    except ValueError as error:
        raise ValueError(f"{_refused(text, annotation)} ({error})") from error


def _split(text: str) -> list[str] | None:
    """The parts of ``(a,b)``, ``[a,b]`` or ``a,b`` between the outermost commas; None where brackets do not match."""
    text = text.strip()
    depths = list(itertools.accumulate((letter in "([{") - (letter in ")]}") for letter in text))
    if depths and (min(depths) < 0 or depths[-1] != 0):
        return None
    if text and text[0] in "([" and 0 not in depths[:-1]:  # one pair of brackets around all
        text, depths = text[1:-1], [depth - 1 for depth in depths[1:-1]]
    commas = [i for i, letter in enumerate(text) if letter == "," and depths[i] == 0]
    parts = [text[start + 1 : end].strip() for start, end in zip([-1, *commas], [*commas, len(text)])]
    if not parts[-1]:
        parts.pop()
    return [_unquoted(part) for part in parts]


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"" else text


def _parse_anything(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _refused(text: str, annotation: Any) -> ValueError:
    hint = ""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    if any(map(_is_part, typing.get_args(annotation) if is_union else (annotation,))):
        hint = "; parts are exchanged in Python (docs/running.md), here their fields are changed one by one"
    return ValueError(f"{text!r} is not {type_name(annotation)}{hint}")


def _is_part(annotation: Any) -> bool:
    """Whether a class is wanted whose objects no text stands for."""
    kind = typing.get_origin(annotation) or annotation
    others = (*_SCALARS, *_SEQUENCES, *_MAPPINGS, type, collections.abc.Callable)
    return isinstance(kind, type) and kind not in others and not _is_path(kind)


def type_name(annotation: Any) -> str:
    """A type as users write it."""
    if annotation is type(None):
        return "None"
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__name__
    return re.sub(r"\b(typing|collections\.abc)\.", "", str(annotation))


def with_article(noun: str) -> str:
    """``an int``, ``a float``."""
    return f"{'an' if noun[:1] in 'aeioAEIO' else 'a'} {noun}"
