"""What `launchers/train.py` promises a queue, without training:  stand_in_train.py RECIPE name=value ... --folder RUN

Counts steps, writes each into progress.csv, saves now and then and at SIGTERM, and goes on where it was.  ``does`` says
how it ends, of all seeds or of that in ``where``.  Each try notes in tries.jsonl when, where and with what it ran.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

STEP_S = 0.01
SAVE_INTERVAL = 10


def main() -> int:
    """Train; the exit status."""
    folder = Path(sys.argv[-1])
    settings = dict(word.split("=", 1) for word in sys.argv[2:-2])
    does = settings.get("does", "finish") if settings.get("where", settings["seed"]) == settings["seed"] else "finish"
    total = int(settings["total_env_steps"])
    stopped_by: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: stopped_by.append(number))
    saved, notes = folder / "saved_steps", folder / "tries.jsonl"
    is_first_try = not notes.exists()
    begun_at = step = int(saved.read_text()) if saved.exists() else 0
    (folder / "config.json").write_text(json.dumps({"fields": {"name": settings["name"], "total_env_steps": total}}))
    (folder / "pid").write_text(str(os.getpid()))
    with open(folder / "progress.csv", "a") as table:
        if table.tell() == 0:
            table.write("step,return/mean,rate/env_steps_per_s\n")
        while step < total and (not stopped_by or does == "hang"):
            time.sleep(STEP_S)
            step += 1
            table.write(f"{step},{step + 100 * int(settings['seed'])},{1 / STEP_S}\n")
            table.flush()
            if step % SAVE_INTERVAL == 0:
                save(saved, step)
            if step == begun_at + 3 and (does == "fail" or (does == "fail once" and is_first_try)):
                note(notes, begun_at)
                raise RuntimeError(f"the simulator has exploded in step {step}")
    save(saved, step)
    note(notes, begun_at)
    return 128 + stopped_by[0] if stopped_by else 0


def save(path: Path, step: int) -> None:
    """Whole or not at all, as a checkpoint is: whoever tests kills at any time."""
    part = path.with_suffix(".part")
    part.write_text(str(step))
    part.replace(path)


def note(path: Path, begun_at: int) -> None:
    """What a test asks about this try."""
    facts = {
        "begun_at": begun_at,
        "cpus": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [],
        "threads": os.environ["OMP_NUM_THREADS"],
        "gpus": os.environ["CUDA_VISIBLE_DEVICES"],
        "rank": os.environ.get("RANK"),
    }
    with open(path, "a") as file:
        file.write(json.dumps(facts) + "\n")


if __name__ == "__main__":
    sys.exit(main())
