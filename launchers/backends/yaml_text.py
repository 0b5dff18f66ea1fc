"""Plain data as YAML, for the manifests of Kubernetes and the task files of SkyPilot."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

_PLAIN_KEY = re.compile(r"(?!(y|n|yes|no|on|off|true|false|null)$)[a-z/][\w./-]*", re.ASCII | re.IGNORECASE)


def to_yaml(value: Mapping[str, Any] | Sequence[Any]) -> str:
    """A mapping or sequence of these, text, numbers and truth values; text of several lines stands as it is.

    Scalars are written as in JSON, which YAML contains.
    """
    return "\n".join(_lines(value)) + "\n"


def _lines(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [line for key, item in value.items() for line in _entry(_key(key), item)]
    lines = []
    for item in value:
        first, *rest = _lines(item) if _is_nested(item) else _entry("", item)
        lines += [f"- {first.lstrip()}", *(f"  {line}" for line in rest)]
    return lines


def _entry(key: str, item: Any) -> list[str]:
    """A key with its value; or, without a key, a scalar."""
    if _is_nested(item):
        return [key, *(f"  {line}" for line in _lines(item))]
    if isinstance(item, str) and "\n" in item:
        lines = item.removesuffix("\n").split("\n")
        if lines[-1] and not lines[0][:1].isspace() and lines[0] and all(line.isprintable() for line in lines):
            keep = "|" if item.endswith("\n") else "|-"
            return [f"{key} {keep}", *(f"  {line}" if line else "" for line in lines)]
    return [f"{key} {json.dumps(item, ensure_ascii=False)}"]


def _is_nested(item: Any) -> bool:
    return isinstance(item, (Mapping, list, tuple)) and len(item) > 0


def _key(key: str) -> str:
    return f"{key}:" if _PLAIN_KEY.fullmatch(key) else f"{json.dumps(key, ensure_ascii=False)}:"
