"""Whole numbers as features.  Called by distributions (previous actions) and by models (discrete observations)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def one_hot(index: Tensor, num_classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """1 at ``index`` and 0 elsewhere, ``[..., num_classes]``, from an integer tensor ``[...]``.

    `torch.nn.functional.one_hot` reads the largest index back to the host to check it, and gives int64.
    """
    zeros = torch.zeros((*index.shape, num_classes), dtype=dtype, device=index.device)
    return zeros.scatter_(-1, index.unsqueeze(-1), 1)


def one_hot_factors(index: Tensor, sizes: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """One-hot codes side by side, ``[..., sum(sizes)]``, of an integer tensor ``[..., len(sizes)]``."""
    if min(sizes) == max(sizes):
        return one_hot(index, sizes[0], dtype).flatten(-2)
    return torch.cat([one_hot(column, size, dtype) for column, size in zip(index.unbind(-1), sizes)], -1)
