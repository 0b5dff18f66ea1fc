"""Recipes: functions that return a complete experiment, a `Trainer`, by name.

Each has keyword arguments for what people change first; every other setting is a field of what it returns.
"""

from __future__ import annotations

from collections.abc import Callable

from rlsurreal.recipes.a2c import a2c_mujoco
from rlsurreal.recipes.ddpg import d4pg_mujoco, ddpg_mujoco, td3_mujoco
from rlsurreal.recipes.dqn import dqn_atari, dqn_cartpole, dqn_minatar, her_bitflip, r2d2_atari, rainbow_atari
from rlsurreal.recipes.ppo import debug, ppo_atari, ppo_cartpole, ppo_mujoco
from rlsurreal.recipes.sac import droq_mujoco, her_fetch, recurrent_sac_pendulum, sac_mujoco, sac_pendulum
from rlsurreal.runners import Trainer

_ALL: tuple[Callable[..., Trainer], ...] = (
    ppo_mujoco,
    ppo_atari,
    ppo_cartpole,
    a2c_mujoco,
    dqn_atari,
    rainbow_atari,
    r2d2_atari,
    dqn_cartpole,
    dqn_minatar,
    her_bitflip,
    her_fetch,
    droq_mujoco,
    sac_mujoco,
    sac_pendulum,
    recurrent_sac_pendulum,
    td3_mujoco,
    ddpg_mujoco,
    d4pg_mujoco,
    debug,
)
RECIPES = {recipe.__name__: recipe for recipe in _ALL}

__all__ = [
    "RECIPES",
    "a2c_mujoco",
    "d4pg_mujoco",
    "ddpg_mujoco",
    "debug",
    "dqn_atari",
    "dqn_cartpole",
    "dqn_minatar",
    "droq_mujoco",
    "her_bitflip",
    "her_fetch",
    "ppo_atari",
    "ppo_cartpole",
    "ppo_mujoco",
    "r2d2_atari",
    "rainbow_atari",
    "recurrent_sac_pendulum",
    "sac_mujoco",
    "sac_pendulum",
    "td3_mujoco",
]
