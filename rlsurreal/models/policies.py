"""Policies without values.  Built by agents of the families of DDPG and SAC.

To use a model of your own, name any `torch.nn.Module` class with this constructor and these members:

    class MyModel(nn.Module):
        recurrent: bool                     # whether there is state; then previous actions and rewards are given, too
        normalizer: RunningNorm | None      # updated by the algorithm; may be left out
        distribution: Distribution          # of the actions; stochastic policies only

        def __init__(self, observation_space, action_space, **your_own_arguments): ...
        def initial_state(self, num_envs): ...              # a structure of [num_envs, ...] tensors, or None
        def forward(self, inputs, state, first=None): ...   # -> action, state; stochastic policies: params, state

Arguments are as those of `rlsurreal.models.actor_critic`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces as gs
from torch import Tensor, nn

from rlsurreal.distributions import Gaussian
from rlsurreal.distributions.base import to_event
from rlsurreal.distributions.discrete import Categorical
from rlsurreal.models.encoders import Encoder, ObservationEncoder
from rlsurreal.models.normalizers import RunningNorm
from rlsurreal.models.trunk import Precision, Trunk, check_precision, computing_in, in_float32, init_uniform, normalized
from rlsurreal.structs import AgentInputs
from rlsurreal.utils.namedarraytuple import Tree

_MIN_LOG_STD, _MAX_LOG_STD = -20.0, 2.0  # as in the authors' program of SAC


class _Policy(nn.Module):
    """All of a policy but what its outputs mean: they are as many as its distribution has features."""

    distribution: Any
    _final_bound: float | None = None  # of the last layer's first weights, where they are not PyTorch's own

    def __init__(
        self,
        observation_space: gym.Space,
        action_space: gym.Space,
        *,
        hidden_sizes: Sequence[int] = (256, 256),
        activation: str = "relu",
        layer_norm: bool = False,
        encoder: Encoder = "auto",
        recurrent: Literal["lstm", "gru"] | None = None,
        recurrent_size: int = 256,
        normalize_observation: bool = False,
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        check_precision(precision)
        self.distribution = self._make_distribution(action_space)
        self.normalizer = RunningNorm(observation_space) if normalize_observation else None
        self.trunk = Trunk(
            ObservationEncoder(observation_space, encoder),
            self.distribution,
            hidden_sizes,
            activation=activation,
            layer_norm=layer_norm,
            recurrent=recurrent,
            recurrent_size=recurrent_size,
        )
        init_uniform(self.trunk.mlp)
        self.linear = nn.Linear(self.trunk.out_features, self.distribution.num_features)
        if self._final_bound is not None:
            for parameter in self.linear.parameters():
                nn.init.uniform_(parameter, -self._final_bound, self._final_bound)
        self.recurrent = recurrent is not None
        self.precision: Precision = precision

    @abstractmethod
    def _make_distribution(self, action_space: gym.Space) -> Gaussian | Categorical:
        """Of the actions.  ValueError: there is none for them."""

    def initial_state(self, num_envs: int) -> Tree:
        """The null state, tensors ``[num_envs, ...]``, or None for models that are not recurrent."""
        return self.trunk.initial_state(num_envs)

    def _outputs(self, inputs: AgentInputs, state: Tree, first: Tensor | None) -> tuple[Tensor, Tree]:
        inputs = normalized(inputs, self.normalizer)
        with computing_in(self.precision, inputs.observation):
            features, state = self.trunk(inputs, state, first)
            return in_float32(self.linear, features), state


class DeterministicPolicy(_Policy):
    """One action for each observation, bounded by tanh (DDPG: Lillicrap et al. 2016, arXiv 1509.02971; TD3; D4PG).

    The last layer starts near 0, so that the first actions are far from where tanh is flat.

    Args:
        observation_space: `Spaces.observation`.
        action_space: `Spaces.action`, a Box within [-1, 1].
        hidden_sizes: of the layers after the encoder.
        activation: of the hidden layers, see `rlsurreal.models.mlp`.
        layer_norm: normalise before each activation.
        encoder: see `ObservationEncoder`.
        recurrent: "lstm", "gru" or None.  Recurrent models see the previous action and reward, too; `RecurrentSAC`
            learns stochastic ones.
        recurrent_size: outputs of the recurrent layer.
        normalize_observation: put a `RunningNorm` in front.
        precision: see `ActorCritic`.

    Attributes:
        recurrent: whether the model has state, and wants previous actions and rewards.
        normalizer: None without ``normalize_observation``.

    Raises:
        ValueError: an option is not known, an image does not suit its encoder, or actions are not within [-1, 1].
    """

    _final_bound = 3e-3  # Lillicrap et al. 2016, section 7

    def _make_distribution(self, action_space: gym.Space) -> Gaussian:
        return Gaussian(_bounded_shape(action_space))

    def forward(self, inputs: AgentInputs, state: Tree = None, first: Tensor | None = None) -> tuple[Tensor, Tree]:
        """The action in [-1, 1], float32 ``[..., *shape]``, and the next state; arguments as in `ActorCritic`."""
        outputs, state = self._outputs(inputs, state, first)
        return to_event(outputs.tanh(), self.distribution.shape), state


class StochasticPolicy(_Policy):
    """A squashed Gaussian, mean and standard deviation both from the observation; a categorical for Discrete actions.

    SAC: Haarnoja et al. 2018, arXiv 1812.05905.  The logarithm of the standard deviation is bounded to [-20, 2].
    Arguments, attributes and errors are those of `DeterministicPolicy`, and one more:

    Attributes:
        distribution: whose parameters `forward` gives; draws actions and says how much noise that takes.
    """

    def _make_distribution(self, action_space: gym.Space) -> Gaussian | Categorical:
        if isinstance(action_space, gs.Discrete):
            return Categorical(int(action_space.n))
        bounds = {"min_std": math.exp(_MIN_LOG_STD), "max_std": math.exp(_MAX_LOG_STD)}
        return Gaussian(_bounded_shape(action_space), squash=True, std="state", **bounds)

    def forward(self, inputs: AgentInputs, state: Tree = None, first: Tensor | None = None) -> tuple[Tree, Tree]:
        """Parameters of `distribution` and the next state; arguments as in `ActorCritic`."""
        outputs, state = self._outputs(inputs, state, first)
        return self.distribution.params(outputs), state


def _bounded_shape(action_space: gym.Space) -> tuple[int, ...]:
    if isinstance(action_space, gs.Box) and np.all(action_space.low == -1) and np.all(action_space.high == 1):
        return tuple(action_space.shape)
    raise ValueError(
        f"action_space is {action_space}; this policy's actions are within [-1, 1] (the agent's side of a bounded "
        "box): bound them in the environment, or choose another model"
    )
