"""Losses and statistics over the valid rows of a batch.  Called by the algorithms' updates.

Batches keep all rows and mask (see `rlsurreal.structs`).  A loss is the sum over valid rows divided by the number of
valid rows; with several ranks that number is counted over all of them and handed in as ``num_valid``.  Masking is by
``torch.where``, on results, and on what gradients flow back to: a NaN or infinity in a masked row reaches neither the
loss nor its gradient.  (A NaN *observation* is beyond this module's reach: a network's weights would get the gradient
0 * NaN.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rlsurreal.utils.namedarraytuple import NamedArrayTuple


class PolicyLoss(NamedArrayTuple):
    """A policy loss, and what tells how far the policy has moved; all scalars, on the device."""

    loss: Tensor
    approx_kl: Tensor  # estimate of KL(old || new), detached
    clip_fraction: Tensor  # part of the valid rows whose ratio is outside the clip range, detached


class Moments(NamedArrayTuple):
    """Number of rows, and mean and variance (of the population) over them."""

    num_rows: Tensor  # []
    mean: Tensor
    variance: Tensor


def identity(sums: Tensor) -> Tensor:
    """The sum over ranks where there is one rank."""
    return sums


def masked_mean(x: Tensor, valid: Tensor, num_valid: Tensor | None = None) -> Tensor:
    """Sum of ``x`` over the ``valid`` entries / max(1, ``num_valid``), a scalar.

    Args:
        x: float, any shape.
        valid: bool, the shape of ``x``.
        num_valid: what to divide by, a scalar; None: the number of ``valid`` entries.
    """
    count = valid.sum() if num_valid is None else num_valid
    return torch.where(valid, x, 0.0).sum() / count.clamp(min=1)


def ppo_clip_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    valid: Tensor,
    *,
    clip_range: Tensor | float,
    num_valid: Tensor | None = None,
) -> PolicyLoss:
    """PPO's clipped surrogate, negated (Schulman et al. 2017, arXiv 1707.06347).

        ratio = exp(log_prob - old_log_prob)
        loss  = - mean( min( ratio * A, clip(ratio, 1 - clip_range, 1 + clip_range) * A ) )

    Args:
        log_prob: of the recorded actions under the present policy; any shape.
        old_log_prob, advantage: float, the same shape; constants.
        valid: bool, the same shape.
        clip_range: a tensor if it changes during training (a changing Python float recompiles a compiled loss).
        num_valid: see `masked_mean`.

    Returns:
        The loss; ``approx_kl`` is the mean of ``(ratio - 1) - log ratio``, unbiased and never negative.
    """
    log_ratio = torch.where(valid, log_prob - old_log_prob, 0.0)
    ratio = log_ratio.exp()
    clipped = torch.clamp(ratio, 1 - clip_range, 1 + clip_range)  # type: ignore[arg-type]  # two numbers or two tensors
    loss = masked_mean(-torch.minimum(ratio * advantage, clipped * advantage), valid, num_valid)
    with torch.no_grad():
        approx_kl = masked_mean(ratio - 1 - log_ratio, valid, num_valid)
        clip_fraction = masked_mean(((ratio - 1).abs() > clip_range).to(ratio.dtype), valid, num_valid)
    return PolicyLoss(loss, approx_kl, clip_fraction)


def value_loss(
    value: Tensor,
    target: Tensor,
    valid: Tensor,
    *,
    old_value: Tensor | None = None,
    clip_range: Tensor | float | None = None,
    num_valid: Tensor | None = None,
) -> Tensor:
    """Half the mean squared error; with ``clip_range``, PPO's pessimistic one, a scalar.

        loss = mean( max( (V - target)^2, (old_V + clip(V - old_V, -clip_range, clip_range) - target)^2 ) ) / 2

    Args:
        value: float, any shape.
        target, old_value: float, the same shape; constants.  ``old_value`` is needed with ``clip_range`` only.
        valid: bool, the same shape.
        clip_range: in units of the value; a tensor if it changes during training.
        num_valid: see `masked_mean`.

    Raises:
        ValueError: ``clip_range`` without ``old_value``.
    """
    value = torch.where(valid, value, 0.0)
    squared = (value - target).square()
    if clip_range is not None:
        if old_value is None:
            raise ValueError("value_loss has a clip_range but no old_value; pass the values recorded with the actions")
        clipped = old_value + torch.clamp(value - old_value, -clip_range, clip_range)  # type: ignore[arg-type]
        squared = torch.maximum(squared, (clipped - target).square())
    return 0.5 * masked_mean(squared, valid, num_valid)


def masked_moments(x: Tensor, valid: Tensor, reduce: Callable[[Tensor], Tensor] = identity) -> Moments:
    """Count, mean and variance over the ``valid`` rows of all ranks; mean and variance are 0 where there are none.

    In two passes, so that a mean far from 0 costs no precision: squares are of differences from the mean.

    Args:
        x: float ``[*valid.shape, *feature]``; moments have shape ``feature``, and are computed in the type of ``x``.
        valid: bool ``[...]``.
        reduce: maps a tensor of sums to its sum over ranks (an all-reduce); called twice, on every rank.
    """
    leading = tuple(range(valid.dim()))
    feature = x.shape[valid.dim() :]
    mask = valid.reshape(valid.shape + (1,) * len(feature))
    x = torch.where(mask, x, 0.0)
    sums = reduce(torch.cat([valid.sum().to(x.dtype).reshape(1), x.sum(leading).flatten()]))
    num_rows = sums[0]
    divisor = num_rows.clamp(min=1)
    mean = (sums[1:] / divisor).reshape(feature)
    difference = torch.where(mask, x - mean, 0.0)
    sums = reduce(torch.cat([difference.sum(leading).flatten(), difference.square().sum(leading).flatten()]))
    shift, spread = (sums / divisor).reshape(2, *feature)  # shift: what rounding left of the mean
    return Moments(num_rows, mean + shift, (spread - shift.square()).clamp(min=0))


def masked_normalize(
    x: Tensor, valid: Tensor, reduce: Callable[[Tensor], Tensor] = identity, epsilon: float = 1e-8
) -> Tensor:
    """``(x - mean) / (std + epsilon)`` with moments over the valid rows of all ranks; 0 in the other rows.

    Args:
        x: float, any shape.
        valid: bool, the same shape.
        reduce: see `masked_moments`.
    """
    moments = masked_moments(x, valid, reduce)
    return torch.where(valid, (x - moments.mean) / (moments.variance.sqrt() + epsilon), 0.0)


def normalize_groups(
    x: Tensor,
    valid: Tensor,
    groups: Sequence[Tensor],
    reduce: Callable[[Tensor], Tensor] = identity,
    epsilon: float = 1e-8,
) -> Tensor:
    """`masked_normalize` within each of several groups of items, all at once.

    Args:
        x: float ``[N, ...]``: items.
        valid: bool, the same shape.
        groups: of items, by number, int64 ``[n]`` each; every item is in one of them.  Group g has its part of the
            items on every rank.
        reduce: see `masked_moments`.
    """
    num_items, width = len(x), max(len(group) for group in groups)
    if any(len(group) < width for group in groups):  # fill up with an item more, which is not valid
        groups = [F.pad(group, (0, width - len(group)), value=num_items) for group in groups]
        x, valid = (torch.cat([part, part.new_zeros(1, *part.shape[1:])]) for part in (x, valid))
    index = torch.stack(list(groups))
    mask = valid[index].flatten(1)
    parts = torch.where(mask, x[index].flatten(1), 0.0)
    sums = reduce(torch.stack([mask.sum(1).to(x.dtype), parts.sum(1)]))
    divisor = sums[0].clamp(min=1)
    mean = sums[1] / divisor
    difference = torch.where(mask, parts - mean.unsqueeze(1), 0.0)
    shift, spread = reduce(torch.stack([difference.sum(1), difference.square().sum(1)])) / divisor
    std = (spread - shift.square()).clamp(min=0).sqrt()
    normalized = torch.where(mask, (difference - shift.unsqueeze(1)) / (std + epsilon).unsqueeze(1), 0.0)
    found = torch.empty_like(x)
    found[index] = normalized.view(*index.shape, *x.shape[1:])
    return found[:num_items]


def explained_variance(
    value: Tensor, target: Tensor, valid: Tensor, reduce: Callable[[Tensor], Tensor] = identity
) -> Tensor:
    """``1 - Var(target - value) / Var(target)`` over valid rows, a scalar: 1 is perfect, 0 no better than a constant.

    0 where the target does not vary.  ``value``, ``target`` and ``valid`` have one shape; ``reduce``: see
    `masked_moments`.
    """
    total = masked_moments(target, valid, reduce).variance
    residual = masked_moments(target - value, valid, reduce).variance
    varies = total > 0
    return torch.where(varies, 1 - residual / torch.where(varies, total, 1.0), 0.0)
