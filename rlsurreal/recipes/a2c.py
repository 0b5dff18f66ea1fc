"""A2C on MuJoCo locomotion."""

from __future__ import annotations

from rlsurreal.agents import ActorCriticAgent, ModelSpec
from rlsurreal.algos import A2C
from rlsurreal.envs import GymnasiumEnv
from rlsurreal.models import ActorCritic
from rlsurreal.runners import CheckpointPolicy, Trainer
from rlsurreal.samplers import EvalSpec, ParallelSampler
from rlsurreal.structs import BatchSpec
from rlsurreal.utils.schedules import Linear


def a2c_mujoco(env_id: str = "HalfCheetah-v5", seed: int = 0) -> Trainer:
    """A2C on a Gymnasium task with continuous actions, environments in worker processes."""
    return Trainer(
        name=f"a2c_{env_id}",
        seed=seed,
        total_env_steps=1_000_000,
        agent=ActorCriticAgent(
            model=ModelSpec(cls=ActorCritic, kwargs={"hidden_sizes": (64, 64), "normalize_observation": True}),
            init_std=0.5,
        ),
        algo=A2C(learning_rate=Linear(7e-4, 0.0), gae_lambda=0.9, entropy_coeff=0.0, scale_rewards=True),
        sampler=ParallelSampler(
            env=GymnasiumEnv(factory=env_id),
            batch=BatchSpec(num_steps=16, num_envs=16),
            max_decorrelation_steps=100,
            evaluation=EvalSpec(num_envs=4, episodes_per_env=2),
        ),
        eval_interval_steps=100_000,
        checkpoints=CheckpointPolicy(interval_steps=100_000),
    )
