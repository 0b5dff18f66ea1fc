"""How well agents learn, over seeds, and against Stable-Baselines3 with the same hyperparameters.

A queue of runs, as many at once as there are cores, each on one thread.  Every run's result is kept in --results, so
the queue can be stopped and goes on where it was, our runs from their checkpoints; a finished queue only draws its
tables and curves again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import learning_tasks, options
from benchmarks.peers import PEERS, choose, python_of
from benchmarks.rows import Row, describe_machine

Curve = list[tuple[int, float]]
_COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red")
_LEAVE_S = 30.0  # for a run to save and end


@dataclass(frozen=True)
class Job:
    """One training run."""

    task: str
    who: str  # "rlsurreal" or a peer
    seed: int

    @property
    def name(self) -> str:
        """Of the run's result file."""
        return f"{self.task}-{self.who}-{self.seed}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    names = ",".join(learning_tasks.TASKS)
    parser.add_argument("--tasks", default=names, help="comma-separated (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=Path("docs/results"), help="folder (default: %(default)s)")
    parser.add_argument("--seeds", type=int, help="seeds of each task (default: the task's own number)")
    parser.add_argument("--at-once", type=int, default=os.cpu_count() or 1, help="runs at once (default: %(default)s)")
    options.add_peers(parser)


def run(args: argparse.Namespace) -> list[Row]:
    """Run what is missing, then draw tables and curves from all results."""
    tasks = args.tasks.split(",")
    unknown = [task for task in tasks if task not in learning_tasks.TASKS]
    if unknown:
        raise SystemExit(f"--tasks: there is no {', '.join(unknown)}; choose from {', '.join(learning_tasks.TASKS)}")
    (args.results / "runs").mkdir(parents=True, exist_ok=True)
    jobs = list_jobs(tasks, args.seeds, choose(args.peers, args.install_peers))
    work_through([job for job in jobs if not result_path(args.results, job).exists()], args)
    rows = [row for task in tasks for row in summarize(task, load(args.results, task))]
    for picture in dict.fromkeys(picture_of(task) for task in tasks):
        draw(picture, curves_of(picture, args.results), args.results / f"{picture}.png")
    return rows


def list_jobs(tasks: Sequence[str], num_seeds: int | None, peers: Sequence[str]) -> list[Job]:
    """Seeds first, so that an unfinished queue has something of everything."""
    jobs = []
    for name in tasks:
        task = learning_tasks.TASKS[name]
        jobs += [Job(name, "rlsurreal", seed) for seed in range(num_seeds or task.num_seeds)]
        if task.peer is not None and task.peer in peers:
            jobs += [Job(name, task.peer, seed) for seed in range(min(num_seeds or 99, task.num_peer_seeds))]
    return sorted(jobs, key=lambda job: job.seed)


def work_through(jobs: Sequence[Job], args: argparse.Namespace) -> None:
    """Run the jobs, ``args.at_once`` at a time; a failed one is reported and does not stop the others.

    However the queue ends, no run goes on without it; ours save where they are.
    """
    waiting, running = list(jobs), dict[Job, subprocess.Popen[str]]()
    failed: list[Job] = []
    try:
        while waiting or running:
            while waiting and len(running) < args.at_once:
                job = waiting.pop(0)
                print(f"starting {job.name} ({len(waiting)} waiting)", flush=True)
                running[job] = start(job)
            time.sleep(0.5)
            for job, process in list(running.items()):
                if process.poll() is not None:
                    del running[job]
                    output = process.stdout.read().strip() if process.stdout else ""
                    if process.returncode or not output:
                        failed.append(job)
                        print(f"FAILED {job.name}: exit status {process.returncode}", flush=True)
                    else:
                        result_path(args.results, job).write_text(output.splitlines()[-1] + "\n")
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_LEAVE_S)
            process.kill()
            process.wait()
    if failed:
        raise SystemExit(f"{len(failed)} runs failed: {', '.join(job.name for job in failed)}; their output is above")


