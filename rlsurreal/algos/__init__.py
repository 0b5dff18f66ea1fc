"""Algorithms: each a component with its hyperparameters, its loss and its update."""

from rlsurreal.algos.pg.a2c import A2C
from rlsurreal.algos.pg.ppo import PPO

__all__ = ["A2C", "PPO"]
