"""What many workers cost: seconds until 64 are ready, and private memory of each, where the inference server acts.

Ready: every worker has started, built and reset its environment, and the first step of all of them has been taken.
Private memory is the unique set size (USS): what would be free again if the process ended.  Workers are forked from one
process that has imported what they need, so the rest is shared.  The limits are this project's own.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import psutil

from benchmarks.rows import Row, compare_rounds
from benchmarks.tasks import WORKER_LIMITS
from benchmarks.turns import Progress
from rlsurreal.agents import ActorCriticAgent
from rlsurreal.envs import GymnasiumEnv
from rlsurreal.samplers import InferenceServer, ParallelSampler
from rlsurreal.structs import BatchSpec

_MEGABYTE = 1e6
_ENV_ID = "HalfCheetah-v5"
_PLANNED_S = 15.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--workers", type=int, default=64, help="worker processes (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="how often they are started (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="start them once")


def run(args: argparse.Namespace) -> list[Row]:
    """Start the workers several times."""
    if args.workers < 1 or args.rounds < 1:
        raise SystemExit("--workers and --rounds must be at least 1")
    return run_rounds(args.workers, 1 if args.quick else args.rounds)


@dataclass(frozen=True)
class Start:
    """What one start cost."""

    seconds: float
    worker_bytes: list[int]  # private, of each worker


def run_rounds(num_workers: int, rounds: int) -> list[Row]:
    """The rows, against the limits; above 1 is within them."""
    progress = Progress(rounds * _PLANNED_S)
    starts = []
    for i in range(rounds):
        starts.append(start_workers(num_workers))
        progress.spend(_PLANNED_S)
        most = max(starts[-1].worker_bytes) / _MEGABYTE
        progress.say(f"start {i + 1} of {rounds}: {starts[-1].seconds:.1f} s, at most {most:.0f} MB each")
    title = f"{num_workers} workers, {_ENV_ID}, inference server"
    seconds_limit, megabytes_limit = WORKER_LIMITS
    return [
        _row(title, "until all are ready", "s", [start.seconds for start in starts], seconds_limit),
        _row(
            title,
            "private memory, greatest of all workers",
            "MB",
            [max(start.worker_bytes) / _MEGABYTE for start in starts],
            megabytes_limit,
        ),
        _row(
            title,
            "private memory, mean of workers",
            "MB",
            [sum(start.worker_bytes) / len(start.worker_bytes) / _MEGABYTE for start in starts],
            megabytes_limit,
        ),
    ]


def start_workers(num_workers: int) -> Start:
    """Start workers with an environment each, take one step, and look at their memory."""
    began = time.perf_counter()
    sampler = ParallelSampler(
        env=GymnasiumEnv(factory=_ENV_ID),
        batch=BatchSpec(num_steps=1, num_envs=num_workers),
        num_workers=num_workers,
        inference=InferenceServer(),
    )
    try:
        agent = ActorCriticAgent()
        agent.initialize(sampler.connect(seed=0), seed=0)
        sampler.initialize(agent, discount=0.99)
        sampler.release(sampler.obtain())
        seconds = time.perf_counter() - began
        return Start(seconds, [worker.memory_full_info().uss for worker in _workers(num_workers)])
    finally:
        sampler.close()


def _workers(count: int) -> list[psutil.Process]:
    """Worker processes: the children of the process that forks them, which is a child of this one."""
    for zygote in psutil.Process().children():
        workers = zygote.children()
        if len(workers) == count:
            return workers
    found = {child.pid: len(child.children()) for child in psutil.Process().children()}
    raise RuntimeError(f"no child of this process has {count} children; found (process: children) {found}")


def _row(title: str, name: str, unit: str, values: list[float], limit: float) -> Row:
    return compare_rounds(title, name, unit, values, "limit", [limit] * len(values), less_is_better=True)
