"""Contestants measured in turn: A B A B, each in a process of its own that sleeps while it is not its turn.

    who              waits for                          is unblocked by
    `Process.start`  the contestant's first answer      warm-up done; its end (fails); a time limit (fails)
    `Process.rate`   the answer for its turn            an iteration's end after the turn's time; the same failures
    contestant       a line from the master             its next turn; the master's end (then it ends, too)

See `benchmarks.peers.gate` for the contestant's side.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import psutil

READY_LIMIT_S = 300.0  # to import, build, compile and make the first iterations
ITERATION_LIMIT_S = 120.0  # a turn ends with an iteration, and may be longer than asked for by so much
WARNING_MARK = "contestant warns: "  # lines that ours prints for the master to show
_BUSY_SHARE = 0.03  # of one core: above it, who waits disturbs who is measured
_SHOWN_LINES = 25
_CLEAN_UP_S = 5.0
_LOOK_S = 0.5  # between looks at whether a contestant is still there


class ContestantError(RuntimeError):
    """A contestant failed; the message ends with what it printed last."""


class Contestant(Protocol):
    """Something that makes steps."""

    def rate(self, seconds: float) -> float:
        """Steps per second, measured for about so long."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class Entry:
    """How to start a contestant."""

    key: str  # of result files
    title: str  # in tables; a peer's version is added to it
    command: Sequence[str]
    num_threads: int = 1  # of OpenMP, which PyTorch uses
    whole_runs: bool = False  # it cannot be stopped between iterations: start it anew for each turn
    environment: Mapping[str, str] = field(default_factory=dict)


