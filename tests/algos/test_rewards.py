"""Reward scaling against its definition, one number after another."""

from __future__ import annotations

import math
import pickle

import pytest
import torch

from rlsurreal.algos.pg.rewards import RewardScaler
from rlsurreal.structs import EnvSamples

torch.set_num_threads(1)
T, B, DISCOUNT = 9, 4, 0.9


def make_slots(num_slots: int, seed: int = 0, reward_scale: float = 5.0) -> list[EnvSamples]:
    """Rewards, and episodes with next-step reset: the row after an end is not valid, the one after that is `first`."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_slots * T + 1, B)
    reward = torch.randn(shape, generator=generator) * reward_scale + 1
    end = torch.rand(shape, generator=generator) < 0.25
    truncated = torch.rand(shape, generator=generator) < 0.5
    valid, first = torch.ones(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    first[0] = True
    for b in range(B):
        for t in range(1, len(reward)):
            if end[t - 1, b]:
                valid[t, b], end[t, b] = False, False
            elif not valid[t - 1, b]:
                first[t, b] = True
    reward[~valid] = torch.nan  # nobody may look at these
    slots = []
    for i in range(num_slots):
        rows = slice(i * T, (i + 1) * T + 1)
        flags = (end & ~truncated)[rows], (end & truncated)[rows], valid[rows], first[rows]
        slots.append(EnvSamples(None, reward[rows].clone(), None, *flags, None))
    return slots


class Definition:
    """R = discount * R + r, from 0 at each start; rewards over the standard deviation of all R so far."""

    def __init__(self) -> None:
        self.running = [0.0] * B
        self.all_returns: list[float] = []

    def __call__(self, env: EnvSamples) -> list[list[float]]:
        for b in range(B):
            for t in range(T):
                if env.first[t, b]:
                    self.running[b] = 0.0
                if env.valid[t, b]:
                    self.running[b] = DISCOUNT * self.running[b] + float(env.reward[t, b])
                    self.all_returns.append(self.running[b])
        return [[min(max(float(r) / self.scale, -10.0), 10.0) for r in row] for row in env.reward]

    @property
    def scale(self) -> float:
        n = len(self.all_returns)
        mean = sum(self.all_returns) / n
        return math.sqrt(sum((r - mean) ** 2 for r in self.all_returns) / n)


def assert_scaled(scaler: RewardScaler, definition: Definition, env: EnvSamples) -> None:
    before = env.reward.clone()
    scaled = scaler(env)
    expected = torch.tensor(definition(env))
    assert torch.equal(torch.nan_to_num(env.reward), torch.nan_to_num(before)), "the slot's own rewards were changed"
    assert scaler.scale == pytest.approx(definition.scale, rel=1e-9)
    assert scaled.dtype == torch.float32 and scaled.shape == (T + 1, B)
    torch.testing.assert_close(scaled[:T][env.valid[:T]], expected[:T][env.valid[:T]], atol=1e-6, rtol=1e-6)


def test_scale_is_that_of_the_discounted_return():
    scaler, definition = RewardScaler(B, DISCOUNT), Definition()
    slots = make_slots(8)
    assert sum(int(env.terminated.sum() + env.truncated.sum()) for env in slots) > 20
    for env in slots:
        assert_scaled(scaler, definition, env)


def test_return_goes_on_over_the_border_of_slots():
    scaler = RewardScaler(1, 0.5)
    flags = [torch.zeros(3, 1, dtype=torch.bool) for _ in range(2)]
    valid = torch.ones(3, 1, dtype=torch.bool)
    for _ in range(2):
        scaler(EnvSamples(None, torch.ones(3, 1), None, *flags, valid, flags[0], None))
    returns = [1, 1.5, 1.75, 1.875]
    mean = sum(returns) / 4
    assert scaler.scale == pytest.approx(math.sqrt(sum((r - mean) ** 2 for r in returns) / 4))


def test_return_is_forgotten_where_an_episode_begins_without_an_end_before():
    """As after a resume in which environments start new episodes."""
    scaler, definition = RewardScaler(B, DISCOUNT), Definition()
    for i, env in enumerate(make_slots(4, seed=1)):
        env.terminated[-2:], env.truncated[-2:] = False, False
        env.first[0] = env.first[0] | (i == 2)
        assert_scaled(scaler, definition, env)


def test_lost_life_without_reset_row_starts_a_new_return():
    scaler = RewardScaler(1, 1.0)
    valid = torch.ones(4, 1, dtype=torch.bool)
    none = torch.zeros(4, 1, dtype=torch.bool)
    terminated, first = none.clone(), none.clone()
    terminated[0], first[1] = True, True
    scaler(EnvSamples(None, torch.tensor([[4.0], [1.0], [1.0], [0.0]]), None, terminated, none, valid, first, None))
    returns = [4, 1, 2]
    mean = sum(returns) / 3
    assert scaler.scale == pytest.approx(math.sqrt(sum((r - mean) ** 2 for r in returns) / 3))


def test_scaled_rewards_are_clipped():
    scaler = RewardScaler(1, 0.0)
    flags = [torch.zeros(201, 1, dtype=torch.bool) for _ in range(2)]
    reward = torch.zeros(201, 1)
    reward[:2] = torch.tensor([[100.0], [-100.0]])
    scaled = scaler(EnvSamples(None, reward, None, *flags, torch.ones(201, 1, dtype=torch.bool), flags[0], None))
    assert scaler.scale == pytest.approx(10.0) and scaled[:3].flatten().tolist() == pytest.approx([10.0, -10.0, 0.0])
    reward[0] = 1e6
    assert scaler(EnvSamples(None, reward, None, *flags, ~flags[0], flags[0], None)).max() == 10.0


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_rewards_that_do_not_vary_are_left_alone(value):
    scaler = RewardScaler(1, 0.0)
    flags = [torch.zeros(6, 1, dtype=torch.bool) for _ in range(2)]
    scaled = scaler(EnvSamples(None, torch.full((6, 1), value), None, *flags, ~flags[0], flags[0], None))
    assert scaler.scale == 1.0 and (scaled == value).all()


def test_slot_without_valid_rows_changes_nothing():
    scaler, definition = RewardScaler(B, DISCOUNT), Definition()
    first, empty, last = make_slots(3)
    assert_scaled(scaler, definition, first)
    scale = scaler.scale
    scaler(empty._replace(valid=torch.zeros_like(empty.valid), reward=empty.reward * torch.nan))
    assert scaler.scale == scale
    last.first[0] = True
    assert_scaled(scaler, definition, last)


def test_saved_scaler_continues():
    slots = make_slots(6)
    scaler = RewardScaler(B, DISCOUNT)
    for env in slots[:3]:
        scaler(env)
    state, in_progress = scaler.state_dict(), scaler.discounted_return
    frozen = pickle.dumps((state, in_progress))
    other = RewardScaler(B, DISCOUNT)
    other.load_state_dict(*pickle.loads(frozen))
    for env in slots[3:]:
        assert torch.equal(torch.nan_to_num(scaler(env)), torch.nan_to_num(other(env)))
        assert scaler.scale == other.scale
    assert state == pickle.loads(frozen)[0]
    elsewhere = RewardScaler(2 * B, DISCOUNT)  # another number of environments on this rank: only statistics go on
    elsewhere.load_state_dict(state, None)
    assert elsewhere.scale == state["scale"] and elsewhere.discounted_return.tolist() == [0.0] * 2 * B


def test_far_mean_costs_no_precision():
    scaler = RewardScaler(1, 0.0)
    flags = [torch.zeros(101, 1, dtype=torch.bool) for _ in range(2)]
    generator = torch.Generator().manual_seed(0)
    everything = []
    for _ in range(20):
        reward = 1e5 + torch.randn(101, 1, generator=generator)
        everything.append(reward[:100].double())
        scaler(EnvSamples(None, reward, None, *flags, ~flags[0], flags[0], None))
    assert scaler.scale == pytest.approx(float(torch.cat(everything).std(correction=0)), rel=1e-6)
