"""PPO on CartPole, everything in this process: environments, agent, algorithm, and the loop around them.

python examples/1_serial_ppo.py
"""

import argparse

from rlsurreal.agents import ActorCriticAgent
from rlsurreal.algos import PPO
from rlsurreal.envs import GymnasiumEnv
from rlsurreal.runners import Trainer
from rlsurreal.samplers import EvalSpec, SerialSampler
from rlsurreal.structs import BatchSpec
from rlsurreal.utils.schedules import Linear


def make_trainer(total_env_steps: int = 100_000) -> Trainer:
    """Every part is a component whose fields are its settings; the trainer connects them."""
    return Trainer(
        name="example_1",
        agent=ActorCriticAgent(),  # chooses a model and an action distribution that fit the environment
        algo=PPO(learning_rate=Linear(1e-3, 0.0), discount=0.98, gae_lambda=0.8, num_epochs=10, num_minibatches=4),
        sampler=SerialSampler(
            env=GymnasiumEnv(factory="CartPole-v1"),
            batch=BatchSpec(num_steps=32, num_envs=16),  # one iteration: 32 steps of 16 environments
            evaluation=EvalSpec(num_envs=5, episodes_per_env=4, num_steps=500),
        ),
        total_env_steps=total_env_steps,
        eval_interval_steps=20_000,
    )


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    folder = make_trainer().train()
    print(f"logs and checkpoints: {folder}")
