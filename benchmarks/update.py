"""The update alone: PPO minibatches per second from one full batch of experience, against peers.

Two networks of 2x64 with minibatches of 64 and 1,024, and the Nature CNN with minibatches of 256.  Ours includes the
advantages of the whole batch, which Stable-Baselines3 and SBX compute while they sample.
"""

from __future__ import annotations

import argparse

from benchmarks import contests, options
from benchmarks.contests import Plan
from benchmarks.rows import Row
from benchmarks.tasks import UPDATE

UNIT = "updates/s"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    options.add_contest(parser)
    parser.add_argument(
        "--workloads", metavar="NAMES", help=f"comma-separated (default: {','.join(UPDATE)}; with --quick: mlp-64)"
    )


def run(args: argparse.Namespace) -> list[Row]:
    """Measure the tasks that were asked for."""
    quick = [name for name, task in UPDATE.items() if task.is_quick]
    names = options.choose_names(args.workloads, list(UPDATE), quick if args.quick else None, "--workloads")
    return run_tasks(names, options.make_plan(args))


def run_tasks(names: list[str], plan: Plan) -> list[Row]:
    """One contest after the other."""
    return contests.run_tasks({name: UPDATE[name] for name in names}, "update", UNIT, plan)
