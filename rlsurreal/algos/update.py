"""From a loss to new parameters: gradients, reduction over ranks, clipping, one optimizer step.

Called by every algorithm; the reduction is the identity on one rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]


class GradientStep:
    """Owns the optimizer of one set of parameters."""

    def __init__(
        self, parameters: Iterable[Tensor], *, max_grad_norm: float, eps: float = 1e-5, reduce: Reduce | None = None
    ) -> None:
        """``reduce``: maps a gradient to its sum over ranks; None: there is one rank."""
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr=0.0, eps=eps, fused=True)
        self._max_grad_norm = max_grad_norm
        self._reduce = reduce

    def __call__(self, loss: Tensor, learning_rate: float) -> Tensor:
        """One step down the gradient of ``loss``; the gradient's norm before clipping, on the device."""
        for parameter in self.parameters:
            parameter.grad = None
        loss.backward()
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if self._reduce is not None:
            torch._foreach_copy_(gradients, [self._reduce(gradient) for gradient in gradients])
        norm = torch.nn.utils.get_total_norm(gradients)
        torch._foreach_mul_(gradients, (self._max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.step()
        return norm.detach()
