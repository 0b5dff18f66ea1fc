"""Agents: a model and a distribution make actions; parameters go out to copies in other processes."""

from rlsurreal.agents.actor_critic import ActorCriticAgent
from rlsurreal.agents.base import ModelAgent, ModelSpec
from rlsurreal.agents.parameter_noise import ParameterNoise
from rlsurreal.agents.policy import DeterministicAgent, PolicyAgent
from rlsurreal.agents.q import QAgent
from rlsurreal.agents.return_heads import Categorical, Expected, Quantile

__all__ = [
    "ActorCriticAgent",
    "Categorical",
    "DeterministicAgent",
    "Expected",
    "ModelAgent",
    "ModelSpec",
    "ParameterNoise",
    "PolicyAgent",
    "QAgent",
    "Quantile",
]
