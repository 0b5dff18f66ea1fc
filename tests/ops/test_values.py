"""Maths of action values against hand-worked numbers and the definitions, written out one number at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from rlsurreal.ops.values import (
    bootstrapped_target,
    greedy,
    min_over_critics,
    n_step_targets,
    polyak,
    select,
    sequence_priority,
    td_loss,
    temperature_loss,
    value_rescale,
    value_unscale,
    weighted_masked_mean,
)

torch.set_num_threads(1)
DISCOUNT = 0.9
EPSILONS = (0.0, 1e-3, 1e-2, 1.0)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradient_of(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0]


# ---------------------------------------------------------------- the scale of values


def exact_rescale(x: float, epsilon: float) -> float:
    """The paper's formula with 60 digits."""
    with localcontext() as context:
        context.prec = 60
        magnitude, eps = abs(Decimal(x)), Decimal(epsilon)
        return math.copysign(float((magnitude + 1).sqrt() - 1 + eps * magnitude), x)


def exact_unscale(y: float, epsilon: float) -> float:
    """The paper's formula with 60 digits (without epsilon: its limit)."""
    with localcontext() as context:
        context.prec = 60
        magnitude, eps = abs(Decimal(y)), Decimal(epsilon)
        root = magnitude + 1
        if eps:
            root = ((1 + 4 * eps * (magnitude + 1 + eps)).sqrt() - 1) / (2 * eps)
        return math.copysign(float(root**2 - 1), y)


SCALES = torch.cat([torch.logspace(-12, 12, 97), torch.tensor([1 / 3, 1.0, 3.0, 8.0])])
SCALES = torch.cat([SCALES, -SCALES])


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_rescale_and_unscale_are_exact_in_float32(epsilon: float) -> None:
    for function, exact in ((value_rescale, exact_rescale), (value_unscale, exact_unscale)):
        expected = torch.tensor([exact(x, epsilon) for x in SCALES.tolist()], dtype=torch.float64)
        got = function(SCALES, epsilon)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, rtol=4e-7, atol=0)
        torch.testing.assert_close(function(SCALES.double(), epsilon), expected, rtol=1e-14, atol=0)
        assert function(torch.zeros(2), epsilon).tolist() == [0, 0]


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_unscale_is_the_inverse(epsilon: float) -> None:
    torch.testing.assert_close(value_unscale(value_rescale(SCALES, epsilon), epsilon), SCALES, rtol=1e-6, atol=0)
    torch.testing.assert_close(value_rescale(value_unscale(SCALES, epsilon), epsilon), SCALES, rtol=1e-6, atol=0)


def test_rescale_by_hand() -> None:
    x = torch.tensor([3.0, -3.0, 8.0, 99.0])
    torch.testing.assert_close(value_rescale(x), torch.tensor([1.003, -1.003, 2.008, 9.099]))
    torch.testing.assert_close(value_unscale(torch.tensor([1.003, -1.003, 2.008, 9.099])), x)


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_slopes_of_rescale_and_unscale(epsilon: float) -> None:
    x = torch.cat([SCALES, torch.zeros(1)])
    slope = 0.5 / (x.double().abs() + 1).sqrt() + epsilon
    torch.testing.assert_close(gradient_of(lambda x: value_rescale(x, epsilon), x).double(), slope, rtol=1e-6, atol=0)
    y = value_rescale(x.double(), epsilon)
    inverse = gradient_of(lambda y: value_unscale(y, epsilon), y.float())
    torch.testing.assert_close(inverse.double(), 1 / slope, rtol=2e-6, atol=0)


# ---------------------------------------------------------------- action values


