"""Distributions of returns against hand-worked numbers and the definitions, written out one atom at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from rlsurreal.ops.distributional import (
    categorical_kl,
    categorical_loss,
    categorical_support,
    project,
    quantile_huber_loss,
)

torch.set_num_threads(1)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradient_of(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0]


# ---------------------------------------------------------------- categorical


def test_support() -> None:
    assert categorical_support(-1, 1, 5).tolist() == [-1, -0.5, 0, 0.5, 1]
    support = categorical_support(-10.0, 10.0, 51)
    assert support.dtype == torch.float32 and support[0] == -10 and support[-1] == 10
    np.testing.assert_allclose(support.double(), np.linspace(-10, 10, 51), atol=1e-6)
    assert categorical_support(0, 1, 2, device="meta").device.type == "meta"
    with pytest.raises(ValueError, match="num_atoms is 1"):
        categorical_support(0, 1, 1)
    for v_min in (1.0, 2.0, math.nan):
        with pytest.raises(ValueError, match="v_min must be below v_max"):
            categorical_support(v_min, 1.0, 3)


def project_by_hand(support: list[float], target_support: list[float], probability: list[float]) -> list[float]:
    """Algorithm 1 of the paper; where a return falls on an atom, all mass goes there."""
    gap = (support[-1] - support[0]) / (len(support) - 1)
    mass = [0.0] * len(support)
    for y, p in zip(target_support, probability):
        place = (min(max(y, support[0]), support[-1]) - support[0]) / gap
        low, high = math.floor(place), math.ceil(place)
        if low == high:
            mass[low] += p
        else:
            mass[low] += p * (high - place)
            mass[high] += p * (place - low)
    return mass


@pytest.mark.parametrize("leading", [(), (6,), (3, 4)])
@pytest.mark.parametrize("grid", [(-10.0, 10.0, 51), (0.0, 1.0, 2), (-300.0, 500.0, 11), (-1.0, 3.0, 5)])
@pytest.mark.parametrize("num_targets", [1, 7, 51])
def test_project_is_the_algorithm_of_the_paper(
    leading: tuple[int, ...], grid: tuple[float, float, int], num_targets: int
) -> None:
    support = categorical_support(*grid)
    middle, width = (grid[0] + grid[1]) / 2, grid[1] - grid[0]
    target_support = middle + 0.5 * width * numbers(*leading, num_targets)
    probability = numbers(*leading, num_targets, seed=1).softmax(-1)
    got = project(support, target_support, probability)
    assert got.shape == (*leading, grid[2]) and got.dtype == torch.float32
    np.testing.assert_allclose(got.sum(-1), np.ones(leading), atol=1e-6)
    assert (got >= 0).all()
    for place in np.ndindex(*leading):
        expected = project_by_hand(
            support.double().tolist(), target_support[place].double().tolist(), probability[place].double().tolist()
        )
        np.testing.assert_allclose(got[place], expected, atol=5e-6)
    mean = (probability * target_support.clamp(grid[0], grid[1])).sum(-1)
    torch.testing.assert_close((got * support).sum(-1), mean, atol=2e-6 * width, rtol=0)


def test_project_by_hand_worked_numbers() -> None:
    support = categorical_support(-1, 1, 5)  # -1, -0.5, 0, 0.5, 1
    y = torch.tensor([-0.9, 0.0, 0.125, 7.0])
    got = project(support, y, torch.tensor([0.2, 0.3, 0.4, 0.1]))
    torch.testing.assert_close(got, torch.tensor([0.16, 0.04, 0.3 + 0.3, 0.1, 0.1]))


def test_project_onto_itself_by_whole_gaps_and_beyond_the_ends() -> None:
    support = categorical_support(-2, 2, 9)
    p = numbers(9).softmax(-1)
    torch.testing.assert_close(project(support, support, p), p)
    gap = project(support, support + 0.5, p)
    torch.testing.assert_close(gap, torch.cat([torch.zeros(1), p[:-2], p[-2:].sum(0, keepdim=True)]))
    for y, atom in ((1e6, -1), (math.inf, -1), (2.0, -1), (-1e6, 0), (-math.inf, 0), (-2.0, 0)):
        mass = project(support, torch.full((9,), y), p)
        assert mass[atom].item() == pytest.approx(1, abs=1e-6) and mass.count_nonzero() == 1


def test_terminal_transitions_put_all_mass_at_the_reward() -> None:
    support = categorical_support(-10, 10, 51)
    reward = torch.tensor([0.0, 1.0, -3.5])
    got = project(support, reward.unsqueeze(-1) + 0.0 * support, numbers(3, 51).softmax(-1))
    torch.testing.assert_close((got * support).sum(-1), reward, atol=1e-5, rtol=0)
    assert ((got > 1e-5).sum(-1) <= 2).all()


def test_a_nan_spoils_its_own_row_only() -> None:
    support = categorical_support(-1, 1, 5)
    y, p = numbers(3, 5), numbers(3, 5, seed=1).softmax(-1)
    dirty = y.clone()
    dirty[1, 2] = math.nan
    got = project(support, dirty, p)
    assert got[1].isnan().all() and torch.equal(got[[0, 2]], project(support, y, p)[[0, 2]])


def test_categorical_loss_and_divergence() -> None:
    logits, p = numbers(4, 3, 6), (3 * numbers(4, 3, 6, seed=1)).softmax(-1)
    loss, kl = categorical_loss(logits, p), categorical_kl(logits, p)
    assert loss.shape == kl.shape == (4, 3)
    for i, j in np.ndindex(4, 3):
        q = np.exp(logits[i, j].double().numpy())
        q, target = q / q.sum(), p[i, j].double().numpy()
        assert loss[i, j].item() == pytest.approx(-(target * np.log(q)).sum(), rel=1e-5)
        assert kl[i, j].item() == pytest.approx((target * np.log(target / q)).sum(), rel=1e-4, abs=1e-6)
    gradient = gradient_of(lambda x: categorical_loss(x, p), logits)
    torch.testing.assert_close(gradient, logits.softmax(-1) - p)
    assert not categorical_kl(logits.requires_grad_(), p).requires_grad


def test_categorical_loss_at_its_extremes() -> None:
    logits = torch.tensor([0.0, math.log(3.0)])  # probabilities 1/4, 3/4
    certain = torch.tensor([1.0, 0.0])
    for function in (categorical_loss, categorical_kl):
        assert function(logits, certain).item() == pytest.approx(math.log(4))
        assert function(torch.tensor([500.0, -500.0]), torch.tensor([0.0, 1.0])).item() == pytest.approx(1000)
    p = numbers(1000, 51).softmax(-1)
    kl = categorical_kl(p.log(), p)
    assert (kl >= 0).all() and kl.max() < 1e-5 and (categorical_loss(p.log(), p) > 1).all()


# ---------------------------------------------------------------- quantiles


def quantile_loss_by_hand(quantiles: list[float], taus: list[float], targets: list[float], kappa: float) -> float:
    total = 0.0
    for quantile, tau in zip(quantiles, taus):
        for target in targets:
            u = target - quantile
            if kappa == 0:
                tip = abs(u)
            elif abs(u) <= kappa:
                tip = 0.5 * u * u / kappa
            else:
                tip = abs(u) - 0.5 * kappa
            total += abs(tau - (1.0 if u < 0 else 0.0)) * tip / len(targets)
    return total


@pytest.mark.parametrize("kappa", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("leading", [(), (4,), (2, 3)])
@pytest.mark.parametrize(("num_quantiles", "num_targets"), [(1, 1), (5, 8), (8, 5)])
@pytest.mark.parametrize("own_taus", [False, True])
def test_quantile_huber_loss(
    kappa: float, leading: tuple[int, ...], num_quantiles: int, num_targets: int, own_taus: bool
) -> None:
    quantiles, targets = numbers(*leading, num_quantiles), numbers(*leading, num_targets, seed=1)
    shape = (*leading, num_quantiles) if own_taus else (num_quantiles,)
    taus = torch.rand(shape, generator=torch.Generator().manual_seed(2))
    got = quantile_huber_loss(quantiles, taus, targets, kappa)
    assert got.shape == leading
    all_taus = taus.expand(*leading, num_quantiles)
    for place in np.ndindex(*leading):
        expected = quantile_loss_by_hand(
            quantiles[place].tolist(), all_taus[place].tolist(), targets[place].tolist(), kappa
        )
        assert got[place].item() == pytest.approx(expected, rel=1e-5)


def test_quantile_huber_loss_by_hand_worked_numbers() -> None:
    quantiles, taus, targets = torch.tensor([0.0, 1.0]), torch.tensor([0.25, 0.75]), torch.tensor([0.5, 3.0])
    # u = [[0.5, 3], [-0.5, 2]]; huber = [[0.125, 2.5], [0.125, 1.5]]; weights = [[.25, .25], [.25, .75]]
    expected = (0.25 * 0.125 + 0.25 * 2.5) / 2 + (0.25 * 0.125 + 0.75 * 1.5) / 2
    assert quantile_huber_loss(quantiles, taus, targets).item() == pytest.approx(expected)
    absolute = (0.25 * 0.5 + 0.25 * 3) / 2 + (0.25 * 0.5 + 0.75 * 2) / 2
    assert quantile_huber_loss(quantiles, taus, targets, kappa=0.0).item() == pytest.approx(absolute)
    gradient = gradient_of(lambda q: quantile_huber_loss(q, taus, targets), quantiles)
    slopes = [-(0.25 * 0.5 + 0.25 * 1) / 2, -(0.25 * -0.5 + 0.75 * 1) / 2]  # minus weight * clip(u, -1, 1)
    torch.testing.assert_close(gradient, torch.tensor(slopes))


@pytest.mark.parametrize("kappa", [0.0, 1.0])
def test_quantiles_that_equal_the_targets_have_neither_loss_nor_gradient(kappa: float) -> None:
    quantiles, taus = torch.full((3,), 2.0), torch.tensor([0.1, 0.5, 0.9])
    assert quantile_huber_loss(quantiles, taus, torch.full((4,), 2.0), kappa) == 0
    assert (gradient_of(lambda q: quantile_huber_loss(q, taus, torch.full((4,), 2.0), kappa), quantiles) == 0).all()


def test_the_minimum_of_the_absolute_loss_is_the_quantile() -> None:
    targets = torch.arange(100.0)
    taus = torch.tensor([0.105, 0.505, 0.905])
    candidates = torch.arange(100.0)
    for k, tau in enumerate(taus):
        losses = torch.stack([quantile_huber_loss(q[None], tau[None], targets, kappa=0.0) for q in candidates])
        assert candidates[losses.argmin()] == (10, 50, 90)[k]


def test_quantile_huber_loss_refuses_a_negative_kappa() -> None:
    with pytest.raises(ValueError, match="kappa is -1"):
        quantile_huber_loss(numbers(2), numbers(2), numbers(2), -1.0)


# ---------------------------------------------------------------- tracing


def case(seed: int) -> dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]]:
    x, y, z = (numbers(6, 5, seed=3 * seed + k) for k in range(3))
    support = categorical_support(-1.0 - seed, 1.0, 5)

    def c51(logits: Tensor, reward: Tensor, next_logits: Tensor) -> Tensor:
        support = categorical_support(-1.0, 1.0, 5)
        target = project(support, reward[:, :1] + 0.9 * support, next_logits.softmax(-1))
        return torch.autograd.grad(categorical_loss(logits, target).mean(), logits)[0]

    def quantile(quantiles: Tensor, taus: Tensor, targets: Tensor) -> Tensor:
        return torch.autograd.grad(quantile_huber_loss(quantiles, taus.sigmoid(), targets).mean(), quantiles)[0]

    return {
        "project": (project, (support, x, y.softmax(-1))),
        "categorical_loss": (categorical_loss, (x, y.softmax(-1))),
        "categorical_kl": (categorical_kl, (x, y.softmax(-1))),
        "quantile_huber_loss": (quantile_huber_loss, (x, y[0].sigmoid(), z)),
        "quantile_absolute_loss": (lambda *args: quantile_huber_loss(*args, kappa=0.0), (x, y.sigmoid(), z)),
        "c51_gradient": (c51, (x.clone().requires_grad_(), y, z)),
        "quantile_gradient": (quantile, (x.clone().requires_grad_(), y, z)),
    }


@pytest.mark.parametrize("name", case(0))
def test_traces_into_one_graph_without_reading_values(name: str) -> None:
    (function, example), (_, other) = case(0)[name], case(1)[name]
    expected = function(*other)
    traced = [make_fx(lambda *args: function(*args), tracing_mode="fake")(*example)]  # it takes no defaults
    if "gradient" not in name:  # Dynamo refuses to trace autograd.grad; the updates use make_fx
        traced.append(torch.compile(function, fullgraph=True, backend="eager"))
    for graph in traced:
        torch.testing.assert_close(graph(*other), expected)
