"""SAC on MuJoCo locomotion, and a tiny run to try things with."""

from __future__ import annotations

from rlsurreal.agents import PolicyAgent
from rlsurreal.algos import SAC
from rlsurreal.envs import GymnasiumEnv
from rlsurreal.replays import ReplayRatio
from rlsurreal.runners import CheckpointPolicy, Trainer
from rlsurreal.samplers import EvalSpec, SerialSampler
from rlsurreal.structs import BatchSpec


def sac_mujoco(env_id: str = "HalfCheetah-v5", seed: int = 0) -> Trainer:
    """SAC on a Gymnasium task with continuous actions: one environment, one update for each of its steps."""
    return Trainer(
        name=f"sac_{env_id}",
        seed=seed,
        total_env_steps=1_000_000,
        agent=PolicyAgent(),
        algo=SAC(limiter=ReplayRatio(ratio=256, min_steps=10_000)),
        sampler=SerialSampler(
            env=GymnasiumEnv(factory=env_id),
            batch=BatchSpec(num_steps=1, num_envs=1),
            evaluation=EvalSpec(num_envs=5, episodes_per_env=1),
        ),
        eval_interval_steps=25_000,
        checkpoints=CheckpointPolicy(interval_steps=100_000),
    )


def sac_pendulum(seed: int = 0) -> Trainer:
    """SAC on Pendulum-v1: swings up within a minute or two."""
    return Trainer(
        name="sac_pendulum",
        seed=seed,
        total_env_steps=10_000,
        log_interval_steps=1_000,
        agent=PolicyAgent(),
        algo=SAC(learning_rate=1e-3, limiter=ReplayRatio(ratio=256, min_steps=500)),
        sampler=SerialSampler(env=GymnasiumEnv(factory="Pendulum-v1"), batch=BatchSpec(num_steps=1, num_envs=1)),
        eval_interval_steps=2_500,
    )