@pytest.mark.parametrize("leading", [(), (5,), (4, 3)])
@pytest.mark.parametrize("trailing", [(), (6,), (1,)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_select(leading: tuple[int, ...], trailing: tuple[int, ...], dtype: torch.dtype) -> None:
    values = numbers(*leading, 4, *trailing)
    action = torch.randint(0, 4, leading, generator=torch.Generator().manual_seed(1)).to(dtype)
    got = select(values, action)
    assert got.shape == (*leading, *trailing)
    for place in np.ndindex(*leading):
        assert torch.equal(got[place], values[place][int(action[place])])
    gradient = gradient_of(lambda v: select(v, action), values)
    assert gradient.sum() == got.numel() and torch.equal(select(gradient, action), torch.ones_like(got))


@pytest.mark.parametrize("values_shape", [(5, 3), (4,), (4, 3, 2, 2), (3, 4, 2)])
def test_select_refuses_shapes_that_do_not_fit(values_shape: tuple[int, ...]) -> None:
    """`gather` alone would take (5, 3) for an action of shape (4,), and silently leave out the last."""
    with pytest.raises(ValueError, match=r"action \(4,\)"):
        select(numbers(*values_shape), torch.zeros(4, dtype=torch.int64))


def test_greedy_takes_the_first_of_equals() -> None:
    values = torch.tensor([[[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]], [[-1.0, -2.0, 0.0], [-math.inf, -5.0, -5.0]]])
    assert greedy(values).tolist() == [[1, 0], [2, 1]] and greedy(values).dtype == torch.int64


@pytest.mark.parametrize("num_critics", [1, 2, 5])
def test_min_over_critics(num_critics: int) -> None:
    values = numbers(num_critics, 4, 3)
    np.testing.assert_array_equal(min_over_critics(values), values.numpy().min(0))
    np.testing.assert_array_equal(gradient_of(min_over_critics, values), (values == values.amin(0)).float())


def test_critics_that_agree_share_the_gradient() -> None:
    values = torch.tensor([[1.0, 2.0], [1.0, 5.0]])
    assert gradient_of(min_over_critics, values).tolist() == [[0.5, 1.0], [0.5, 0.0]]


# ---------------------------------------------------------------- targets


def test_bootstrapped_target() -> None:
    reward, discount = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 0.25, 0.0])
    assert bootstrapped_target(reward, discount, torch.tensor([10.0, 20.0, math.nan])).tolist() == [6, 7, 3]
    per_atom = bootstrapped_target(reward.unsqueeze(-1), discount.unsqueeze(-1), torch.tensor([4.0, 8.0]))
    assert per_atom.tolist() == [[3, 5], [3, 4], [3, 3]]


def loop_target(rows: dict[str, np.ndarray], t: int, b: int, n: int) -> float:
    total = 0.0
    for k in range(n):
        row = t + k
        total += DISCOUNT**k * rows["reward"][row, b]
        if rows["terminated"][row, b]:
            return total
        if rows["truncated"][row, b] or k + 1 == n or not rows["valid"][row + 1, b]:
            return total + DISCOUNT ** (k + 1) * rows["value"][row + 1, b]
    raise AssertionError


def random_rows(num_rows: int, num_envs: int, seed: int) -> dict[str, np.ndarray]:
    """Flags set at random, on rows that are not valid, too, and both at once."""
    rng = np.random.default_rng(seed)
    shape = (num_rows, num_envs)
    rows: dict[str, Any] = {"reward": rng.normal(size=shape), "value": 5 * rng.normal(size=shape)}
    flags = {"terminated": 0.1, "truncated": 0.1, "valid": 0.85}
    return rows | {name: rng.random(shape) < probability for name, probability in flags.items()}


def targets_of(rows: dict[str, np.ndarray], n: int) -> tuple[Tensor, Tensor]:
    tensors = {name: torch.as_tensor(array) for name, array in rows.items()}
    return n_step_targets(**tensors, discount=DISCOUNT, n=n)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("num_targets", [1, 2, 30])
