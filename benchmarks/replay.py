"""Replay alone (W7): batches per second from a million rows, with new priorities where there are any, and the memory.

Rows are those of HalfCheetah-v5 (17 numbers observed, 6 in an action), written by 8 environments; frames are Atari's,
stacked by four.  Who keeps each frame once can hold a million; who keeps whole stacks cannot, and does not take part.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks import options
from benchmarks.contests import ROOT, Plan, contest, planned_seconds
from benchmarks.peers import PEERS, python_of
from benchmarks.rows import Row
from benchmarks.tasks import Settings
from benchmarks.turns import Entry, Process, Progress

UNIT = "batches/s"
_SCRIPTS = Path(__file__).parent / "peers"


@dataclass(frozen=True)
class ReplayTask:
    """One table row's work."""

    title: str
    settings: Settings
    peers: tuple[str, ...]


_ROWS: Settings = {"capacity": 1_000_000, "num_envs": 8, "num_threads": 1, "seed": 1}
TASKS: dict[str, ReplayTask] = {
    "uniform": ReplayTask(
        "W7 uniform, 256 of 1M", {**_ROWS, "kind": "uniform", "batch_size": 256}, ("sb3", "torchrl", "tianshou")
    ),
    "prioritized": ReplayTask(
        "W7 prioritized, 256 of 1M, and their priorities",
        {**_ROWS, "kind": "prioritized", "batch_size": 256},
        ("torchrl", "tianshou"),
    ),
    "frames": ReplayTask(
        "W7 stacks of 4 frames, 32 of 1M", {**_ROWS, "kind": "frames", "batch_size": 32}, ("tianshou",)
    ),
    "sequences": ReplayTask(
        "W7 sequences of 125 rows with state, 64 of 1M rows",
        {**_ROWS, "kind": "sequences", "batch_size": 64, "num_rows": 125, "state_size": 64},
        ("torchrl",),
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    options.add_contest(parser)
    parser.add_argument("--workloads", metavar="NAMES", help=f"comma-separated (default: {','.join(TASKS)})")


def run(args: argparse.Namespace) -> list[Row]:
    """Measure the tasks that were asked for."""
    names = options.choose_names(args.workloads, list(TASKS), ["uniform"] if args.quick else None, "--workloads")
    return run_tasks(names, options.make_plan(args))


def run_tasks(names: list[str], plan: Plan) -> list[Row]:
    """One contest after the other."""
    entries = {
        name: {peer: _peer(peer, TASKS[name]) for peer in TASKS[name].peers if peer in plan.peers} for name in names
    }
    progress = Progress(sum(planned_seconds(1, len(peers), plan) for peers in entries.values()))
    rows = []
    for name, peers in entries.items():
        task = TASKS[name]
        own = {"rlsurreal": Process(_ours(task))}
        rows += contest(f"replay-{name}", task.title, UNIT, own, peers, plan, progress, with_memory=True)
    return rows


def _ours(task: ReplayTask) -> Entry:
    return Entry(
        key="ours",
        title="rlsurreal",
        command=[sys.executable, "-m", "benchmarks.replay_ours", json.dumps(task.settings)],
        num_threads=task.settings["num_threads"],
        environment={"PYTHONPATH": str(ROOT)},
    )


def _peer(peer: str, task: ReplayTask) -> Entry:
    script = _SCRIPTS / f"replay_{peer}.py"
    return Entry(
        key=peer,
        title=PEERS[peer].title,
        command=[str(python_of(peer, install=False)), str(script), json.dumps(task.settings)],
        num_threads=task.settings["num_threads"],
    )
