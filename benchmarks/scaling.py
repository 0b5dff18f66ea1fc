"""How far synchronous scaling goes for each recipe: a PREDICTION from counted work and stated speeds; none is timed.

Counted in real iterations of the recipe's own algorithm, on the CPU: environment steps, gradient steps, floating-point
operations, and the bytes of every exchange between ranks.  Stated, as options: how fast a GPU computes, how soon a
gradient step ends however small it is, how fast environments step beside each GPU, the network's bandwidth and latency.

    iteration = environments + gradient steps + exchanges       (they take turns)
    exchange  = 2 (N - 1) / N * bytes / bandwidth + 2 log2(N) * latency                 (a ring's, a tree's lower bound)
    strong    : the experiment is divided by N                  weak: each of N has as much as the experiment says
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import options
from rlsurreal.distributed.ranks import Ranks
from rlsurreal.envs import EnvError
from rlsurreal.recipes import RECIPES
from rlsurreal.runners import Trainer
from rlsurreal.samplers import SerialSampler

_LARGEST_STATISTIC = 1_000  # bytes
_LEFT_OUT = ("debug",)


@dataclass(frozen=True)
class Work:
    """One iteration of an experiment on one rank."""

    env_steps: int
    num_envs: int
    batch_rows: int  # of a gradient step
    gradient_steps: int
    flops: float
    exchanges: tuple[int, ...]  # bytes of each, where there are several ranks


@dataclass(frozen=True)
class Machine:
    """Stated speeds."""

    flops: float  # floating-point operations a second that a GPU reaches on these networks
    step_floor_s: float  # a gradient step takes so long at least
    env_steps_per_s: float  # of the environments beside one GPU, with actions
    bandwidth: float  # bytes a second between any two neighbours
    latency_s: float  # of a message


@dataclass(frozen=True)
class Prediction:
    """Of one way of scaling."""

    env_steps_per_s: float
    speedup: float  # over one rank
    limit: str  # what takes most of the time, or why it cannot be


def predict(work: Work, machine: Machine, count: int, scaling: str) -> Prediction:
    """What ``count`` ranks come to."""
    alone = _times(work, machine, 1, "weak")
    if scaling == "strong" and (reason := _indivisible(work, count)):
        return Prediction(math.nan, math.nan, reason)
    times = _times(work, machine, count, scaling)
    steps = work.env_steps * (count if scaling == "weak" else 1)
    rate = steps / sum(times.values())
    limit = max(times, key=lambda name: times[name])
    return Prediction(rate, rate / (work.env_steps / sum(alone.values())), limit)


def _indivisible(work: Work, count: int) -> str:
    if count > work.num_envs:
        return f"only {work.num_envs} environment" + "s" * (work.num_envs > 1)
    if count > work.batch_rows:
        return f"only {work.batch_rows} rows in a minibatch"
    return ""


def _times(work: Work, machine: Machine, count: int, scaling: str) -> dict[str, float]:
    parts = count if scaling == "strong" else 1
    compute = work.flops / parts / machine.flops
    floor = work.gradient_steps * machine.step_floor_s
    exchange = sum(exchange_s(size, machine, count) for size in work.exchanges)
    return {
        "environments": work.env_steps / parts / machine.env_steps_per_s,
        "arithmetic" if compute > floor else "gradient steps' own time": max(compute, floor),
        "exchange": exchange,
    }


def exchange_s(size: int, machine: Machine, count: int) -> float:
    """Of one all-reduce of ``size`` bytes."""
    if count == 1:
        return 0.0
    return 2 * (count - 1) / count * size / machine.bandwidth + 2 * math.log2(count) * machine.latency_s


# ---------------------------------------------------------------- counting


class Twins(Ranks):
    """Two ranks that do the same: what would cross is counted."""

    def __init__(self) -> None:
        super().__init__(0, 2)
        object.__setattr__(self, "sizes", [])

    def _reduce(self, tensor: Tensor, operation: str) -> Tensor:
        self.sizes.append(tensor.numel() * tensor.element_size())  # type: ignore[attr-defined]
        return tensor.mul_(2) if operation == "SUM" else tensor


def count_work(trainer: Trainer, num_updates: int = 4) -> Work:
    """One whole update on policy, or so many from replay and the steps between them."""
    algo: Any = _with_small_replay(trainer)
    twins: Any = Twins()
    settings: Any = trainer.sampler
    sampler = SerialSampler(env=settings.env, batch=settings.batch, state_interval=settings.state_interval)
    try:
        trainer.agent.initialize(sampler.connect(seed=0), seed=0)
        algo.initialize(trainer.agent, sampler.batch, seed=0, ranks=twins)
        sampler.initialize(trainer.agent, discount=algo.discount)
        has_begun = False
        while not has_begun:  # on policy the first slot may only begin statistics
            _iterate(sampler, algo)
            has_begun = not hasattr(algo, "limiter") or algo.limiter.has_begun
        twins.sizes.clear()
        env_steps = iterations = 0
        with FlopCounterMode(display=False) as counter:
            while not counter.get_total_flops() or (hasattr(algo, "limiter") and algo._num_updates < num_updates):
                env_steps += _iterate(sampler, algo)
                iterations += 1
    finally:
        sampler.close()
    num_minibatches = getattr(algo, "num_minibatches", 1)
    rows = getattr(algo, "batch_size", sampler.batch.size // num_minibatches)
    num_steps = sum(size > _LARGEST_STATISTIC for size in twins.sizes)  # gradients; the others are counts and moments
    return Work(env_steps, sampler.batch.num_envs, rows, num_steps, counter.get_total_flops(), tuple(twins.sizes))


def _iterate(sampler: SerialSampler, algo: Any) -> int:
    samples = sampler.obtain()
    steps = int(samples.env.valid[:-1].sum())
    algo.update(samples, 0.0)
    sampler.release(samples)
    return steps


def _with_small_replay(trainer: Trainer) -> Any:
    """Learning from replay begins as soon as there is enough for an item or two in each environment."""
    algo: Any = trainer.algo
    if not hasattr(algo, "limiter"):
        return algo
    enough = 3 * (algo.replay.extractor.reach + trainer.sampler.batch.num_steps) * trainer.sampler.batch.num_envs
    limiter = dataclasses.replace(algo.limiter, min_steps=max(enough, 2 * algo.batch_size))
    capacity = min(algo.replay.capacity, 40 * limiter.min_steps)
    return dataclasses.replace(algo, limiter=limiter, replay=dataclasses.replace(algo.replay, capacity=capacity))


# ---------------------------------------------------------------- the command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--recipes", metavar="NAMES", help=f"comma-separated (default: all but {', '.join(_LEFT_OUT)})")
    parser.add_argument("--gpus", default="10,100,1000", help="numbers of GPUs (default: %(default)s)")
    parser.add_argument(
        "--tflops", type=float, default=5.0, help="a GPU reaches on small networks (default: %(default)s)"
    )
    parser.add_argument(
        "--step-floor-us", type=float, default=100.0, help="least time of a step (default: %(default)s)"
    )
    parser.add_argument(
        "--env-steps-per-s",
        type=float,
        default=20_000.0,
        help="of the environments beside a GPU (default: %(default)s)",
    )
    parser.add_argument("--bandwidth-gbps", type=float, default=100.0, help="gigabits a second (default: %(default)s)")
    parser.add_argument("--latency-us", type=float, default=10.0, help="of a message (default: %(default)s)")


def run(args: argparse.Namespace) -> list[str]:
    """Lines of a table in Markdown."""
    known = [name for name in RECIPES if name not in _LEFT_OUT]
    names = options.choose_names(args.recipes, list(RECIPES), known, "--recipes")
    counts = [int(word) for word in args.gpus.split(",")]
    machine = Machine(
        flops=args.tflops * 1e12,
        step_floor_s=args.step_floor_us / 1e6,
        env_steps_per_s=args.env_steps_per_s,
        bandwidth=args.bandwidth_gbps * 1e9 / 8,
        latency_s=args.latency_us / 1e6,
    )
    torch.set_num_threads(1)
    lines = [
        "PREDICTION, not measured: counted work over stated speeds",
        f"{machine}",
        "",
        "| recipe | MB per gradient step | steps/s on one | GPUs | strong | what takes most | weak | what takes most |",
        "|---|--:|--:|--:|--:|---|--:|---|",
    ]
    for name in names:
        try:
            work = count_work(RECIPES[name]())
        except (ImportError, EnvError) as error:
            print(f"left out: {name}: {error}", flush=True)
            continue
        print(f"counted {name}: {work.gradient_steps} gradient steps, {work.flops:.3g} operations", flush=True)
        alone = predict(work, machine, 1, "weak").env_steps_per_s
        size = sum(work.exchanges) / work.gradient_steps / 1e6
        for i, count in enumerate(counts):
            head = f"| {name} | {size:.2f} | {alone:,.0f} |" if i == 0 else "| | | |"
            strong, weak = (predict(work, machine, count, how) for how in ("strong", "weak"))
            lines.append(f"{head} {count:,} | {_cell(strong)} | {strong.limit} | {_cell(weak)} | {weak.limit} |")
    return lines


def _cell(prediction: Prediction) -> str:
    return "-" if math.isnan(prediction.speedup) else f"{prediction.speedup:,.1f} x"
