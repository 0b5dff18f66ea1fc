"""Values of discrete actions: one network for DQN and all that grew from it.  Built by agents of the DQN family.

To use a model of your own, name any `torch.nn.Module` class with this constructor and these members:

    class MyModel(nn.Module):
        recurrent: bool                     # whether there is state; then previous actions and rewards are given, too
        normalizer: RunningNorm | None      # updated by the algorithm; may be left out
        num_noise: int                      # standard normal numbers wanted for each row
        num_atoms: int | None               # Z, where the network gives distributions of values
        num_cosines: int | None             # not None where it takes ``taus``

        def __init__(self, observation_space, num_actions, **your_own_arguments): ...
        def initial_state(self, num_envs): ...              # a structure of [num_envs, ...] tensors, or None
        def forward(self, inputs, state, first=None, noise=None, taus=None): ...    # -> values, state
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import gymnasium as gym
import torch
from torch import Tensor, nn

from rlsurreal.distributions import Categorical
from rlsurreal.models.encoders import Encoder, ObservationEncoder
from rlsurreal.models.mlp import ACTIVATIONS
from rlsurreal.models.noisy import NoisyLinear
from rlsurreal.models.normalizers import RunningNorm
from rlsurreal.models.trunk import Precision, Trunk, check_precision, computing_in, in_float32, init_uniform, normalized
from rlsurreal.structs import AgentInputs
from rlsurreal.utils.namedarraytuple import Tree

_NUM_TAUS = 32  # quantiles for acting; K of the paper


class QNetwork(nn.Module):
    """Encoder, hidden layers, recurrent layer if asked for, and a head that gives values of all actions.

    Args:
        observation_space: `Spaces.observation`.
        num_actions: A.
        hidden_sizes: of all layers between encoder and outputs.  The last of them belongs to the head: it comes after
            the recurrent layer, and with ``dueling`` there are two of it.  Networks for images end in their
            convolutions here.  None: (256, 256) for vectors, (512,) for images (Mnih et al. 2015), (512, 512) for
            images in recurrent models (Kapturowski et al. 2019); after an encoder of your own as for images.
        activation: of the hidden layers, see `rlsurreal.models.mlp`.
        layer_norm: normalise before each activation of the hidden layers.
        encoder: see `ObservationEncoder`.
        recurrent: "lstm", "gru" or None.  Recurrent models see the previous action and reward, too.
        recurrent_size: outputs of the recurrent layer.
        dueling: values are ``V + advantage - mean advantage``, each with a hidden layer of its own (Wang et al. 2016,
            arXiv 1511.06581); with atoms or quantiles, for each of them.
        noisy: the layers of the head are `NoisyLinear`, as in Rainbow (Hessel et al. 2018, arXiv 1710.02298).
        noisy_std: see `NoisyLinear`.
        num_atoms: Z numbers for each action: logits of C51 (Bellemare et al. 2017, arXiv 1707.06887), or quantiles of
            QR-DQN (Dabney et al. 2018, arXiv 1710.10044): the agent's ``head`` says which.
        num_cosines: make it an implicit quantile network (Dabney et al. 2018, arXiv 1806.06923), which gives the
            quantiles ``taus`` of each action's return, embedded in that many cosines; 64 in the paper.
        normalize_observation: put a `RunningNorm` in front.
        precision: see `ActorCritic`.

    Attributes:
        recurrent: whether the model has state, and wants previous actions and rewards.
        normalizer: None without ``normalize_observation``.
        num_noise: standard normal numbers for each row; 0 without ``noisy``.
        num_atoms, num_cosines: as given.

    Raises:
        ValueError: an option is not known or out of range, an image does not suit its encoder, or both ``num_atoms``
            and ``num_cosines`` are given.
    """

    def __init__(
        self,
        observation_space: gym.Space,
        num_actions: int,
        *,
        hidden_sizes: Sequence[int] | None = None,
        activation: str = "relu",
        layer_norm: bool = False,
        encoder: Encoder = "auto",
        recurrent: Literal["lstm", "gru"] | None = None,
        recurrent_size: int = 512,
        dueling: bool = False,
        noisy: bool = False,
        noisy_std: float = 0.5,
        num_atoms: int | None = None,
        num_cosines: int | None = None,
        normalize_observation: bool = False,
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        check_precision(precision)
        _check_counts(num_actions, num_atoms, num_cosines)
        if noisy and noisy_std <= 0:
            raise ValueError(f"noisy_std is {noisy_std}; it must be positive (0.5 in the paper), or pass noisy=False")
        self.normalizer = RunningNorm(observation_space) if normalize_observation else None
        # What is dueling, noisy or implicit begins where the convolutions end.
        body = ObservationEncoder(observation_space, encoder, ends_in_convolutions=True)
        if hidden_sizes is None:
            hidden_sizes = (256, 256) if not body.num_images else (512,) if recurrent is None else (512, 512)
        self.trunk = Trunk(
            body,
            Categorical(num_actions),
            hidden_sizes[:-1],
            activation=activation,
            layer_norm=layer_norm,
            recurrent=recurrent,
            recurrent_size=recurrent_size,
        )
        init_uniform(self.trunk.mlp)
        features = self.trunk.out_features
        self.quantiles = None if num_cosines is None else _QuantileEmbedding(num_cosines, features)
        make_stream = partial(
            _Stream,
            features,
            hidden_sizes[-1:],
            activation=activation,
            layer_norm=layer_norm,
            noisy_std=noisy_std if noisy else None,
        )
        self.action_stream = make_stream(num_actions * (num_atoms or 1))
        self.value_stream = make_stream(num_atoms or 1) if dueling else None
        streams = [self.action_stream, *([self.value_stream] if self.value_stream is not None else [])]
        self._noise_sizes = [stream.num_noise for stream in streams]
        self.num_noise = sum(self._noise_sizes)
        self.num_actions, self.num_atoms, self.num_cosines = num_actions, num_atoms, num_cosines
        self.recurrent = recurrent is not None
        self.precision: Precision = precision

    def initial_state(self, num_envs: int) -> Tree:
        """The null state, tensors ``[num_envs, ...]``, or None for models that are not recurrent."""
        return self.trunk.initial_state(num_envs)

    def forward(
        self,
        inputs: AgentInputs,
        state: Tree = None,
        first: Tensor | None = None,
        noise: Tensor | None = None,
        taus: Tensor | None = None,
    ) -> tuple[Tensor, Tree]:
        """Values float32 ``[..., A]``, or ``[..., A, Z]`` with atoms, or ``[..., A, N]`` with ``taus``; the next state.

        Args:
            inputs: ``[B]``, or ``[T, B]`` with ``first``; not normalised.
            state: before the (first) row; see `initial_state`.
            first: bool ``[T, B]``: the state is null before this row.
            noise: float32 ``[..., num_noise]``, standard normal; leading dimensions of 1 are broadcast, so that rows
                share their noise.  None: the mean weights of noisy layers.
            taus: float32 ``[..., N]``, in [0, 1], for implicit quantile networks only.  None: the middles of 32 equal
                parts of [0, 1] (the paper draws 32 at random to act).
        """
        assert taus is None or self.quantiles is not None, "taus are for networks with num_cosines"
        inputs = normalized(inputs, self.normalizer)
        with computing_in(self.precision, inputs.observation):
            features, state = self.trunk(inputs, state, first)
            if self.quantiles is None:
                return self._values(features, noise), state
            features = features.unsqueeze(-2) * self.quantiles(taus)
            noise = None if noise is None else noise.unsqueeze(-2)  # one draw of the weights for all quantiles of a row
            return self._values(features, noise).transpose(-1, -2), state

    def _values(self, features: Tensor, noise: Tensor | None) -> Tensor:
        noises: Any = (None, None)
        if noise is not None and self.num_noise:
            noises = noise.split(self._noise_sizes, -1)
        shape = (self.num_actions, self.num_atoms or 1)
        values: Tensor = self.action_stream(features, noises[0]).unflatten(-1, shape)
        if self.value_stream is not None:
            common = self.value_stream(features, noises[1]).unsqueeze(-2)
            values = common + values - values.mean(-2, keepdim=True)
        return values if self.num_atoms is not None else values.squeeze(-1)


class _Stream(nn.Module):
    """The layers of a head, plain or noisy: linear ones with activations between them, and none after the last."""

    def __init__(
        self,
        in_features: int,
        hidden_sizes: Sequence[int],
        out_features: int,
        *,
        activation: str,
        layer_norm: bool,
        noisy_std: float | None,
    ) -> None:
        super().__init__()
        make: Any = nn.Linear if noisy_std is None else partial(NoisyLinear, std=noisy_std)
        sizes = [in_features, *hidden_sizes, out_features]
        self.layers = nn.ModuleList(make(*pair) for pair in itertools.pairwise(sizes))
        self.norms = nn.ModuleList(nn.LayerNorm(size) for size in hidden_sizes) if layer_norm else None
        self.activation = activation
        self._noise_sizes = [0 if noisy_std is None else sum(pair) for pair in itertools.pairwise(sizes)]
        self.num_noise = sum(self._noise_sizes)

    def forward(self, x: Tensor, noise: Tensor | None) -> Tensor:
        """float32 ``[..., out_features]`` from ``[..., in_features]`` and noise ``[..., num_noise]``."""
        noises = None if noise is None else noise.split(self._noise_sizes, -1)
        for i, layer in enumerate(self.layers):
            if i > 0:
                x = ACTIVATIONS[self.activation](x if self.norms is None else self.norms[i - 1](x))
            noise_of_layer = () if noises is None else (noises[i],)
            x = in_float32(layer, x, *noise_of_layer) if i == len(self.layers) - 1 else layer(x, *noise_of_layer)
        return x


class _QuantileEmbedding(nn.Module):
    """Probabilities as factors of features: ``relu(W cos(pi i tau) + b)``, i = 0, 1, ... (equation 4 of the paper)."""

    frequencies: Tensor
    middles: Tensor

    def __init__(self, num_cosines: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_cosines, out_features)
        self.register_buffer("frequencies", math.pi * torch.arange(num_cosines), persistent=False)
        self.register_buffer("middles", (torch.arange(_NUM_TAUS) + 0.5) / _NUM_TAUS, persistent=False)

    def forward(self, taus: Tensor | None) -> Tensor:
        """``[..., N, out_features]`` from ``[..., N]``."""
        taus = self.middles if taus is None else taus
        return torch.relu(self.linear(torch.cos(taus.unsqueeze(-1) * self.frequencies)))


def _check_counts(num_actions: int, num_atoms: int | None, num_cosines: int | None) -> None:
    for name, count in (("num_actions", num_actions), ("num_atoms", num_atoms), ("num_cosines", num_cosines)):
        if count is not None and count < 1:
            raise ValueError(f"{name} is {count}; it must be at least 1{'' if name == 'num_actions' else ', or None'}")
    if num_atoms is not None and num_cosines is not None:
        raise ValueError(
            f"num_atoms is {num_atoms} and num_cosines {num_cosines}; the one gives fixed atoms, the other implicit "
            "quantiles: leave one out"
        )
