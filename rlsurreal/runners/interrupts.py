"""Ctrl-C, SIGTERM, a closed terminal as a flag: the loop ends after the iteration it is in, and everything is saved."""

from __future__ import annotations

import contextlib
import logging
import signal
from types import TracebackType

from rlsurreal.utils.os_signals import handled

_log = logging.getLogger(__name__)


class Interrupts:
    """Context in which the first SIGINT, SIGTERM or SIGHUP sets ``received``; a second SIGINT interrupts at once.

    Outside the main thread, where Python has no signal handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._handling = contextlib.ExitStack()

    def __enter__(self) -> Interrupts:
        self._handling.enter_context(handled((signal.SIGINT, signal.SIGTERM), self._handle, even_ignored=True))
        self._handling.enter_context(handled((signal.SIGHUP,), self._handle))  # `nohup` has it ignored, and means it
        return self

    def _handle(self, number: int) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
        again = "; again to stop at once" if number == signal.SIGINT else ""
        _log.warning("%s: saving and leaving after this iteration%s", self.received, again)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handling.__exit__(kind, error, trace)
