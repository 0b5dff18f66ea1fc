"""Transitions and sequences against a reference that keeps every row in lists for ever."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from rlsurreal.replays import NStep, Replay, Sequences, Transitions, Windows
from rlsurreal.replays.extractors import Items
from rlsurreal.structs import AgentSamples, BatchSpec, EnvSamples, Samples
from rlsurreal.utils.namedarraytuple import NamedArrayTuple

T, B = 6, 3


class Action(NamedArrayTuple):
    move: Any
    button: Any


@dataclass
class Row:
    observation: float  # its number, and that of its environment
    first: bool
    action: tuple[float, int] = (np.nan, -1)  # the rest is unknown until its action has been taken
    reward: float = np.nan
    terminated: bool = False
    truncated: bool = False
    valid: bool = False


class Source:
    """Slots of random flags: ends of every kind, with and without reset rows, and columns that wait."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.rows = [[Row(observation=b / 10, first=True)] for b in range(B)]

    @property
    def newest(self) -> int:
        return len(self.rows[0]) - 1

    def slot(self, interval: int = T) -> Samples:
        start = self.newest
        for b in range(B):
            invalid = 0
            for _ in range(T):
                row = self.rows[b][-1]
                row.action = (float(self.rng.standard_normal()), int(self.rng.integers(9)))
                row.valid, follows_end = invalid == 0, False
                row.reward = float(np.float32(self.rng.standard_normal())) if row.valid else 0.0
                if row.valid:
                    row.terminated, row.truncated = (self.rng.random(2) < 0.15).tolist()
                    follows_end = row.terminated or row.truncated
                    if follows_end:
                        invalid = int(self.rng.choice([0, 1, 1, 1, 4]))
                    elif self.rng.random() < 0.08:
                        invalid = 1  # a worker was lost: the next row's action is not applied
                else:
                    invalid -= 1
                first = (follows_end and invalid == 0) or (not row.valid and invalid == 0)
                self.rows[b].append(Row(observation=len(self.rows[b]) + b / 10, first=first))
        return self._samples(start, interval)

    def _samples(self, start: int, interval: int) -> Samples:
        def field(name: str, dtype: Any) -> torch.Tensor:
            values = [[getattr(self.rows[b][start + t], name) for b in range(B)] for t in range(T + 1)]
            return torch.from_numpy(np.array(values, dtype))

        action = [[self.rows[b][start + t].action for b in range(B)] for t in range(T + 1)]
        move, button = (torch.tensor([[a[i] for a in row] for row in action]) for i in range(2))
        state = [[1000 * (start + t) + b for b in range(B)] for t in range(0, T + 1, interval)]
        garbage = torch.rand(T + 1, B) < 0.5  # row T's flags are not filled: whatever a slot held before
        flags = {name: field(name, bool) for name in ("terminated", "truncated", "valid")}
        for flag in flags.values():
            flag[T] = garbage[T]
        return Samples(
            AgentSamples(Action(move, button), None, None, torch.tensor(state)),
            EnvSamples(
                field("observation", np.float64),
                field("reward", np.float32),
                None,
                flags["terminated"],
                flags["truncated"],
                flags["valid"],
                field("first", bool),
                None,
            ),
            torch.zeros(T + 1, B, dtype=torch.int64),
        )


def make(extractor: Any, num_rows: int) -> Replay:
    replay = Replay(capacity=num_rows * B, extractor=extractor)
    replay.initialize(BatchSpec(T, B), seed=0, discount=0.9, device=torch.device("cpu"))
    return replay


def all_items(replay: Replay) -> Items:
    starts, envs = replay.starts.at(replay.starts.suitable_places())
    states = None
    if replay._states is not None:
        states = replay._states.flatten(0, 1)[torch.from_numpy(replay.starts.ring.flat(starts, envs))]
    return Items(starts * replay.extractor.stride, envs, np.ones(len(starts), np.float32), states)


def n_step(rows: list[Row], start: int, num_steps: int, discount: float) -> tuple[float, float, float]:
    """Return, discount of what follows, observation of what follows."""
    total, k = 0.0, 0
    while True:
        row = rows[start + k]
        total += discount**k * row.reward
        k += 1
        if row.terminated:
            return total, 0.0, rows[start + k].observation
        if row.truncated or k == num_steps or not rows[start + k].valid:
            return total, discount**k, rows[start + k].observation


