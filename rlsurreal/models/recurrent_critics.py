"""Values of actions after what has been seen so far: critics with a memory.  Built by `RecurrentSAC`.

To use a model of your own, name any `torch.nn.Module` class with this constructor and these members:

    class MyModel(nn.Module):
        normalizer: RunningNorm | None      # updated by the algorithm; may be left out
        num_noise = 0
        num_critics: int                    # K

        def __init__(self, observation_space, action_space, **your_own_arguments): ...
        def initial_state(self, num_envs): ...              # a structure of [num_envs, ...] tensors
        def remember(self, inputs, state, first): ...       # -> features [T, N, ...], state
        def forward(self, features, action): ...            # -> values [K, T, N]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import gymnasium as gym
import numpy as np
from torch import Tensor, nn

from rlsurreal.distributions import make_distribution
from rlsurreal.models.critics import CriticEnsemble
from rlsurreal.models.encoders import Encoder, ObservationEncoder
from rlsurreal.models.normalizers import RunningNorm
from rlsurreal.models.recurrent import RecurrentState
from rlsurreal.models.trunk import Trunk, init_uniform, normalized
from rlsurreal.structs import AgentInputs
from rlsurreal.utils.namedarraytuple import Tree


class RecurrentCritics(nn.Module):
    """One memory of observations, previous actions and rewards, and on top of it K critics of actions.

    Args:
        observation_space: `Spaces.observation`.
        action_space: `Spaces.action`.
        num_critics: K.
        recurrent: "lstm" or "gru".
        recurrent_size: outputs of the recurrent layer.
        encoder_sizes: of the layers before it.
        hidden_sizes: of the critics' layers after it, where the action comes in.
        activation: of these layers, see `rlsurreal.models.mlp`.
        layer_norm: normalise before each activation.
        encoder: see `ObservationEncoder`.
        normalize_observation: put a `RunningNorm` in front.

    Attributes:
        normalizer: None without ``normalize_observation``.
        num_critics: as given.

    Raises:
        ValueError: an option is not known or out of range, or an image does not suit its encoder.
    """

    num_noise = 0

    def __init__(
        self,
        observation_space: gym.Space,
        action_space: gym.Space,
        num_critics: int = 2,
        *,
        recurrent: Literal["lstm", "gru"] = "lstm",
        recurrent_size: int = 256,
        encoder_sizes: Sequence[int] = (256,),
        hidden_sizes: Sequence[int] = (256,),
        activation: str = "relu",
        layer_norm: bool = False,
        encoder: Encoder = "auto",
        normalize_observation: bool = False,
    ) -> None:
        super().__init__()
        self.normalizer = RunningNorm(observation_space) if normalize_observation else None
        layers = {"activation": activation, "layer_norm": layer_norm}
        self.trunk = Trunk(
            ObservationEncoder(observation_space, encoder),
            make_distribution(action_space),
            encoder_sizes,
            recurrent=recurrent,
            recurrent_size=recurrent_size,
            **layers,  # type: ignore[arg-type]
        )
        init_uniform(self.trunk.mlp)
        features = gym.spaces.Box(-np.inf, np.inf, (recurrent_size,), np.float32)
        self.critics = CriticEnsemble(features, action_space, num_critics, hidden_sizes=hidden_sizes, **layers)  # type: ignore[arg-type]
        self.num_critics = num_critics

    def initial_state(self, num_envs: int) -> RecurrentState | None:
        """The null state, tensors ``[num_envs, recurrent_size]``."""
        return self.trunk.initial_state(num_envs)

    def remember(
        self, inputs: AgentInputs, state: RecurrentState | None, first: Tensor
    ) -> tuple[Tensor, RecurrentState | None]:
        """What is remembered after each row, float32 ``[T, N, recurrent_size]``, and the next state.

        Arguments as in `ActorCritic.forward`, for sequences.
        """
        features, state = self.trunk(normalized(inputs, self.normalizer), state, first)
        return features, state

    def forward(self, features: Tensor, action: Tree) -> Tensor:
        """Values float32 ``[K, T, N]`` of actions, leaves ``[T, N, *shape]``, after what `remember` gave."""
        values: Tensor = self.critics(features, action)
        return values
