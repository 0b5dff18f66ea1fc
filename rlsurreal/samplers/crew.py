"""The worker and server processes of a sampler, seen from the master: starting them, watching them, stopping them.

loop         consumes                 waits for                       is unblocked by
Watch.wait   nothing (callers take)   any of some signals, and        a post; a child's end or traceback (raises
                                      every child's status channel    ChildError); no progress for too long (raises)
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlsurreal.distributed.processes import Child, ChildError, Launcher
from rlsurreal.distributed.signals import Group, Signal, Waiter
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


class LostInEvaluation(Exception):
    """Workers were lost while they played evaluation games, and replaced: the games are to be begun anew."""


class Crew:
    """All child processes of one sampler."""

    def __init__(self, launcher: Launcher, step_timeout_s: float, replace: Replace | None = None) -> None:
        """``replace``: makes the plan for a worker that takes a lost one's place; None: a lost worker ends the run."""
        self._launcher, self._step_timeout_s, self._replace = launcher, step_timeout_s, replace
        self.members: list[Member] = []
        self._num_slots_wanted = 0  # whose filling has been waited for
        self._group = Group() if Group.supported else None

    def add(self, name: str, target: Callable[..., None], plan: WorkerPlan | ServerPlan) -> None:
        """Start a process."""
        child = self._launcher.start(name, target, plan)
        self.members.append(Member(child, plan))
        if self._group is not None:
            self._group.add(child)

    def wait_until_ready(self, timeout_s: float) -> None:
        """Wait for the message that each process sends when it is set up; ChildError if one fails."""
        pending = {id(member.child): member for member in self.members}
        start, told = time.monotonic(), False
        waiter = Waiter(member.child for member in self.members)
        while pending:
            for child in waiter.wait(_LOOK_EVERY_S):
                if id(child) not in pending:
                    child.check()
                    continue
                with contextlib.suppress(TimeoutError):  # it has only said that it started
                    child.receive(0)
                    del pending[id(child)]
            waited = time.monotonic() - start
            where = "; ".join(self._where(member) for member in pending.values())
            if waited > timeout_s:
                stack = self._stack_of(next(iter(pending.values())))
                raise TimeoutError(f"not set up after {timeout_s:g} s: {where}; the first of them is at\n{stack}")
            if waited > _SAY_SO_AFTER_S and not told:
                _log.warning("waiting for processes to be set up: %s", where)
                told = True

    def order(self, command: int) -> None:
        """Have all processes carry out one command."""
        for member in self.members:
            member.plan.control.command[...] = command
        for member in self.members:
            member.num_slots_ordered += command == COLLECT
            member.plan.go.post()

    def wait_all_done(self, command: int) -> None:
        """Wait until every process has carried out one ``command``; lost workers are replaced if that was asked for.

        Raises:
            LostInEvaluation: workers were replaced, and ``command`` was not to collect.
        """
        if command == COLLECT:
            self._wait_until_collected()
        else:
            self._wait_until_evaluated()

    def _wait_until_collected(self) -> None:
        self._num_slots_wanted += 1
        for member in self.members:
            while member.num_slots_done < self._num_slots_wanted:
                with self._replacing():
                    self._take_done(member)
                    member.num_slots_done += 1

    def _wait_until_evaluated(self) -> None:
        ordered = [(member, member.child) for member in self.members]
        for member, child in ordered:
            is_done = False
            while member.child is child and not is_done:  # a replacement was not told to do anything
                with self._replacing():
                    self._take_done(member)
                    is_done = True
        if any(member.child is not child for member, child in ordered):
            raise LostInEvaluation

    def _take_done(self, member: Member) -> None:
        self.watch([member.plan.done]).wait(None)
        member.plan.done.take()

    @contextlib.contextmanager
    def _replacing(self) -> Iterator[None]:
        """Replace the worker that is lost in here, if that was asked for."""
        try:
            yield
        except ChildError as error:
            if self._replace is None:
                raise
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
        self._launcher.forget(member.child)
        member.child = self._launcher.start(member.child.name, run_worker, member.plan)
        if self._group is not None:
            self._group.add(member.child)
        for _ in range(member.num_slots_ordered - member.num_slots_done):
            member.plan.go.post()

    def revive(self) -> None:
        """Replace workers that were lost while they had nothing to do, or raise."""
        for member in self.members:
            with self._replacing():
                member.child.check()

    def watch(self, signals: Sequence[Signal]) -> Watch:
        """Wait for ``signals`` with an eye on all processes."""
        return Watch(self, signals)

    def sources(self) -> list[Any]:
        """What to wait for beside signals: something is ready there when a process has failed."""
        return [member.child for member in self.members] if self._group is None else [self._group]

    def check(self, ready: list[Any]) -> list[Signal]:
        """The signals among ``ready``; raises ChildError if anything else is there, because a process has failed."""
        signals = [source for source in ready if isinstance(source, Signal)]
        if len(signals) < len(ready):
            for member in self.members:
                member.child.check()
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
                _log.warning("waiting for %s", self._where(self._to_blame()))

    def _progress(self) -> list[int]:
        controls = [member.plan.control for member in self.members]
        return [int(number) for control in controls for number in (control.rows_done, control.environment)]

    def _to_blame(self) -> Member:
        """Whoever keeps the others waiting: the slowest worker that is in an environment, or else a server."""
        workers = [member for member in self.members if isinstance(member.plan, WorkerPlan)]
        others = [member for member in self.members if not isinstance(member.plan, WorkerPlan)]
        stepping = [member for member in workers if int(member.plan.control.environment) >= 0]
        return min(stepping or others or workers, key=lambda member: int(member.plan.control.rows_done))

    def _where(self, member: Member) -> str:
        environment, num_rows = int(member.plan.control.environment), int(member.plan.control.rows_done)
        what = f"in environment {environment}" if environment >= 0 else "in no environment"
        return f"{member.child.name} (pid {member.child.pid}), {what}, after {num_rows} rows"

    def _who_hangs(self) -> str:
        member = self._to_blame()
        return (
            f"no step for {self._step_timeout_s:g} s, because of {self._where(member)}; it is at\n"
            f"{self._stack_of(member)}\nIf steps or resets may take so long, set the sampler's step_timeout_s"
        )

    def _stack_of(self, member: Member) -> str:
        """Where a process is now, even inside a C function: its faulthandler writes that when it gets the signal."""
        if member.child.pid is None:
            return "(unknown)"
        os.kill(member.child.pid, signal.SIGUSR1)
        time.sleep(0.2)
        return member.plan.stack.read() or "(unknown)"

    def stop(self, *, gracefully: bool) -> None:
        """Ask all to leave, wait a little (less after a failure: some may wait for ever), and kill the rest."""
        self.order(STOP)
        for member in self.members:
            if isinstance(member.plan, WorkerPlan):
                for unit in (*member.plan.train.units, *member.plan.evaluate.units):
                    # Who waits for actions or observations in the middle of a slot looks at the command, too.
                    unit.act_ready.post()
                    unit.obs_ready.post()
        deadline = time.monotonic() + (5.0 if gracefully else 0.5)
        for member in self.members:
            member.child.join(max(0.0, deadline - time.monotonic()))
        self._launcher.close()
        self.members = []


class Watch:
    """Waits for some signals; fails when a process of the crew does."""

    def __init__(self, crew: Crew, signals: Sequence[Signal]) -> None:
        self._crew = crew
        self._waiter = Waiter([*signals, *crew.sources()])

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
