"""One contestant of `benchmarks.ranks`: so many ranks on this machine, one core each.  Started with SETTINGS-AS-JSON.

The process that is started is the first rank, which takes turns with other contestants; it starts the other ranks, who
wait for it in a collective between turns.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import socket
import subprocess
import sys
from typing import Any

import torch

import rlsurreal
from benchmarks.ours import make_agent, make_algo, make_sampler
from benchmarks.peers.gate import Gate
from benchmarks.tasks import Settings
from rlsurreal.distributed.group import join
from rlsurreal.distributed.ranks import Ranks
from rlsurreal.utils.affinity import one_per_core, pin, usable_cpus

_PATIENCE_S = 3600.0  # between turns


def start_others(count: int) -> None:
    """Be the first of ``count`` ranks, and start the others."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "TORCHELASTIC_RUN_ID": "benchmark"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for index in range(1, count):
        own = {"RANK": str(index), "LOCAL_RANK": str(index), "IS_OTHER": "1"}
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.ranks_ours", sys.argv[1]],
            env={**os.environ, **common, **own},
            stdin=subprocess.DEVNULL,
        )
    os.environ.update({**common, "RANK": "0", "LOCAL_RANK": "0"})


class Turns:
    """The gate, for all ranks."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._gate = Gate(rlsurreal.__version__) if ranks.is_first else None

    def tick(self, total: int) -> None:
        """Between two iterations: wait if it is another contestant's turn."""
        if self._gate is not None:
            self._gate.tick(total)
        self._ranks.sum(torch.zeros(1))


def build(settings: Settings, ranks: Ranks) -> tuple[Any, Any, Any]:
    """Each rank has environments of its own (weak scaling)."""
    sampler = make_sampler(settings)
    num_envs = sampler.batch.num_envs
    total = num_envs * ranks.count
    batch = dataclasses.replace(sampler.batch, first_env=ranks.index * num_envs, total_envs=total)
    sampler = dataclasses.replace(sampler, batch=batch)
    agent, algo = make_agent(settings), make_algo(settings)
    agent.initialize(sampler.connect(seed=1), seed=1)
    algo.initialize(agent, sampler.batch, seed=1, compile=settings["compile"], ranks=ranks)
    sampler.initialize(agent, discount=algo.discount, compile=settings["compile"])
    return sampler, agent, algo


def update(settings: Settings, ranks: Ranks) -> None:
    """Updates from one slot, again and again."""
    turns = Turns(ranks)
    sampler, _, algo = build(settings, ranks)
    samples, num_updates = sampler.obtain(), 0
    while True:
        turns.tick(num_updates)
        algo.update(samples, 0.0)
        num_updates += algo.num_epochs * algo.num_minibatches


def train(settings: Settings, ranks: Ranks) -> None:
    """Sampling and updates; the steps of all ranks count."""
    turns = Turns(ranks)
    sampler, agent, algo = build(settings, ranks)
    env_steps = iteration = 0
    while True:
        turns.tick(env_steps)
        samples = sampler.obtain()
        env_steps += int(ranks.sum(samples.env.valid[:-1].sum()))
        algo.update(samples, 0.0)
        iteration += 1
        agent.publish(iteration)
        sampler.pop_trajectories()
        sampler.release(samples)


def main() -> None:
    """Do what the command line says."""
    settings = json.loads(sys.argv[1])
    logging.basicConfig(level=logging.ERROR)
    if settings["ranks"] > 1 and "IS_OTHER" not in os.environ:
        start_others(settings["ranks"])
    ranks: Any
    with join(_PATIENCE_S) as ranks:
        if not settings.get("shared_memory", True):
            ranks = dataclasses.replace(ranks, shared=None)
        cpus = one_per_core(usable_cpus())
        pin([cpus[ranks.index % len(cpus)]])
        torch.set_num_threads(1)
        {"train": train, "update": update}[settings["what"]](settings, ranks)


if __name__ == "__main__":
    main()