def start(job: Job) -> subprocess.Popen[str]:
    """A process whose last line of output is the run's result."""
    if job.who == "rlsurreal":
        command = [sys.executable, "-m", "benchmarks.learning_tasks", job.task, str(job.seed)]
    else:
        settings = {**learning_tasks.TASKS[job.task].peer_settings, "what": "learn", "seed": job.seed}
        command = [str(python_of(job.who, install=False)), str(PEERS[job.who].script), json.dumps(settings)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def result_path(results: Path, job: Job) -> Path:
    """Where a run's result is kept."""
    return results / "runs" / f"{job.name}.json"


def load(results: Path, task: str) -> dict[str, list[dict[str, Any]]]:
    """All results of a task, by who made them, in the order of seeds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((results / "runs").glob(f"{task}-*.json"), key=_name_and_seed):
        who = _name_and_seed(path)[0].removeprefix(f"{task}-")
        found.setdefault(who, []).append(json.loads(path.read_text()))
    return found


def _name_and_seed(path: Path) -> tuple[str, int]:
    name, seed = path.stem.rsplit("-", 1)
    return name, int(seed)


def interquartile_mean(values: Sequence[float]) -> float:
    """Mean of the middle half (Agarwal et al. 2021, arXiv 2108.13264); a quarter, rounded down, is cut off each end."""
    cut = len(values) // 4
    return float(np.mean(sorted(values)[cut : len(values) - cut]))


def summarize(task: str, results: dict[str, list[dict[str, Any]]]) -> list[Row]:
    """Interquartile means over seeds, ours against each peer or against the task's target."""
    finals = {who: [run["final"] for run in runs] for who, runs in results.items()}
    if "rlsurreal" not in finals:
        return []
    ours = finals.pop("rlsurreal")
    mean, target = interquartile_mean(ours), learning_tasks.TASKS[task].target
    name = f"{learning_tasks.TASKS[task].metric}, {len(ours)} seeds [{min(ours):,.1f} to {max(ours):,.1f}]"
    rows = [Row(task, name, "return", mean, "target", target, mean / target if target else float("nan"))]
    for who, theirs in finals.items():
        other = interquartile_mean(theirs)
        against = f"{who} {results[who][0]['version']}, {len(theirs)} seeds [{min(theirs):,.1f} to {max(theirs):,.1f}]"
        rows.append(Row(task, name, "return", mean, against, other, mean / other if other else float("nan")))
    seconds = statistics.median(run["seconds"] for run in results["rlsurreal"])
    print(f"{task}: median {seconds:,.0f} s a run; {describe_machine()}")
    return rows


def picture_of(task: str) -> str:
    """Which picture has its curves."""
    return learning_tasks.TASKS[task].picture or task


def curves_of(picture: str, results: Path) -> dict[str, list[Curve]]:
    """What is in a picture, by label."""
    found: dict[str, list[Curve]] = {}
    for name, task in learning_tasks.TASKS.items():
        if picture_of(name) == picture:
            for who, runs in load(results, name).items():
                found[task.label if who == "rlsurreal" else who] = [run["curve"] for run in runs]
    return found


def draw(title: str, curves_by_label: dict[str, list[Curve]], out: Path) -> None:
    """All seeds' curves, thin, and their mean, thick."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for color, (label, curves) in zip(_COLORS, curves_by_label.items()):
        for curve in curves:
            axes.plot(*zip(*curve), color=color, linewidth=0.7, alpha=0.5)
        stop = min(curve[-1][0] for curve in curves)
        grid = np.linspace(max(curve[0][0] for curve in curves), stop, 200)
        rows = [np.interp(grid, *np.array(curve).T) for curve in curves]
        seeds = "1 seed" if len(curves) == 1 else f"{len(curves)} seeds"
        axes.plot(grid, np.mean(rows, axis=0), color=color, linewidth=2, label=f"{label} ({seeds})")
    axes.set(title=title, xlabel="environment steps", ylabel="mean return of recent games")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    FigureCanvasAgg(figure).print_png(out)
