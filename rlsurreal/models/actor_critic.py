"""Policy and value networks in one model.  Built by on-policy agents.

To use a model of your own, name any `torch.nn.Module` class with this constructor and these methods:

    class MyModel(nn.Module):
        recurrent: bool                     # whether there is state; then previous actions and rewards are given, too
        normalizer: RunningNorm | None      # updated by the algorithm, once per slot

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
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import gymnasium as gym
import torch
from torch import Tensor, nn

from rlsurreal.distributions import Distribution
from rlsurreal.models.encoders import EncoderName, ObservationEncoder
from rlsurreal.models.heads import PolicyHead, ValueHead
from rlsurreal.models.mlp import Mlp
from rlsurreal.models.normalizers import RunningNorm
from rlsurreal.models.recurrent import Recurrent, RecurrentState
from rlsurreal.structs import AgentInputs
from rlsurreal.utils.namedarraytuple import NamedArrayTuple, Tree

_NOTHING = nullcontext()


class ActorCriticState(NamedArrayTuple):
    """State of a recurrent model whose policy and value share nothing."""

    actor: RecurrentState
    critic: RecurrentState


class ActorCritic(nn.Module):
    """Encoder, hidden layers, recurrent layer if asked for, and heads for policy and value.

    Args:
        observation_space: `Spaces.observation`.
        distribution: of the actions.
        hidden_sizes: of the layers after the encoder.  None: (64, 64) for vectors, (256,) for images with vectors, none
            for images alone, whose network ends in a wide layer of its own.
        activation: of the hidden layers, see `rlsurreal.models.mlp`.
        layer_norm: normalise before each activation of the hidden layers.
        encoder: see `ObservationEncoder`.
        recurrent: "lstm", "gru" or None.  Recurrent models see the previous action and reward, too.
        recurrent_size: outputs of the recurrent layer.
        shared: whether policy and value have all but their heads in common.  None: for images and recurrent models.
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
        encoder: EncoderName = "auto",
        recurrent: Literal["lstm", "gru"] | None = None,
        recurrent_size: int = 256,
        shared: bool | None = None,
        critic_hidden_sizes: Sequence[int] | None = None,
        normalize_observation: bool = False,
        precision: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        super().__init__()
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision is {precision!r}; choose 'float32' or 'bfloat16'")

        def make_trunk(sizes: Sequence[int] | None) -> _Trunk:
            options = (activation, layer_norm, encoder, recurrent, recurrent_size)
            return _Trunk(observation_space, distribution, sizes, *options)

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
        self.precision = precision

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
        inputs = self._normalized(inputs)
        with self._autocast():
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
        inputs = self._normalized(inputs)
        with self._autocast():
            if self.critic is None:
                features, _ = self.actor(inputs, state, first)
            else:
                features, _ = self.critic(inputs, state.critic if self.recurrent else None, first)
            value: Tensor = self.value_head(features)
        return value

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "float32":
            return _NOTHING
        return torch.autocast(self.value_head.linear.weight.device.type, torch.bfloat16)

    def _normalized(self, inputs: AgentInputs) -> AgentInputs:
        if self.normalizer is None:
            return inputs
        return AgentInputs(self.normalizer(inputs.observation), inputs.prev_action, inputs.prev_reward)


class _Trunk(nn.Module):
    """All layers but the heads."""

    def __init__(
        self,
        observation_space: gym.Space,
        distribution: Distribution,
        hidden_sizes: Sequence[int] | None,
        activation: str,
        layer_norm: bool,
        encoder: EncoderName,
        recurrent: Literal["lstm", "gru"] | None,
        recurrent_size: int,
    ) -> None:
        super().__init__()
        self.encoder = ObservationEncoder(observation_space, encoder)
        if hidden_sizes is None:
            hidden_sizes = (64, 64) if not self.encoder.num_images else (256,) if self.encoder.num_vectors else ()
        self.mlp = Mlp(self.encoder.out_features, hidden_sizes, activation=activation, layer_norm=layer_norm)
        self.out_features = self.mlp.out_features
        self.distribution = distribution
        self.recurrent = None
        if recurrent is not None:
            num_inputs = self.mlp.out_features + distribution.num_encoded + 1
            self.recurrent = Recurrent(recurrent, num_inputs, recurrent_size)
            self.out_features = recurrent_size

    def initial_state(self, num_envs: int) -> RecurrentState | None:
        return None if self.recurrent is None else self.recurrent.initial_state(num_envs)

    def forward(
        self, inputs: AgentInputs, state: RecurrentState | None, first: Tensor | None
    ) -> tuple[Tensor, RecurrentState | None]:
        features = self.mlp(self.encoder(inputs.observation))
        if self.recurrent is None:
            return features, state
        assert state is not None and inputs.prev_action is not None, "recurrent: needs state, prev_action, prev_reward"
        previous = self.distribution.encode(inputs.prev_action)
        features = torch.cat([features.float(), previous, inputs.prev_reward.unsqueeze(-1)], -1)
        with torch.autocast(features.device.type, enabled=False):  # rounding adds up over a sequence
            if first is None:
                return self.recurrent.step(features, state)
            return self.recurrent.sequence(features, state, first)
