"""The gradient step: clipping, learning rate, reduction over ranks, flat parameters, compiled as eager."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlsurreal.algos.update import GradientStep, flatten_parameters
from rlsurreal.distributed.ranks import Ranks

torch.set_num_threads(1)


class Pair(nn.Module):
    """Two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.tensor([1.0, -2.0]))
        self.two = nn.Parameter(torch.tensor(3.0))

    def loss(self, square: Tensor) -> tuple[Tensor, Tensor]:
        """Without ``square`` its gradient is (3, -4) and 12: norm 13."""
        loss = 3 * self.one[0] - 4 * self.one[1] + 12 * self.two + square * self.two**2
        return loss, torch.stack([loss, 2 * loss]).detach()


class Twins(Ranks):
    """Two ranks that do the same."""

    def _reduce(self, tensor: Tensor, operation: str) -> Tensor:
        return tensor.mul_(2)


def make_step(module: Pair, **options: Any) -> GradientStep:
    return GradientStep(module, module.loss, 2, **{"max_grad_norm": float("inf"), **options})


ZERO, ONE = torch.tensor(0.0), torch.tensor(1.0)


@pytest.mark.parametrize(("max_grad_norm", "shrink"), [(6.5, 0.5), (13.5, 1.0), (float("inf"), 1.0)])
def test_gradient_is_clipped_by_its_whole_norm(max_grad_norm, shrink):
    own = Pair()
    step = make_step(own, max_grad_norm=max_grad_norm)
    step(ZERO)
    assert step.take_metrics().tolist() == pytest.approx([47, 94, 13])
    assert own.one.grad.tolist() == pytest.approx([3 * shrink, -4 * shrink])
    assert own.two.grad.item() == pytest.approx(12 * shrink)


@pytest.mark.parametrize("compile", [False, True])
def test_numbers_apart_are_neither_clipped_nor_counted(compile, interpreted):
    """The gradient of `two`, 12 and the last, leaves the others' norm of 5."""
    own, theirs = Pair(), Pair()
    step = make_step(own, max_grad_norm=2.5, num_apart=1, eps=1.0, compile=compile)
    step.learning_rate.fill_(0.1)
    step(ZERO)
    assert step.take_metrics()[-1].item() == pytest.approx(5)
    adam = torch.optim.Adam(theirs.parameters(), lr=0.1, eps=1.0)
    theirs.one.grad, theirs.two.grad = torch.tensor([1.5, -2.0]), torch.tensor(12.0)
    adam.step()
    torch.testing.assert_close(list(own.parameters()), list(theirs.parameters()))


@pytest.mark.parametrize("compile", [False, True])
def test_steps_equal_adam_with_the_rates_given(compile, interpreted):
    own, theirs = Pair(), Pair()
    step = make_step(own, eps=1e-3, compile=compile)
    adam = torch.optim.Adam(theirs.parameters(), eps=1e-3)
    for rate in (0.1, 0.05, 0.0, 0.2):
        step.learning_rate.fill_(rate)
        step(ONE)
        adam.param_groups[0]["lr"] = rate
        adam.zero_grad()
        theirs.loss(ONE)[0].backward()
        adam.step()
        for one, other in zip(own.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one, other)
    assert (step._compiled is not None) == compile


def test_gradients_do_not_add_up_and_metrics_are_means():
    step = make_step(Pair())
    for _ in range(3):
        step(ZERO)
    assert step.metrics().tolist() == step.take_metrics().tolist() == pytest.approx([47, 94, 13])
    step(ONE)
    assert step.take_metrics()[0].item() == pytest.approx(47 + 9)


