"""Ranks as threads of one process: what they compute can be tried without a process group."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from rlsurreal.distributed.ranks import Operation, Ranks

Result = TypeVar("Result")

_TIMEOUT_S = 60.0


def run_ranks(count: int, function: Callable[[Ranks], Result]) -> list[Result]:
    """What ``function(ranks)`` returns on each of ``count`` ranks.

    Raises:
        Exception: the first that a rank raised; the others are released.
    """
    meeting = _Meeting(count)

    def run(index: int) -> Result:
        try:
            return function(_ThreadRanks(index, count, meeting))
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(run, index) for index in range(count)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    if errors:
        raise min(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError))
    return [future.result() for future in futures]


class _Meeting:
    """Where ranks lay down what they have, and see what the others have."""

    def __init__(self, count: int) -> None:
        self.barrier = threading.Barrier(count, timeout=_TIMEOUT_S)
        self.laid_down: list[Any] = [None] * count

    def exchange(self, index: int, value: Any) -> list[Any]:
        self.laid_down[index] = value
        self.barrier.wait()
        found = list(self.laid_down)
        self.barrier.wait()
        return found


class _ThreadRanks(Ranks):
    def __init__(self, index: int, count: int, meeting: _Meeting) -> None:
        super().__init__(index, count)
        object.__setattr__(self, "_meeting", meeting)

    def gather(self, value: Any) -> list[Any]:
        found = self._exchange(value)
        return found if self.is_first else []

    def scatter(self, values: Sequence[Any]) -> Any:
        return self._exchange(values)[0][self.index]

    def _exchange(self, value: Any) -> list[Any]:
        meeting: _Meeting = self._meeting  # type: ignore[attr-defined]
        return meeting.exchange(self.index, value)

    def _reduce(self, tensor: Tensor, operation: Operation) -> Tensor:
        every = torch.stack(self._exchange(tensor.clone()))
        return tensor.copy_(every.sum(0) if operation == "SUM" else every.amax(0))