@pytest.mark.parametrize("num_steps", [1, 3, 5])
@pytest.mark.parametrize("num_rows", [16, 23])  # slots of 6 divide neither
def test_transitions(num_steps: int, num_rows: int) -> None:
    source, replay = Source(seed=num_steps), make(NStep(num_steps=num_steps), num_rows)
    lengths = set()
    for _ in range(30):
        replay.append(source.slot())
        assert not replay.timeline.is_valid(np.full(B, source.newest), np.arange(B)).any()  # no action yet
        items = all_items(replay)
        oldest = max(0, source.newest - num_rows + 1)
        expected = {
            (row, b)
            for b in range(B)
            for row in range(oldest, source.newest - num_steps + 1)
            if source.rows[b][row].valid
        }
        assert set(zip(items.rows.tolist(), items.envs.tolist())) == expected
        batch: Transitions = replay.extractor.extract(replay._past, items, np.random.default_rng(0))
        for i, (start, b) in enumerate(zip(items.rows.tolist(), items.envs.tolist())):
            row = source.rows[b][start]
            total, discount, observation = n_step(source.rows[b], start, num_steps, 0.9)
            assert batch.observation[i] == row.observation
            assert (float(batch.action.move[i]), int(batch.action.button[i])) == pytest.approx(row.action)
            assert float(batch.reward[i]) == pytest.approx(total, abs=1e-5)
            assert float(batch.discount[i]) == pytest.approx(discount)
            assert batch.next_observation[i] == observation
            lengths.add(int(observation) - start)
    assert lengths == set(range(1, num_steps + 1))


def test_returns_by_hand() -> None:
    source = Source()
    source.slot()
    for t, row in enumerate(source.rows[0]):
        row.reward, row.valid, row.terminated, row.truncated = t + 1.0, True, False, False
    for column in (1, 2):
        for ours, theirs in zip(source.rows[column], source.rows[0]):
            ours.reward, ours.valid, ours.terminated, ours.truncated = theirs.reward, True, False, False
    source.rows[1][1].truncated = True
    source.rows[2][1].terminated = source.rows[2][1].truncated = True  # both: terminated wins
    replay = make(NStep(num_steps=3), 16)
    replay.append(source._samples(0, T))
    items = Items(np.zeros(B, np.int64), np.arange(B), np.ones(B, np.float32), None)
    batch = replay.extractor.extract(replay._past, items, np.random.default_rng(0))
    np.testing.assert_allclose(batch.reward, [1 + 0.9 * 2 + 0.81 * 3, 1 + 0.9 * 2, 1 + 0.9 * 2], rtol=1e-6)
    np.testing.assert_allclose(batch.discount, [0.729, 0.81, 0.0], rtol=1e-6)
    np.testing.assert_allclose(batch.next_observation, [3.0, 2.1, 2.2])


@pytest.mark.parametrize("interval", [1, 2, 3, 6])
@pytest.mark.parametrize("num_rows", [31, 38])
def test_sequences(interval: int, num_rows: int) -> None:
    windows = Windows(burn_in=3, num_steps=4, num_ahead=2, interval=interval)
    source, replay = Source(seed=interval), make(windows, num_rows)
    at_index_0 = 0
    for _ in range(30):
        replay.append(source.slot(interval))
        items = all_items(replay)
        oldest = max(0, source.newest - replay.ring.num_rows + 2)  # the row before an item is needed, too
        expected = {
            (row, b)
            for b in range(B)
            for row in range(0, source.newest - 9 + 1, interval)
            if row >= oldest and any(source.rows[b][row + t].valid for t in range(3, 7))
        }
        found = set(zip(items.rows.tolist(), items.envs.tolist()))
        assert found == {(row, b) for row, b in expected if row > 0 or source.newest < replay.ring.num_rows - 1}
        batch: Sequences = replay.extractor.extract(replay._past, items, np.random.default_rng(0))
        for i, (start, b) in enumerate(zip(items.rows.tolist(), items.envs.tolist())):
            at_index_0 += start > 0 and start % replay.ring.num_rows == 0
            assert int(batch.state[i]) == 1000 * start + b
            for t in range(9):
                row, before = source.rows[b][start + t], source.rows[b][start + t - 1]
                previous = ((0.0, 0), 0.0) if row.first else (before.action, before.reward)
                assert batch.observation[t, i] == row.observation
                assert float(batch.prev_action.move[t, i]) == pytest.approx(previous[0][0])
                assert int(batch.prev_action.button[t, i]) == previous[0][1]
                assert float(batch.prev_reward[t, i]) == previous[1]
                assert (float(batch.action.move[t, i]), int(batch.action.button[t, i])) == pytest.approx(row.action)
                for name in ("reward", "terminated", "truncated", "valid", "first"):
                    assert getattr(batch, name)[t, i].item() == getattr(row, name), name
    assert at_index_0 > 5


def test_states_must_be_recorded_where_items_begin() -> None:
    replay = make(Windows(burn_in=0, num_steps=2, num_ahead=1, interval=2), 40)
    with pytest.raises(ValueError, match="state_interval=2"):
        replay.append(Source().slot(interval=3))


@pytest.mark.parametrize(
    ("make_one", "name"),
    [
        (lambda: NStep(num_steps=0), "NStep.num_steps"),
        (lambda: Windows(burn_in=-1), "Windows.burn_in"),
        (lambda: Windows(num_ahead=0), "Windows.num_ahead"),
        (lambda: Windows(interval=0), "Windows.interval"),
    ],
)
def test_settings_are_checked(make_one: Any, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        make_one()
