"""The worker and server processes of a sampler, seen from the master: starting them, watching them, stopping them.

loop         consumes                 waits for                       is unblocked by
Watch.wait   nothing (callers take)   any of some signals, and        a post; a child's end or traceback (raises
                                      every child's status channel    ChildError); no progress for too long (raises)
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlsurreal.distributed.processes import Child, ChildError, Launcher
from rlsurreal.distributed.signals import Signal, Waiter
from rlsurreal.samplers.plans import COLLECT, STOP, WorkerPlan
from rlsurreal.samplers.worker import run_worker

if TYPE_CHECKING:
    from rlsurreal.samplers.server import ServerPlan

_log = logging.getLogger(__name__)
_SAY_SO_AFTER_S = 10.0  # a wait that is longer says what it waits for
_LOOK_EVERY_S = 1.0


@dataclass
class Member:
    """One child process, and the channels to it that it was started with."""

    child: Child
    plan: WorkerPlan | ServerPlan
    num_slots_ordered: int = 0
    num_slots_done: int = 0
    num_slots_done_when_replaced: int = -1


Replace = Callable[[Member], WorkerPlan]


class Crew:
    """All child processes of one sampler."""

    def __init__(self, launcher: Launcher, step_timeout_s: float, replace: Replace | None = None) -> None:
        """``replace``: makes the plan for a worker that takes a lost one's place; None: a lost worker ends the run."""
        self._launcher, self._step_timeout_s, self._replace = launcher, step_timeout_s, replace
        self.members: list[Member] = []

    def add(self, name: str, target: Callable[..., None], plan: WorkerPlan | ServerPlan) -> None:
        """Start a process."""
        child = self._launcher.start(name, target, plan)
        self.members.append(Member(child, plan))

    def wait_until_ready(self, timeout_s: float) -> None:
        """Wait for the message that each process sends when it is set up; ChildError if one fails."""
        pending = {id(member.child): member.child for member in self.members}
        start, told = time.monotonic(), False
        waiter = Waiter(pending.values())
        while pending:
            for child in waiter.wait(_LOOK_EVERY_S):
                if id(child) in pending:
                    try:
                        child.receive(0)
                    except TimeoutError:
                        continue  # it has only said that it started
                    waiter.remove(child)
                    del pending[id(child)]
            waited = time.monotonic() - start
            if waited > timeout_s:
                names = ", ".join(child.name for child in pending.values())
                raise TimeoutError(f"{names} took more than {timeout_s:g} s to build their environments")
            if waited > _SAY_SO_AFTER_S and not told:
                _log.warning("waiting for environments to be built by %s", ", ".join(c.name for c in pending.values()))
                told = True

    def order(self, command: int) -> None:
        """Have all processes carry out one command."""
        for member in self.members:
            member.plan.control.command[...] = command
        for member in self.members:
            member.num_slots_ordered += command == COLLECT
            member.plan.go.post()

    def wait_all_done(self, command: int) -> None:
        """Wait until every process has carried out one ``command``; lost workers are replaced if that was asked for."""
        for member in self.members:
            if command != COLLECT or self._replace is None:
                self.watch([member.plan.done]).wait(None)
                member.plan.done.take()
                member.num_slots_done += command == COLLECT
                continue
            before = member.num_slots_done
            while member.num_slots_done == before:
                try:
                    self.watch([member.plan.done]).wait(None)
                    member.plan.done.take()
                    member.num_slots_done += 1
                except ChildError as error:
                    self._replace_or_raise(error, self._replace)

    def _replace_or_raise(self, error: ChildError, replace: Replace) -> None:
        member = next((member for member in self.members if member.child is error.child), None)
        if member is None:
            raise error
        if member.num_slots_done == member.num_slots_done_when_replaced:
            raise ChildError(f"lost again before it had filled a slot: {error}") from error
        _log.warning("replacing a worker: %s", error)
        while member.num_slots_done < member.num_slots_ordered and Waiter([member.plan.done]).wait(0):
            member.plan.done.take()  # it was lost after it had filled this one
            member.num_slots_done += 1
        member.num_slots_done_when_replaced = member.num_slots_done
        member.plan = replace(member)
        member.child = self._launcher.start(member.child.name, run_worker, member.plan)
        for _ in range(member.num_slots_ordered - member.num_slots_done):
            member.plan.go.post()

    def watch(self, signals: Sequence[Signal]) -> Watch:
        """Wait for ``signals`` with an eye on all processes that are there now."""
        return Watch(self, signals)

    def check(self, ready: list[Any]) -> list[Signal]:
        """The signals among ``ready``; raises ChildError if a child is there too, because it has failed."""
        signals = [source for source in ready if isinstance(source, Signal)]
        if len(signals) < len(ready):
            for source in ready:
                if isinstance(source, Child):
                    source.check()
        return signals

    def wait_long(self, waiter: Waiter) -> list[Signal]:
        """Wait on, and say so; TimeoutError naming worker and environment when no process makes a step any more."""
        start = last_progress = time.monotonic()
        progress, told = self._progress(), False
        while True:
            ready = self.check(waiter.wait(_LOOK_EVERY_S))
            if ready:
                return ready
            now = time.monotonic()
            latest = self._progress()
            if latest != progress:
                progress, last_progress = latest, now
            if now - last_progress > self._step_timeout_s:
                raise TimeoutError(self._who_hangs())
            if now - start > _SAY_SO_AFTER_S and not told:
                told = True
                _log.warning("waiting for %s", self._where(self._slowest()))

    def _progress(self) -> list[int]:
        return [int(member.plan.control.rows_done) for member in self.members]

    def _slowest(self) -> Member:
        workers = [member for member in self.members if isinstance(member.plan, WorkerPlan)]
        return min(workers, key=lambda member: int(member.plan.control.rows_done))

    def _where(self, member: Member) -> str:
        environment, num_rows = int(member.plan.control.environment), int(member.plan.control.rows_done)
        return f"{member.child.name} (pid {member.child.pid}), in environment {environment} after {num_rows} rows"

    def _who_hangs(self) -> str:
        member = self._slowest()
        return (
            f"no step for {self._step_timeout_s:g} s: the slowest is {self._where(member)}; it is at\n"
            f"{self._stack_of(member)}\nIf its steps or resets may take so long, set the sampler's step_timeout_s"
        )

    def _stack_of(self, member: Member) -> str:
        """Where a worker is now, even inside a C function: its faulthandler writes that when it gets the signal."""
        if member.child.pid is None:
            return "(unknown)"
        os.kill(member.child.pid, signal.SIGUSR1)
        time.sleep(0.2)
        return member.plan.stack.read() or "(unknown)"

    def stop(self) -> None:
        """Ask all to leave, wait a little, and kill the rest.  May be called twice."""
        self.order(STOP)
        deadline = time.monotonic() + 5.0
        for member in self.members:
            member.child.join(max(0.0, deadline - time.monotonic()))
        self._launcher.close()
        self.members = []


class Watch:
    """Waits for some signals; fails when a process of the crew does."""

    def __init__(self, crew: Crew, signals: Sequence[Signal]) -> None:
        self._crew = crew
        self._waiter = Waiter([*signals, *(member.child for member in crew.members)])

    def remove(self, signal: Signal) -> None:
        """No longer wait for this one."""
        self._waiter.remove(signal)

    def wait(self, timeout_s: float | None) -> list[Signal]:
        """The signals that are posted; none when ``timeout_s`` is over.

        Raises ChildError with its traceback as soon as any process has failed, and (without ``timeout_s``) TimeoutError
        when no process has made a step for the sampler's ``step_timeout_s``.
        """
        if timeout_s is not None:
            return self._crew.check(self._waiter.wait(timeout_s))
        ready = self._crew.check(self._waiter.wait(_LOOK_EVERY_S))
        return ready or self._crew.wait_long(self._waiter)
