"""The queue: one run in each slot until all have ended, or a signal stops it.

    loop            consumes             produces              waits for       is unblocked by
    `Scheduler`     runs that wait,      processes of runs,    a tenth of a    time; then it looks at its processes,
                    signals              the table             second          and whether a signal has come

The first signal has the running ones save and leave, the second kills them.  If the queue itself is killed, the kernel
kills them (`sweep_queue.run`).  Called by `launchers/local_queue.py`.
"""

from __future__ import annotations

import heapq
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from rlsurreal.utils.os_signals import handled

from .run import OUTPUT, Run
from .screen import Failure, Row, Screen, View, format_duration, format_value
from .slots import Slot

_LOOK_S = 0.1
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Scheduler:
    """Runs in slots.

    Args:
        runs: of the sweep; those that are finished stay so.
        slots: where they run.
        train: the script that trains.
        screen: shows it.
        retries: how often a run that has failed in this call is started again.
    """

    def __init__(self, runs: Sequence[Run], slots: Sequence[Slot], train: Path, screen: Screen, retries: int = 0):
        self._runs, self._slots, self._train, self._screen, self._retries = runs, slots, train, screen, retries
        self._received: list[int] = []
        self._obeyed = 0
        self._locked: set[str] = set()

    def work(self) -> int | None:
        """Until all runs have ended; the signal that stopped it before, or None."""
        with handled(_SIGNALS, self._received.append):
            try:
                while self._running() or (not self._received and self._in("waiting")):
                    self._obey()
                    self._reap()
                    if not self._received:
                        self._fill()
                    self._screen.draw(self.view)
                    time.sleep(_LOOK_S)
            finally:
                for run in self._running():
                    run.kill()
                self._screen.close()
        return self._received[0] if self._received and self._in("waiting") else None

    def _in(self, state: str) -> list[Run]:
        return [run for run in self._runs if run.state == state]

    def _running(self) -> list[Run]:
        return self._in("running")

    # ------------------------------------------------------------ what the loop does

    def _fill(self) -> None:
        """Start runs in free slots; those that have failed before come last."""
        taken = {run.slot for run in self._running()}
        free = [slot for slot in self._slots if slot not in taken]
        for run in sorted(self._in("waiting"), key=lambda run: run.tries):
            if not free:
                return
            what = "started" if run.record is None else "continued"
            if run.start(free[0], self._train):
                if run.state == "failed":
                    self._say("failed", run, run.record.error if run.record else "")
                else:
                    self._say(what, run, f"on {free.pop(0)}")
            elif run.plan.name not in self._locked:
                self._locked.add(run.plan.name)
                self._say("held back", run, "a process that an earlier queue has left is still in its folder")

    def _reap(self) -> None:
        """See which processes have ended, and how."""
        for run in self._running():
            if not run.poll(bool(self._received)):
                continue
            assert run.record is not None
            progress = run.progress()
            value = f", return {format_value(progress.value)}" if progress and progress.value is not None else ""
            after = f"after {format_duration(run.seconds)}"
            if run.state == "finished":
                self._say("finished", run, f"{after}{value}")
            elif run.state == "waiting":
                self._say("stopped", run, f"{after}{value}; the same command continues it")
            else:
                self._say("failed", run, f"{after}: {run.record.error}; see {run.folder / OUTPUT}")
                if run.tries <= self._retries:
                    run.try_again()

    def _obey(self) -> None:
        """Stop runs at the first signal, kill them at the second."""
        while self._obeyed < len(self._received):
            name = signal.Signals(self._received[self._obeyed]).name
            is_first = self._obeyed == 0
            self._screen.say(f"{name}: {'runs save and leave; again kills them' if is_first else 'killing all runs'}")
            for run in self._running():
                if is_first:
                    run.stop()
                else:
                    run.kill()
            self._obeyed += 1

    # ------------------------------------------------------------ what it shows

    def view(self) -> View:
        """The state of the queue, to be shown."""
        now = time.time()
        rows = []
        for run in self._running():
            progress = run.progress()
            rows.append(
                Row(
                    slot=str(run.slot),
                    run=run.plan.name,
                    fraction=progress.fraction if progress else None,
                    value=progress.value if progress else None,
                    steps_per_s=progress.steps_per_s if progress else None,
                    seconds=run.seconds,
                    seconds_left=progress.seconds_left(now) if progress else None,
                )
            )
        return View(
            running=rows,
            waiting=[run.plan.name for run in self._in("waiting")],
            num_finished=len(self._in("finished")),
            failed=[
                Failure(run.plan.name, run.record.error if run.record else "", str(run.folder / OUTPUT))
                for run in self._in("failed")
            ],
            seconds_left=estimate_seconds_left(
                [(row.seconds, row.seconds_left) for row in rows],
                [run.seconds for run in self._in("waiting")],
                [run.seconds for run in self._in("finished")],
                len(self._slots),
            ),
            is_stopping=bool(self._received),
        )

    def _say(self, what: str, run: Run, how: str) -> None:
        self._screen.say(f"{what:<9} {run.plan.name}  {how}")


def estimate_seconds_left(
    running: Sequence[tuple[float, float | None]], waiting: Sequence[float], finished: Sequence[float], num_slots: int
) -> float | None:
    """When the last run will end, if runs that wait take as long as others; None: nothing is known yet.

    Args:
        running: how long they have run, and will.
        waiting: how long they have run already.
        finished: how long they took.
        num_slots: in which they run.
    """
    lengths = [*finished, *(so_far + left for so_far, left in running if left is not None)]
    if not lengths:
        return None
    usual = sum(lengths) / len(lengths)
    ends = [max(0.0, usual - so_far) if left is None else left for so_far, left in running]
    ends += [0.0] * (num_slots - len(ends))
    heapq.heapify(ends)
    for so_far in waiting:
        heapq.heappush(ends, heapq.heappop(ends) + max(0.0, usual - so_far))
    return max(ends)
