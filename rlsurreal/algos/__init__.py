"""Algorithms: each a component with its hyperparameters, its loss and its update."""

from rlsurreal.algos.dqn.dqn import DQN
from rlsurreal.algos.dqn.r2d2 import R2D2
from rlsurreal.algos.pg.a2c import A2C
from rlsurreal.algos.pg.ppo import PPO
from rlsurreal.algos.qpg.d4pg import D4PG
from rlsurreal.algos.qpg.ddpg import DDPG
from rlsurreal.algos.qpg.discrete_sac import DiscreteSAC
from rlsurreal.algos.qpg.recurrent_sac import RecurrentSAC
from rlsurreal.algos.qpg.sac import SAC
from rlsurreal.algos.qpg.state_value_sac import StateValueSAC
from rlsurreal.algos.qpg.td3 import TD3

__all__ = ["A2C", "D4PG", "DDPG", "DQN", "DiscreteSAC", "PPO", "R2D2", "RecurrentSAC", "SAC", "StateValueSAC", "TD3"]
