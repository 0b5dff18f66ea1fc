"""One run of a sweep: its folder, what the queue notes there, its process, and how far it is.

    queue --- starts, pinned ---> python train.py --folder RUN        writes progress.csv, checkpoints/
      |                             |
      +-- queue.json  status, tries  +-- holds the lock of RUN as long as it lives

The folder is all there is to know, so a queue that was killed is continued by another.  A run's process dies with the
queue; should it outlive it nevertheless, the lock keeps a second one out of its folder.  Used by
`sweep_queue.local_queue`.
"""

from __future__ import annotations

import contextlib
import csv
import ctypes
import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import psutil
from plot import DEFAULT_COLUMNS, settings_of

from rlsurreal.utils.affinity import pin
from rlsurreal.utils.files import RUN_LOCK, atomic_write, lock

from .slots import Slot
from .sweep import Plan

RECORD, OUTPUT, LOCK = "queue.json", "output.txt", ".queue.lock"
State = Literal["waiting", "running", "finished", "failed"]

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None
_NOT_STARTED = 127  # as a shell says it
_SAVE_S = 120  # for ranks to save, after torchrun was told to stop
_TAIL_BYTES = 65_536
_ERROR = re.compile(r"(?:\[\w+\]: *)?((?:\w+\.)*\w*(?:Error|Exception|Interrupt)(?::.*)?|error: .*)")


@dataclass
class Record:
    """What ``queue.json`` holds."""

    words: list[str]  # recipe and overrides
    status: Literal["running", "stopped", "finished", "failed"]
    tries: int
    started: float  # the last time, in seconds since 1970
    ended: float | None = None
    seconds: float = 0.0  # of all tries that have ended
    exit_status: int | None = None  # negative: the signal that killed it
    error: str = ""


@dataclass(frozen=True)
class Progress:
    """How far a run is, by its last row of metrics."""

    env_steps: int
    total_env_steps: int | None
    steps_per_s: float | None
    value: float | None  # of the last games: score or return
    at: float  # when that was, in seconds since 1970

    @property
    def fraction(self) -> float | None:
        """Of its budget."""
        return min(1.0, self.env_steps / self.total_env_steps) if self.total_env_steps else None

    def seconds_left(self, now: float) -> float | None:
        """Until the budget is used."""
        if not self.steps_per_s or self.total_env_steps is None:
            return None
        return max(0.0, (self.total_env_steps - self.env_steps) / self.steps_per_s - (now - self.at))


