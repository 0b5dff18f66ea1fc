"""Sums over the ranks of one machine, through memory that they share: sooner than through Gloo's threads and sockets.

    each rank:   write own numbers -> meet -> reduce a part of everybody's -> meet -> read the result

    loop               consumes            produces           waits for              is unblocked by
    `_meet`            others' counters    its own counter    all to come so far     their arrival; what `look` raises

Each number of the result is made by one rank, so all ranks have the same, to the last bit.
"""

from __future__ import annotations

import os
import platform
import socket
import sys
import time
import uuid
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from rlsurreal.distributed.ranks import Operation, Ranks
from rlsurreal.distributed.shared_arrays import Block

_CAPACITY = 1 << 20  # bytes of each rank; larger tensors take several rounds
_LINE = 64  # bytes, so that no two ranks write to the same cache line
_YIELD_S = 5e-3  # waiting for so long, a rank sleeps between its looks; before, it only lets others run
_SLEEP_S = 1e-3


class SharedReduction:
    """One rank's part; all ranks make the same calls in the same order.

    Args:
        block: memory that all ranks have, full of zeros; see `size`.
        index: of this rank.
        count: of ranks.
    """

    def __init__(self, block: Block, index: int, count: int) -> None:
        memory = torch.frombuffer(block.buffer, dtype=torch.uint8)
        counters, numbers = memory[: count * _LINE], memory[count * _LINE : self.size(count)]
        self._counters: np.ndarray = counters.numpy().view(np.int64)[:: _LINE // 8]
        self._given, self._result = numbers[_CAPACITY:].view(count, _CAPACITY), numbers[:_CAPACITY]
        self._index, self._count = index, count
        self._number = 0  # of meetings
        self._views: dict[tuple[torch.dtype, int], tuple[Tensor, Tensor, Tensor, Tensor]] = {}

    @staticmethod
    def size(count: int) -> int:
        """Bytes of memory for so many ranks."""
        return count * _LINE + (count + 1) * _CAPACITY

    def __call__(self, tensor: Tensor, operation: Operation, look: Callable[[], None]) -> None:
        """Reduce a CPU tensor, in place; ``look`` is called now and then while others are waited for, and may raise."""
        flat = tensor.reshape(-1)  # a copy if it must be
        for part in flat.split(_CAPACITY // tensor.element_size()):
            given, own, mine, result = self._views_of(part)
            own.copy_(part)
            self._meet(look)
            if operation == "SUM":
                torch.sum(given, 0, dtype=tensor.dtype, out=mine)
            elif len(mine):
                torch.amax(given, 0, out=mine)
            self._meet(look)
            part.copy_(result)
        if flat.data_ptr() != tensor.data_ptr():
            tensor.copy_(flat.view(tensor.shape))

    def _views_of(self, part: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """This rank's share of what all give; all that it gives; its share of the result; the result."""
        key = (part.dtype, len(part))
        if key not in self._views:
            given, result = (memory.view(part.dtype)[..., : len(part)] for memory in (self._given, self._result))
            share = slice(*(len(part) * i // self._count for i in (self._index, self._index + 1)))
            self._views[key] = given[:, share], given[self._index], result[share], result
        return self._views[key]

    def _meet(self, look: Callable[[], None]) -> None:
        """On x86 processors others see what was written before the counter once they see the counter."""
        self._number += 1
        counters = self._counters
        counters[self._index] = self._number
        started = time.monotonic()
        while counters.min() < self._number:
            if time.monotonic() - started < _YIELD_S:
                os.sched_yield()
            else:
                look()
                time.sleep(_SLEEP_S)


def share_memory(ranks: Ranks) -> SharedReduction | None:
    """For ranks that are all on this host; None where they are not, or it is no x86 Linux."""
    size, token = SharedReduction.size(ranks.count), uuid.uuid4().bytes
    block, fd = None, -1
    if ranks.is_first:
        block = Block(size)
        block.buffer[-len(token) :], fd = token, block.fd
    own = socket.gethostname(), sys.platform, platform.machine()
    first, pid, fd, token = ranks.share((own, os.getpid(), fd, token))
    suits = own == first and own[1:] == ("linux", "x86_64")
    if suits and block is None:
        block = _open(pid, fd, size)
    has_it = suits and block is not None and block.buffer[-len(token) :] == token
    have_it = int(ranks.sum(torch.tensor(int(has_it)))) == ranks.count
    return SharedReduction(block, ranks.index, ranks.count) if have_it and block is not None else None


def _open(pid: int, fd: int, size: int) -> Block | None:
    """Another process's memory, which has no name; None where that process is not to be seen from here."""
    try:
        return Block(size, os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR))
    except (OSError, ValueError):  # or another's file, which is too short
        return None
