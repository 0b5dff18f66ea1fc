"""Masked losses against the same thing computed on the valid rows alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from rlsurreal.ops.encoding import one_hot
from rlsurreal.ops.losses import (
    explained_variance,
    masked_mean,
    masked_moments,
    masked_normalize,
    normalize_groups,
    ppo_clip_loss,
    value_loss,
)

torch.set_num_threads(1)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spoil(x: Tensor, valid: Tensor, poison: float) -> Tensor:
    return torch.where(valid, x, poison)


VALID = numbers(7, 5, seed=9) > -0.5


def test_masked_mean() -> None:
    x = numbers(7, 5)
    assert torch.isclose(masked_mean(spoil(x, VALID, math.nan), VALID), x[VALID].mean())
    assert torch.isclose(masked_mean(x, VALID, torch.tensor(100)), x[VALID].sum() / 100)
    assert masked_mean(x, torch.zeros_like(VALID)) == 0  # not NaN


def ppo_by_hand(log_prob: Tensor, old: Tensor, advantage: Tensor, clip: float) -> float:
    total = 0.0
    for new_i, old_i, a in zip(log_prob.tolist(), old.tolist(), advantage.tolist()):
        ratio = math.exp(new_i - old_i)
        total -= min(ratio * a, min(max(ratio, 1 - clip), 1 + clip) * a)
    return total / len(log_prob)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_ppo_clip_loss(as_tensor: bool) -> None:
    log_prob, old, advantage = numbers(7, 5) * 0.3, numbers(7, 5, seed=1) * 0.3, numbers(7, 5, seed=2)
    clip = torch.tensor(0.2) if as_tensor else 0.2
    result = ppo_clip_loss(log_prob, old, advantage, VALID, clip_range=clip)
    expected = ppo_by_hand(log_prob[VALID], old[VALID], advantage[VALID], 0.2)
    assert result.loss.item() == pytest.approx(expected, rel=1e-6)
    ratio = (log_prob - old)[VALID].exp()
    assert result.approx_kl.item() == pytest.approx((ratio - 1 - ratio.log()).mean().item())
    assert result.clip_fraction.item() == pytest.approx(((ratio - 1).abs() > 0.2).double().mean().item())


def test_ppo_gradient_is_the_policy_gradient_at_ratio_1() -> None:
    log_prob = numbers(7, 5).requires_grad_()
    advantage = numbers(7, 5, seed=2)
    result = ppo_clip_loss(log_prob, log_prob.detach(), advantage, VALID, clip_range=0.2)
    (gradient,) = torch.autograd.grad(result.loss, log_prob)
    torch.testing.assert_close(gradient, torch.where(VALID, -advantage / VALID.sum(), 0.0))
    assert result.approx_kl == 0 and result.clip_fraction == 0


def test_ppo_gradient_stops_outside_the_range_only_where_that_improves() -> None:
    old = torch.zeros(4)
    log_prob = torch.tensor([1.5, 0.5, 1.5, 0.5]).log().requires_grad_()
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0])
    (gradient,) = torch.autograd.grad(
        ppo_clip_loss(log_prob, old, advantage, torch.ones(4, dtype=torch.bool), clip_range=0.2).loss, log_prob
    )
    assert (gradient != 0).tolist() == [False, True, True, False]


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_masked_rows_reach_neither_losses_nor_gradients(poison: float) -> None:
    log_prob, old, advantage = numbers(7, 5), numbers(7, 5, seed=1), numbers(7, 5, seed=2)
    for spoilt in ("log_prob", "old_log_prob", "advantage"):
        clean = {"log_prob": log_prob, "old_log_prob": old, "advantage": advantage}
        dirty = {**clean, spoilt: spoil(clean[spoilt], VALID, poison)}
        leaf = dirty["log_prob"].requires_grad_()
        result = ppo_clip_loss(**dirty, valid=VALID, clip_range=0.2)
        for got, expected in zip(result, ppo_clip_loss(**clean, valid=VALID, clip_range=0.2)):
            assert torch.equal(got, expected)
        (gradient,) = torch.autograd.grad(result.loss, leaf)
        assert (gradient[~VALID] == 0).all() and gradient.isfinite().all()
    for spoilt in ("value", "target", "old_value"):
        clean = {"value": log_prob.detach(), "target": old, "old_value": advantage}
        dirty = {**clean, spoilt: spoil(clean[spoilt], VALID, poison)}
        leaf = dirty["value"].requires_grad_()
        loss = value_loss(**dirty, valid=VALID, clip_range=0.2)
        assert torch.equal(loss, value_loss(**clean, valid=VALID, clip_range=0.2))
        (gradient,) = torch.autograd.grad(loss, leaf)
        assert (gradient[~VALID] == 0).all() and gradient.isfinite().all()


def test_value_loss() -> None:
    value, target, old = numbers(7, 5), numbers(7, 5, seed=1), numbers(7, 5, seed=2)
    plain = (value - target)[VALID].square().mean() / 2
    assert torch.isclose(value_loss(value, target, VALID), plain)
    v, goal, v_old = value[VALID].numpy(), target[VALID].numpy(), old[VALID].numpy()
    clipped = np.clip(v, v_old - 0.1, v_old + 0.1)
    worst = torch.tensor(np.maximum((clipped - goal) ** 2, (v - goal) ** 2).mean() / 2)
    for clip in (0.1, torch.tensor(0.1, dtype=torch.float64)):
        assert torch.isclose(value_loss(value, target, VALID, old_value=old, clip_range=clip), worst)
    with pytest.raises(ValueError, match="old_value"):
        value_loss(value, target, VALID, clip_range=0.1)


@pytest.mark.parametrize("feature", [(), (3,), (2, 3)])
def test_masked_moments(feature: tuple[int, ...]) -> None:
    x = numbers(7, 5, *feature)
    mask = VALID.reshape(7, 5, *(1 for _ in feature))
    moments = masked_moments(spoil(x, mask, math.nan), VALID)
    assert moments.num_rows == VALID.sum()
    torch.testing.assert_close(moments.mean, x[VALID].mean(0))
    torch.testing.assert_close(moments.variance, x[VALID].var(0, correction=0))
    nothing = masked_moments(x, torch.zeros_like(VALID))
    assert nothing.num_rows == 0 and (nothing.mean == 0).all() and (nothing.variance == 0).all()


def test_moments_far_from_zero_in_float32() -> None:
    """E[x^2] - E[x]^2 in float32 is off by 10^5 here; around a mean that is rounded once, by 7 %."""
    x = (numbers(5000) * 0.5 + 1234567).float()
    moments = masked_moments(x, torch.ones(5000, dtype=torch.bool))
    assert moments.variance.item() == pytest.approx(x.double().var(correction=0).item(), rel=1e-5)
    naive = x.square().mean() - x.mean().square()
    assert abs(naive - 0.25) > 1000


def test_moments_of_two_ranks_are_those_of_the_whole() -> None:
    x, parts = numbers(8, 5, 3) + 100, []
    valid = numbers(8, 5, seed=4) > 0
    valid[:2] = False  # unequal numbers on the ranks

    def run(half: slice, total: list[Tensor] | None) -> list[Tensor]:
        """One rank's calls of ``reduce``: recorded, and answered from ``total`` if given."""
        calls: list[Tensor] = []

        def reduce(sums: Tensor) -> Tensor:
            calls.append(sums)
            return sums if total is None or len(calls) > len(total) else total[len(calls) - 1]

        parts.append(masked_moments(x[half], valid[half], reduce))
        return calls

    halves = (slice(0, 4), slice(4, 8))
    total: list[Tensor] = []
    for call in range(2):
        total.append(sum(run(half, total)[call] for half in halves))  # type: ignore[arg-type]
    for half in halves:
        run(half, total)
    for rank in parts[-2:]:
        for got, expected in zip(rank, masked_moments(x, valid)):
            torch.testing.assert_close(got, expected)


