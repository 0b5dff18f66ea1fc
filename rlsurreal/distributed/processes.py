"""Child processes that start fast, die with their master, and say why they failed.

    master                      zygote                          children
    Launcher ----- socket ----> imports once, then forks -----> run target(*args)
      |                           |  exit status                  |  messages, tracebacks
      +---- Child <---------------+-------------------------------+     (one status channel for each child)

The zygote (`rlsurreal.distributed.zygote`) is a fresh, single-threaded interpreter, so forking it is safe whatever
CUDA, OpenGL or threads the master has; it never imports the master's main script.  What children need is imported there
once and shared copy-on-write.  Functions and arguments travel by cloudpickle, descriptors of shared memory and signals
beside them.  Lifetimes are tied by descriptors, not by good behaviour:

    loop               consumes            produces              waits for               is unblocked by
    zygote's main      start requests      children, statuses    master's socket,        a request, an exit,
                                                                 SIGCHLD                 the master's death (kills all)
    child's target     its arguments       messages              whatever it waits for   the zygote's death kills it
"""

from __future__ import annotations

import array
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from rlsurreal.distributed.package import HEADER, MAX_DESCRIPTORS, Package


class ChildError(RuntimeError):
    """A child process failed; the message has its own traceback, or says how it died."""

    child: Child | None = None


class Child:
    """The master's handle of one child process.  Ready to poll when a message, or the end, has come."""

    def __init__(self, name: str, status: Connection) -> None:
        self.name = name
        self.pid: int | None = None
        self.exit_code: int | None = None  # negative: the signal that killed it
        self._status = status
        self._failure: str | None = None

    def fileno(self) -> int:
        """What to poll: readable when there is a message or the child has ended."""
        return self._status.fileno()

    def receive(self, timeout_s: float | None = None) -> Any:
        """The next message of the child.

        ChildError if it failed, ended, or (TimeoutError) sent nothing in time.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not self._status.poll(left):
                raise TimeoutError(f"{self.name} (pid {self.pid}) sent nothing within {timeout_s:g} s")
            kind, content = self._next()
            if kind == "message":
                return content
            self.raise_if_dead()

    def _next(self) -> tuple[str, Any]:
        try:
            kind, content = self._status.recv()
        except (EOFError, ConnectionError):
            kind, content = "exit", -signal.SIGKILL
            self._failure = self._failure or "The process that starts workers has ended; what it said is above."
        if kind == "started":
            self.pid = content
        elif kind == "error":
            self._failure = content
        elif kind == "exit":
            self.exit_code = content
        return kind, content

    @property
    def alive(self) -> bool:
        """Whether it has not been seen to end; messages that wait to be received are lost by asking."""
        while self.exit_code is None and self._status.poll(0):
            self._next()
        return self.exit_code is None

    def raise_if_dead(self) -> None:
        """ChildError with the child's traceback or signal, if it has ended."""
        if self._failure is not None:
            raise self._error(f"{self.name} failed:\n\n{self._failure}")
        if self.exit_code is not None:
            how = (
                f"was killed by {signal.Signals(-self.exit_code).name}"
                if self.exit_code < 0
                else f"ended by itself with exit status {self.exit_code}"
            )
            raise self._error(f"{self.name} (pid {self.pid}) {how}")

    def _error(self, message: str) -> ChildError:
        error = ChildError(message)
        error.child = self
        return error

    def check(self) -> None:
        """Read what the child said, and `raise_if_dead`."""
        while self.exit_code is None and self._status.poll(0):
            self._next()
        if self._failure is not None:
            self.join(5.0)  # a traceback is followed by the end
        self.raise_if_dead()

    def close(self) -> None:
        """Close the channel."""
        self._status.close()

    def kill(self) -> None:
        """SIGKILL, if it is still there."""
        if self.alive and self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)

    def join(self, timeout_s: float) -> bool:
        """Wait for its end; whether it ended in time."""
        deadline = time.monotonic() + timeout_s
        while self.exit_code is None:
            if not self._status.poll(max(0.0, deadline - time.monotonic())):
                return False
            self._next()
        return True


class Launcher:
    """Starts children.  All of them are gone when it is closed, or when this process ends in whatever way."""

    def __init__(self, preload: Sequence[str] = ()) -> None:
        """``preload``: modules to import once, before any child starts; they must not start threads or open devices."""
        ours, theirs = socket.socketpair()
        places = [str(path) for path in sys.path]
        code = (
            f"import sys; sys.path[:] = {places!r}; from rlsurreal.distributed.zygote import main; "
            f"main({theirs.fileno()}, {tuple(preload)!r})"
        )
        # One thread: what the numerical libraries read when they are loaded, and threads do not survive a fork.
        environment = {
            **os.environ,
            **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
        }
        self._zygote = subprocess.Popen(
            [sys.executable, "-c", code], pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL
        )
        theirs.close()
        self._socket = ours
        self._children: list[Child] = []

    def start(self, name: str, target: Callable[..., None], *args: Any) -> Child:
        """Run ``target(*args)`` in a new process; does not wait for it."""
        ours, theirs = socket.socketpair()
        with theirs:
            package = Package()
            package.duplicate_for_child(theirs.fileno())
            payload = package.dumps((name, target, args))
            try:
                self._socket.sendall(HEADER.pack(len(payload), len(package.fds)))
                for i in range(0, len(package.fds), MAX_DESCRIPTORS):
                    part = array.array("i", package.fds[i : i + MAX_DESCRIPTORS])
                    self._socket.sendmsg([b"+"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, part)])
                self._socket.sendall(payload)
            except (BrokenPipeError, ConnectionResetError):
                raise ChildError(
                    f"the process that starts workers ended with status {self._zygote.wait(10)} before "
                    f"{name} could be started; its output is above"
                ) from None
        child = Child(name, Connection(ours.detach()))
        self._children.append(child)
        return child

    def forget(self, child: Child) -> None:
        """Close the channel of a child that has ended."""
        self._children.remove(child)
        child.close()

    def close(self) -> None:
        """Kill what is left and wait until all is gone.  May be called twice."""
        self._socket.close()  # the zygote kills its children and ends
        try:
            self._zygote.wait(10)
        except subprocess.TimeoutExpired:
            self._zygote.kill()
            self._zygote.wait()
        for child in self._children:
            child.close()
        self._children = []
