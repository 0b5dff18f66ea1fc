"""Policy and value networks in one model.  Built by on-policy agents.

To use a model of your own, name any `torch.nn.Module` class with this constructor and these methods:

    class MyModel(nn.Module):
        recurrent: bool                     # whether there is state; then previous actions and rewards are given, too
        normalizer: RunningNorm | None      # updated by the algorithm, once per slot; may be left out

        def __init__(self, observation_space, distribution, **your_own_arguments): ...
        def initial_state(self, num_envs): ...              # a structure of [num_envs, ...] tensors, or None
        def forward(self, inputs, state, first=None): ...   # -> (params, value), state
        def value(self, inputs, state, first=None): ...     # -> value

``inputs`` are `AgentInputs`; ``params`` are what ``distribution.params`` gives.  Without ``first`` the call is one
step, leading dimensions ``[B]``.  With ``first``, bool ``[T, B]``, it is a sequence, ``state`` is that before row 0,
and is to be null before every row where ``first`` is set.  Models that are not recurrent hand ``state`` through, and
take any leading dimensions.  The null previous action is zeros, which is action 0 where actions are whole numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import gymnasium as gym
from torch import Tensor, nn

from rlsurreal.distributions import Distribution
from rlsurreal.models.encoders import Encoder, ObservationEncoder
from rlsurreal.models.heads import PolicyHead, ValueHead
from rlsurreal.models.normalizers import RunningNorm
from rlsurreal.models.recurrent import RecurrentState
from rlsurreal.models.trunk import Precision, Trunk, check_precision, computing_in, normalized
from rlsurreal.structs import AgentInputs
from rlsurreal.utils.namedarraytuple import NamedArrayTuple, Tree


class ActorCriticState(NamedArrayTuple):
    """State of a recurrent model whose policy and value share nothing."""

    actor: RecurrentState
    critic: RecurrentState


class ActorCritic(nn.Module):
    """Encoder, hidden layers, recurrent layer if asked for, and heads for policy and value.

    Args:
        observation_space: `Spaces.observation`.
        distribution: of the actions.
        hidden_sizes: of the layers after the encoder.  None: (64, 64) for vectors, (256,) for images with vectors and
            after an encoder of your own, none for images alone, whose network ends in a wide layer of its own.
        activation: of the hidden layers, see `rlsurreal.models.mlp`.
        layer_norm: normalise before each activation of the hidden layers.
        encoder: see `ObservationEncoder`.
        recurrent: "lstm", "gru" or None.  Recurrent models see the previous action and reward, too.
        recurrent_size: outputs of the recurrent layer.
        shared: whether policy and value have all but their heads in common.  None: for images, encoders of your own and
            recurrent models.
        critic_hidden_sizes: of the value's own layers, if not shared.  None: as ``hidden_sizes``.
        normalize_observation: put a `RunningNorm` in front.
        precision: of convolutions and linear layers.  "bfloat16" (Kalamkar et al. 2019, arXiv 1905.12322) about
            halves the time of images on processors that have it; parameters, recurrent layers and results stay float32.

    Attributes:
        recurrent: whether the model has state, and wants previous actions and rewards.
        normalizer: None without ``normalize_observation``.

    Raises:
        ValueError: an option is not known, an image does not suit its encoder, or there are ``critic_hidden_sizes``
            but nothing of the value's own.
    """

    def __init__(
        self,
        observation_space: gym.Space,
        distribution: Distribution,
        *,
        hidden_sizes: Sequence[int] | None = None,
        activation: str = "tanh",
        layer_norm: bool = False,
        encoder: Encoder = "auto",
        recurrent: Literal["lstm", "gru"] | None = None,
        recurrent_size: int = 256,
        shared: bool | None = None,
        critic_hidden_sizes: Sequence[int] | None = None,
        normalize_observation: bool = False,
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        check_precision(precision)

        def make_trunk(sizes: Sequence[int] | None) -> Trunk:
            body = ObservationEncoder(observation_space, encoder)
            return Trunk(
                body,
                distribution,
                _default_sizes(body) if sizes is None else sizes,
                activation=activation,
                layer_norm=layer_norm,
                recurrent=recurrent,
                recurrent_size=recurrent_size,
            )

        self.normalizer = RunningNorm(observation_space) if normalize_observation else None
        self.actor = make_trunk(hidden_sizes)  # the value's, too, if shared
        self.shared = shared if shared is not None else recurrent is not None or self.actor.encoder.num_images > 0
        if self.shared and critic_hidden_sizes is not None:
            raise ValueError(
                f"critic_hidden_sizes is {tuple(critic_hidden_sizes)}, but policy and value share their "
                "layers; pass shared=False, or leave it out"
            )
        sizes = hidden_sizes if critic_hidden_sizes is None else critic_hidden_sizes
        self.critic = None if self.shared else make_trunk(sizes)
        self.policy_head = PolicyHead(distribution, self.actor.out_features)
        self.value_head = ValueHead((self.critic or self.actor).out_features)
        self.recurrent = recurrent is not None
        self.precision: Precision = precision

    def initial_state(self, num_envs: int) -> Tree:
        """The null state, tensors ``[num_envs, ...]``, or None for models that are not recurrent."""
        actor = self.actor.initial_state(num_envs)
        critic = None if self.critic is None else self.critic.initial_state(num_envs)
        return actor if actor is None or critic is None else ActorCriticState(actor, critic)

    def forward(
        self, inputs: AgentInputs, state: Tree = None, first: Tensor | None = None
    ) -> tuple[tuple[Tree, Tensor], Tree]:
        """The policy's parameters and the value, leading dimensions as in ``inputs``, and the next state.

        Args:
            inputs: ``[B]``, or ``[T, B]`` with ``first``; not normalised.
            state: before the (first) row; see `initial_state`.
            first: bool ``[T, B]``: the state is null before this row.
        """
        inputs = normalized(inputs, self.normalizer)
        with computing_in(self.precision, inputs.observation):
            return self._forward(inputs, state, first)

    def _forward(self, inputs: AgentInputs, state: Tree, first: Tensor | None) -> tuple[tuple[Tree, Tensor], Tree]:
        if self.critic is None:
            features, state = self.actor(inputs, state, first)
            return (self.policy_head(features), self.value_head(features)), state
        actor_state, critic_state = state if self.recurrent else (None, None)
        features, actor_state = self.actor(inputs, actor_state, first)
        critic_features, critic_state = self.critic(inputs, critic_state, first)
        if self.recurrent:
            state = ActorCriticState(actor_state, critic_state)
        return (self.policy_head(features), self.value_head(critic_features)), state

    def value(self, inputs: AgentInputs, state: Tree = None, first: Tensor | None = None) -> Tensor:
        """The value alone, ``[...]``; arguments as in `forward`."""
        inputs = normalized(inputs, self.normalizer)
        with computing_in(self.precision, inputs.observation):
            if self.critic is None:
                features, _ = self.actor(inputs, state, first)
            else:
                features, _ = self.critic(inputs, state.critic if self.recurrent else None, first)
            value: Tensor = self.value_head(features)
        return value


def _default_sizes(encoder: ObservationEncoder) -> tuple[int, ...]:
    if not encoder.num_images:
        return (64, 64)
    return (256,) if encoder.num_vectors else ()
