"""DDPG, TD3 and D4PG on MuJoCo locomotion."""

from __future__ import annotations

from rlsurreal.agents import Categorical, DeterministicAgent
from rlsurreal.algos import D4PG, DDPG, TD3
from rlsurreal.envs import GymnasiumEnv
from rlsurreal.runners import CheckpointPolicy, Trainer
from rlsurreal.samplers import EvalSpec, SerialSampler
from rlsurreal.structs import BatchSpec


def ddpg_mujoco(env_id: str = "HalfCheetah-v5", seed: int = 0) -> Trainer:
    """DDPG on a Gymnasium task with continuous actions: one environment, one update for each of its steps."""
    return _make("ddpg", DDPG(), env_id, seed)


def td3_mujoco(env_id: str = "HalfCheetah-v5", seed: int = 0) -> Trainer:
    """TD3 on a Gymnasium task with continuous actions: one environment, one update for each of its steps."""
    return _make("td3", TD3(), env_id, seed)


def d4pg_mujoco(env_id: str = "HalfCheetah-v5", seed: int = 0) -> Trainer:
    """D4PG on a Gymnasium task with continuous actions; another task may want other bounds of the return."""
    return _make("d4pg", D4PG(head=Categorical(low=-200.0, high=1500.0)), env_id, seed)


def _make(name: str, algo: DDPG, env_id: str, seed: int) -> Trainer:
    return Trainer(
        name=f"{name}_{env_id}",
        seed=seed,
        total_env_steps=1_000_000,
        agent=DeterministicAgent(noise=0.1),
        algo=algo,
        sampler=SerialSampler(
            env=GymnasiumEnv(factory=env_id),
            batch=BatchSpec(num_steps=1, num_envs=1),
            evaluation=EvalSpec(num_envs=5, episodes_per_env=1),
        ),
        eval_interval_steps=25_000,
        checkpoints=CheckpointPolicy(interval_steps=100_000),
    )
