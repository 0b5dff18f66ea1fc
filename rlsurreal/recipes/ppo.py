"""PPO: on MuJoCo locomotion, Atari, CartPole; and a tiny run to try things with."""

from __future__ import annotations

from rlsurreal.agents import ActorCriticAgent, ModelSpec
from rlsurreal.algos import PPO
from rlsurreal.envs import GymnasiumEnv, make_atari
from rlsurreal.models import ActorCritic
from rlsurreal.runners import CheckpointPolicy, Trainer
from rlsurreal.samplers import EvalSpec, ParallelSampler, SerialSampler
from rlsurreal.structs import BatchSpec
from rlsurreal.utils.schedules import Linear


def ppo_mujoco(env_id: str = "HalfCheetah-v5", seed: int = 0) -> Trainer:
    """PPO on a Gymnasium task with continuous actions, environments in worker processes."""
    return Trainer(
        name=f"ppo_{env_id}",
        seed=seed,
        total_env_steps=500_000,
        agent=ActorCriticAgent(
            model=ModelSpec(cls=ActorCritic, kwargs={"hidden_sizes": (64, 64), "normalize_observation": True}),
            init_std=0.5,
        ),
        algo=PPO(learning_rate=Linear(3e-4, 0.0), num_epochs=10, num_minibatches=32, scale_rewards=True),
        sampler=ParallelSampler(
            env=GymnasiumEnv(factory=env_id),
            batch=BatchSpec(num_steps=128, num_envs=16),
            max_decorrelation_steps=100,
            evaluation=EvalSpec(num_envs=4, episodes_per_env=2),
        ),
        eval_interval_steps=100_000,
        checkpoints=CheckpointPolicy(interval_steps=100_000),
    )


def ppo_cartpole(seed: int = 0) -> Trainer:
    """PPO on CartPole-v1 in one process: solved in well under a minute."""
    return Trainer(
        name="ppo_cartpole",
        seed=seed,
        total_env_steps=100_000,
        agent=ActorCriticAgent(),
        algo=PPO(learning_rate=Linear(1e-3, 0.0), discount=0.98, gae_lambda=0.8, num_epochs=10, num_minibatches=4),
        sampler=SerialSampler(
            env=GymnasiumEnv(factory="CartPole-v1"),
            batch=BatchSpec(num_steps=32, num_envs=16),
            evaluation=EvalSpec(num_envs=5, episodes_per_env=4, num_steps=500),
        ),
        eval_interval_steps=20_000,
    )


def ppo_atari(game: str = "Pong", seed: int = 0) -> Trainer:
    """PPO on an Atari game with the usual preprocessing; a step of the agent is four frames."""
    return Trainer(
        name=f"ppo_{game}",
        seed=seed,
        total_env_steps=10_000_000,
        agent=ActorCriticAgent(model=ModelSpec(cls=ActorCritic, kwargs={"encoder": "nature"})),
        algo=PPO(
            learning_rate=Linear(2.5e-4, 0.0),
            clip_range=Linear(0.1, 0.0),
            num_epochs=4,
            num_minibatches=4,
            entropy_coeff=0.01,
        ),
        sampler=ParallelSampler(
            env=GymnasiumEnv(
                factory=make_atari,
                kwargs={"game": game, "episodic_life": True, "clip_reward": True},
                info_fields={"score": 0.0, "game_over": False},
            ),
            batch=BatchSpec(num_steps=128, num_envs=8),
            evaluation=EvalSpec(
                env=GymnasiumEnv(
                    factory=make_atari,
                    kwargs={"game": game, "episodic_life": False, "clip_reward": False},
                    info_fields={"score": 0.0, "game_over": False},
                ),
                num_envs=2,
                episodes_per_env=1,
                num_steps=500,
                deterministic=False,
            ),
        ),
        checkpoints=CheckpointPolicy(interval_steps=500_000),
    )


def debug(seed: int = 0) -> Trainer:
    """A run of seconds in one process: for trying out code, and for tests."""
    return Trainer(
        name="debug",
        seed=seed,
        total_env_steps=4_096,
        log_interval_steps=1_024,
        agent=ActorCriticAgent(model=ModelSpec(cls=ActorCritic, kwargs={"hidden_sizes": (16,)})),
        algo=PPO(num_epochs=2, num_minibatches=2),
        sampler=SerialSampler(env=GymnasiumEnv(factory="CartPole-v1"), batch=BatchSpec(num_steps=64, num_envs=4)),
        eval_interval_steps=2_048,
    )
