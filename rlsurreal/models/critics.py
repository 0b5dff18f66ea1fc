"""Values of observations with actions: several critics at once.  Built by the algorithms of DDPG's and SAC's families.

To use a model of your own, name any `torch.nn.Module` class with this constructor and these members:

    class MyModel(nn.Module):
        normalizer: RunningNorm | None      # updated by the algorithm; may be left out
        num_noise: int                      # uniform numbers wanted for each row of each critic
        num_critics: int                    # K
        num_atoms: int | None               # Z, where critics give distributions of values

        def __init__(self, observation_space, action_space, **your_own_arguments): ...
        def forward(self, observation, action, noise=None): ...     # -> [K, ...], or [K, ..., Z]
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import torch
import torch.nn.functional as F
from gymnasium import spaces as gs
from torch import Tensor, nn

from rlsurreal.distributions import make_distribution
from rlsurreal.models.encoders import Encoder, ObservationEncoder
from rlsurreal.models.mlp import ACTIVATIONS
from rlsurreal.models.normalizers import RunningNorm
from rlsurreal.models.q_network import QNetwork
from rlsurreal.models.trunk import Precision, check_precision, computing_in
from rlsurreal.structs import AgentInputs
from rlsurreal.utils.namedarraytuple import Tree


class CriticEnsemble(nn.Module):
    """K critics with the same layers and weights of their own, computed together as batched matrix products.

    Critics of images share one encoder, which belongs to the ensemble; a policy can see through it, too (the
    algorithms' ``share_encoder``).

    Args:
        observation_space: `Spaces.observation`.
        action_space: `Spaces.action`; whole numbers enter the critics one-hot.
        num_critics: K: 1 for DDPG, 2 for TD3 and SAC (Fujimoto et al. 2018, arXiv 1802.09477).
        hidden_sizes: of the layers after the encoder, where the action comes in.
        activation: of the hidden layers, see `rlsurreal.models.mlp`.
        layer_norm: normalise before each activation.
        encoder: see `ObservationEncoder`.
        num_atoms: Z numbers for each critic: logits of D4PG (Barth-Maron et al. 2018, arXiv 1804.08617), or quantiles.
        dropout: share of each hidden layer's outputs that is dropped, before they are normalised (DroQ: Hiraoka et al.
            2022, arXiv 2110.02034: 0.01, with ``layer_norm``).
        normalize_observation: put a `RunningNorm` in front.
        precision: see `ActorCritic`.

    Attributes:
        normalizer: None without ``normalize_observation``.
        num_noise: uniform numbers for each row of each critic; 0 without ``dropout``.
        num_critics, num_atoms: as given.

    Raises:
        ValueError: an option is not known or out of range, or an image does not suit its encoder.
    """

    def __init__(
        self,
        observation_space: gym.Space,
        action_space: gym.Space,
        num_critics: int = 2,
        *,
        hidden_sizes: Sequence[int] = (256, 256),
        activation: str = "relu",
        layer_norm: bool = False,
        encoder: Encoder = "auto",
        num_atoms: int | None = None,
        dropout: float = 0.0,
        normalize_observation: bool = False,
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        check_precision(precision)
        if num_critics < 1:
            raise ValueError(f"num_critics is {num_critics}; it must be at least 1")
        if num_atoms is not None and num_atoms < 1:
            raise ValueError(f"num_atoms is {num_atoms}; it must be at least 1, or None")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}; it must be in [0, 1)")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; use one of {', '.join(ACTIVATIONS)}")
        self.normalizer = RunningNorm(observation_space) if normalize_observation else None
        self.encoder = ObservationEncoder(observation_space, encoder)
        self._distribution = make_distribution(action_space)
        in_features = self.encoder.out_features + self._distribution.num_encoded
        sizes = [in_features, *hidden_sizes, num_atoms or 1]
        self.layers = nn.ModuleList(_StackedLinear(num_critics, *pair) for pair in itertools.pairwise(sizes))
        self.norms = (
            nn.ModuleList(_StackedLayerNorm(num_critics, size) for size in hidden_sizes) if layer_norm else None
        )
        self.activation, self.dropout = activation, dropout
        self._hidden_sizes = list(hidden_sizes)
        self.num_noise = sum(hidden_sizes) if dropout else 0
        self.num_critics, self.num_atoms = num_critics, num_atoms
        self.precision: Precision = precision

    def forward(self, observation: Tree, action: Tree, noise: Tensor | None = None) -> Tensor:
        """Values float32 ``[K, ...]``, or ``[K, ..., Z]`` with atoms.

        Args:
            observation: leaves ``[..., *shape]``, not normalised.
            action: leaves ``[..., *shape]``, from the agent's side of the border.
            noise: float32 ``[K, ..., num_noise]``, in [0, 1): says what is dropped.  None: nothing is.
        """
        if self.normalizer is not None:
            observation = self.normalizer(observation)
        with computing_in(self.precision, observation):
            features = self.encoder(observation)
            x = torch.cat([features.float(), self._distribution.encode(action)], -1)
            shape = (self.num_critics, *x.shape[:-1], self.num_atoms or 1)
            x = x.reshape(1, -1, x.shape[-1]).expand(self.num_critics, -1, -1)
            drop = None
            if self.num_noise and noise is not None:
                drop = noise.reshape(self.num_critics, -1, self.num_noise).split(self._hidden_sizes, -1)
            values = self._run(x, drop).float().reshape(shape)
        return values if self.num_atoms is not None else values.squeeze(-1)

    def _run(self, x: Tensor, drop: Sequence[Tensor] | None) -> Tensor:
        *hidden, last = self.layers
        for i, layer in enumerate(hidden):
            x = layer(x)
            if drop is not None:
                x = torch.where(drop[i] < self.dropout, 0.0, x / (1 - self.dropout))
            if self.norms is not None:
                x = self.norms[i](x)
            x = ACTIVATIONS[self.activation](x)
        values: Tensor = last(x)
        return values


class QEnsemble(nn.Module):
    """K critics of observations that give the values of all actions: K times `QNetwork`.

    Args:
        observation_space: `Spaces.observation`.
        action_space: Discrete.
        num_critics: K.
        hidden_sizes, activation, layer_norm, encoder, dueling, precision: see `QNetwork`.
        normalize_observation: put a `RunningNorm` in front of all.

    Attributes:
        normalizer: None without ``normalize_observation``.
        num_critics: as given.

    Raises:
        ValueError: actions are not Discrete, or see `QNetwork`.
    """

    num_noise = 0

    def __init__(
        self,
        observation_space: gym.Space,
        action_space: gym.Space,
        num_critics: int = 2,
        *,
        hidden_sizes: Sequence[int] | None = None,
        activation: str = "relu",
        layer_norm: bool = False,
        encoder: Encoder = "auto",
        dueling: bool = False,
        normalize_observation: bool = False,
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        if not isinstance(action_space, gs.Discrete):
            raise ValueError(f"action_space is {action_space}; QEnsemble is for Discrete actions, see CriticEnsemble")
        if num_critics < 1:
            raise ValueError(f"num_critics is {num_critics}; it must be at least 1")
        self.normalizer = RunningNorm(observation_space) if normalize_observation else None
        options: Any = {
            "hidden_sizes": hidden_sizes,
            "activation": activation,
            "layer_norm": layer_norm,
            "encoder": encoder,
            "dueling": dueling,
            "precision": precision,
        }
        networks = (QNetwork(observation_space, int(action_space.n), **options) for _ in range(num_critics))
        self.networks = nn.ModuleList(networks)
        self.num_critics = num_critics

    def forward(self, observation: Tree) -> Tensor:
        """Values float32 ``[K, ..., A]``."""
        if self.normalizer is not None:
            observation = self.normalizer(observation)
        return torch.stack([network(AgentInputs(observation), None)[0] for network in self.networks])


class _StackedLinear(nn.Module):
    """K linear layers, each of which starts as PyTorch's own (see `rlsurreal.models.trunk.init_uniform`)."""

    def __init__(self, num_layers: int, in_features: int, out_features: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(num_layers, in_features, out_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_layers, 1, out_features).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """``[K, N, out_features]`` from ``[K, N, in_features]``."""
        if self.weight.shape[-1] == 1:  # no matrix product: a sum, which compilers fuse with what is around it
            return (x * self.weight.transpose(1, 2)).sum(-1, keepdim=True) + self.bias
        return torch.baddbmm(self.bias, x, self.weight)


class _StackedLayerNorm(nn.Module):
    """K layer normalisations."""

    def __init__(self, num_layers: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_layers, 1, size))
        self.bias = nn.Parameter(torch.zeros(num_layers, 1, size))
        self._size = size

    def forward(self, x: Tensor) -> Tensor:
        """``[K, N, size]``."""
        return torch.addcmul(self.bias, F.layer_norm(x, (self._size,)), self.weight)
