"""Maths of learning action values from replay.  Called by the DQN and Q-function policy-gradient algorithms.

Targets are constants: compute them under ``torch.no_grad()``.  What depends on numbers that are not valid (a NaN, say)
must be masked before it enters a loss, not only after: the derivative of a loss at NaN is NaN, and 0 * NaN is NaN.  So
``td_error = torch.where(valid, value - target, 0.0)`` comes first, `weighted_masked_mean` last.

Losses and targets over distributions of returns are in `rlsurreal.ops.distributional`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlsurreal.ops.losses import masked_mean
from rlsurreal.ops.returns import n_step_return

# ---------------------------------------------------------------- the scale of values


def value_rescale(x: Tensor, epsilon: float = 1e-3) -> Tensor:
    """Squash values, so that one learning rate suits all scales of reward (Pohlen et al. 2018, arXiv 1805.11593).

        h(x) = sign(x) (sqrt(|x| + 1) - 1) + epsilon x
             = x / (sqrt(|x| + 1) + 1) + epsilon x

    The second form is what is computed: the first loses all digits of a small ``x``.

    Args:
        x: float, any shape, in units of reward.
        epsilon: at least 0; above 0 the inverse has a bounded slope.
    """
    return x * (1 / ((x.abs() + 1).sqrt() + 1) + epsilon)


def value_unscale(y: Tensor, epsilon: float = 1e-3) -> Tensor:
    """The inverse of `value_rescale`, in units of reward.

        z = sqrt(|x| + 1) - 1  solves  |y| = epsilon z^2 + (1 + 2 epsilon) z,  so
        z = 2 |y| / (1 + 2 epsilon + sqrt((1 + 2 epsilon)^2 + 4 epsilon |y|))
        h^-1(y) = sign(y) z (z + 2)

    The form in the paper, sign(y) (((sqrt(1 + 4 epsilon (|y| + 1 + epsilon)) - 1) / (2 epsilon))^2 - 1), is equal, but
    subtracts nearly equal numbers twice: in float32 it is off by 0.2 % at y = 0.01, and by 7 % at y = 0.0001.

    Args:
        y: float, any shape.
        epsilon: that of `value_rescale`.
    """
    slope = 1 + 2 * epsilon
    z_over_y = 2 / (slope + (slope**2 + 4 * epsilon * y.abs()).sqrt())
    return y * z_over_y * (y.abs() * z_over_y + 2)


# ---------------------------------------------------------------- action values


def select(values: Tensor, action: Tensor) -> Tensor:
    """The values of the actions taken.

    Args:
        values: ``[..., A]``, or ``[..., A, Z]`` with Z numbers (atoms, quantiles) for each action.
        action: integer ``[...]``.

    Returns:
        ``[...]``, or ``[..., Z]``.

    Raises:
        ValueError: the leading dimensions of ``values`` are not the shape of ``action``.
    """
    num_leading = action.dim()
    if values.shape[:num_leading] != action.shape or values.dim() - num_leading not in (1, 2):
        raise ValueError(
            f"values have shape {tuple(values.shape)} and action {tuple(action.shape)}; values must have "
            "the dimensions of action, then one of actions, and at most one more"
        )
    index = action.long().unsqueeze(-1)
    if values.dim() == num_leading + 1:
        return values.gather(-1, index).squeeze(-1)
    index = index.unsqueeze(-1).expand(*action.shape, 1, values.shape[-1])
    return values.gather(-2, index).squeeze(-2)


def greedy(values: Tensor) -> Tensor:
    """The best action, int64 ``[...]``, the first of equals, by ``values`` ``[..., A]``."""
    return values.argmax(-1)


def any_index(uniform: Tensor, count: int) -> Tensor:
    """Whole numbers below ``count``, int64 ``[...]``, all alike likely, from numbers in [0, 1)."""
    return (uniform * count).long().clamp(max=count - 1)  # rounding may reach ``count``


def min_over_critics(values: Tensor) -> Tensor:
    """The least of K critics' values ``[K, ...]``, ``[...]`` (Fujimoto et al. 2018, TD3, arXiv 1802.09477).

    Critics that agree share the gradient.
    """
    return values.amin(0)


# ---------------------------------------------------------------- targets


def bootstrapped_target(reward: Tensor, discount: Tensor, next_value: Tensor) -> Tensor:
    """``reward + discount * next_value``; just ``reward`` where ``discount`` is 0, whatever ``next_value`` is there.

    All float, of one shape, or broadcast.  Over n steps the reward is their return, and the discount is ``discount^n``,
    or 0 where the MDP ended.
    """
    return reward + torch.where(discount == 0, 0.0, discount * next_value)


def n_step_targets(
    reward: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    valid: Tensor,
    value: Tensor,
    discount: float,
    n: int,
) -> tuple[Tensor, Tensor]:
    """Targets of the first T rows of sequences of ``L = T + n`` rows (Kapturowski et al. 2019, R2D2).

        G_t = r_t + discount * r_tp1 + ... + discount^(m-1) * r_{t+m-1} + discount^m * value_{t+m}

    m is n, or less where the return stops: at ``terminated | truncated``, or before a row that is not ``valid``.  If it
    stops at ``terminated``, which wins over ``truncated``, the last term is 0.  With rescaled values (see
    `value_rescale`) the target is ``value_rescale(G)``, and ``value`` is `value_unscale`'d.

    Args:
        reward: float ``[L, ...]``.
        terminated, truncated, valid: bool ``[L, ...]``; of row L - 1 none matters.
        value: float ``[L, ...]``, what to bootstrap with: row t's belongs to the observation of row t.
        discount: factor per row, in [0, 1].
        n: at least 1.

    Returns:
        The targets, float ``[T, ...]``, 0 where not defined; and where they are (valid rows), bool ``[T, ...]``.

    Raises:
        ValueError: ``n`` is below 1, or there are no more than n rows.
    """
    num_targets = len(reward) - n
    if n < 1 or num_targets < 1:
        raise ValueError(
            f"n is {n} and sequences have {len(reward)} rows; n must be at least 1, and there must be n rows more than "
            "targets"
        )
    # The last row has no successor, and is at most bootstrapped from.
    returns = n_step_return(
        reward[:-1], value, terminated[:-1], truncated[:-1], valid[:-1], discount=discount, num_steps=n
    )
    defined = valid[:num_targets]
    return torch.where(defined, returns[:num_targets], 0.0), defined


# ---------------------------------------------------------------- losses


def td_loss(td_error: Tensor, delta_clip: float | None) -> Tensor:
    """Half the square; linear beyond ``delta_clip``, which clips the gradient (Huber 1964; DQN, Mnih et al. 2015).

        |delta| <= delta_clip:  delta^2 / 2
        otherwise:              delta_clip (|delta| - delta_clip / 2)

    Args:
        td_error: float, any shape.
        delta_clip: in units of the value; None: no limit.

    Returns:
        Elementwise loss, whose derivative is ``td_error`` clipped to [-delta_clip, delta_clip].

    Raises:
        ValueError: ``delta_clip`` is not positive.
    """
    if delta_clip is None:
        return 0.5 * td_error.square()
    if not delta_clip > 0:
        raise ValueError(f"delta_clip is {delta_clip}; it must be positive, or None for the squared error")
    magnitude = td_error.abs()
    clipped = magnitude.clamp(max=delta_clip)
    return clipped * (magnitude - 0.5 * clipped)


def weighted_masked_mean(loss: Tensor, weight: Tensor, valid: Tensor, num_valid: Tensor | None = None) -> Tensor:
    """Sum of ``weight * loss`` over the ``valid`` entries / max(1, number of them), a scalar.

    The divisor is not the sum of weights: importance weights (Schaul et al. 2016, arXiv 1511.05952) are at most 1, and
    are to shrink the step.

    Args:
        loss: float, any shape.
        weight: float, that shape or one that broadcasts to it (``[N]`` to ``[T, N]``); a constant.
        valid: bool, the shape of ``loss``.
        num_valid: what to divide by instead, a scalar: the number over all ranks.
    """
    # Masked here, too: the product's gradient is the weight, which may be NaN where the loss is masked.
    return masked_mean(weight * torch.where(valid, loss, 0.0), valid, num_valid)


def sequence_priority(td_error: Tensor, valid: Tensor, eta: float) -> Tensor:
    """Priorities of sequences (Kapturowski et al. 2019, R2D2): eta max_t |delta_t| + (1 - eta) mean_t |delta_t|.

    Args:
        td_error: float ``[T, ...]``.
        valid: bool ``[T, ...]``: the rows that count.
        eta: the share of the maximum, in [0, 1].

    Returns:
        float ``[...]``; 0 where no row is valid.
    """
    magnitude = torch.where(valid, td_error.abs(), 0.0)
    mean = magnitude.sum(0) / valid.sum(0).clamp(min=1)
    return eta * magnitude.amax(0) + (1 - eta) * mean


def temperature_loss(log_alpha: Tensor, log_prob: Tensor, target_entropy: float) -> Tensor:
    """The loss of SAC's temperature ``alpha`` (Haarnoja et al. 2018, arXiv 1812.05905, section 5).

        loss = -log_alpha * mean(log_prob + target_entropy)

    The paper has ``alpha`` in place of ``log_alpha``; Stable-Baselines3, for one, has this form.  The gradients by
    ``log_alpha`` have the same zero and the same sign, but the paper's is alpha times this one: a small temperature
    would hardly grow back when the entropy is too low, and a large one would take large steps.

    Args:
        log_alpha: float ``[]``.
        log_prob: float, any shape, of actions drawn from the present policy; a constant.  For discrete actions its
            expectation, the negative entropy; if not all rows are valid, its `masked_mean`.
        target_entropy: in nats, as a rule minus the number of action dimensions.

    Returns:
        A scalar, whose gradient moves ``log_alpha`` alone.
    """
    return -log_alpha * (log_prob.detach() + target_entropy).mean()


# ---------------------------------------------------------------- target networks


def polyak(target: Tensor, online: Tensor, tau: float) -> None:
    """``target <- target + tau * (online - target)``, in place; ``tau = 1`` copies, even over NaN.

    Args:
        target, online: float, one shape: a network's parameters in one flat tensor.
        tau: in [0, 1].
    """
    with torch.no_grad():
        if tau == 1:
            target.copy_(online)
        else:
            target.lerp_(online, tau)
