"""Run a sweep on this machine:  python launchers/local_queue.py SWEEP.py [--slots auto|N]

One run at a time in each slot, pinned to CPUs and GPUs of its own.  The same command continues a queue that was stopped
or killed: what is finished stays so, what ran goes on from its checkpoint.  Ctrl-C has all runs save and leave, a
second one kills them.  docs/experiments.md says what a sweep file holds; examples/sweeps has one.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from sweep_queue.results import write_results
from sweep_queue.run import OUTPUT, Run
from sweep_queue.scheduler import Scheduler
from sweep_queue.screen import Screen
from sweep_queue.slots import Slots, make_slots
from sweep_queue.sweep import Plan, load_sweep
from train import see_modules_here

from rlsurreal.utils.files import alone_in

TRAIN = Path(__file__).resolve().with_name("train.py")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    args = parse_arguments(argv)
    see_modules_here()
    try:
        sweep = load_sweep(args.sweep)
        given = {field.name: getattr(args, field.name) for field in fields(Slots) if hasattr(args, field.name)}
        return run_sweep(args, sweep.name, sweep.plans(), replace(sweep.slots, **given))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run_sweep(args: argparse.Namespace, name: str, plans: Sequence[Plan], wanted: Slots) -> int:
    """Run, or only list, the plans of a sweep; the exit status."""
    if not any(args.only in plan.name for plan in plans):
        raise ValueError(f"no run's name has {args.only!r} in it; the first is {plans[0].name}")
    uses_gpus = check_plans([plan for plan in plans if args.only in plan.name], wanted.gpus_per_run or 1)
    folder = args.root / name
    with contextlib.nullcontext() if args.dry_run else alone_in(folder, ".queue.lock", "queue"):
        runs = [Run(plan, folder / plan.name) for plan in plans]
        chosen = [run for run in runs if args.only in run.plan.name]
        for run in chosen:
            if run.state == "failed" and args.retry:
                run.try_again()
        num_waiting = sum(run.state == "waiting" for run in chosen)
        slots = make_slots(wanted, num_waiting, uses_gpus=uses_gpus) if num_waiting else []
        for slot in slots:
            print(f"slot {slot.index}: {slot}", flush=True)
        if args.dry_run:
            print_runs(chosen)
            return 0
        stopped_by = Scheduler(chosen, slots, TRAIN, Screen(sys.stdout, name), args.retry).work()
        print(f"\n{write_results(name, runs, folder)}\n\nresults: {folder / 'results.md'}")
    failed = [run for run in chosen if run.state == "failed"]
    for run in failed:
        print(f"failed: {run.plan.name}: {run.record.error if run.record else ''}; see {run.folder / OUTPUT}")
    return 128 + stopped_by if stopped_by else int(bool(failed))


def check_plans(plans: Sequence[Plan], num_ranks: int) -> bool:
    """Whether runs use GPUs; ValueError says which run cannot be built, or divided among its ranks."""
    from train import build

    from rlsurreal.distributed.ranks import Ranks
    from rlsurreal.runners.division import divide

    devices = set()
    for plan in plans:
        try:
            trainer = build(plan.recipe, list(plan.words))
            if trainer.device not in ("cpu", "cuda"):
                raise ValueError(f"device is {trainer.device!r}; the queue chooses GPUs: make it 'cuda' or 'cpu'")
            trainer.check_parts()
            if trainer.ranks > 1 and num_ranks > 1:
                raise ValueError(f"ranks is {trainer.ranks}, and a slot's GPUs have a rank each; leave it out")
            if num_ranks > 1:
                divide(trainer.algo, trainer.sampler, Ranks(0, num_ranks), trainer.scaling)
        except ValueError as error:
            raise ValueError(f"{plan.name}: {error}") from error
        devices.add(trainer.device)
    if len(devices) > 1:
        raise ValueError("some runs have device='cuda' and some have not; slots are for one kind: make it two sweeps")
    return devices == {"cuda"}


def print_runs(runs: Sequence[Run]) -> None:
    """List runs, and what is asked of the trainer."""
    for run in runs:
        print(f"{run.state:8} {run.plan.name}\n{'':8} {shlex.join(run.words)}")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line as attributes; those of `Slots` only where they are given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, metavar="SWEEP.py", help="Python file with SWEEP = Sweep(...)")
    parser.add_argument("--dry-run", action="store_true", help="list slots and runs, and stop")
    parser.add_argument("--only", default="", metavar="TEXT", help="only runs with this in their names")
    parser.add_argument(
        "--retry",
        type=int,
        default=0,
        metavar="N",
        help="start what fails again up to N times; what failed before, too",
    )
    parser.add_argument("--root", type=Path, default=Path("runs"), help="for sweeps' folders (default: %(default)s)")
    group = parser.add_argument_group("slots", "(default: those of the sweep file)", argument_default=argparse.SUPPRESS)
    group.add_argument(
        "--slots",
        dest="num_slots",
        type=slots_number,
        metavar="auto|N",
        help="how many; auto: as many as there is room",
    )
    group.add_argument("--gpus-per-run", type=int, metavar="N", help="several are ranks with one gradient")
    group.add_argument("--runs-per-gpu", type=int, metavar="N", help="at the same time")
    group.add_argument("--cpus-per-run", type=int, metavar="N", help="without it, equal shares")
    yes_or_no = argparse.BooleanOptionalAction
    group.add_argument("--use-hyperthreads", action=yes_or_no, help="all CPUs of a core, or one of each")
    group.add_argument("--within-socket", action=yes_or_no, help="no run spans two sockets")
    return parser.parse_args(argv)


def slots_number(text: str) -> int | None:
    """The value of --slots."""
    if text != "auto" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a number")
    return None if text == "auto" else int(text)


if __name__ == "__main__":
    sys.exit(main())
