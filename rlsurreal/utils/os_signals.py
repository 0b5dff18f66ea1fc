"""Signals of the operating system, handled for a while.  Used by whatever starts other processes."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator


@contextlib.contextmanager
def handled(numbers: Iterable[int], handler: Callable[[int], None], *, even_ignored: bool = False) -> Iterator[None]:
    """In here ``handler(number)`` is called for each of these signals; afterwards all is as it was.

    Outside the main thread, where Python has no signal handlers, nothing changes.

    Args:
        numbers: of the signals.
        handler: is called in the main thread, between two of its instructions.
        even_ignored: also signals that this process was started to ignore, as ``nohup`` does.
    """
    previous = {}
    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            present = signal.getsignal(number)  # None: a library's, in C, which could not be put back
            if present is not None and (even_ignored or present != signal.SIG_IGN):
                previous[number] = signal.signal(number, lambda number, _: handler(number))
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
