"""The calculator of scaling, and contestants of several ranks."""

from __future__ import annotations

import math

import pytest

from benchmarks.ranks import NETWORKS, entry_of
from benchmarks.scaling import Machine, Work, count_work, exchange_s, predict
from benchmarks.turns import Process
from rlsurreal.recipes import dqn_cartpole, ppo_cartpole
from rlsurreal.utils import config

MACHINE = Machine(flops=1e12, step_floor_s=1e-4, env_steps_per_s=1e4, bandwidth=1e9, latency_s=1e-5)
WORK = Work(env_steps=1000, num_envs=8, batch_rows=64, gradient_steps=10, flops=1e10, exchanges=(1_000_000,) * 10)


def test_a_prediction_is_the_sum_of_its_parts():
    assert exchange_s(1_000_000, MACHINE, 1) == 0
    assert exchange_s(1_000_000, MACHINE, 4) == pytest.approx(1.5e-3 + 4e-5)
    alone = 1000 / (0.1 + 0.01)  # environments, arithmetic
    assert predict(WORK, MACHINE, 1, "weak").env_steps_per_s == pytest.approx(alone)
    weak = predict(WORK, MACHINE, 4, "weak")
    assert weak.env_steps_per_s == pytest.approx(4000 / (0.1 + 0.01 + 0.0154)) and weak.limit == "environments"
    assert weak.speedup == pytest.approx(weak.env_steps_per_s / alone)
    strong = predict(WORK, MACHINE, 4, "strong")
    assert strong.env_steps_per_s == pytest.approx(1000 / (0.025 + 0.0025 + 0.0154))
    few = predict(WORK, MACHINE, 9, "strong")
    assert math.isnan(few.speedup) and few.limit == "only 8 environments"


def test_work_is_counted_from_real_updates():
    work = count_work(ppo_cartpole())
    assert (work.num_envs, work.batch_rows, work.gradient_steps) == (16, 128, 40)
    assert 450 < work.env_steps <= 512  # less the reset rows
    trainer = ppo_cartpole()
    trainer.agent.initialize(trainer.sampler.connect(seed=0), seed=0)
    trainer.sampler.close()
    num_bytes = 4 * sum(parameter.numel() for parameter in trainer.agent.module.parameters())
    assert work.exchanges.count(num_bytes) == 40  # a gradient for each step
    # Forwards and backwards, a parameter takes six operations a row; the first layers' inputs need no gradient.
    per_epoch = 512 * 6 * num_bytes / 4
    assert 0.6 * 10 * per_epoch < work.flops < 1.3 * 10 * per_epoch
    replayed = count_work(config.override(dqn_cartpole(), {"algo.batch_size": "32", "algo.limiter.ratio": "8"}))
    assert replayed.gradient_steps >= 4 and replayed.batch_rows == 32
    assert replayed.env_steps / replayed.gradient_steps == pytest.approx(4, rel=0.5)


@pytest.mark.processes
def test_ranks_take_turns_like_one_contestant():
    settings = {**NETWORKS["PPO 2x64, minibatch 64"], "num_envs": 4, "num_steps": 32, "num_epochs": 2}
    process = Process(entry_of({**settings, "what": "update", "sampler": "serial", "compile": "off", "ranks": 2}))
    try:
        rates = [process.rate(0.5) for _ in range(2)]
        assert all(1 < rate < 10_000 for rate in rates)
    finally:
        process.close()
