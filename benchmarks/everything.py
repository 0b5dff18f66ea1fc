"""All benchmarks but `learning` and `scaling`.  Can be stopped at any time, and goes on where it was.

Every finished part is kept in --results; the same command skips what is there.  Remove the folder, or single files in
it, to measure again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks import memory, options, ranks, replay, sampling, serving, time_to_return, train, update
from benchmarks.contests import Plan
from benchmarks.rows import Row, describe_machine, from_json, to_json, write
from benchmarks.tasks import RETURN, TRAIN, UPDATE, Task

_NUM_WORKERS = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    options.add_contest(parser)
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FOLDER",
        help="where finished parts are kept (default: runs/benchmarks; with --quick a new folder)",
    )


def run(args: argparse.Namespace) -> list[Row]:
    """Everything that is not there yet; all rows."""
    default = Path(tempfile.mkdtemp(prefix="rlsurreal-benchmark-")) if args.quick else Path("runs/benchmarks")
    plan = options.make_plan(args, args.results or default)
    check_same_settings(plan)
    print(f"finished parts are kept in {plan.results}", flush=True)
    quick = args.quick
    rows: list[Row] = []
    chosen = parts(plan, quick)
    for i, (title, part) in enumerate(chosen.items()):
        print(f"part {i + 1} of {len(chosen)}: {title}", flush=True)
        rows += part()
        write(rows, plan.results / "rows.json")
    return rows


def parts(plan: Plan, quick: bool) -> dict[str, Callable[[], list[Row]]]:
    """What is measured, in order."""

    def names(tasks: Mapping[str, Task]) -> list[str]:
        return [name for name, task in tasks.items() if task.is_quick or not quick]

    made: dict[str, Callable[[], list[Row]]] = {
        "memory": lambda: _kept(plan, "memory-rows", lambda: memory.run_rounds(_NUM_WORKERS, 1 if quick else 3)),
        "update": lambda: update.run_tasks(names(UPDATE), plan),
        "train": lambda: train.run_tasks(names(TRAIN), plan),
        "sampling": lambda: sampling.run_quick(plan) if quick else sampling.run_workloads(sampling.NAMES, plan),
    }
    if not quick:
        made["replay"] = lambda: replay.run_tasks(list(replay.TASKS), plan)
        made["ranks"] = lambda: _kept(plan, "ranks-rows", lambda: ranks.run_rounds(list(ranks.NETWORKS)))
        made["serving"] = lambda: _kept(plan, "serving-rows", lambda: serving.run_rounds(plan.device))
        made["time to return"] = lambda: time_to_return.run_tasks(list(RETURN), plan)
    return made


def _kept(plan: Plan, name: str, measure: Callable[[], list[Row]]) -> list[Row]:
    """The rows of a part, measured if they are not there."""
    before = plan.kept(name)
    if before is None:
        before = [to_json(row) for row in measure()]
        plan.keep(name, before)
    return [from_json(entry) for entry in before]


def check_same_settings(plan: Plan) -> None:
    """Parts of one table are measured in the same way, on the same machine.

    Raises:
        SystemExit: the folder holds parts that were measured otherwise.
    """
    settings = {"rounds": plan.rounds, "seconds": plan.seconds, "device": plan.device, "machine": describe_machine()}
    before = plan.kept("settings")
    if before is not None and before != settings:
        raise SystemExit(
            f"{plan.results} holds parts that were measured with {json.dumps(before)}, now it is "
            f"{json.dumps(settings)}; use the same settings, or another --results folder"
        )
    plan.keep("settings", settings)
