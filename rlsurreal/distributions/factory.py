"""From action spaces to distributions.  Called by agents, with the spaces at their side of the environment's border."""

from __future__ import annotations

from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces as gs

from rlsurreal.distributions.base import Distribution
from rlsurreal.distributions.discrete import Bernoulli, Categorical, MultiCategorical
from rlsurreal.distributions.gaussian import Gaussian
from rlsurreal.distributions.joint import Joint
from rlsurreal.utils.spaces import children


def make_distribution(
    action_space: gym.Space,
    *,
    squash: bool = False,
    std: Literal["free", "state"] = "free",
    init_std: float = 1.0,
    min_std: float = 1e-3,
    max_std: float = 10.0,
) -> Distribution:
    """The distribution for actions of ``action_space`` (`Spaces.action`: bounded boxes are [-1, 1]).

    Discrete: `Categorical`.  MultiDiscrete: `MultiCategorical`.  MultiBinary: `Bernoulli`.  Box: `Gaussian`.  Dict and
    Tuple: the `Joint` of their entries.

    Args:
        action_space: from the agent's side of the border; whole numbers count from 0 here whatever their ``start``.
        squash, std, init_std, min_std, max_std: of every `Gaussian`; see there.

    Raises:
        ValueError: no distribution fits the space, or ``squash`` is asked for in an unbounded box.
    """
    options: dict[str, Any] = {
        "squash": squash, "std": std, "init_std": init_std, "min_std": min_std, "max_std": max_std,
    }  # fmt: skip
    parts = children(action_space)
    if parts is not None:
        if not parts:
            raise ValueError(f"action space {action_space} has no entries; give it at least one")
        distributions = [make_distribution(child, **options) for _, child in parts.values()]
        return Joint(tuple(parts), tuple(distributions), "Tuple" if isinstance(action_space, gs.Tuple) else "Dict")
    if isinstance(action_space, gs.Discrete):
        return Categorical(int(action_space.n))
    if isinstance(action_space, gs.MultiDiscrete):
        return MultiCategorical(tuple(int(n) for n in action_space.nvec.flatten()), action_space.nvec.shape)
    if isinstance(action_space, gs.MultiBinary):
        return Bernoulli(tuple(action_space.shape))
    if isinstance(action_space, gs.Box) and np.issubdtype(action_space.dtype, np.floating):
        if squash and not (np.all(action_space.low == -1) and np.all(action_space.high == 1)):
            raise ValueError(
                f"squash=True needs actions within [-1, 1] (the agent's side of a bounded box), and the "
                f"space is {action_space}; bound it in the environment, or use squash=False"
            )
        return Gaussian(tuple(action_space.shape), **options)
    raise ValueError(
        f"no distribution over action space {action_space}; use Discrete, MultiDiscrete, MultiBinary, a "
        "Box of floating-point numbers, or a Dict or Tuple of these"
    )
