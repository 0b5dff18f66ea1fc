"""A trained agent, back from the folder of its run.

    python examples/8_trained_agent.py

A run's folder has all that is needed: the experiment in config.json, parameters in checkpoints/.  `load_agent` puts
them together, to play whole episodes, or to act step by step in an environment of Gymnasium.
"""

import argparse
from pathlib import Path

import numpy as np

from rlsurreal.recipes import ppo_cartpole
from rlsurreal.trained import TrainedAgent, load_agent


def train(total_env_steps: int = 50_000, root: str = "runs") -> Path:
    """Some seconds of PPO; the run's folder."""
    trainer = ppo_cartpole()
    trainer.total_env_steps, trainer.root = total_env_steps, root
    return trainer.train()


def play_one_episode(agent: TrainedAgent, seed: int = 0) -> float:
    """Step by step: its return."""
    env = agent.make_env()
    observation, _ = env.reset(seed=seed)
    agent.reset()  # an agent with memory forgets the episode before
    total, reward, ended = 0.0, 0.0, False
    while not ended:
        action = agent.act(observation, reward)  # in the environment's own units; only agents with memory need rewards
        observation, given, terminated, truncated, _ = env.step(action)
        reward = float(given)
        total += reward
        ended = terminated or truncated
    env.close()
    return total


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    agent = load_agent(train())  # the best checkpoint of its evaluations
    returns = [game.score for game in agent.evaluate(num_episodes=20)]
    print(f"{agent.path}: mean return of 20 episodes {np.mean(returns):.1f}")
    print(f"one more, step by step: {play_one_episode(agent):.1f}")
