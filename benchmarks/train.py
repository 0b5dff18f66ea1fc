"""Training end to end: environment steps per second of sampling and updates together, against peers on the same work.

W1, W1b, W1c: PPO on HalfCheetah-v5 with two networks of 2x64 tanh units each for policy and value, with Gymnasium's
environments and again with EnvPool.  W3: PPO on Pong with the Nature CNN.  W8: seconds until a return is reached.

Each contestant is a process that trains all the time; they take turns, and who waits uses no CPU.  Starting, compiling
and the first iterations are not counted.  Every peer is run once to screen, then the best two against ours in turns.
"""

from __future__ import annotations

import argparse

from benchmarks import contests, options, time_to_return
from benchmarks.contests import Plan
from benchmarks.rows import Row
from benchmarks.tasks import RETURN, TRAIN

UNIT = "env steps/s"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    options.add_contest(parser)
    names = ",".join([*TRAIN, *RETURN])
    parser.add_argument(
        "--workloads", metavar="NAMES", help=f"comma-separated (default: {names}; with --quick: {','.join(_quick())})"
    )


def run(args: argparse.Namespace) -> list[Row]:
    """Measure the tasks that were asked for."""
    names = options.choose_names(args.workloads, [*TRAIN, *RETURN], _quick() if args.quick else None, "--workloads")
    plan = options.make_plan(args)
    rows = run_tasks([name for name in names if name in TRAIN], plan)
    return rows + time_to_return.run_tasks([name for name in names if name in RETURN], plan)


def run_tasks(names: list[str], plan: Plan) -> list[Row]:
    """One contest after the other."""
    return contests.run_tasks({name: TRAIN[name] for name in names}, "train", UNIT, plan)


def _quick() -> list[str]:
    return [name for name, task in TRAIN.items() if task.is_quick]
