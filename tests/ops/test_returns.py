"""Vectorised returns against their definitions, written out for one row at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from rlsurreal.ops.returns import generalized_advantage_estimation, n_step_return, reverse_scan

torch.set_num_threads(1)
DISCOUNT, LAMBDA = 0.97, 0.9


def brute_n_step(slot: dict[str, np.ndarray], t: int, b: int, num_steps: int) -> tuple[float, int]:
    """Return of up to ``num_steps`` rows from row t, and the number of rows it used."""
    total, num_rows = 0.0, len(slot["reward"])
    for n in range(num_steps):
        row = t + n
        total += DISCOUNT**n * slot["reward"][row, b]
        if slot["terminated"][row, b]:
            return total, n + 1
        next_is_valid = row + 1 == num_rows or slot["valid"][row + 1, b]
        if slot["truncated"][row, b] or not next_is_valid or row + 1 == num_rows or n + 1 == num_steps:
            return total + DISCOUNT ** (n + 1) * slot["value"][row + 1, b], n + 1
    raise AssertionError


def brute_gae(slot: dict[str, Any], t: int, b: int, lam: float) -> Any:
    """The definition: n-step returns weighted by (1 - lambda) lambda^(n-1), the longest by the rest, less the value."""
    longest = brute_n_step(slot, t, b, 10**9)[1]
    returns = [brute_n_step(slot, t, b, n)[0] for n in range(1, longest + 1)]
    mix = sum((1 - lam) * lam ** (n - 1) * g for n, g in enumerate(returns[:-1], 1))
    return mix + lam ** (longest - 1) * returns[-1] - slot["value"][t, b]


def random_slot(num_steps: int, num_envs: int, seed: int) -> dict[str, np.ndarray]:
    """Episodes with and without a reset row, both flags at once, lost successors, and tails that are not valid."""
    rng = np.random.default_rng(seed)
    shape = (num_steps, num_envs)
    slot: dict[str, Any] = {"reward": rng.normal(size=shape), "value": rng.normal(size=(num_steps + 1, num_envs)) * 3}
    slot |= {name: np.zeros(shape, bool) for name in ("terminated", "truncated")} | {"valid": np.ones(shape, bool)}
    for b in range(num_envs):
        t = 0
        while t < num_steps:
            t += int(rng.integers(0, 6))
            if t >= num_steps:
                break
            kind = rng.integers(0, 4)  # 3: the successor is lost
            slot["terminated"][t, b] = kind in (0, 1)
            slot["truncated"][t, b] = kind in (1, 2)
            if t + 1 < num_steps and (kind == 3 or rng.random() < 0.7):
                slot["valid"][t + 1, b] = False
            t += 1
        if b % 3 == 2:
            slot["valid"][rng.integers(0, num_steps) :, b] = False
    slot["terminated"] &= slot["valid"]
    slot["truncated"] &= slot["valid"]
    return slot


def tensors(slot: dict[str, np.ndarray], **changes: Any) -> dict[str, torch.Tensor]:
    return {name: torch.as_tensor(array).clone() for name, array in {**slot, **changes}.items()}


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 16, 33])
@pytest.mark.parametrize("lam", [0.0, LAMBDA, 1.0])
def test_gae_is_the_weighted_sum_of_n_step_advantages(num_steps: int, lam: float) -> None:
    slot = random_slot(num_steps, 9, seed=num_steps)
    advantage, target = generalized_advantage_estimation(**tensors(slot), discount=DISCOUNT, gae_lambda=lam)
    expected = np.zeros((num_steps, 9))
    for t, b in np.argwhere(slot["valid"]):
        expected[t, b] = brute_gae(slot, t, b, lam)
    np.testing.assert_allclose(advantage, expected, atol=1e-12)
    np.testing.assert_allclose(target, expected + slot["value"][:-1], atol=1e-12)
    assert (target[~torch.as_tensor(slot["valid"])] == torch.as_tensor(slot["value"][:-1][~slot["valid"]])).all()


@pytest.mark.parametrize("num_steps", [1, 2, 5, 100])
def test_n_step_return_is_its_definition(num_steps: int) -> None:
    slot = random_slot(17, 9, seed=3)
    returns = n_step_return(**tensors(slot), discount=DISCOUNT, num_steps=num_steps)
    expected = slot["value"][:-1].copy()
    for t, b in np.argwhere(slot["valid"]):
        expected[t, b] = brute_n_step(slot, t, b, num_steps)[0]
    np.testing.assert_allclose(returns, expected, atol=1e-12)


def slot_by_hand() -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """A slot whose row 1 ends an episode, and row 2 is its reset row; flags for nowhere, and for row 1."""
    slot = {
        "reward": torch.tensor([[1.0], [2.0], [0.0], [4.0]]),
        "value": torch.tensor([[10.0], [20.0], [30.0], [40.0], [50.0]]),
        "valid": torch.tensor([[True], [True], [False], [True]]),
    }
    off, row_1 = torch.zeros(4, 1, dtype=torch.bool), torch.tensor([[False], [True], [False], [False]])
    return slot, off, row_1


def test_hand_numbers() -> None:
    slot, off, row_1 = slot_by_hand()
    cut = n_step_return(**slot, terminated=off, truncated=row_1, discount=0.5, num_steps=9)
    assert cut.flatten().tolist() == [1 + 0.5 * (2 + 0.5 * 30), 2 + 0.5 * 30, 30, 4 + 0.5 * 50]
    for truncated in (off, row_1):  # terminated wins
        ended = n_step_return(**slot, terminated=row_1, truncated=truncated, discount=0.5, num_steps=9)
        assert ended.flatten().tolist() == [1 + 0.5 * 2, 2, 30, 4 + 0.5 * 50]


def test_gae_hand_numbers() -> None:
    """The same rows; discount 0.5 and lambda 0.5, so that each error counts for a quarter one row before."""
    slot, off, row_1 = slot_by_hand()
    errors = [1 + 0.5 * 20 - 10, 2 + 0.5 * 30 - 20, 4 + 0.5 * 50 - 40]  # rows 0, 1 (cut off), 3
    expected = [errors[0] + 0.25 * errors[1], errors[1], 0.0, errors[2]]
    assert expected == [0.25, -3.0, 0.0, -11.0]
    advantage, target = generalized_advantage_estimation(
        **slot, terminated=off, truncated=row_1, discount=0.5, gae_lambda=0.5
    )
    assert advantage.flatten().tolist() == expected
    assert target.flatten().tolist() == [10.25, 17.0, 30.0, 29.0]
    advantage, _ = generalized_advantage_estimation(
        **slot, terminated=row_1, truncated=off, discount=0.5, gae_lambda=0.5
    )
    assert advantage.flatten().tolist() == [1.0 + 0.25 * -18.0, 2.0 - 20.0, 0.0, -11.0]


def test_n_step_return_refuses_zero_steps() -> None:
    with pytest.raises(ValueError, match="num_steps is 0"):
        n_step_return(**tensors(random_slot(3, 1, 0)), discount=1.0, num_steps=0)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_masked_rows_do_not_leak(poison: float) -> None:
    """Rewards of rows that are not valid may hold anything, values too unless a truncated row bootstraps from them."""
    slot = random_slot(30, 12, seed=11)
    valid = slot["valid"]
    before_is_cut = np.concatenate([np.zeros((1, 12), bool), valid & ~slot["terminated"]])
    spoilt_value = np.concatenate([~valid, np.zeros((1, 12), bool)]) & ~before_is_cut
    next_terminated = np.concatenate([np.zeros((1, 12), bool), slot["terminated"]])
    assert spoilt_value[next_terminated].any(), "the test needs a terminal observation's value among the spoilt ones"
    spoilt = tensors(
        slot, reward=np.where(valid, slot["reward"], poison), value=np.where(spoilt_value, poison, slot["value"])
    )
    clean = tensors(slot)
    functions = {
        "gae": lambda s: generalized_advantage_estimation(**s, discount=DISCOUNT, gae_lambda=LAMBDA),
        "n_step": lambda s: (n_step_return(**s, discount=DISCOUNT, num_steps=4),),
    }
    for name, function in functions.items():
        for got, expected in zip(function(spoilt), function(clean)):
            assert torch.equal(got[clean["valid"]], expected[clean["valid"]]), name
    advantage, _ = functions["gae"](spoilt)
    assert (advantage[~clean["valid"]] == 0).all()


def test_arguments_are_not_modified() -> None:
    slot = tensors(random_slot(20, 4, seed=1))
    before = {name: tensor.clone() for name, tensor in slot.items()}
    generalized_advantage_estimation(**slot, discount=DISCOUNT, gae_lambda=LAMBDA)
    n_step_return(**slot, discount=DISCOUNT, num_steps=3)
    assert all(torch.equal(before[name], slot[name]) for name in slot)


@pytest.mark.parametrize("num_rows", [1, 2, 3, 64, 100, 2048])
def test_scan_equals_the_loop_in_float32(num_rows: int) -> None:
    generator = torch.Generator().manual_seed(num_rows)
    step = torch.randn(num_rows, 5, generator=generator)
    decay = torch.where(torch.rand(num_rows, 5, generator=generator) < 0.98, 0.95, 0.0)
    expected, carry = torch.empty(num_rows, 5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    for t in reversed(range(num_rows)):
        carry = step[t].double() + decay[t].double() * carry
        expected[t] = carry
    torch.testing.assert_close(reverse_scan(step, decay).double(), expected, atol=1e-5, rtol=1e-5)


def test_traces_without_graph_breaks() -> None:
    slot = tensors(random_slot(24, 4, seed=2))
    traced = torch.compile(generalized_advantage_estimation, fullgraph=True, backend="eager")
    for got, expected in zip(
        traced(**slot, discount=DISCOUNT, gae_lambda=LAMBDA),
        generalized_advantage_estimation(**slot, discount=DISCOUNT, gae_lambda=LAMBDA),
    ):
        torch.testing.assert_close(got, expected)
