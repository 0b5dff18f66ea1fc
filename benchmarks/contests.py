"""A contest: every peer once to screen, then ours and the best peers in turns.  Finished parts are kept in a folder.

Called by `benchmarks.train`, `benchmarks.update` and `benchmarks.sampling`.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers import PEERS, python_of
from benchmarks.rows import Row, compare_rounds, from_json, to_json
from benchmarks.tasks import Settings, Task
from benchmarks.turns import Contestant, ContestantError, Entry, Process, Progress, take_turns
from rlsurreal.utils.files import atomic_write

ROOT = Path(__file__).parents[1]
NUM_FINALISTS = 2
START_S = 20.0  # planned for a contestant's start and warm-up


@dataclass(frozen=True)
class Plan:
    """How long and how often everything is measured."""

    rounds: int
    seconds: float  # of a turn
    device: str
    peers: Sequence[str]
    results: Path  # finished parts; a run that is repeated with the same folder goes on where it was

    def kept(self, name: str) -> Any | None:
        """A finished part, or None."""
        path = self.results / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def keep(self, name: str, part: Any) -> None:
        """Keep a finished part."""
        self.results.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.results / f"{name}.json", "w") as file:
            file.write(json.dumps(part, indent=1) + "\n")


def ours_entry(settings: Settings, name: str, module: str = "ours") -> Entry:
    """Ours in a process, or another module of the benchmarks."""
    return Entry(
        key=f"{module}-{name.replace(' ', '-')}",
        title=f"rlsurreal, {name}",
        command=[sys.executable, "-m", f"benchmarks.{module}", json.dumps(settings)],
        num_threads=settings["num_threads"],
        environment={"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])},
    )


def peer_entry(peer: str, settings: Settings, variant: str = "") -> Entry:
    """A peer in a process with its own interpreter; ``variant``: where it is run in several ways."""
    return Entry(
        key=f"{peer}-{variant}" if variant else peer,
        title=f"{PEERS[peer].title}, {variant}" if variant else PEERS[peer].title,
        command=[str(python_of(peer, install=False)), str(PEERS[peer].script), json.dumps(settings)],
        num_threads=settings["num_threads"],
        whole_runs=PEERS[peer].whole_runs,
    )


def _can_run(name: str, own: Settings) -> bool:
    """Whether what a variant of ours needs is installed; says so if not."""
    missing = own["sampler"].startswith("envpool") and importlib.util.find_spec("envpool") is None
    if missing:
        print(f"left out: rlsurreal, {name}, for EnvPool is not installed", flush=True)
    return not missing


def entries_of(task: Task, what: str, plan: Plan) -> tuple[dict[str, Entry], dict[str, Entry]]:
    """Ours by name of the variant, and the peers that take part."""
    every: Settings = {"what": what, "device": plan.device}
    ours = {
        name: ours_entry({**task.sized(own), **every}, name)
        for name, own in {**task.ours, **(task.ours_on_gpu if plan.device != "cpu" else {})}.items()
        if _can_run(name, own)
    }
    peers = {}
    for name, own in task.peers.items():
        peer, _, variant = name.partition(", ")
        if peer in plan.peers and plan.device.split(":")[0] in PEERS[peer].devices:
            peers[name] = peer_entry(peer, {**task.sized(own), **every}, variant)
    return ours, peers


def run_tasks(tasks: Mapping[str, Task], what: str, unit: str, plan: Plan) -> list[Row]:
    """One contest after the other; ``what`` contestants are to do: "train" or "update"."""
    entries = {name: entries_of(task, what, plan) for name, task in tasks.items()}
    limits = {
        name: Process(ours_entry({**task.settings, "device": plan.device}, "arithmetic limit", "arithmetic"))
        for name, task in tasks.items()
        if task.is_arithmetic and what == "train"
    }
    progress = Progress(
        sum(planned_seconds(len(ours) + (name in limits), len(peers), plan) for name, (ours, peers) in entries.items())
    )
    rows = []
    for name, (ours, peers) in entries.items():
        own = {entry.title: Process(entry) for entry in ours.values()}
        limit = limits.get(name)
        rows += contest(f"{what}-{name}", tasks[name].title, unit, own, peers, plan, progress, limit=limit)
    return rows


def planned_seconds(num_ours: int, num_peers: int, plan: Plan) -> float:
    """About how long `contest` will take."""
    screened = num_peers if num_peers > NUM_FINALISTS else 0
    finalists = num_ours + min(num_peers, NUM_FINALISTS)
    return screened * (START_S + plan.seconds) + finalists * (START_S + plan.rounds * plan.seconds)


def contest(
    name: str,
    title: str,
    unit: str,
    ours: Mapping[str, Contestant],
    peers: Mapping[str, Entry],
    plan: Plan,
    progress: Progress,
    *,
    limit: Contestant | None = None,
    with_memory: bool = False,
) -> list[Row]:
    """The rows of one task: ours against the best peers in turns, and against the others' one turn.

    Args:
        name: of its result files.
        title: in the tables.
        unit: of the rates.
        ours: by name of the row.
        peers: who takes part.
        plan: see `Plan`.
        progress: told of everything.
        limit: measured in the same turns, for rows of its own.
        with_memory: add rows of the memory that the finalists' processes hold.
    """
    before = plan.kept(f"{name}-rows")
    if before is not None:
        progress.spend(planned_seconds(len(ours) + (limit is not None), len(peers), plan))
        progress.say(f"{title}: measured before, kept in {plan.results}")
        return [from_json(entry) for entry in before]
    progress.say(title)
    screened = _screen(name, unit, peers, plan, progress)
    working = sorted(screened, key=lambda key: -screened[key]["rate"])
    finalists = {peers[key].title: Process(peers[key]) for key in working[:NUM_FINALISTS]}
    limits = {} if limit is None else {"limit": limit}
    rates, memory = _final({**limits, **ours}, finalists, unit, plan, progress)
    rows = []
    for variant in ours:
        median = statistics.median(rates[variant])
        for peer in (peer for peer in (*limits, *finalists) if peer in rates):
            against = peer if peer in limits else f"{peer} {finalists[peer].version}"
            rows.append(compare_rounds(title, variant, unit, rates[variant], against, rates[peer]))
        for key in working[NUM_FINALISTS:]:
            against, rate = f"{peers[key].title} {screened[key]['version']} (screened once)", screened[key]["rate"]
            rows.append(Row(title, variant, unit, median, against, rate, median / rate))
        for peer in finalists if with_memory else ():
            if peer in memory:
                own, theirs = memory[variant], memory[peer]
                against = f"{peer} {finalists[peer].version}"
                rows.append(Row(title, f"{variant}, memory", "MB", own, against, theirs, theirs / own))
        if not rows:
            rows.append(Row(title, variant, unit, median, "nobody", math.nan, math.nan))
    plan.keep(f"{name}-rows", [to_json(row) for row in rows])
    return rows


def _screen(
    name: str, unit: str, peers: Mapping[str, Entry], plan: Plan, progress: Progress
) -> dict[str, dict[str, Any]]:
    """Each peer's rate in one turn, alone, without those that failed.  Skipped where nobody would be left out."""
    if len(peers) <= NUM_FINALISTS:
        return {key: {"rate": 0.0} for key in peers}
    found: dict[str, dict[str, Any]] = {}
    for key, entry in peers.items():
        kept = plan.kept(f"{name}-screen-{key}")
        if kept is None:
            progress.say(f"screening {entry.title}: starting")
            process = Process(entry)
            try:
                rate = process.rate(plan.seconds)
                kept = {"rate": rate, "version": process.version, "warm_up_s": process.warm_up_s}
                progress.say(f"screening {entry.title} {process.version}: {rate:,.0f} {unit}")
            except ContestantError as error:
                kept = {"failed": str(error)}
                print(f"FAILED {error}", flush=True)
            finally:
                process.close()
            plan.keep(f"{name}-screen-{key}", kept)
        progress.spend(START_S + plan.seconds)
        if "failed" not in kept:
            found[key] = kept
    return found


def _final(
    ours: Mapping[str, Contestant], peers: Mapping[str, Process], unit: str, plan: Plan, progress: Progress
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Everybody's rates, in turns, and the memory of processes; without those peers that fail to start."""
    contestants: dict[str, Contestant] = {}
    try:
        for title, contestant in {**ours, **peers}.items():
            contestants[title] = contestant
            if isinstance(contestant, Process) and not contestant.entry.whole_runs:
                progress.say(f"{title}: starting")
                try:
                    contestant.start()
                except ContestantError as error:
                    if title in ours:
                        raise
                    print(f"FAILED {error}", flush=True)
                    del contestants[title]
                else:
                    for warning in contestant.warnings():
                        progress.warn_once(f"{title}: {warning}")
                    progress.say(f"{title} {contestant.version}: ready after {contestant.warm_up_s:.0f} s")
            progress.spend(START_S)
        rates = take_turns(contestants, plan.rounds, plan.seconds, unit, progress)
        return rates, {key: each.memory_mb() for key, each in contestants.items() if isinstance(each, Process)}
    finally:
        for contestant in contestants.values():
            contestant.close()
