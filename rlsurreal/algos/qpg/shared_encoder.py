"""A policy that sees through its critics' encoder of images.  Used by the families of DDPG and SAC."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class SharedEncoder:
    """Gives a policy the encoder of its critics, which only their loss trains (Fan et al. 2018, SURREAL, CoRL).

    What the critics learn to see is what values depend on; the policy's gradients would pull it elsewhere (Yarats et
    al. 2021, arXiv 1910.01741).  The policy has a copy, so that it can act without the critics.

    Raises:
        ValueError: there is no encoder to share.
    """

    def __init__(self, policy: nn.Module, critics: nn.Module, algo: str) -> None:
        own: Any = getattr(getattr(policy, "trunk", None), "encoder", None)
        theirs: Any = getattr(critics, "encoder", None)
        shapes = [
            None if encoder is None else [tuple(parameter.shape) for parameter in encoder.parameters()]
            for encoder in (own, theirs)
        ]
        if not shapes[0] or shapes[0] != shapes[1]:
            raise ValueError(
                f"{algo}.share_encoder is True, and the encoders of policy and critics have parameters of shapes "
                f"{shapes[0]} and {shapes[1]}; give both the same encoder of images, or leave it out"
            )
        own.requires_grad_(False)
        self._own, self._theirs = list(own.parameters()), list(theirs.parameters())
        self.follow()

    @torch.no_grad()
    def follow(self) -> None:
        """Copy what the critics have learned."""
        for own, theirs in zip(self._own, self._theirs):
            own.copy_(theirs)

    @staticmethod
    def tie(policy: Any, critics: Any) -> None:
        """Let target networks, of which none is trained, have one encoder."""
        policy.trunk.encoder = critics.encoder
