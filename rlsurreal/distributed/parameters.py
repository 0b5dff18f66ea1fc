"""The way of parameters from the learner to copies of the agent in other processes.

    publish: write into the buffer that is not current, then make it current
    pull:    copy the current buffer; if it was written meanwhile, copy again

Two buffers, so that neither side ever waits: a reader is only sent round again if two whole publications fall into its
copy.  A writer or reader that is killed in the middle leaves nothing locked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from rlsurreal.distributed.shared_arrays import allocate, plain
from rlsurreal.utils.namedarraytuple import NamedArrayTuple

_ALIGNMENT = 16
Publication = tuple[int, int]  # a buffer, and how often writing to it has begun or ended


class _Header(NamedArrayTuple):
    current: Any  # which buffer to read
    writes: Any  # [2] how often a write to each buffer has begun or ended: odd while it is being written
    version: Any  # [2] of the parameters in each buffer


class SharedParameters:
    """Parameters and buffers of a model in shared memory: one writer, any number of readers.

    Travels to child processes as part of what they are started with.
    """

    def __init__(self, example: Mapping[str, torch.Tensor]) -> None:
        """``example``: the state dict of the model (any devices; shapes and types must stay)."""
        self._layout: list[tuple[str, int, torch.dtype, tuple[int, ...]]] = []
        size = 0
        for name, tensor in example.items():
            self._layout.append((name, size, tensor.dtype, tuple(tensor.shape)))
            size += -(-tensor.numel() * tensor.element_size() // _ALIGNMENT) * _ALIGNMENT
        self._header = allocate(_Header(np.int64(0), np.zeros(2, np.int64), np.full(2, -1, np.int64)), ())
        self._memory = allocate(np.uint8(0), (2, max(size, 1)))
        self._views: list[list[torch.Tensor]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_views": None}

    def _buffers(self) -> list[list[torch.Tensor]]:
        if self._views is None:
            memory = torch.from_numpy(np.asarray(self._memory))
            self._views = [
                [_view(memory[i], start, dtype, shape) for _, start, dtype, shape in self._layout] for i in range(2)
            ]
        return self._views

    @torch.no_grad()
    def publish(self, tensors: Mapping[str, torch.Tensor], version: int) -> None:
        """Make ``tensors`` what readers find from now on."""
        views = self._buffers()
        header = plain(self._header)
        target = 1 - int(header.current)
        header.writes[target] += 1
        torch._foreach_copy_(views[target], self._ordered(tensors))
        header.version[target] = version
        header.writes[target] += 1
        header.current[...] = target

    @torch.no_grad()
    def pull(self, tensors: Mapping[str, torch.Tensor], taken: Publication | None) -> tuple[int, Publication]:
        """Copy the published parameters into ``tensors``, unless they are those that were ``taken`` already.

        Their version, and which publication it was: what the reader has ``taken`` at the next call.
        """
        views = self._buffers()
        header = plain(self._header)
        while True:
            source = int(header.current)
            publication = (source, int(header.writes[source]))
            version = int(header.version[source])
            if publication[1] % 2 == 0:
                if taken != publication:
                    torch._foreach_copy_(self._ordered(tensors), views[source])
                if int(header.writes[source]) == publication[1]:
                    return version, publication

    def _ordered(self, tensors: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        return [tensors[name] for name, *_ in self._layout]


def _view(memory: torch.Tensor, start: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    return memory[start : start + size].view(dtype).view(shape)