class Process:
    """A contestant in a process of its own, which obeys the gate."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.version, self.warm_up_s = "", 0.0
        self._process: subprocess.Popen[str] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._answers: IO[str] | None = None

    def start(self) -> None:
        """Start and warm up.

        Raises:
            ContestantError: it ended, or was not ready in time.
        """
        self._folder = tempfile.TemporaryDirectory(
            prefix="rlsurreal-contestant-"
        )  # libraries leave files where they run
        threads = str(self.entry.num_threads)
        reader, writer = os.pipe()
        self._answers = os.fdopen(reader)
        with os.fdopen(writer, "w"), open(self._log, "w") as log:
            self._process = subprocess.Popen(
                self.entry.command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,  # so that `close` reaches its own processes, too
                pass_fds=(writer,),
                cwd=self._folder.name,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": threads,
                    "MKL_NUM_THREADS": threads,
                    "GATE_FD": str(writer),
                    **self.entry.environment,
                },
            )
        answer = self._answer(READY_LIMIT_S)
        self.version, self.warm_up_s = answer["version"], answer["warm_up_s"]

    def rate(self, seconds: float) -> float:
        """One turn; steps per second.

        Raises:
            ContestantError: it ended, or its iteration took much too long.
        """
        if self._process is None:
            self.start()
        assert self._process is not None and self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, as will be found below
            self._process.stdin.write(f"{seconds}\n")
            self._process.stdin.flush()
        answer = self._answer(seconds + ITERATION_LIMIT_S)
        if self.entry.whole_runs:
            self.close()
        return float(answer["steps"] / answer["seconds"])

    def warnings(self) -> list[str]:
        """What it has warned of so far."""
        lines = [] if self._folder is None else self._printed()
        return [line.removeprefix(WARNING_MARK) for line in lines if line.startswith(WARNING_MARK)]

    def cpu_seconds(self) -> float:
        """Used so far, by the process and its children that live."""
        if self._process is None:
            return 0.0
        total = 0.0
        try:
            root = psutil.Process(self._process.pid)
            members = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return 0.0
        for member in members:
            try:
                times = member.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
        return total

    def memory_mb(self) -> float:
        """Resident memory of the process, without its children; NaN if it does not run."""
        if self._process is None:
            return math.nan
        with contextlib.suppress(psutil.NoSuchProcess):
            return float(psutil.Process(self._process.pid).memory_info().rss / 1e6)
        return math.nan

    def close(self) -> None:
        """End the process and whatever it started."""
        if self._process is None:
            return
        process, self._process = self._process, None
        members = _members(process.pid)
        # Some libraries have processes that remove what the others leave in shared memory, once these are gone.
        for member in members:
            if not _cleans_up(member):
                _kill(member)
        for member in psutil.wait_procs(members, timeout=_CLEAN_UP_S)[1]:
            _kill(member)
        process.wait()
        for pipe in (process.stdin, self._answers):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _answer(self, limit_s: float) -> dict[str, Any]:
        assert self._process is not None and self._answers is not None
        deadline, ready, has_ended, is_late = time.monotonic() + limit_s, False, False, False
        while not (ready or has_ended or is_late):
            is_late = time.monotonic() >= deadline  # then one more look: this process may have been suspended
            has_ended = self._process.poll() is not None  # its own processes may hold the pipe open
            ready = bool(select.select([self._answers], [], [], 0 if has_ended else _LOOK_S)[0])
        line = self._answers.readline() if ready else ""
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        what = "ended" if ready or has_ended else f"gave no answer within {limit_s:.0f} s"
        last = "\n".join(f"    {line}" for line in self._printed()[-_SHOWN_LINES:])
        self.close()
        raise ContestantError(f"{self.entry.title} {what}; its last lines were:\n{last}")

    @property
    def _log(self) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / "log.txt"

    def _printed(self) -> list[str]:
        return self._log.read_text(errors="replace").splitlines()


def _members(pid: int) -> list[psutil.Process]:
    """A contestant, its descendants, some of which may have left its session, and whoever else is in the session."""
    found: set[psutil.Process] = set()
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        found |= {root, *root.children(recursive=True)}
    for other in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(other.pid) == pid:
                found.add(other)
    return list(found)


def _cleans_up(member: psutil.Process) -> bool:
    try:
        command = " ".join(member.cmdline())
    except psutil.Error:
        return False
    return "resource_tracker" in command or "torch_shm_manager" in command


def _kill(member: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        member.kill()


class Progress:
    """Says what is being measured, and about how long the rest will take."""

    def __init__(self, total_s: float) -> None:
        """``total_s``: the plan's length."""
        self._left_s = total_s
        self._warned: set[str] = set()

    def say(self, text: str) -> None:
        """A line with the time left."""
        left = "<1" if self._left_s < 60 else f"{self._left_s / 60:.0f}"
        print(f"[{left:>3} min left] {text}", flush=True)

    def spend(self, planned_s: float) -> None:
        """So much of the plan is done, or dropped."""
        self._left_s = max(0.0, self._left_s - planned_s)

    def warn_once(self, text: str) -> None:
        """A warning, the first time."""
        if text not in self._warned:
            self._warned.add(text)
            print(f"WARNING: {text}", flush=True)


def take_turns(
    contestants: Mapping[str, Contestant], rounds: int, seconds: float, unit: str, progress: Progress
) -> dict[str, list[float]]:
    """Rates of all contestants, ``rounds`` times in turn; every second round in reverse, so that drift cancels."""
    rates: dict[str, list[float]] = {key: [] for key in contestants}
    for i in range(rounds):
        order = list(contestants) if i % 2 == 0 else list(contestants)[::-1]
        for key in order:
            before = {other: _cpu(contestants[other]) for other in contestants if other != key}
            start = time.perf_counter()
            rate = contestants[key].rate(seconds)
            elapsed = time.perf_counter() - start
            for other, cpu in before.items():
                if (_cpu(contestants[other]) - cpu) / elapsed > _BUSY_SHARE:
                    progress.warn_once(f"{other} is busy while it waits; the figures of {key} may be too low")
            rates[key].append(rate)
            progress.spend(seconds)
            progress.say(f"round {i + 1} of {rounds}: {rate:>10,.0f} {unit}  {key}")
    return rates


def _cpu(contestant: Contestant) -> float:
    return contestant.cpu_seconds() if isinstance(contestant, Process) else 0.0
