"""Where the time goes: cheap named phases of a loop.

Held by runners and samplers, one `PhaseTimer` for each thread; the shares (of waiting, above all) go into the log.
"""

from __future__ import annotations

import time
from types import TracebackType


class _Phase:
    """One named phase: a context manager used again and again, so that entering allocates nothing."""

    __slots__ = ("seconds", "start")

    def __init__(self) -> None:
        self.seconds = 0.0
        self.start: float | None = None  # None: not running

    def __enter__(self) -> None:
        assert self.start is None, "a phase cannot be entered inside itself, nor from two threads"
        self.start = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.start is not None
        self.seconds += time.perf_counter() - self.start
        self.start = None


class PhaseTimer:
    """Accumulates how long named phases take.

    >>> timer = PhaseTimer()
    >>> with timer("sample"):
    ...     samples = sampler.obtain()
    >>> timer.shares()
    {'sample': 0.98}

    Different phases may nest: the time of the inner one counts for both.
    """

    def __init__(self) -> None:
        self._phases: dict[str, _Phase] = {}
        self._since = time.perf_counter()

    def __call__(self, name: str) -> _Phase:
        """The context manager that times phase ``name``."""
        phase = self._phases.get(name)
        if phase is None:
            phase = self._phases[name] = _Phase()
        return phase

    def shares(self) -> dict[str, float]:
        """Each phase's share of the time since the last call (or since this timer was made); counting starts anew.

        A phase that is running counts with its part up to now.  Every phase that ever ran is there, so log columns stay
        put.
        """
        now = time.perf_counter()
        elapsed = max(now - self._since, 1e-9)
        shares = {}
        for name, phase in self._phases.items():
            seconds = phase.seconds
            if phase.start is not None:
                seconds += now - phase.start
                phase.start = now
            shares[name] = seconds / elapsed
            phase.seconds = 0.0
        self._since = now
        return shares