def test_masked_normalize() -> None:
    x = numbers(7, 5) * 4 + 3
    y = masked_normalize(spoil(x, VALID, math.inf), VALID)
    assert abs(y[VALID].mean()) < 1e-12 and abs(y[VALID].std(correction=0) - 1) < 1e-6 and (y[~VALID] == 0).all()
    assert (masked_normalize(torch.ones(7, 5), VALID) == 0).all()  # no variance: no division by 0


def test_explained_variance() -> None:
    target = numbers(7, 5)
    assert explained_variance(target + 3, target, VALID).item() == pytest.approx(1)
    assert explained_variance(torch.zeros(7, 5), target, VALID).item() == pytest.approx(0)
    assert explained_variance(-target, target, VALID).item() == pytest.approx(-3)
    assert explained_variance(target, torch.ones(7, 5), VALID) == 0
    assert explained_variance(spoil(target, VALID, math.nan), target, VALID).item() == pytest.approx(1)


def test_one_hot() -> None:
    index = torch.tensor([[0, 2], [1, 2]])
    torch.testing.assert_close(one_hot(index, 3), torch.nn.functional.one_hot(index, 3).float())
    assert one_hot(torch.tensor(1), 2).tolist() == [0, 1]


def test_normalize_groups_is_masked_normalize_in_each() -> None:
    generator = torch.Generator().manual_seed(2)
    x = 10 + torch.randn(23, 3, generator=generator)
    valid = torch.rand(23, 3, generator=generator) < 0.7
    x[~valid] = math.nan
    for num_groups in (1, 2, 5, 23):
        order = torch.randperm(23, generator=generator)
        groups = [order[23 * i // num_groups : 23 * (i + 1) // num_groups] for i in range(num_groups)]
        found = normalize_groups(x, valid, groups)
        for group in groups:
            torch.testing.assert_close(found[group], masked_normalize(x[group], valid[group]), atol=1e-4, rtol=1e-4)
    nothing = normalize_groups(x, torch.zeros_like(valid), groups)
    assert (nothing == 0).all()
