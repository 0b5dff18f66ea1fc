"""Environments behind one vector interface with next-step reset.

Recipes and users name environments by the specs here; collectors see what their ``make`` returns.  Importing this
package imports neither ale-py nor EnvPool: only making their environments does.
"""

from __future__ import annotations

from rlsurreal.envs.ale_env import AleEnv
from rlsurreal.envs.atari import make_atari
from rlsurreal.envs.base import EnvError, env_seed
from rlsurreal.envs.check import check_env
from rlsurreal.envs.envpool_env import EnvPoolEnv
from rlsurreal.envs.gymnasium_env import GymnasiumEnv
from rlsurreal.envs.minatar_env import make_minatar
from rlsurreal.envs.native import AsyncResults, AsyncVectorEnv
from rlsurreal.envs.wrappers import ChannelsFirst

__all__ = [
    "AleEnv",
    "AsyncResults",
    "AsyncVectorEnv",
    "ChannelsFirst",
    "EnvError",
    "EnvPoolEnv",
    "GymnasiumEnv",
    "check_env",
    "env_seed",
    "make_atari",
    "make_minatar",
]
