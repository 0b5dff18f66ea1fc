"""The process that forks children for `rlsurreal.distributed.processes`.  Runs as a script; see there for the picture.

It stays single-threaded and opens no device.  SIGINT and SIGTERM are ignored here and in the children: a terminal or a
scheduler sends them to the whole group, and the master alone decides when its workers end.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import gc
import importlib
import os
import pickle
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import NoReturn

from rlsurreal.distributed.package import HEADER, MAX_DESCRIPTORS, received_fds

at_end: list[Callable[[], None]] = []  # in a child: what to call before it ends, well or badly
status: Connection | None = None  # in a child: the channel to the master


def main(socket_fd: int, preload: Sequence[str]) -> None:
    """Serve start requests until the master is gone."""
    # The terminal sends its signals to all processes of a job: what they mean is the master's to say.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Programs that environments start would inherit that; a handler they do not, and can be terminated.
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.siginterrupt(signal.SIGTERM, False)
    for module in preload:
        # Preloading only saves time; a child that needs the module reports what is wrong.
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    master = socket.socket(fileno=socket_fd)
    wake_reader, wake_writer = os.pipe()
    os.set_blocking(wake_writer, False)
    os.set_blocking(wake_reader, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
    channels: dict[int, Connection] = {}
    sources: list[socket.socket | int] = [master, wake_reader]
    try:
        while True:
            ready, _, _ = select.select(sources, [], [])
            if wake_reader in ready:
                os.read(wake_reader, 4096)
                _reap(channels)
            if master in ready and not _serve(master, wake_reader, wake_writer, channels):
                return
    finally:
        for pid in channels:
            os.kill(pid, signal.SIGKILL)
        for pid in channels:
            os.waitpid(pid, 0)  # when this process is gone, all of them are


def _serve(master: socket.socket, wake_reader: int, wake_writer: int, channels: dict[int, Connection]) -> bool:
    """Read one request and fork; False when the master is gone."""
    header = _receive(master, HEADER.size)
    if header is None:
        return False
    size, num_fds = HEADER.unpack(header)
    fds = array.array("i")
    while len(fds) < num_fds:
        mark, ancillary, _, _ = master.recvmsg(1, socket.CMSG_SPACE(MAX_DESCRIPTORS * fds.itemsize))
        if not mark:
            return False
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(content)
    payload = _receive(master, size)
    if payload is None:
        return False
    gc.collect()
    gc.freeze()  # the collector must not write into pages that are shared with the children
    _flush()  # what modules have printed would be in the children's buffers, too
    zygote_pid = os.getpid()
    pid = os.fork()
    if pid == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        master.close()
        os.close(wake_reader)
        os.close(wake_writer)
        for other in channels.values():
            other.close()
        channels.clear()  # the others are no concern of this one
        _run(payload, fds.tolist(), zygote_pid)
    channels[pid] = Connection(fds[0])
    for fd in fds[1:]:
        os.close(fd)
    return True


def _receive(master: socket.socket, size: int) -> bytearray | None:
    """So many bytes; None when the master is gone."""
    received = bytearray()
    while len(received) < size:
        part = master.recv(min(size - len(received), 1 << 20))
        if not part:
            return None
        received += part
    return received


def _reap(channels: dict[int, Connection]) -> None:
    """Tell the master how children ended."""
    while channels:
        pid, wait_status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        channel = channels.pop(pid, None)
        if channel is None:
            continue  # a process that a preloaded module has started
        # Where the master has closed this channel, nobody asks.
        with contextlib.suppress(OSError):
            channel.send(("exit", os.waitstatus_to_exitcode(wait_status)))
        channel.close()


def _run(payload: bytearray, fds: list[int], zygote_pid: int) -> NoReturn:
    """The child: run the target, report its failure, and leave without the zygote's exit handlers."""
    global status
    received_fds[:], status = fds, Connection(fds[0])
    exit_code = 1
    try:
        _die_with(zygote_pid)
        status.send(("started", os.getpid()))
        name, target, args = pickle.loads(payload)
        sys.argv = [name]
        for fd in fds[1:]:
            os.close(fd)  # unpickling has duplicated what is used
        target(*args)
        exit_code = 0
    except BaseException:
        try:
            status.send(("error", traceback.format_exc()))
        except OSError:
            traceback.print_exc()  # the master is gone; the terminal may still be there
    finally:
        try:
            for clean_up in reversed(at_end):  # after the error is sent, for any of these may hang
                with contextlib.suppress(BaseException):  # one that calls sys.exit, too
                    clean_up()
            _flush()
        finally:
            os._exit(exit_code)


def _flush() -> None:
    """Whoever read it may be gone."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


def _die_with(zygote_pid: int) -> None:
    """Have the kernel kill this process when the zygote is gone."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    else:

        def watch() -> None:
            while os.getppid() == zygote_pid:
                time.sleep(0.5)
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()
    if os.getppid() != zygote_pid:
        os._exit(1)


def send_to_master(message: object) -> None:
    """In a child: what `Child.receive` will return."""
    assert status is not None, "only children have a master"
    status.send(("message", message))
