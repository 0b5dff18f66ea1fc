"""Multi-layer perceptrons and weight initialisation.  Called by the other models."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "elu": F.elu,
    "silu": F.silu,
    "gelu": F.gelu,
    "leaky_relu": F.leaky_relu,
}
HIDDEN_GAIN = 2**0.5


def init_orthogonal(layer: nn.Linear | nn.Conv2d, gain: float) -> None:
    """Orthogonal weights (Saxe et al. 2014, arXiv 1312.6120), scaled by ``gain``, and biases 0, in place."""
    nn.init.orthogonal_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class Mlp(nn.Module):
    """Linear layers, each followed by layer normalisation, if asked for, and an activation.

    Args:
        in_features: length of the input's last dimension.
        hidden_sizes: outputs of each layer; without any the input is handed through.
        activation: one of `ACTIVATIONS`.
        layer_norm: normalise before each activation (Ba et al. 2016, arXiv 1607.06450).
        gain: of the orthogonal initialisation.

    Attributes:
        out_features: length of the output's last dimension.

    Raises:
        ValueError: the activation is not known.
    """

    def __init__(
        self,
        in_features: int,
        hidden_sizes: Sequence[int],
        *,
        activation: str = "tanh",
        layer_norm: bool = False,
        gain: float = HIDDEN_GAIN,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; use one of {', '.join(ACTIVATIONS)}")
        sizes = [in_features, *hidden_sizes]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(sizes))
        self.norms = nn.ModuleList(nn.LayerNorm(size) for size in hidden_sizes) if layer_norm else None
        layer: Any
        for layer in self.layers:
            init_orthogonal(layer, gain)
        self.activation = activation
        self.out_features = sizes[-1]

    def forward(self, x: Tensor) -> Tensor:
        """``[..., out_features]`` from ``[..., in_features]``."""
        activate = ACTIVATIONS[self.activation]
        layer: Any
        # Calling F.linear instead of the layer saves a quarter of the time at a few rows, where Python calls dominate.
        for i, layer in enumerate(self.layers):
            x = F.linear(x, layer.weight, layer.bias)
            if self.norms is not None:
                x = self.norms[i](x)
            x = activate(x)
        return x
