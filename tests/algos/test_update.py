"""The gradient step: clipping, learning rate, reduction over ranks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rlsurreal.algos.update import GradientStep

torch.set_num_threads(1)


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor([1.0, -2.0])), nn.Parameter(torch.tensor(3.0))]


def loss_of(own: list[nn.Parameter]) -> Tensor:
    """Its gradient is (3, -4) and 12: norm 13."""
    return 3 * own[0][0] - 4 * own[0][1] + 12 * own[1]


@pytest.mark.parametrize(("max_grad_norm", "shrink"), [(6.5, 0.5), (13.5, 1.0), (float("inf"), 1.0)])
def test_gradient_is_clipped_by_its_whole_norm(max_grad_norm, shrink):
    own = parameters()
    norm = GradientStep(own, max_grad_norm=max_grad_norm)(loss_of(own), 0.1)
    assert norm.item() == pytest.approx(13) and not norm.requires_grad
    assert own[0].grad.tolist() == pytest.approx([3 * shrink, -4 * shrink])
    assert own[1].grad.item() == pytest.approx(12 * shrink)


def test_steps_equal_adam_with_the_rates_given():
    own, theirs = parameters(), parameters()
    step = GradientStep(own, max_grad_norm=float("inf"), eps=1e-3)
    adam = torch.optim.Adam(theirs, eps=1e-3)
    for rate in (0.1, 0.05, 0.0, 0.2):
        step(loss_of(own) + own[1] ** 2, rate)
        adam.param_groups[0]["lr"] = rate
        adam.zero_grad()
        (loss_of(theirs) + theirs[1] ** 2).backward()
        adam.step()
        for one, other in zip(own, theirs, strict=True):
            torch.testing.assert_close(one, other)


def test_gradients_do_not_add_up():
    own = parameters()
    step = GradientStep(own, max_grad_norm=float("inf"))
    for _ in range(3):
        assert step(loss_of(own), 0.0).item() == pytest.approx(13)


def test_clipping_comes_after_the_reduction_over_ranks():
    own = parameters()
    step = GradientStep(own, max_grad_norm=6.5, reduce=lambda gradient: 2 * gradient)
    assert step(loss_of(own), 0.1).item() == pytest.approx(26)
    assert own[1].grad.item() == pytest.approx(24 / 4)


def test_parameters_without_part_in_the_loss_and_frozen_ones_stay():
    own = parameters()
    frozen = nn.Parameter(torch.tensor(7.0), requires_grad=False)
    idle = nn.Parameter(torch.tensor(5.0))
    GradientStep([*own, frozen, idle], max_grad_norm=1.0)(loss_of(own), 0.1)
    assert frozen.item() == 7 and idle.item() == 5 and own[1].item() != 3
