"""Critics for the algorithms of the families of DDPG and SAC, and which of them they cannot learn."""

from __future__ import annotations

from typing import Any

from rlsurreal.agents import ModelSpec
from rlsurreal.models import CriticEnsemble, QEnsemble, RecurrentCritics

_KINDS = (CriticEnsemble, QEnsemble, RecurrentCritics)  # which are called in different ways


def build_critics(algo: Any, spec: ModelSpec, agent: Any, wanted: type) -> Any:
    """The model of ``spec`` for the agent's spaces, with weights drawn from the algorithm's seed, on its device.

    Raises:
        ValueError: it is one of this library's that is called in another way than ``wanted``.
    """
    critics: Any = spec.build(agent.spaces.observation, agent.spaces.action, seed=algo._seed)
    if isinstance(critics, _KINDS) and not isinstance(critics, wanted):
        raise ValueError(
            f"{type(algo).__name__}.critic is a {type(critics).__name__}; it must be a {wanted.__name__}, or a model "
            "of your own that is called as that is"
        )
    return critics.to(agent.device)
