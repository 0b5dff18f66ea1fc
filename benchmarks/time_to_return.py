"""Seconds of wall clock until a return is reached (W8), each run alone on the machine, seeds in turn with peers.

Building, compiling and everything else is counted from the end of the imports.  A run that does not reach its target
counts with all of its time, and the row says so.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from typing import Any

from benchmarks.contests import Plan, ours_entry, peer_entry
from benchmarks.peers import PEERS
from benchmarks.rows import Row, compare_rounds, from_json, to_json
from benchmarks.tasks import RETURN, ReturnTask
from benchmarks.turns import ContestantError, Entry, Progress

UNIT = "s to the return"
_NUM_SEEDS = 3
_PLANNED_RUN_S = 150.0
_LIMIT_S = 1800.0


def run_tasks(names: list[str], plan: Plan) -> list[Row]:
    """All seeds of all tasks; finished runs are kept."""
    progress = Progress(sum(len(_entries(RETURN[name], 0, plan)) for name in names) * _NUM_SEEDS * _PLANNED_RUN_S)
    return [row for name in names for row in _run_task(name, RETURN[name], plan, progress)]


def _run_task(name: str, task: ReturnTask, plan: Plan, progress: Progress) -> list[Row]:
    before = plan.kept(f"{name}-rows")
    if before is not None:
        progress.spend(len(_entries(task, 0, plan)) * _NUM_SEEDS * _PLANNED_RUN_S)
        progress.say(f"{task.title}: measured before, kept in {plan.results}")
        return [from_json(entry) for entry in before]
    results: dict[str, list[dict[str, Any]]] = {}
    for seed in range(_NUM_SEEDS):
        for who, entry in _entries(task, seed, plan).items():
            result = plan.kept(f"{name}-{entry.key}-{seed}")
            if result is None:
                progress.say(f"{task.title}: {entry.title}, seed {seed}")
                try:
                    result = _run_once(entry)
                except ContestantError as error:
                    if who == "ours":
                        raise
                    print(f"FAILED {error}", flush=True)
                    continue
                plan.keep(f"{name}-{entry.key}-{seed}", result)
            progress.spend(_PLANNED_RUN_S)
            outcome = "reached" if result["reached"] else f"NOT reached ({result['final']:,.0f})"
            progress.say(f"{entry.title}, seed {seed}: {outcome} after {result['seconds']:,.0f} s")
            results.setdefault(who, []).append(result)
    ours = results.pop("ours")
    complete = {peer: runs for peer, runs in results.items() if len(runs) == len(ours)}
    rows = [_row(task, ours, PEERS[peer].title, runs) for peer, runs in complete.items()]
    plan.keep(f"{name}-rows", [to_json(row) for row in rows])
    return rows


def _entries(task: ReturnTask, seed: int, plan: Plan) -> dict[str, Entry]:
    every = {**task.settings, "what": "learn", "device": plan.device, "seed": seed}
    peers = {
        peer: peer_entry(peer, {**every, **own})
        for peer, own in task.peers.items()
        if peer in plan.peers and plan.device.split(":")[0] in PEERS[peer].devices
    }
    return {"ours": ours_entry({**every, **task.ours}, "time to return"), **peers}


def _run_once(entry: Entry) -> dict[str, Any]:
    """One run; the last line that it prints.

    Raises:
        ContestantError: it failed, or took too long.
    """
    threads = str(entry.num_threads)
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **entry.environment}
    with tempfile.TemporaryDirectory() as folder:  # libraries leave files where they run
        options: Any = {"env": environment, "cwd": folder, "capture_output": True, "text": True, "errors": "replace"}
        try:
            run = subprocess.run(entry.command, timeout=_LIMIT_S, **options)
        except subprocess.TimeoutExpired as error:
            raise ContestantError(f"{entry.title} did not end within {_LIMIT_S:.0f} s") from error
    if run.returncode:
        raise ContestantError(f"{entry.title} failed; its last lines were:\n{run.stderr[-1500:]}")
    result: dict[str, Any] = json.loads(run.stdout.strip().splitlines()[-1])
    return result


def _row(task: ReturnTask, ours: list[dict[str, Any]], peer: str, theirs: list[dict[str, Any]]) -> Row:
    def label(runs: list[dict[str, Any]]) -> str:
        reached = sum(run["reached"] for run in runs)
        return "" if reached == len(runs) else f" ({reached} of {len(runs)} seeds reached it)"

    seconds = [[run["seconds"] for run in runs] for runs in (ours, theirs)]
    name, against = f"rlsurreal{label(ours)}", f"{peer} {theirs[0]['version']}{label(theirs)}"
    return compare_rounds(task.title, name, UNIT, seconds[0], against, seconds[1], less_is_better=True)
