"""The contestant's side of a benchmark in turns.  Standard library only: peers' environments import it, too.

    master                               contestant
                                         starts, warms up (compiles), at iteration boundaries calls tick()
    reads {"ready": ...}    <----------  and blocks, using no CPU
    writes "20"             ---------->  goes on for at least 20 s, up to the next iteration boundary
    reads {"steps": ...}    <----------  and blocks again, while others have their turn
    closes                  ---------->  the process ends

Answers go to the descriptor that the environment variable GATE_FD names, or to standard output: libraries print, too.
"""

import json
import os
import signal
import sys
import time
from typing import Any

_WARM_UP_TICKS, _WARM_UP_S = 3, 2.0


class Gate:
    """Stops a training loop between its turns, and reports what it did in them."""

    def __init__(self, version: str) -> None:
        """``version``: of the library, for tables.  Make it before anything is built: warm-up counts from here."""
        self._answers = os.fdopen(int(os.environ.get("GATE_FD", "1")), "w", closefd=False)
        self._version = version
        self._made = time.perf_counter()
        self._first: float | None = None
        self._num_ticks = 0
        self._is_warm = False
        self._total, self._started, self._until = 0.0, 0.0, 0.0  # where the present turn began, and when it may end

    def tick(self, total: float) -> None:
        """Between two iterations: ``total`` steps (or updates) have been made since the start.

        Returns when there is more to do; ends the process when there is not.
        """
        now = time.perf_counter()
        if not self._is_warm:
            self._num_ticks += 1
            self._first = self._first or now
            if self._num_ticks < _WARM_UP_TICKS or now - self._first < _WARM_UP_S:
                return
            self._is_warm = True
            self._answer({"ready": True, "version": self._version, "warm_up_s": now - self._made})
        elif now < self._until:
            return
        else:
            self._answer({"steps": total - self._total, "seconds": now - self._started})
        line = sys.stdin.readline()
        if not line.strip():
            _end()
        self._total, self._started = total, time.perf_counter()
        self._until = self._started + float(line)

    def _answer(self, answer: dict[str, Any]) -> None:
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()


def _end() -> None:
    """End this process without farewell, and all that it started if the session is its own, as the master makes it."""
    if os.getsid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)
