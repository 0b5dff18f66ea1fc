"""SAC on MuJoCo locomotion, on goals with hindsight, and a tiny run to try things with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from rlsurreal.agents import ModelSpec, PolicyAgent
from rlsurreal.algos import SAC, RecurrentSAC
from rlsurreal.envs import GymnasiumEnv
from rlsurreal.models import CriticEnsemble, RecurrentCritics, StochasticPolicy
from rlsurreal.replays import Hindsight, Replay, ReplayRatio, Windows
from rlsurreal.runners import CheckpointPolicy, Trainer
from rlsurreal.samplers import EvalSpec, SerialSampler
from rlsurreal.structs import BatchSpec
from rlsurreal.testing.envs import make_still_pendulum


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


def droq_mujoco(env_id: str = "HalfCheetah-v5", seed: int = 0) -> Trainer:
    """SAC with 20 updates of critics with dropout for each step: learns from few steps, in about as much time."""
    critic = ModelSpec(cls=CriticEnsemble, kwargs={"dropout": 0.01, "layer_norm": True})
    limiter = ReplayRatio(ratio=20 * 256, min_steps=5_000)
    trainer = sac_mujoco(env_id, seed)
    algo = SAC(critic=critic, policy_interval=20, policy_value="mean", limiter=limiter)
    return replace(trainer, name=f"droq_{env_id}", total_env_steps=100_000, algo=algo)


def her_fetch(env_id: str = "FetchReach-v4", seed: int = 0) -> Trainer:
    """SAC with hindsight on a robot's arm whose reward says only whether the goal is met; needs the extra robotics."""
    return Trainer(
        name=f"her_{env_id}",
        seed=seed,
        total_env_steps=20_000 if "Reach" in env_id else 1_000_000,
        log_interval_steps=2_000,
        agent=PolicyAgent(),
        algo=SAC(
            discount=0.95,
            learning_rate=1e-3,
            replay=Replay(extractor=Hindsight(compute_reward=fetch_reward)),
            limiter=ReplayRatio(ratio=256, min_steps=1_000),
        ),
        sampler=SerialSampler(
            env=GymnasiumEnv(factory=env_id, info_fields={"is_success": 0.0}), batch=BatchSpec(num_steps=1, num_envs=1)
        ),
        eval_interval_steps=2_500 if "Reach" in env_id else 50_000,
    )


def fetch_reward(achieved_goal: np.ndarray, desired_goal: np.ndarray, info: Any) -> np.ndarray:
    """That of Gymnasium-Robotics' Fetch tasks: 0 within five centimetres of the goal, else -1."""
    distance = np.linalg.norm(achieved_goal - desired_goal, axis=-1)
    reward: np.ndarray = -(distance > 0.05).astype(np.float32)
    return reward


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


def recurrent_sac_pendulum(seed: int = 0) -> Trainer:
    """Recurrent SAC on a pendulum that does not say how fast it turns: what it was a moment ago must be remembered."""
    policy = {"hidden_sizes": (64,), "recurrent": "lstm", "recurrent_size": 64}
    critics = {"encoder_sizes": (64,), "hidden_sizes": (64,), "recurrent_size": 64}
    windows = Windows(burn_in=8, num_steps=32, num_ahead=1, interval=8)
    return Trainer(
        name="recurrent_sac_pendulum",
        seed=seed,
        total_env_steps=15_000,
        log_interval_steps=2_000,
        agent=PolicyAgent(model=ModelSpec(cls=StochasticPolicy, kwargs=policy)),
        algo=RecurrentSAC(
            learning_rate=1e-3,
            critic=ModelSpec(cls=RecurrentCritics, kwargs=critics),
            replay=Replay(capacity=100_000, extractor=windows),
            limiter=ReplayRatio(ratio=512, min_steps=1_000),
        ),
        sampler=SerialSampler(
            env=GymnasiumEnv(factory=make_still_pendulum), batch=BatchSpec(num_steps=8, num_envs=1), state_interval=8
        ),
        eval_interval_steps=5_000,
    )
