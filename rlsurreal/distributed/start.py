"""Ranks on this machine, started from a plain Python script through torchrun.

    this process -- file with the function --> torchrun --> rank 0 ... rank N-1 -- file with the result --> this one

    loop            consumes   produces    waits for            is unblocked by
    `start_ranks`   -          the ranks   torchrun's end       success, failure; Ctrl-C and SIGTERM are passed on

The function and its arguments travel by cloudpickle, so they may be defined in the script itself, which the ranks never
import.  They end when this process does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import cloudpickle
import psutil

from rlsurreal.distributed.processes import ChildError
from rlsurreal.distributed.watch import has_ended
from rlsurreal.utils.os_signals import handled

Result = TypeVar("Result")

_FORWARDED = (signal.SIGTERM, signal.SIGINT)
_LOOK_S = 1.0
_SAVE_S = 120  # for ranks that are told to stop
_TASK, _RESULT = "task", "result"


def start_ranks(count: int, function: Callable[..., Result], *args: Any) -> Result:
    """What ``function(*args)`` returns on the first of ``count`` ranks of this machine, each a process.

    Raises:
        ChildError: a rank has failed; what it said is above.
    """
    with tempfile.TemporaryDirectory(prefix="rlsurreal-ranks-") as folder:
        (Path(folder) / _TASK).write_bytes(cloudpickle.dumps((function, args)))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        command += ["-m", __name__, folder, str(os.getpid())]
        paths = os.pathsep.join(map(str, sys.path))
        defaults = {"OMP_NUM_THREADS": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(_SAVE_S)}
        environment = {**defaults, **os.environ, "PYTHONPATH": paths}
        # In a session of its own: a terminal's Ctrl-C comes once, through this process.
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        status, is_told_to_stop = _wait(process)
        result = Path(folder) / _RESULT
        if status != 0 and not (is_told_to_stop and result.exists()):  # torchrun fails if it is told to stop
            raise ChildError(f"one of {count} ranks has failed (exit status {status}); what it said is above")
        found: Result = cloudpickle.loads(result.read_bytes())
        return found


def _wait(process: subprocess.Popen[bytes]) -> tuple[int, bool]:
    """The exit status, and whether a signal was passed on, for ranks to save and leave."""
    told = []

    def forward(number: int) -> None:
        told.append(number)
        process.send_signal(number)

    with handled(_FORWARDED, forward, even_ignored=True):
        try:
            return process.wait(), bool(told)
        except BaseException:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise


def _run_rank(folder: Path, starter: int) -> None:
    threading.Thread(target=_leave_with, args=(starter,), daemon=True).start()
    function, args = cloudpickle.loads((folder / _TASK).read_bytes())
    result = function(*args)
    if int(os.environ["RANK"]) == 0:
        temporary = folder / f".{_RESULT}"
        temporary.write_bytes(cloudpickle.dumps(result))
        temporary.rename(folder / _RESULT)


def _leave_with(starter: int) -> None:
    """torchrun would go on without the process that has asked for it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(starter)
        while not has_ended(process):
            time.sleep(_LOOK_S)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    from torch.distributed.elastic.multiprocessing.errors import record

    record(_run_rank)(Path(sys.argv[1]), int(sys.argv[2]))
