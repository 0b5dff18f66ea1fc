"""What complete models have in common: all layers but the heads, and the precision.

Called by `actor_critic`, `q_network`, `critics` and `policies`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rlsurreal.distributions import Distribution
from rlsurreal.models.encoders import ObservationEncoder
from rlsurreal.models.mlp import Mlp
from rlsurreal.models.normalizers import RunningNorm
from rlsurreal.models.recurrent import Recurrent, RecurrentState
from rlsurreal.structs import AgentInputs
from rlsurreal.utils.namedarraytuple import Tree, leaves

Precision = Literal["float32", "bfloat16"]

_NOTHING = nullcontext()


class Trunk(nn.Module):
    """Encoder, hidden layers, and a recurrent layer, if asked for, that sees the previous action and reward, too.

    Args:
        encoder: of the observations.
        distribution: of the actions, or any that encodes them.
        hidden_sizes: of the layers after the encoder.
        activation, layer_norm: see `Mlp`.
        recurrent: "lstm", "gru" or None.
        recurrent_size: outputs of the recurrent layer.

    Attributes:
        out_features: length of the output's last dimension.
    """

    def __init__(
        self,
        encoder: ObservationEncoder,
        distribution: Distribution,
        hidden_sizes: Sequence[int],
        *,
        activation: str,
        layer_norm: bool,
        recurrent: Literal["lstm", "gru"] | None,
        recurrent_size: int,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.mlp = Mlp(encoder.out_features, hidden_sizes, activation=activation, layer_norm=layer_norm)
        self.out_features = self.mlp.out_features
        self.distribution = distribution
        self.recurrent = None
        if recurrent is not None:
            num_inputs = self.mlp.out_features + distribution.num_encoded + 1
            self.recurrent = Recurrent(recurrent, num_inputs, recurrent_size)
            self.out_features = recurrent_size

    def initial_state(self, num_envs: int) -> RecurrentState | None:
        """The null state, tensors ``[num_envs, recurrent_size]``, or None."""
        return None if self.recurrent is None else self.recurrent.initial_state(num_envs)

    def forward(
        self, inputs: AgentInputs, state: RecurrentState | None, first: Tensor | None
    ) -> tuple[Tensor, RecurrentState | None]:
        """Features ``[..., out_features]`` and the next state; arguments as in `ActorCritic.forward`."""
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


def init_uniform(module: nn.Module) -> None:
    """Draw weights and biases of all linear layers from U(-1/sqrt(n), 1/sqrt(n)), n their inputs, in place.

    It is PyTorch's own rule (LeCun et al. 1998).  Models of the off-policy families begin so after their encoder: it is
    what the published results of DQN, DDPG, TD3 and SAC were made with, and what noisy layers prescribe.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()


def check_precision(precision: str) -> None:
    """Raises ValueError where it is not one of `Precision`."""
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision is {precision!r}; choose 'float32' or 'bfloat16'")


def computing_in(precision: Precision, observation: Tree) -> AbstractContextManager[Any]:
    """The context in which convolutions and linear layers compute in ``precision``, where ``observation`` is."""
    if precision == "float32":
        return _NOTHING
    return torch.autocast(leaves(observation)[0].device.type, torch.bfloat16)


def in_float32(layer: Any, x: Tensor, *others: Tensor) -> Tensor:
    """``layer(x)``, without `computing_in`: eight bits are too few for values of hundreds, and for small ratios."""
    if not torch.is_autocast_enabled(x.device.type):
        found: Tensor = layer(x, *others)
        return found
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.float(), *others)  # type: ignore[no-any-return]


def normalized(inputs: AgentInputs, normalizer: RunningNorm | None) -> AgentInputs:
    """``inputs`` with the observation normalised."""
    if normalizer is None:
        return inputs
    return AgentInputs(normalizer(inputs.observation), inputs.prev_action, inputs.prev_reward)
