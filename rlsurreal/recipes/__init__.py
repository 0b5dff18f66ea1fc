"""Recipes: functions that return a complete experiment, a `Trainer`, by name.

Each has keyword arguments for what people change first; every other setting is a field of what it returns.
"""

from __future__ import annotations

from collections.abc import Callable

from rlsurreal.recipes.a2c import a2c_mujoco
from rlsurreal.recipes.ppo import debug, ppo_atari, ppo_cartpole, ppo_mujoco
from rlsurreal.runners import Trainer

RECIPES: dict[str, Callable[..., Trainer]] = {
    recipe.__name__: recipe for recipe in (ppo_mujoco, ppo_atari, ppo_cartpole, a2c_mujoco, debug)
}

__all__ = ["RECIPES", "a2c_mujoco", "debug", "ppo_atari", "ppo_cartpole", "ppo_mujoco"]
