"""Agents: a model and a distribution make actions; parameters go out to copies in other processes."""

from rlsurreal.agents.actor_critic import ActorCriticAgent
from rlsurreal.agents.base import ModelAgent, ModelSpec

__all__ = ["ActorCriticAgent", "ModelAgent", "ModelSpec"]
