"""Distributions over actions: what a policy is, apart from the network that computes its parameters."""

from rlsurreal.distributions.base import Distribution
from rlsurreal.distributions.discrete import Bernoulli, Categorical, MultiCategorical
from rlsurreal.distributions.factory import make_distribution
from rlsurreal.distributions.gaussian import Gaussian
from rlsurreal.distributions.joint import Joint

__all__ = ["Bernoulli", "Categorical", "Distribution", "Gaussian", "Joint", "MultiCategorical", "make_distribution"]
