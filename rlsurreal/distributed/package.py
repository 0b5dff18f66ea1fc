"""What a child is started with, in transit: pickled by the master, unpickled in the child, descriptors beside it."""

from __future__ import annotations

import os
import struct
from multiprocessing import context
from typing import Any

import cloudpickle

HEADER = struct.Struct("!QI")  # bytes of payload, number of descriptors
MAX_DESCRIPTORS = 250  # in one message; Linux passes at most 253
received_fds: list[int] = []  # in a child: the descriptors that came with its payload


class Package:
    """Pickles what a child is started with.

    Stands in for multiprocessing's ``Popen`` so that its descriptors travel too.
    """

    class DupFd:
        """A descriptor in transit: a number in the list that is passed beside the payload."""

        def __init__(self, position: int) -> None:
            self.position = position

        def detach(self) -> int:
            """In the child: the descriptor itself."""
            return os.dup(received_fds[self.position])

    def __init__(self) -> None:
        self.fds: list[int] = []

    def duplicate_for_child(self, fd: int) -> int:
        """Pass ``fd`` along; its position."""
        self.fds.append(fd)
        return len(self.fds) - 1

    def dumps(self, value: Any) -> bytes:
        """Pickle ``value``, collecting the descriptors it needs."""
        popen: Any = self
        context.set_spawning_popen(popen)
        try:
            payload: bytes = cloudpickle.dumps(value)
            return payload
        finally:
            context.set_spawning_popen(None)
