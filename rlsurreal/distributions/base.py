"""The interface of action distributions.  Called by agents (to act), algorithms (losses) and models (sizes of heads).

A `Distribution` is a stateless, picklable description: what varies is in its *parameters*, a structure of tensors that
a network computes, agents record and losses compare.  It reads no random stream: what it needs of chance comes in as
`Noise`.

    features, free --params--> Params --sample(noise)--> action --log_prob(params)--> float

Discrete actions are int64 ``[...]``, multi-discrete int64 ``[..., *shape]``, multi-binary int8 ``[..., *shape]``,
continuous float32 ``[..., *shape]``, and Dict and Tuple actions are structures of these.  ``[...]`` are any leading
dimensions, alike in all arguments.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from rlsurreal.structs import Noise, NoiseSpec
from rlsurreal.utils.namedarraytuple import Tree


class Distribution(ABC):
    """A family of distributions over actions."""

    @property
    @abstractmethod
    def noise_spec(self) -> NoiseSpec:
        """Random numbers needed for one action."""

    @property
    @abstractmethod
    def num_features(self) -> int:
        """Outputs of a network that `params` takes."""

    @property
    def num_free(self) -> int:
        """Trainable parameters that do not depend on the observation."""
        return 0

    @property
    @abstractmethod
    def num_encoded(self) -> int:
        """Numbers in which `encode` writes one action."""

    def free_init(self) -> Tensor:
        """Initial values of the free parameters, float32 ``[num_free]``."""
        return torch.zeros(0)

    @abstractmethod
    def params(self, features: Tensor, free: Tensor | None = None) -> Tree:
        """Parameters from features ``[..., num_features]`` and free parameters ``[num_free]`` (or None)."""

    @abstractmethod
    def sample(self, params: Tree, noise: Noise) -> Tree:
        """Actions ``[...]``; differentiable in the parameters where the action is continuous."""

    @abstractmethod
    def mode(self, params: Tree) -> Tree:
        """The actions for deterministic evaluation."""

    @abstractmethod
    def log_prob(self, params: Tree, action: Tree) -> Tensor:
        """Log-probability (log-density of continuous parts), ``[...]``."""

    @abstractmethod
    def entropy(self, params: Tree) -> Tensor:
        """``[...]``, in nats."""

    @abstractmethod
    def kl(self, p: Tree, q: Tree) -> Tensor:
        """KL(p || q) of the distributions with parameters ``p`` and ``q``, ``[...]``, in nats."""

    @abstractmethod
    def encode(self, action: Tree) -> Tensor:
        """Actions as a network's inputs, float32 ``[..., num_encoded]``: whole numbers one-hot, others as they are."""

    def sample_with_log_prob(self, params: Tree, noise: Noise) -> tuple[Tree, Tensor]:
        """Actions and their log-probabilities, both differentiable in the parameters where the action is continuous."""
        action = self.sample(params, noise)
        return action, self.log_prob(params, action)


def to_event(flat: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``[..., n]`` as ``[..., *shape]``."""
    return flat if len(shape) == 1 else flat.reshape(flat.shape[:-1] + shape)


def from_event(action: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``[..., *shape]`` as ``[..., n]``."""
    return action if len(shape) == 1 else action.reshape((*action.shape[: action.dim() - len(shape)], -1))
