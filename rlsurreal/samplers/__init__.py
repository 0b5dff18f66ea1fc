"""Samplers: where environments step and where actions are chosen.

Names are imported when they are asked for: a worker process imports `rlsurreal.samplers.worker`, and must not get torch
with it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlsurreal.samplers.asynchronous import AsyncSampler
    from rlsurreal.samplers.base import EvalSpec
    from rlsurreal.samplers.parallel import ParallelSampler
    from rlsurreal.samplers.serial import SerialSampler
    from rlsurreal.samplers.server import InferenceServer

_WHERE = {
    "AsyncSampler": "asynchronous",
    "EvalSpec": "base",
    "InferenceServer": "server",
    "ParallelSampler": "parallel",
    "SerialSampler": "serial",
}

__all__ = ["AsyncSampler", "EvalSpec", "InferenceServer", "ParallelSampler", "SerialSampler"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
