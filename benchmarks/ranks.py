"""Several ranks on one machine: what the exchange of gradients costs, and weak scaling.  One core for each rank.

Updates: minibatches per second of each rank, by size of the network, alone and with others; compiled and eager with
sums in shared memory, and eager by DistributedDataParallel over Gloo, as on several hosts.  Training: env steps per
second of all ranks, each with as many environments as the one alone, which is pinned to one core likewise.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence

from benchmarks import options
from benchmarks.contests import ROOT
from benchmarks.rows import Row, compare_rounds
from benchmarks.tasks import UPDATE, Settings
from benchmarks.turns import Entry, Process, Progress, take_turns

_START_S = 30.0  # planned, of a contestant
_DDP = "eager, DistributedDataParallel"
_ALONE = {"on": "1 rank, compiled", "off": "1 rank, eager"}
_MODES: dict[str, Settings] = {
    "compiled, shared memory": {"compile": "on"},
    "eager, shared memory": {"compile": "off"},
    _DDP: {"compile": "off", "shared_memory": False},
}
_MLP = UPDATE["mlp-64"].settings
NETWORKS: dict[str, Settings] = {
    "PPO 2x64, minibatch 64": _MLP,
    "PPO 2x256, minibatch 256": {**_MLP, "hidden_sizes": [256, 256], "minibatch_size": 256},
    "PPO Nature CNN, minibatch 64": {**UPDATE["cnn-256"].settings, "minibatch_size": 64, "num_epochs": 1},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "--ranks", type=int, default=2, help="as many as there are cores, at most (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contestant (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=8.0, help="of a turn (default: %(default)s)")
    parser.add_argument(
        "--networks", metavar="NUMBERS", help=f"comma-separated, of 0 to {len(NETWORKS) - 1} (default: all)"
    )
    parser.add_argument("--quick", action="store_true", help="the smallest network, three short rounds")


def run(args: argparse.Namespace) -> list[Row]:
    """All networks, then training."""
    if args.ranks < 2 or args.rounds < 1 or args.seconds <= 0:
        raise SystemExit("--ranks must be at least 2, --rounds at least 1, --seconds positive")
    names = list(NETWORKS)
    numbers = options.choose_names(
        args.networks, [str(i) for i in range(len(names))], ["0"] if args.quick else None, "--networks"
    )
    rounds, seconds = (3, 2.0) if args.quick else (args.rounds, args.seconds)
    return run_rounds([names[int(number)] for number in numbers], args.ranks, rounds, seconds)


def run_rounds(chosen: Sequence[str], count: int = 2, rounds: int = 5, seconds: float = 8.0) -> list[Row]:
    """The exchange of the chosen networks, then training."""
    progress = Progress((5 * len(chosen) + 2) * (_START_S + rounds * seconds))
    rows = []
    for name in chosen:
        rows += _exchange(name, count, rounds, seconds, progress)
    return rows + _weak_scaling(count, rounds, seconds, progress)


def _exchange(name: str, count: int, rounds: int, seconds: float, progress: Progress) -> list[Row]:
    settings = {**NETWORKS[name], "what": "update", "sampler": "serial"}
    entries = {one: entry_of({**settings, "compile": compile, "ranks": 1}) for compile, one in _ALONE.items()}
    for mode, own in _MODES.items():
        entries[f"{count} ranks, {mode}"] = entry_of({**settings, **own, "ranks": count})
    rates = _in_turns(entries, rounds, seconds, "updates/s", progress)
    rows, costs = [], {}
    for mode, own in _MODES.items():
        alone, together = rates[_ALONE[own["compile"]]], rates[f"{count} ranks, {mode}"]
        rows.append(compare_rounds(name, f"{count} ranks, {mode}", "updates/s", together, "1 rank", alone))
        costs[mode] = statistics.median(1e6 / b - 1e6 / a for a, b in zip(alone, together))
    title = f"exchange over {count} ranks"
    return rows + [
        Row(name, f"{title}, {mode}", "µs per update", cost, "DistributedDataParallel", costs[_DDP], costs[_DDP] / cost)
        for mode, cost in costs.items()
        if mode != _DDP
    ]


def _weak_scaling(count: int, rounds: int, seconds: float, progress: Progress) -> list[Row]:
    settings = {**_MLP, "what": "train", "sampler": "serial", "compile": "on"}
    entries = {f"{n} ranks" if n > 1 else "1 rank": entry_of({**settings, "ranks": n}) for n in (1, count)}
    alone, together = _in_turns(entries, rounds, seconds, "env steps/s", progress).values()
    title = "PPO HalfCheetah-v5, 16 environments a rank"
    times = [rate * count for rate in alone]
    return [
        compare_rounds(title, f"{count} ranks", "env steps/s", together, "1 rank", alone),
        compare_rounds(title, f"{count} ranks", "env steps/s", together, f"{count} times 1 rank", times),
    ]


def entry_of(settings: Settings) -> Entry:
    """A contestant of so many ranks."""
    title = f"{settings['what']}, {settings['ranks']} ranks"
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "benchmarks.ranks_ours", json.dumps({**settings, "device": "cpu"})]
    return Entry(key=title, title=title, command=command, environment={"PYTHONPATH": path})


def _in_turns(
    entries: Mapping[str, Entry], rounds: int, seconds: float, unit: str, progress: Progress
) -> dict[str, Sequence[float]]:
    contestants = {name: Process(entry) for name, entry in entries.items()}
    try:
        for name, contestant in contestants.items():
            progress.say(f"{name}: starting")
            contestant.start()
            progress.spend(_START_S)
        return dict(take_turns(contestants, rounds, seconds, unit, progress))
    finally:
        for contestant in contestants.values():
            contestant.close()