def test_n_step_targets_are_their_definition(n: int, num_targets: int) -> None:
    rows = random_rows(num_targets + n, 40, seed=n)
    target, defined = targets_of(rows, n)
    assert target.shape == defined.shape == (num_targets, 40) and defined.dtype == torch.bool
    np.testing.assert_array_equal(defined, rows["valid"][:num_targets])
    for t, b in np.ndindex(num_targets, 40):
        expected = loop_target(rows, t, b, n) if defined[t, b] else 0.0
        assert target[t, b].item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_n_step_targets_by_hand() -> None:
    """Row 2 ends an episode, row 3 is its reset row, row 5 is lost; discount 0.9."""
    reward = torch.tensor([1.0, 2.0, 4.0, 0.0, 8.0, 0.0])[:, None]
    value = torch.tensor([0.0, 10.0, 20.0, 30.0, 40.0, 50.0])[:, None]
    valid = torch.tensor([True, True, True, False, True, False])[:, None]
    row_2, off = (torch.arange(6) == 2)[:, None], torch.zeros(6, 1, dtype=torch.bool)

    def flat(terminated: Tensor, truncated: Tensor, n: int) -> list[float]:
        return n_step_targets(reward, terminated, truncated, valid, value, 0.9, n)[0].flatten().tolist()

    cut = 4 + 0.9 * 30
    assert flat(off, row_2, 2) == pytest.approx([1 + 0.9 * 2 + 0.81 * 20, 2 + 0.9 * cut, cut, 0])
    for truncated in (off, row_2):  # terminated wins
        assert flat(row_2, truncated, 2) == pytest.approx([1 + 0.9 * 2 + 0.81 * 20, 2 + 0.9 * 4, 4, 0])
    assert flat(off, off, 2)[2] == pytest.approx(cut)  # before an invalid row
    assert flat(off, row_2, 1) == pytest.approx([1 + 0.9 * 10, 2 + 0.9 * 20, cut, 0, 8 + 0.9 * 50])


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_n_step_targets_ignore_what_is_not_valid(poison: float) -> None:
    rows = random_rows(25, 40, seed=7)
    valid, before = rows["valid"], np.zeros((25, 40), bool)
    before[1:] = (valid & ~rows["terminated"])[:-1]  # these bootstrap from the row, valid or not
    spoilt = {
        **rows,
        "reward": np.where(valid, rows["reward"], poison),
        "value": np.where(~valid & ~before, poison, rows["value"]),
    }
    assert not np.isfinite(spoilt["value"]).all()
    for got, expected in zip(targets_of(spoilt, 5), targets_of(rows, 5)):
        assert torch.equal(got, expected)


def test_n_step_targets_do_not_need_the_last_row_but_for_its_value() -> None:
    rows = random_rows(12, 40, seed=3)
    last = {name: array.copy() for name, array in rows.items()}
    for name in ("terminated", "truncated", "valid"):
        last[name][-1] ^= True
    last["reward"][-1] = math.nan
    for got, expected in zip(targets_of(last, 4), targets_of(rows, 4)):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("n", [0, 10, 11])
def test_n_step_targets_refuse_too_few_rows(n: int) -> None:
    with pytest.raises(ValueError, match=f"n is {n} and sequences have 10 rows"):
        targets_of(random_rows(10, 2, seed=0), n)


# ---------------------------------------------------------------- losses


def test_td_loss_by_hand() -> None:
    error = torch.tensor([-3.0, -2.0, -0.5, 0.0, 1.0, 2.0, 5.0])
    assert td_loss(error, None).tolist() == [4.5, 2, 0.125, 0, 0.5, 2, 12.5]
    assert td_loss(error, 2.0).tolist() == [4, 2, 0.125, 0, 0.5, 2, 8]


@pytest.mark.parametrize("delta_clip", [None, 0.3, 1.0, 2.5])
def test_td_loss_has_the_clipped_error_for_gradient(delta_clip: float | None) -> None:
    error = torch.cat([2 * numbers(200), torch.tensor([0.0, 0.3, -0.3, 1.0, -1.0, 2.5, -2.5])])
    slope = error if delta_clip is None else error.clamp(-delta_clip, delta_clip)
    torch.testing.assert_close(gradient_of(lambda e: td_loss(e, delta_clip), error), slope)
    if delta_clip is not None:
        expected = torch.nn.functional.huber_loss(error, torch.zeros_like(error), reduction="none", delta=delta_clip)
        torch.testing.assert_close(td_loss(error, delta_clip), expected)


@pytest.mark.parametrize("delta_clip", [0.0, -1.0, math.nan])
def test_td_loss_refuses_a_clip_that_is_not_positive(delta_clip: float) -> None:
    with pytest.raises(ValueError, match="delta_clip is"):
        td_loss(numbers(3), delta_clip)


VALID = numbers(7, 5, seed=9) > -0.5


def test_weighted_masked_mean() -> None:
    loss, weight = numbers(7, 5).abs(), numbers(7, 5, seed=1).abs()
    expected = sum((weight[t, b] * loss[t, b]).item() for t, b in VALID.nonzero().tolist()) / int(VALID.sum())
    assert weighted_masked_mean(loss, weight, VALID).item() == pytest.approx(expected)
    by_column = sum((weight[0, b] * loss[t, b]).item() for t, b in VALID.nonzero().tolist()) / int(VALID.sum())
    assert weighted_masked_mean(loss, weight[0], VALID).item() == pytest.approx(by_column)
    of_ranks = weighted_masked_mean(loss, weight, VALID, torch.tensor(100))
    assert of_ranks.item() == pytest.approx(expected * int(VALID.sum()) / 100)
    nothing = torch.zeros_like(VALID)
    assert weighted_masked_mean(loss, weight, nothing) == 0
    assert (gradient_of(lambda x: weighted_masked_mean(x, weight, nothing), loss) == 0).all()


