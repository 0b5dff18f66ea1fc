"""Exploration by a policy with noise on its parameters.  Used by `policy.DeterministicAgent`, redrawn by DDPG."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlsurreal.ops.losses import identity
from rlsurreal.structs import AgentInputs
from rlsurreal.utils.namedarraytuple import Tree


@dataclass(kw_only=True, eq=False)
class ParameterNoise:
    """The acting policy is the learned one with noise on its weights (Plappert et al. 2018, arXiv 1706.01905).

    One noise holds for all environments of a rank until it is drawn anew, so that what is explored is consistent in
    time.  Where layers are normalised (``layer_norm``), they are alike sensitive to it; the normalisation itself gets
    none.
    """

    std: float = 0.1  # at first
    target_distance: float | None = 0.1  # adapt `std` until actions differ by so much, root mean square; None: fixed
    factor: float = 1.01  # by which `std` is adapted each time
    interval: int = 100  # updates from one noise to the next

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"ParameterNoise.std is {self.std}; it must be positive")
        if self.target_distance is not None and not self.target_distance > 0:
            raise ValueError(
                f"ParameterNoise.target_distance is {self.target_distance}; it must be positive, or None: a fixed std"
            )
        if not self.factor > 1:
            raise ValueError(f"ParameterNoise.factor is {self.factor}; it must be more than 1")
        if self.interval < 1:
            raise ValueError(f"ParameterNoise.interval is {self.interval}; it must be at least 1")

    def equip(self, module: nn.Module) -> None:
        """Give the policy a copy that acts, and the present standard deviation: published and saved with it."""
        module.add_module("explorer", copy.deepcopy(module).requires_grad_(False))
        module.register_buffer("parameter_std", torch.tensor(self.std))

    @torch.no_grad()
    def draw(
        self,
        module: Any,
        observation: Tree,
        generator: torch.Generator,
        mean: Callable[[Tensor], Tensor] = identity,
    ) -> None:
        """Draw new noise; adapt its size by what it does to the actions for ``observation`` ``[N]``.

        ``mean``: maps a tensor to its mean over ranks, whose noises differ in all but their size.
        """
        explorer, std = module.explorer, module.parameter_std
        noisy = _with_noise(explorer)
        for name, theirs in explorer.named_parameters():
            own = module.get_parameter(name)
            theirs.copy_(own)
            if name in noisy:
                theirs.add_(std * torch.randn(own.shape, generator=generator, device=own.device))
        for name, theirs in explorer.named_buffers():  # statistics of observations
            theirs.copy_(module.get_buffer(name))
        if self.target_distance is not None:
            inputs = AgentInputs(observation)
            difference: Tensor = explorer(inputs, None)[0] - module(inputs, None)[0]
            distance = mean(difference.square().mean()).sqrt()
            std.mul_(torch.where(distance < self.target_distance, self.factor, 1 / self.factor))


def _with_noise(module: nn.Module) -> set[str]:
    """Names of the parameters that get noise: all but those of normalisations."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, part in module.named_modules()
        if not isinstance(part, nn.LayerNorm)
        for name, _ in part.named_parameters(recurse=False)
    }
