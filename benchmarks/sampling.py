"""Environment steps per second with a policy in the loop: as a part of the bare limit, and against peers.

The limit of Python environments: as many processes as cores, each stepping environments made the same way with a
recorded tape of actions and no learning code.  The limit of a native engine: its own send and receive loop with the
tape, in whichever of its modes is faster.  First all samplers are held against the limit; then, if peers take part, the
best on Python environments and the best on a native engine are held against the best two peers of either kind, and
against the limit again, in longer turns.  The null environment does nothing: what is left is the sampler's own work.

The policy has two hidden layers of 64; images are cut down to 10x10 for it, so that the sampler is measured and not a
network.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from benchmarks import options
from benchmarks.contests import Plan, contest, peer_entry, planned_seconds
from benchmarks.peers import PEERS, null_env
from benchmarks.rows import Row, compare_rounds, from_json, to_json
from benchmarks.sampling_limits import BareEngine, BareProcesses
from benchmarks.sampling_ours import Makers, PooledActorCritic, native_samplers, python_samplers
from benchmarks.tasks import SAMPLING_PEERS, sampling_settings
from benchmarks.turns import Contestant, Entry, Progress, take_turns
from rlsurreal.agents import ModelSpec
from rlsurreal.envs import AleEnv, EnvPoolEnv, GymnasiumEnv, make_atari
from rlsurreal.models import ActorCritic

UNIT = "env steps/s"
LIMIT_SECONDS = 2.0  # of each measurement against the limit
_QUICK = ("HalfCheetah", "Null")
_START_S = 2.0  # planned, of one of our own samplers
_WARM_UP_S = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    options.add_peers(parser)
    names = ",".join(_WORKLOADS)
    parser.add_argument(
        "--workloads", metavar="NAMES", help=f"comma-separated (default: {names}; with --quick: {','.join(_QUICK)})"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds over all contestants (default: %(default)s)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=LIMIT_SECONDS,
        help="of each measurement against the limit (default: %(default)s)",
    )
    parser.add_argument(
        "--turn-seconds", type=float, default=20.0, help="of each turn against peers (default: %(default)s)"
    )
    parser.add_argument(
        "--device", default="cpu", help="where the inference server's policy runs (default: %(default)s)"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="only samplers whose name contains this")
    parser.add_argument("--quick", action="store_true", help="a bounded run: fewer tasks and peers, shorter turns")


@dataclass
class Workload:
    """A task, its limits, and our samplers."""

    env_id: str  # as peers name it
    limits: dict[str, Callable[[], Contestant]]  # by kind of environment; the fastest of a kind is its limit
    samplers: Makers


def run(args: argparse.Namespace) -> list[Row]:
    """Measure the workloads that were asked for."""
    names = options.choose_names(args.workloads, NAMES, _QUICK if args.quick else None, "--workloads")
    plan = options.make_plan(args)
    if args.quick:
        return run_quick(plan, names)
    return run_workloads(names, replace(plan, seconds=args.turn_seconds), args.seconds, args.only)


def run_quick(plan: Plan, names: Sequence[str] = _QUICK) -> list[Row]:
    """Two rounds, at one number of environments."""
    return run_workloads(names, replace(plan, rounds=2), 0.5, "64 envs")


def run_workloads(names: Sequence[str], plan: Plan, limit_seconds: float = LIMIT_SECONDS, only: str = "") -> list[Row]:
    """Samplers against their limits, then the best of them against peers."""
    torch.set_num_threads(1)
    made = {name: _WORKLOADS[name](plan.device) for name in names}
    progress = Progress(sum(_planned(workload, plan, limit_seconds, only) for workload in made.values()))
    rows = []
    for name, workload in made.items():
        rows += _against_limits(name, workload, plan, limit_seconds, only, progress)
        own = [row for row in rows if row.workload == workload.env_id and row.against == "limit"]
        for kind, peers in _peer_entries(workload, plan).items():
            if peers:
                rows += _against_peers(name, workload, kind, peers, own, plan, progress)
    return rows


def _against_limits(
    name: str, workload: Workload, plan: Plan, seconds: float, only: str, progress: Progress
) -> list[Row]:
    """All of our samplers and the limits in turn."""
    makers = {(sampler, kind): make for sampler, kind, make in workload.samplers if only in sampler}
    key = f"W5-{name}-limits-rows"
    before = plan.kept(key)
    if before is not None:
        progress.spend(_planned_against_limits(workload, plan, seconds, only))
        progress.say(f"W5 {workload.env_id} against its limits: measured before, kept in {plan.results}")
        return [from_json(entry) for entry in before]
    progress.say(f"W5 {workload.env_id}: starting {len(makers)} samplers and {len(workload.limits)} limits")
    contestants: dict[str, Contestant] = {}
    try:
        for kind, make in workload.limits.items():
            contestants[f"limit:{kind}"] = make()
        for (sampler, _), make in makers.items():
            contestants[sampler] = make()
        for contestant in contestants.values():
            contestant.rate(_WARM_UP_S)
            progress.spend(_START_S)
        rates = take_turns(contestants, plan.rounds, seconds, UNIT, progress)
    finally:
        for contestant in contestants.values():
            contestant.close()
    rows = []
    for sampler, kind in makers:
        limit = rates[f"limit:{_fastest(rates, kind)}"]
        rows.append(compare_rounds(workload.env_id, sampler, UNIT, rates[sampler], "limit", limit))
    plan.keep(key, [to_json(row) for row in rows])
    plan.keep(f"W5-{name}-fastest", {kind: _fastest(rates, kind) for _, kind in makers})
    return rows


def _fastest(rates: Mapping[str, list[float]], kind: str) -> str:
    """Which mode of an engine is the limit of its kind: ``envpool`` or ``envpool:async``."""
    modes = [key.removeprefix("limit:") for key in rates if key.startswith("limit:")]
    return max((m for m in modes if m.split(":")[0] == kind), key=lambda m: sum(rates[f"limit:{m}"]))


def _against_peers(
    name: str,
    workload: Workload,
    kind: str,
    peers: dict[str, Entry],
    own: list[Row],
    plan: Plan,
    progress: Progress,
) -> list[Row]:
    """Our best sampler on Python environments, or on a native engine, in turns with peers and its limit."""
    kinds = {sampler: k for sampler, k, _ in workload.samplers}
    rows = [row for row in own if (kinds[row.name] == "python") == (kind == "python")]
    if not rows:
        return []
    best = max(rows, key=lambda row: row.ours).name
    make = next(make for sampler, _, make in workload.samplers if sampler == best)
    fastest = (plan.kept(f"W5-{name}-fastest") or {})[kinds[best]]
    lazy = {f"our best ({best})": Lazy(make)}
    limit = Lazy(workload.limits[fastest])
    title = f"W5 {workload.env_id}, {'Python' if kind == 'python' else 'native'} environments"
    return contest(f"W5-{name}-{kind}", title, UNIT, lazy, peers, plan, progress, limit=limit)


class Lazy:
    """A contestant that is made when it is first measured, and then warmed up."""

    def __init__(self, make: Callable[[], Contestant]) -> None:
        self._make = make
        self._made: Contestant | None = None

    def rate(self, seconds: float) -> float:
        if self._made is None:
            self._made = self._make()
            self._made.rate(_WARM_UP_S)
        return self._made.rate(seconds)

    def close(self) -> None:
        if self._made is not None:
            self._made.close()


def _peer_entries(workload: Workload, plan: Plan) -> dict[str, dict[str, Entry]]:
    """Peers on Python environments, and on native engines."""
    found: dict[str, dict[str, Entry]] = {"python": {}, "native": {}}
    for (peer, variant), own in SAMPLING_PEERS[workload.env_id].items():
        if peer in plan.peers and "cpu" in PEERS[peer].devices:
            entry = peer_entry(peer, sampling_settings(workload.env_id, own), variant)
            found["native" if peer == "envpool" else "python"][entry.key] = entry
    return found


def _planned_against_limits(workload: Workload, plan: Plan, seconds: float, only: str) -> float:
    count = len(workload.limits) + sum(only in sampler for sampler, _, _ in workload.samplers)
    return count * (_START_S + plan.rounds * seconds)


def _planned(workload: Workload, plan: Plan, seconds: float, only: str) -> float:
    contests = sum(planned_seconds(2, len(peers), plan) for peers in _peer_entries(workload, plan).values() if peers)
    return _planned_against_limits(workload, plan, seconds, only) + contests


# ---------------------------------------------------------------- workloads


def _mlp(env_id: str, *sizes: int) -> Callable[[str], Workload]:
    """An environment with vectors as observations that EnvPool has, too."""

    def make(device: str) -> Workload:
        env, engine, model = GymnasiumEnv(factory=env_id), EnvPoolEnv(task_id=env_id), ModelSpec(cls=ActorCritic)
        limits: dict[str, Callable[[], Contestant]] = {
            "python": lambda: BareProcesses(env, 64),
            "envpool": lambda: BareEngine(engine, 64, 64),
            "envpool:async": lambda: BareEngine(engine, 64, 32),
        }
        native = native_samplers(engine, "envpool", model, [size for size in sizes if size >= 64], 64)
        return Workload(env_id, limits, python_samplers(env, model, sizes, 64, device) + native)

    return make


def _null(device: str) -> Workload:
    env = GymnasiumEnv(factory=null_env.NullEnv)
    samplers = python_samplers(env, ModelSpec(cls=ActorCritic), (16, 64, 128), 64, device)
    return Workload(null_env.ID, {"python": lambda: BareProcesses(env, 64)}, samplers)


def _pong(device: str) -> Workload:
    env = GymnasiumEnv(factory=make_atari, kwargs={"game": "Pong"})
    ale, pool = AleEnv(game="pong"), EnvPoolEnv(task_id="Pong-v5")
    pooled = ModelSpec(cls=PooledActorCritic)
    limits: dict[str, Callable[[], Contestant]] = {"python": lambda: BareProcesses(env, 16)}
    for name, spec in (("ale", ale), ("envpool", pool)):
        limits[name] = lambda spec=spec: BareEngine(spec, 32, 32)  # type: ignore[misc]
        limits[f"{name}:async"] = lambda spec=spec: BareEngine(spec, 32, 16)  # type: ignore[misc]
    samplers = python_samplers(env, pooled, (16, 32, 64), 32, device)
    samplers += native_samplers(ale, "ale", pooled, (32, 64), 32)
    samplers += native_samplers(pool, "envpool", pooled, (32, 64), 32)
    return Workload("Pong", limits, samplers)


_WORKLOADS: dict[str, Callable[[str], Workload]] = {
    "HalfCheetah": _mlp("HalfCheetah-v5", 16, 64, 128),
    "Ant": _mlp("Ant-v5", 16, 64, 128),
    "CartPole": _mlp("CartPole-v1", 16, 64, 128),
    "Pong": _pong,
    "Null": _null,
}
NAMES = list(_WORKLOADS)
