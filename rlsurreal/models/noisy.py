"""Linear layers whose weights are drawn anew for every row: exploration by noisy networks.  Called by `q_network`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NoisyLinear(nn.Module):
    """A linear layer with factorised Gaussian noise on its parameters (Fortunato et al. 2018, arXiv 1706.10295).

        weight = weight_mean + weight_std * (f(e_out) f(e_in)^T),   bias = bias_mean + bias_std * f(e_out)
        f(e) = sign(e) sqrt(|e|),   e_in, e_out standard normal

    As the noise of the weights has rank one, no weight matrix is ever drawn: one more linear layer computes the same,
    so each row can have noise of its own.

    Args:
        in_features, out_features: lengths of the input's and the output's last dimensions.
        std: sigma_0 of the paper: the standard deviations start at ``std / sqrt(in_features)``.

    Attributes:
        num_noise: standard normal numbers needed for one row.
    """

    def __init__(self, in_features: int, out_features: int, *, std: float) -> None:
        super().__init__()
        bound = in_features**-0.5
        self.weight_mean = nn.Parameter(torch.empty(out_features, in_features).uniform_(-bound, bound))
        self.bias_mean = nn.Parameter(torch.empty(out_features).uniform_(-bound, bound))
        self.weight_std = nn.Parameter(torch.full((out_features, in_features), std * bound))
        self.bias_std = nn.Parameter(torch.full((out_features,), std * bound))
        self.num_noise = in_features + out_features
        self._sizes = (in_features, out_features)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """``[..., out_features]`` from ``[..., in_features]``.

        Args:
            x: the input.
            noise: float32 ``[..., num_noise]``, standard normal; leading dimensions of 1 are broadcast, so that rows
                share their noise.  None: the mean parameters.
        """
        mean: Tensor = F.linear(x, self.weight_mean, self.bias_mean)
        if noise is None:
            return mean
        f_in, f_out = (noise.sign() * noise.abs().sqrt()).split(self._sizes, -1)
        noisy: Tensor = f_out * F.linear(f_in * x, self.weight_std, self.bias_std)
        return mean + noisy