@pytest.mark.parametrize("compile", [False, True])
def test_clipping_comes_after_the_reduction_over_ranks(compile, interpreted):
    one, two = Pair(), Pair()
    step = make_step(one, max_grad_norm=6.5, ranks=Twins(0, 2), over_ranks="sum", compile=compile)
    step.learning_rate.fill_(0.1)
    step(ZERO)
    assert step.take_metrics()[-1].item() == pytest.approx(26)
    by_hand = make_step(two, max_grad_norm=float("inf"))  # Adam's first step does not depend on the gradient's size
    by_hand.learning_rate.fill_(0.1)
    by_hand(ZERO)
    torch.testing.assert_close(list(one.parameters()), list(two.parameters()), atol=1e-5, rtol=0)


def test_parameters_without_part_in_the_loss_and_frozen_ones_stay():
    own = Pair()
    own.frozen = nn.Parameter(torch.tensor(7.0), requires_grad=False)
    own.idle = nn.Parameter(torch.tensor(5.0))
    step = make_step(own)
    step.learning_rate.fill_(0.1)
    step(ZERO)
    assert own.frozen.item() == 7 and own.idle.item() == 5 and own.two.item() != 3


@pytest.mark.parametrize("compile", [False, True])
def test_saved_state_continues_in_either_mode(compile, interpreted):
    one, two = Pair(), Pair()
    first = make_step(one, eps=1e-3)
    first.learning_rate.fill_(0.1)
    for _ in range(3):
        first(ONE)
    second = make_step(two, eps=1e-3, compile=compile)
    second.learning_rate.fill_(0.1)
    two.load_state_dict(one.state_dict())
    state = first.state_dict()
    second.load_state_dict(state)
    for _ in range(2):
        first(ONE)
        second(ONE)
    torch.testing.assert_close(list(one.parameters()), list(two.parameters()))
    assert state["step"] == 3, "the saved state is a copy"


def test_parameters_are_views_of_one_buffer_and_stay_so():
    own = Pair()
    flat = flatten_parameters(own)
    assert flat.tolist() == [1, -2, 3]
    own.load_state_dict({"one": torch.tensor([4.0, 5.0]), "two": torch.tensor(6.0)})
    assert flat.tolist() == [4, 5, 6]
    assert flatten_parameters(own).data_ptr() == flat.data_ptr()
    flat.zero_()
    assert own.two.item() == 0


def test_parameters_that_leave_the_buffer_are_noticed():
    own = Pair()
    step = make_step(own)
    own.two.data = own.two.data.clone()
    step(ZERO)
    with pytest.raises(RuntimeError, match="parameter 'two' was replaced"):
        step.take_metrics()


def test_parameters_of_two_types_are_refused():
    own = Pair()
    own.two = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"Pair are .*float32.*float64.*one type"):
        flatten_parameters(own)


class Branching(Pair):
    """A loss that no compiler takes as one graph."""

    def loss(self, square: Tensor) -> tuple[Tensor, Tensor]:
        return super().loss(square if float(self.two) > 0 else 2 * square)


@pytest.mark.compiles
def test_what_cannot_be_compiled_runs_eagerly_and_says_so_once(caplog):
    own, theirs = Branching(), Branching()
    step, plain = make_step(own, compile=True), make_step(theirs)
    with caplog.at_level(logging.WARNING, "rlsurreal"):
        for each in (step, plain):
            each.learning_rate.fill_(0.1)
            each(ONE)
            each(ONE)
    assert [record.message.startswith("the update cannot be compiled") for record in caplog.records] == [True]
    torch.testing.assert_close(list(own.parameters()), list(theirs.parameters()))


@pytest.mark.compiles
def test_without_a_compiler_it_runs_eagerly(tmp_path):
    script = (
        "import logging, torch; logging.basicConfig()\n"
        "from torch import nn; from rlsurreal.algos.update import GradientStep\n"
        "m = nn.Linear(3, 1); x = torch.ones(5, 3)\n"
        "s = GradientStep(m, lambda x: (m(x).sum(), x.sum()[None]), 1, max_grad_norm=1.0, compile=True)\n"
        "s(x); s(x); print('steps', s.num_steps)\n"
    )
    env = {**os.environ, "CXX": "/no/compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout == "steps 2\n", done.stderr
    assert done.stderr.count("cannot be compiled") == 1
