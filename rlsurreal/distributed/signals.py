"""Wake-ups between processes.

A `Signal` is a counting semaphore with a file descriptor, so that one `poll` can wait for many of them and, at the same
time, for the death of the processes that should post them: no wait can hang on a crashed partner.  Waits for:

    who             waits for                      is unblocked by
    `Signal.wait`   a post                         a post; the death of the waiting process
    `Waiter.wait`   any of several descriptors     a post, a closed status channel, or its time limit
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterable
from multiprocessing import reduction
from typing import Any


class Signal:
    """A counting semaphore over an eventfd (Linux) or a pipe."""

    def __init__(self) -> None:
        if hasattr(os, "eventfd"):
            fd = os.eventfd(0, os.EFD_SEMAPHORE | os.EFD_CLOEXEC)
            self._attach(fd, fd)
        else:
            self._attach(*os.pipe())

    def _attach(self, reader: int, writer: int) -> None:
        self._reader, self._writer = reader, writer
        self._is_eventfd = reader == writer

    def post(self) -> None:
        """Add one."""
        if self._is_eventfd:
            os.eventfd_write(self._writer, 1)
        else:
            os.write(self._writer, b"1")

    def wait(self) -> None:
        """Take one, sleeping until there is one.  Only for processes that are killed when their partner dies."""
        if self._is_eventfd:
            os.eventfd_read(self._reader)
        else:
            os.read(self._reader, 1)

    take = wait  # after a `Waiter` said that there is one

    def fileno(self) -> int:
        """What to poll."""
        return self._reader

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_signal, (
            reduction.DupFd(self._reader),
            None if self._is_eventfd else reduction.DupFd(self._writer),
        )

    def __del__(self) -> None:
        if hasattr(self, "_reader"):  # not where making it failed
            for fd in {self._reader, self._writer}:
                os.close(fd)


def _rebuild_signal(reader: Any, writer: Any) -> Signal:
    signal = Signal.__new__(Signal)
    reader_fd = reader.detach()
    signal._attach(reader_fd, reader_fd if writer is None else writer.detach())
    return signal


class Waiter:
    """Waits for whichever of several descriptors is ready first."""

    def __init__(self, sources: Iterable[Any]) -> None:
        """``sources``: objects with ``fileno()``; `wait` answers with these objects."""
        self._poll = select.poll()
        self._sources: dict[int, Any] = {}
        for source in sources:
            self.add(source)

    def add(self, source: Any) -> None:
        """Wait for this one too."""
        self._sources[source.fileno()] = source
        self._poll.register(source.fileno(), select.POLLIN)

    def remove(self, source: Any) -> None:
        """No longer wait for this one."""
        del self._sources[source.fileno()]
        self._poll.unregister(source.fileno())

    def wait(self, timeout_s: float | None) -> list[Any]:
        """The sources that are ready, or none when the time is over (None: no limit, 0: do not wait)."""
        ready = self._poll.poll(None if timeout_s is None else timeout_s * 1000)
        return [self._sources[fd] for fd, _ in ready]


class Group:
    """Several descriptors as one, ready when any of them is: a wait costs the same however many they are.

    Only where the system has epoll (Linux); elsewhere wait for the members themselves.
    """

    supported = hasattr(select, "epoll")

    def __init__(self) -> None:
        self._epoll = select.epoll()

    def fileno(self) -> int:
        """What to poll."""
        return self._epoll.fileno()

    def add(self, source: Any) -> None:
        """Take in an object with ``fileno()``; it leaves by itself when its descriptor is closed."""
        self._epoll.register(source.fileno(), select.EPOLLIN)