class Run:
    """A run, which waits, runs, or has ended.

    Attributes:
        state: "waiting" also for one that was stopped, or lost with its queue: it goes on where it was.
        record: of the last try; None before the first.
        tries: in this call of the queue; a failure of an earlier one counts as one.
        slot: where it runs.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        """Raises ValueError if the folder has a run of other settings."""
        self.plan, self.folder = plan, folder
        self.words = [plan.recipe, *plan.words]
        self.record = _read_record(folder / RECORD)
        self.state: State = "waiting"
        self.tries = 0
        self.slot: Slot | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._output_start = 0
        self._progress: tuple[tuple[int, int], Progress | None] | None = None
        if self.record is not None:
            _check_same(folder, self.record.words, self.words)
            if self.record.status in ("finished", "failed"):
                self.state, self.tries = self.record.status, int(self.record.status == "failed")

    # ------------------------------------------------------------ the process

    def start(self, slot: Slot, train: Path) -> bool:
        """Begin or continue in ``slot`` with the script ``train``; False while another process is in the folder."""
        try:
            return self._start(slot, train)
        except OSError as error:  # the disk is full, say: the other runs go on
            self.record = self.record or Record(self.words, "failed", 1, time.time())
            self.state, self.tries = "failed", self.tries + 1
            self.record.status, self.record.error = "failed", f"cannot begin in {self.folder}: {error}"
            return True

    def _start(self, slot: Slot, train: Path) -> bool:
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / LOCK, "a") as file, open(self.folder / OUTPUT, "ab") as output:
            if not lock(file) or self._is_written():
                return False
            before = self.record
            self.record = Record(self.words, "running", before.tries + 1 if before else 1, time.time())
            self.record.seconds = before.seconds if before else 0.0
            self._save()
            self.state, self.slot, self.tries = "running", slot, self.tries + 1
            self._output_start = output.seek(0, os.SEEK_END)
            try:
                self._process = self._popen(slot, train, file.fileno(), output)
            except (OSError, subprocess.SubprocessError) as error:  # no memory, say: the other runs go on
                output.write(f"error: cannot start the process: {error}\n".encode())
        return True

    def _is_written(self) -> bool:
        """Whether a process that was not started by a queue, or a rank of one that was, is still at work here."""
        with open(self.folder / RUN_LOCK, "a") as file:
            return not lock(file)

    def _popen(self, slot: Slot, train: Path, held: int, output: IO[bytes]) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(train), *self.words, "--folder", str(self.folder)]
        environment = {**os.environ, **slot.environment(), "PYTHONUNBUFFERED": "1"}
        death_signal = signal.SIGKILL
        if len(slot.gpus) > 1:
            ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(len(slot.gpus))]
            command[1:1] = ranks
            environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(_SAVE_S)
            death_signal = signal.SIGTERM  # it must live to end its ranks
        queue = os.getpid()

        def prepare() -> None:
            pin(slot.cpus)
            if _libc is not None:
                _libc.prctl(_PR_SET_PDEATHSIG, death_signal)
                if os.getppid() != queue:
                    os._exit(1)

        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a terminal's Ctrl-C comes through the queue
            pass_fds=[held],  # inherited, it is held until the process ends
            preexec_fn=prepare,
        )

    def poll(self, is_stopping: bool) -> bool:
        """Whether the process has ended just now; then the state says how."""
        assert self.record is not None and self.slot is not None
        code = _NOT_STARTED if self._process is None else self._process.poll()
        if code is None:
            return False
        record, now = self.record, time.time()
        record.ended, record.exit_status, record.seconds = now, code, record.seconds + now - record.started
        saved_and_left = (128 + signal.SIGTERM, -signal.SIGTERM, -signal.SIGKILL)
        if code == 0:
            record.status = self.state = "finished"
        elif is_stopping and (code in saved_and_left or len(self.slot.gpus) > 1):  # torchrun's status says little
            record.status, self.state = "stopped", "waiting"
        else:
            record.status = self.state = "failed"
            said = _last_error(self.folder / OUTPUT, self._output_start)
            record.error = f"{describe_exit(code)}{': ' * bool(said)}{said}"
        with contextlib.suppress(OSError):  # its folder was removed, or the disk is full: the other runs go on
            self._save()
        self._process = self.slot = None
        return True

    def stop(self) -> None:
        """Have it save and leave."""
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """End it at once, with all that it has started."""
        if self._process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                started = psutil.Process(self._process.pid).children(recursive=True)
                self._process.kill()
                for process in started:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()

    def try_again(self) -> None:
        """Let a failed run wait for its next try."""
        self.state = "waiting"

    def _save(self) -> None:
        assert self.record is not None
        with atomic_write(self.folder / RECORD, "w") as file:
            json.dump(dataclasses.asdict(self.record), file, indent=1)

    # ------------------------------------------------------------ what it has done

    @property
    def seconds(self) -> float:
        """It has run so long, over all tries."""
        if self.record is None:
            return 0.0
        return self.record.seconds + (time.time() - self.record.started if self.state == "running" else 0.0)

    def progress(self) -> Progress | None:
        """How far it is; None before its first row of metrics."""
        path = self.folder / "progress.csv"
        try:
            status = path.stat()
        except OSError:
            return None
        version = (status.st_mtime_ns, status.st_size)
        if self._progress is None or self._progress[0] != version:
            try:
                self._progress = version, _read_progress(path)
            except (OSError, ValueError):  # being replaced
                return self._progress[1] if self._progress else None
        found = self._progress[1]
        if found is None or self.record is None:
            return found
        return dataclasses.replace(found, at=max(found.at, self.record.started))


def describe_exit(code: int) -> str:
    """How a process has ended."""
    if code < 0:
        name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
        return f"killed by {name}{' (out of memory?)' if code == -signal.SIGKILL else ''}"
    if code == 128 + signal.SIGTERM or code == 128 + signal.SIGINT:
        return f"stopped by {signal.Signals(code - 128).name}, not from the queue"
    return f"exit status {code}"


def _read_record(path: Path) -> Record | None:
    return Record(**json.loads(path.read_text())) if path.exists() else None


def _check_same(folder: Path, before: list[str], now: list[str]) -> None:
    if before != now:
        gone, new = (" ".join(w for w in a if w not in b) or "nothing" for a, b in ((before, now), (now, before)))
        raise ValueError(
            f"{folder} was begun with {gone} where the sweep now has {new}; remove that folder to begin it again, or "
            "give the sweep another name"
        )


def _read_progress(path: Path) -> Progress | None:
    at, text = path.stat().st_mtime, path.read_text()
    rows = list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))
    if not rows:
        return None

    def last(name: str) -> float | None:
        return next((float(row[name]) for row in reversed(rows) if row.get(name)), None)

    total: Any = settings_of(path.parent).get("total_env_steps")
    column = next((name for name in DEFAULT_COLUMNS if name in rows[0]), "")
    return Progress(int(rows[-1]["step"]), total, last("rate/env_steps_per_s"), last(column), at)


def _last_error(path: Path, start: int) -> str:
    """The last line of the output from byte ``start`` on that names an error; else the last line."""
    try:
        with open(path, "rb") as file:
            file.seek(max(start, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = [line.rpartition("\r")[2].strip() for line in file.read().decode(errors="replace").splitlines()]
    except OSError as error:  # its folder was removed, say
        return str(error)
    matches = (_ERROR.fullmatch(line) for line in reversed(lines))
    errors = (match[1] for match in matches if match and not match[1].endswith("ChildFailedError:"))  # torchrun's own
    return next(errors, "") or next((line for line in reversed(lines) if line), "")
