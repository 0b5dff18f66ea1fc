"""Relabelled transitions against a reference that keeps every row in lists for ever."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from rlsurreal.replays import Hindsight, NStep, Prioritized, Replay
from rlsurreal.replays.extractors import Items
from rlsurreal.structs import AgentSamples, BatchSpec, EnvSamples, Samples
from rlsurreal.utils.namedarraytuple import NamedArrayTuple, leaves, namedarraytuple

T, B = 4, 3
DISCOUNT = 0.9
Observation = namedarraytuple("Dict", ("observation", "achieved_goal", "desired_goal"))


class Info(NamedArrayTuple):
    bonus: Any


class Source:
    """Slots whose goals say which row they belong to: achieved is (row, env), desired (-episode - 1, env)."""

    def __init__(self, seed: int = 0, p_end: float = 0.1, p_lost: float = 0.03) -> None:
        self.rng, self.p_end, self.p_lost = np.random.default_rng(seed), p_end, p_lost
        self.newest = 0
        self.valid: list[list[bool]] = [[] for _ in range(B)]
        self.ends: list[list[bool]] = [[] for _ in range(B)]
        self.terminated: list[list[bool]] = [[] for _ in range(B)]
        self.reward: list[list[float]] = [[] for _ in range(B)]
        self.goal = [[-1] for _ in range(B)]  # of each row's episode

    def slot(self) -> Samples:
        for b in range(B):
            for _ in range(T):
                ended = bool(self.ends[b]) and self.ends[b][-1]
                valid = not (ended or self.rng.random() < self.p_lost)  # a reset row, or a worker was lost
                terminated, truncated = (self.rng.random(2) < self.p_end / 2) & valid
                self.valid[b].append(valid)
                self.terminated[b].append(bool(terminated))
                self.ends[b].append(bool(terminated | truncated))
                self.reward[b].append(float(np.float32(self.rng.random())))
                self.goal[b].append(self.goal[b][-1] - (not valid))
        start, self.newest = self.newest, self.newest + T
        rows = np.arange(start, self.newest + 1)[:, None] + np.zeros(B, int)

        def field(columns: Any, dtype: Any) -> torch.Tensor:
            values = [[(*columns[b], 1)[start + t] for b in range(B)] for t in range(T + 1)]
            return torch.from_numpy(np.array(values, dtype))

        goals = [np.stack([x, np.broadcast_to(np.arange(B), x.shape)], -1) for x in (rows, field(self.goal, int))]
        both = [torch.from_numpy(goal.astype(np.float32)) for goal in goals]
        terminated = field(self.terminated, bool)
        ends = field(self.ends, bool)
        nothing = torch.zeros(T + 1, B, dtype=torch.bool)
        return Samples(
            AgentSamples(torch.from_numpy(rows), None, None, None),
            EnvSamples(
                Observation(torch.from_numpy(rows), *both),
                field(self.reward, np.float32),
                None,
                terminated,
                ends & ~terminated,
                field(self.valid, bool),
                nothing,
                Info(torch.from_numpy(rows.astype(np.float32) / 100)),
            ),
            torch.from_numpy(rows),
        )

    def last(self, b: int, row: int) -> int:
        """The last row of the episode of valid ``row``."""
        while not self.ends[b][row] and row + 1 < self.newest and self.valid[b][row + 1]:
            row += 1
        return row


def compute_reward(achieved: np.ndarray, desired: np.ndarray, info: Any) -> np.ndarray:
    assert achieved.ndim == 2 and achieved.shape == desired.shape
    bonus = 0.0 if info is None else info.bonus
    return -np.abs(achieved - desired).sum(-1).astype(np.float64) + bonus


def make(extractor: Any, num_rows: int = 19, **settings: Any) -> Replay:
    replay = Replay(capacity=num_rows * B, extractor=extractor, **settings)
    device = torch.device("cpu")
    replay.initialize(BatchSpec(T, B), seed=0, discount=DISCOUNT, device=device)
    return replay


def all_items(replay: Replay, repeat: int = 1) -> Items:
    rows, envs = replay.starts.at(np.repeat(replay.starts.suitable_places(), repeat))
    return Items(rows, envs, np.ones(len(rows), np.float32), None)


def future_rewards(source: Source, b: int, row: int, num_steps: int, goal: float) -> tuple[float, int]:
    """The return for another goal, and its number of steps."""
    total, k = 0.0, 0
    while True:
        total += DISCOUNT**k * (-abs(row + k + 1 - goal) + (row + k) / 100)
        if k + 1 == num_steps or row + k == source.last(b, row):
            return total, k + 1
        k += 1


@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize("p_end", [0.02, 0.3])  # episodes longer than the ring, and shorter than a slot
def test_every_row_gets_goals_of_its_own_future(num_steps: int, p_end: float) -> None:
    source = Source(seed=3, p_end=p_end)
    extractor = Hindsight(compute_reward=compute_reward, num_steps=num_steps, probability=1.0)
    replay, rng = make(extractor), np.random.default_rng(0)
    for i in range(37):
        replay.append(source.slot())
        if i % 4:
            continue
        items = all_items(replay, repeat=60)
        assert len(items.rows)
        batch = extractor.extract(replay._past, items, rng)
        seen: dict[tuple[int, int], Counter[int]] = {}
        for j, (row, b) in enumerate(zip(items.rows.tolist(), items.envs.tolist())):
            goal, env = batch.observation.desired_goal[j].tolist()
            assert env == b and batch.next_observation.desired_goal[j].tolist() == [goal, env]
            seen.setdefault((row, b), Counter())[int(goal) - 1] += 1
            total, length = future_rewards(source, b, row, num_steps, goal)
            assert float(batch.reward[j]) == pytest.approx(total, rel=1e-5, abs=1e-4)
            assert batch.observation.achieved_goal[j].tolist() == [row, b]
            assert batch.next_observation.achieved_goal[j].tolist() == [row + length, b]
            terminated = source.terminated[b][row + length - 1]
            assert float(batch.discount[j]) == pytest.approx(0.0 if terminated else DISCOUNT**length)
        for (row, b), counts in seen.items():
            last = source.last(b, row)
            assert set(counts) <= set(range(row, last + 1))
            if last - row < 8:  # 60 draws
                assert set(counts) == set(range(row, last + 1))


def test_goals_and_returns_by_hand() -> None:
    """Row t achieves t + 1, and earns t / 100 less the distance to its goal; row 7 is the newest, no game has ended."""
    source = Source(p_end=0.0, p_lost=0.0)
    extractor = Hindsight(compute_reward=compute_reward, num_steps=2, probability=1.0)
    replay = make(extractor, num_rows=40)
    for _ in range(2):
        replay.append(source.slot())
    items = Items(np.array([6] * 20 + [7]), np.ones(21, int), np.ones(21, np.float32), None)
    batch = extractor.extract(replay._past, items, np.random.default_rng(0))
    found = zip(batch.observation.desired_goal[:, 0].tolist(), batch.reward.tolist(), batch.discount.tolist())
    rounded = [tuple(round(x, 4) for x in row) for row in found]
    # Row 6: achieves 7, then 8.  For 7: 0 + 0.06, then -1 + 0.07; for 8: -1 + 0.06, then 0 + 0.07; discount 0.9.
    assert set(rounded[:-1]) == {(7.0, -0.777, 0.81), (8.0, -0.877, 0.81)}
    assert rounded[-1] == (8.0, 0.07, 0.9)


def test_rows_of_the_future_are_drawn_alike() -> None:
    source, extractor = Source(p_end=0.0, p_lost=0.0), Hindsight(compute_reward=compute_reward, probability=1.0)
    replay = make(extractor, num_rows=40)
    for _ in range(3):
        replay.append(source.slot())
    items = Items(np.full(24_000, 4), np.full(24_000, 1), np.ones(24_000, np.float32), None)
    goals = extractor.extract(replay._past, items, np.random.default_rng(0)).observation.desired_goal[:, 0]
    counts = np.bincount(goals.numpy().astype(int) - 1, minlength=12)
    assert counts[:4].sum() == 0 and len(counts) == 12  # rows 4 to 11: the unfinished episode ends with the newest
    assert ((counts[4:] - 3000) ** 2 / 3000).sum() < 30


def test_only_the_given_part_is_relabelled_and_the_rest_is_as_recorded() -> None:
    source = Source(seed=1)
    extractor, plain = Hindsight(compute_reward=compute_reward, probability=0.3), NStep()
    replays = make(extractor, num_rows=200), make(plain, num_rows=200)
    for _ in range(45):
        slot = source.slot()
        for replay in replays:
            replay.append(slot)
    items = all_items(replays[0], repeat=20)
    batch = extractor.extract(replays[0]._past, items, np.random.default_rng(0))
    recorded = plain.extract(replays[1]._past, items, np.random.default_rng(0))
    changed = (batch.observation.desired_goal != recorded.observation.desired_goal).any(-1)
    assert float(changed.float().mean()) == pytest.approx(0.3, abs=0.03)
    same = ~changed
    for ours, theirs in zip(leaves(batch), leaves(recorded), strict=True):
        assert torch.equal(ours[same], theirs[same])
    assert torch.equal(batch.discount, recorded.discount)  # flags are kept
    assert torch.equal(batch.action, recorded.action)
    stored = replays[0].storage.read("observation", replays[0].ring.flat(items.rows, items.envs))
    assert torch.equal(stored.desired_goal, recorded.observation.desired_goal)  # the rows themselves stay as they are


def test_info_is_none_where_the_environment_records_none() -> None:
    seen: list[Any] = []

    def reward(achieved: np.ndarray, desired: np.ndarray, info: Any) -> np.ndarray:
        seen.append(info)
        return compute_reward(achieved, desired, info)

    replay = make(Hindsight(compute_reward=reward))
    source = Source()
    for _ in range(3):
        slot = source.slot()
        replay.append(slot._replace(env=slot.env._replace(env_info=None)))
    replay.sample(8)
    assert seen == [None]


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_whole_replay_resumes_exactly(probability: float) -> None:
    def build() -> Replay:
        extractor = Hindsight(compute_reward=compute_reward, num_steps=2, probability=probability)
        return make(extractor, selector=Prioritized())

    source, one, other = Source(), build(), build()
    for _ in range(9):
        one.append(source.slot())
    one.sample(5)
    other.load_state_dict(one.state_dict())
    for _ in range(9):
        slot = source.slot()
        slot.env.first[0] = False
        for replay in (one, other):
            replay.append(slot)
        for a, b in zip(leaves(one.sample(30)[0]), leaves(other.sample(30)[0]), strict=True):
            assert torch.equal(a, b)


def test_observations_without_goals_are_an_error() -> None:
    slot = Source().slot()
    slot = slot._replace(env=slot.env._replace(observation=slot.env.observation.observation))
    with pytest.raises(ValueError, match="use a goal environment"):
        make(Hindsight(compute_reward=compute_reward)).append(slot)


def test_wrong_number_of_rewards_is_an_error() -> None:
    replay = make(Hindsight(compute_reward=lambda achieved, desired, info: achieved))
    for _ in range(3):
        replay.append(Source().slot())
    with pytest.raises(ValueError, match="one reward for each"):
        replay.sample(50)


def test_rewards_that_are_not_finite_are_an_error() -> None:
    replay = make(Hindsight(compute_reward=lambda achieved, desired, info: np.full(len(achieved), np.nan)))
    for _ in range(3):
        replay.append(Source().slot())
    with pytest.raises(ValueError, match="compute_reward returned nan"):
        replay.sample(50)


@pytest.mark.parametrize(("name", "value"), [("probability", 1.2), ("num_steps", 0)])
def test_settings_are_checked(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"Hindsight.{name}"):
        Hindsight(compute_reward=compute_reward, **{name: value})