def test_weights_are_not_normalized() -> None:
    loss, valid = torch.tensor([2.0, 4.0, 8.0]), torch.tensor([True, True, False])
    assert weighted_masked_mean(loss, torch.tensor([0.5, 0.25, 1.0]), valid) == 1
    assert gradient_of(lambda x: weighted_masked_mean(x, torch.tensor([0.5, 0.25, 1.0]), valid), loss).tolist() == [
        0.25,
        0.125,
        0.0,
    ]


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("spoilt", ["loss", "weight"])
def test_masked_entries_reach_neither_mean_nor_gradient(poison: float, spoilt: str) -> None:
    clean = {"loss": numbers(7, 5), "weight": numbers(7, 5, seed=1).abs()}
    dirty = {**clean, spoilt: torch.where(VALID, clean[spoilt], poison)}
    assert torch.equal(weighted_masked_mean(**dirty, valid=VALID), weighted_masked_mean(**clean, valid=VALID))
    gradient = gradient_of(lambda x: weighted_masked_mean(x, dirty["weight"], VALID), dirty["loss"])
    torch.testing.assert_close(gradient, torch.where(VALID, clean["weight"] / VALID.sum(), 0.0))


def spoilt_loss(value: Tensor, delta_clip: float | None, poison: float, mask_errors: bool) -> Tensor:
    error = value - torch.where(VALID, numbers(7, 5, seed=1), poison)
    error = torch.where(VALID, error, 0.0) if mask_errors else error
    return weighted_masked_mean(td_loss(error, delta_clip), torch.ones(5), VALID)


@pytest.mark.parametrize("delta_clip", [None, 1.0])
def test_errors_must_be_masked_before_the_loss(delta_clip: float | None) -> None:
    for poison in (math.nan, math.inf):
        gradient = gradient_of(lambda v, p=poison: spoilt_loss(v, delta_clip, p, mask_errors=True), numbers(7, 5))
        assert gradient.isfinite().all() and ((gradient != 0) == VALID).all()
    wrong = gradient_of(lambda v: spoilt_loss(v, delta_clip, math.nan, mask_errors=False), numbers(7, 5))
    assert wrong[~VALID].isnan().all()


@pytest.mark.parametrize("eta", [0.0, 0.9, 1.0])
def test_sequence_priority(eta: float) -> None:
    error, valid = numbers(7, 5), VALID.clone()
    valid[:, 3] = False
    valid[:, 4] = torch.arange(7) == 2
    priority = sequence_priority(torch.where(valid, error, math.nan), valid, eta)
    for b in range(5):
        magnitudes = [abs(error[t, b].item()) for t in range(7) if valid[t, b]]
        expected = eta * max(magnitudes) + (1 - eta) * sum(magnitudes) / len(magnitudes) if magnitudes else 0.0
        assert priority[b].item() == pytest.approx(expected, rel=1e-6)
    assert priority[3] == 0 and priority[4].item() == pytest.approx(error[2, 4].abs().item())


def test_sequence_priority_by_hand() -> None:
    error, valid = torch.tensor([[-4.0], [2.0], [9.0]]), torch.tensor([[True], [True], [False]])
    assert sequence_priority(error, valid, 0.9).item() == pytest.approx(0.9 * 4 + 0.1 * 3)


def test_temperature_loss() -> None:
    log_alpha = torch.tensor(math.log(0.25), requires_grad=True)
    log_prob = torch.tensor([[1.0, -2.0], [4.0, 5.0]], requires_grad=True)
    loss = temperature_loss(log_alpha, log_prob, target_entropy=-1.0)
    assert loss.item() == pytest.approx(math.log(4) * (0 - 3 + 3 + 4) / 4)
    gradient, none = torch.autograd.grad(loss, (log_alpha, log_prob), allow_unused=True)
    assert gradient.item() == pytest.approx(-1.0) and none is None
    paper = -log_alpha.exp() * (log_prob.detach() - 1).mean()
    assert torch.autograd.grad(paper, log_alpha)[0].item() == pytest.approx(-0.25)  # alpha times that


