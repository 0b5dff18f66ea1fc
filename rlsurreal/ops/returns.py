"""Returns and advantages of on-policy slots.  Called by the policy-gradient algorithms, once or a few times per slot.

All functions take ``[T, B]`` rows, and values ``[T+1, B]`` whose row ``t+1`` belongs to the observation after row
``t``: with next-step reset that holds even where row ``t`` ended an episode.  They share these rules:

- The value of the next observation counts as 0 where ``terminated`` (which wins where ``truncated`` is set, too).
- Nothing is carried back over ``terminated | truncated`` or over the border to a row that is not ``valid``; there the
  return bootstraps from ``value[t+1]`` (0 if terminated).
- Rows that are not ``valid`` have advantage 0 and target ``value[t]``.  Masking is by ``torch.where``: whatever reward,
  value or flags they hold, NaN included, reaches no other row.  The one exception is meant: ``value[t+1]`` of a row
  that is not valid is what its valid predecessor bootstraps from, if that was cut off.

Whether row ``T`` is valid does not matter: nothing is carried back from it, only ``value[T]``.
"""

from __future__ import annotations

import torch
from torch import Tensor


def generalized_advantage_estimation(
    reward: Tensor,
    value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    valid: Tensor,
    *,
    discount: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Advantages and value targets, GAE(lambda) (Schulman et al. 2016, arXiv 1506.02438).

        delta_t = r_t + discount * V_tp1 - V_t
        A_t     = delta_t + discount * gae_lambda * A_tp1        (A_tp1 = 0 where nothing is carried)
        target  = A + V

    Args:
        reward: float ``[T, B]``.
        value: float ``[T+1, B]``.
        terminated, truncated, valid: bool ``[T, B]``.
        discount, gae_lambda: factors per row, in [0, 1].

    Returns:
        Advantage and target, ``[T, B]`` each.
    """
    value_t = value[:-1]
    delta = torch.where(valid, reward + discount * _next_value(value, terminated) - value_t, 0.0)
    decay = _carries(terminated, truncated, valid).to(delta.dtype) * (discount * gae_lambda)
    advantage = reverse_scan(delta, decay)
    return advantage, advantage + value_t


def n_step_return(
    reward: Tensor,
    value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    valid: Tensor,
    *,
    discount: float,
    num_steps: int,
) -> Tensor:
    """Discounted rewards of ``num_steps`` rows, then the discounted value; shorter at an episode's or the slot's end.

        G(1)_t = r_t + discount * V_tp1
        G(n)_t = r_t + discount * G(n-1)_tp1                     (V_tp1 in place of G(n-1)_tp1 where nothing is carried)

    Arguments as in `generalized_advantage_estimation`.

    Returns:
        float ``[T, B]``; ``value[t]`` in rows that are not valid.

    Raises:
        ValueError: ``num_steps`` is below 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; an n-step return needs at least 1 step")
    carries = _carries(terminated, truncated, valid)
    next_value = _next_value(value, terminated)
    returns = value
    for _ in range(min(num_steps, len(reward))):
        step = reward + discount * torch.where(carries, returns[1:], next_value)
        returns = torch.cat([torch.where(valid, step, value[:-1]), value[-1:]])
    return returns[:-1]


def reverse_scan(step: Tensor, decay: Tensor) -> Tensor:
    """``y_t = step_t + decay_t * y_tp1`` over the first dimension, from its end; ``decay`` of the last row is not used.

    Computed by doubling (Hillis and Steele 1986): after pass ``k`` every row holds the sum of ``2^k`` terms, so ``log2
    T`` passes over whole arrays replace ``T`` steps.  There is no control flow on data, so it runs under torch.compile
    and without waiting on an accelerator, and it rounds less than the loop does.  On one CPU core ``[2048, 16]`` takes
    0.13 ms; a loop over rows in numpy takes 0.93 ms, in torch 6.5 ms (``[128, 16]``: 0.05, 0.06 and 0.24 ms).

    Args:
        step: float ``[T, ...]``.
        decay: the same shape and type, finite.
    """
    total = step.clone()
    factor, span = decay[:-1], 1  # factor[t]: the part of row t + span in row t; none for rows that would pass the end
    while span < len(step):
        total[:-span] += factor * total[span:]  # the product is complete before any row is written
        factor = factor[:-span] * factor[span:]
        span *= 2
    return total


def _next_value(value: Tensor, terminated: Tensor) -> Tensor:
    return torch.where(terminated, 0.0, value[1:])


def _carries(terminated: Tensor, truncated: Tensor, valid: Tensor) -> Tensor:
    """Where the return of row t continues with that of row t+1.

    The border to a row that is not valid needs no mask: that row's advantage is 0 and its return is its value, so
    carrying them back is bootstrapping.
    """
    return valid & ~(terminated | truncated)
