"""Critics for the algorithms of the families of DDPG and SAC, and which of them they cannot learn."""

from __future__ import annotations

from typing import Any

from rlsurreal.agents import ModelSpec
from rlsurreal.models import CriticEnsemble, QEnsemble, RecurrentCritics
from rlsurreal.models.checks import check_critics, check_q_ensemble, check_recurrent_critics

_KINDS: dict[type, Any] = {  # which are called in different ways
    CriticEnsemble: check_critics,
    QEnsemble: check_q_ensemble,
    RecurrentCritics: check_recurrent_critics,
}


def build_critics(algo: Any, spec: ModelSpec, agent: Any, wanted: type) -> Any:
    """The model of ``spec`` for the agent's spaces, with weights drawn from the algorithm's seed, on its device.

    Raises:
        ValueError: it is one of this library's that is called in another way than ``wanted``, or one of the user's own
            that is not like it.
    """
    spaces = agent.spaces
    critics: Any = spec.build(observation_space=spaces.observation, action_space=spaces.action, seed=algo._seed)
    if isinstance(critics, tuple(_KINDS)) and not isinstance(critics, wanted):
        raise ValueError(
            f"{type(algo).__name__}.critic is a {type(critics).__name__}; it must be a {wanted.__name__}, or a model "
            "of your own that is called as that is"
        )
    _KINDS[wanted](critics, f"a critic of {type(algo).__name__}", spaces)
    return critics.to(agent.device)