@pytest.mark.parametrize("entropy", [-3.0, 0.5, 2.0])
def test_temperature_rises_where_entropy_is_below_its_target(entropy: float) -> None:
    gradient = gradient_of(
        lambda a: temperature_loss(a, torch.full((4,), -entropy), target_entropy=0.5), torch.zeros(())
    )
    assert torch.sign(-gradient).item() == np.sign(0.5 - entropy)


# ---------------------------------------------------------------- target networks


@pytest.mark.parametrize("tau", [0.0, 0.005, 0.3, 0.8, 1.0])
def test_polyak(tau: float) -> None:
    target, online = numbers(100), numbers(100, seed=1).requires_grad_()
    before, place = target.clone(), target.data_ptr()
    polyak(target, online, tau)
    torch.testing.assert_close(target, (1 - tau) * before + tau * online.detach())
    assert target.data_ptr() == place and not target.requires_grad and torch.equal(online, numbers(100, seed=1))
    assert not torch.equal(target, before) or tau == 0
    if tau == 1:
        assert torch.equal(target, online)


def test_polyak_copies_over_nan() -> None:
    target = torch.full((3,), math.nan)
    polyak(target, torch.ones(3), 1.0)
    assert target.tolist() == [1, 1, 1]


# ---------------------------------------------------------------- tracing


def moved(target: Tensor, online: Tensor) -> Tensor:
    target = target.clone()
    polyak(target, online, 0.1)
    return target


def case(seed: int) -> dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]]:
    """Every function, with arguments that differ with the seed in values only."""
    x, y, z = (numbers(9, 4, seed=10 * seed + k) for k in range(3))
    flags = tuple(numbers(9, 4, seed=10 * seed + k) > limit for k, limit in ((3, 1.0), (4, 1.0), (5, -1.0)))
    action = torch.randint(0, 4, (9,), generator=torch.Generator().manual_seed(seed))
    return {
        "value_rescale": (value_rescale, (x,)),
        "value_unscale": (value_unscale, (x,)),
        "select": (select, (x, action)),
        "select_atoms": (select, (numbers(9, 4, 3, seed=seed), action)),
        "greedy": (greedy, (x,)),
        "min_over_critics": (min_over_critics, (x,)),
        "bootstrapped_target": (bootstrapped_target, (x, y, z)),
        "n_step_targets": (lambda *args: n_step_targets(*args, DISCOUNT, 3), (x, *flags, y)),
        "squared": (lambda e: td_loss(e, None), (x,)),
        "huber": (lambda e: td_loss(e, 1.0), (x,)),
        "weighted_masked_mean": (weighted_masked_mean, (x, y, flags[2])),
        "sequence_priority": (lambda e, valid: sequence_priority(e, valid, 0.9), (x, flags[2])),
        "temperature_loss": (lambda a, p: temperature_loss(a, p, -1.0), (x[0, 0], y)),
        "polyak": (moved, (x, y)),
    }


@pytest.mark.parametrize("name", case(0))
def test_traces_into_one_graph_without_reading_values(name: str) -> None:
    (function, example), (_, other) = case(0)[name], case(1)[name]
    expected = function(*other)
    for traced in (
        make_fx(lambda *args: function(*args), tracing_mode="fake")(*example),  # it takes no defaults
        torch.compile(function, fullgraph=True, backend="eager"),
    ):
        torch.testing.assert_close(traced(*other), expected)


def test_gradients_trace() -> None:
    def step(value: Tensor, target: Tensor, weight: Tensor, valid: Tensor) -> Tensor:
        error = torch.where(valid, value - target, 0.0)
        return torch.autograd.grad(weighted_masked_mean(td_loss(error, 1.0), weight, valid), value)[0]

    def inputs(seed: int) -> tuple[Tensor, ...]:
        value, target, weight, flag = (numbers(9, 4, seed=4 * seed + k) for k in range(4))
        return value.requires_grad_(), target, weight.abs(), flag > 0

    graph = make_fx(step, tracing_mode="fake")(*inputs(0))
    torch.testing.assert_close(graph(*inputs(1)), step(*inputs(1)))
