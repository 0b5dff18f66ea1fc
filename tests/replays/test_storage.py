"""Frame storage against full storage, bit for bit, on games whose stacks do all that stacks do."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlsurreal.replays import FrameStorage, FullStorage, NStep, Replay, Windows
from rlsurreal.replays.extractors import Items
from rlsurreal.replays.ring import flat_rows, gather
from rlsurreal.replays.storage import Storage
from rlsurreal.structs import AgentSamples, BatchSpec, EnvSamples, Samples
from rlsurreal.utils.files import load_checkpoint, save_checkpoint
from rlsurreal.utils.namedarraytuple import leaves, named_leaves
from rlsurreal.utils.torch_tree import num_bytes

T, B, K = 5, 3, 4
SHAPE = (2, 5)  # 10 bytes: no whole number of words


class Games:
    """Slots of stacked frames: random lengths, lost lives (with or without a reset row), frames that stand still."""

    def __init__(self, padding: str, seed: int = 0, num_frames: int = K, shape: tuple[int, int] = SHAPE) -> None:
        self.rng, self.padding, self.shape = np.random.default_rng(seed), padding, shape
        self.stack = np.zeros((B, num_frames, *shape), np.uint8)
        for b in range(B):
            self._begin(b)
        self.first = np.ones(B, bool)
        self.resets = np.zeros(B, int)  # what the next row is: 0 a step, 1 a reset row, 2 one that keeps the stack

    def _frame(self, b: int) -> np.ndarray:
        kind = self.rng.integers(6)
        if kind == 0:
            return np.zeros(self.shape, np.uint8)
        return self.stack[b, -1] if kind == 1 else self.rng.integers(0, 3, self.shape, np.uint8)

    def _begin(self, b: int) -> None:
        frame = self._frame(b).copy()
        self.stack[b] = 0 if self.padding == "zeros" else frame
        self.stack[b, -1] = frame

    def _step(self, b: int) -> None:
        frame = self._frame(b).copy()
        self.stack[b, :-1] = self.stack[b, 1:].copy()
        self.stack[b, -1] = frame

    def slot(self) -> Samples:
        observation = np.empty((T + 1, *self.stack.shape), np.uint8)
        first, valid = np.zeros((T + 1, B), bool), np.zeros((T + 1, B), bool)
        terminated, truncated = np.zeros((T + 1, B), bool), np.zeros((T + 1, B), bool)
        reward = np.zeros((T + 1, B), np.float32)
        observation[0], first[0] = self.stack, self.first
        for t in range(T):
            for b in range(B):
                if self.resets[b]:
                    if self.resets[b] == 1:
                        self._begin(b)
                    else:
                        self._step(b)
                    self.resets[b], first[t + 1, b] = 0, True
                    continue
                self._step(b)
                valid[t, b], reward[t, b] = True, self.rng.standard_normal()
                event = self.rng.integers(12)
                if event in (0, 1, 2):  # over; cut off; a life lost, with a reset row
                    self.resets[b] = 2 if event == 2 else 1
                    terminated[t, b], truncated[t, b] = event != 1, event == 1
                elif event == 3:  # a life lost, and the game goes on
                    terminated[t, b] = first[t + 1, b] = True
            observation[t + 1] = self.stack
        self.first = first[T]
        action = torch.from_numpy(self.rng.integers(0, 4, (T + 1, B)))
        env = [torch.from_numpy(x) for x in (observation, reward, terminated, truncated, valid, first)]
        return Samples(
            AgentSamples(action, None, None, None),
            EnvSamples(env[0], env[1], None, env[2], env[3], env[4], env[5], None),
            torch.zeros(T + 1, B, dtype=torch.int64),
        )


def make(storage: Storage, extractor: Any = None, capacity: int = 41 * B) -> Replay:
    replay = Replay(capacity=capacity, storage=storage, extractor=extractor or NStep())
    replay.initialize(BatchSpec(T, B), seed=0, discount=0.9, device=torch.device("cpu"))
    return replay


def assert_same(one: Any, other: Any) -> None:
    for (name, a), (_, b) in zip(named_leaves(one), named_leaves(other), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("padding", ["zeros", "first"])
@pytest.mark.parametrize("shape", [SHAPE, (4, 4)])
@pytest.mark.parametrize("num_frames", [1, 2, 4])
@pytest.mark.parametrize(
    "extractor",
    [NStep(), NStep(num_steps=3), Windows(burn_in=2, num_steps=4, num_ahead=1, interval=5)],
    ids=["1", "3", "windows"],
)
def test_frames_equal_full_observations(padding: Any, shape: Any, num_frames: int, extractor: Any) -> None:
    games = Games(padding, num_frames=num_frames, shape=shape)
    frames, full = make(FrameStorage(padding=padding), extractor), make(FullStorage(), extractor)
    for i in range(40):  # five rounds
        slot = games.slot()
        frames.append(slot)
        full.append(slot)
        if i > 5:
            ours, theirs = frames.starts, full.starts
            places = np.intersect1d(ours.suitable_places(), theirs.suitable_places())
            assert len(places) > 10
            starts, envs = ours.at(places)
            rows = starts * extractor.stride
            for ahead in range(extractor.reach + 1):
                a, b = (r.storage.observation(r.ring.flat(rows + ahead, envs)) for r in (frames, full))
                assert torch.equal(a, b), (i, ahead)
            items = [_items(r, starts, envs) for r in (frames, full)]
            assert_same(*items)


def _items(replay: Replay, starts: np.ndarray, envs: np.ndarray) -> Any:
    items = Items(starts * replay.extractor.stride, envs, np.ones(len(starts), np.float32), None)
    return replay.extractor.extract(replay._past, items, np.random.default_rng(0))


@pytest.mark.parametrize("padding", ["zeros", "first"])
def test_begins_in_the_middle_of_an_episode(padding: Any) -> None:
    games = Games(padding, seed=4)
    for _ in range(3):
        games.slot()  # steps taken at random before the run
    games.first[:] = True
    frames, full = make(FrameStorage(padding=padding)), make(FullStorage())
    slot = games.slot()
    frames.append(slot)
    full.append(slot)
    for row in range(T + 1):
        where = np.full(B, row), np.arange(B)
        one, other = (replay.storage.observation(replay.ring.flat(*where)) for replay in (frames, full))
        assert torch.equal(one, other)


@pytest.mark.parametrize(("padding", "other"), [("zeros", "first"), ("first", "zeros")])
def test_wrong_padding_is_an_error(padding: Any, other: Any) -> None:
    games, replay = Games(other), make(FrameStorage(padding=padding))
    with pytest.raises(ValueError, match=r"FrameStorage.padding is .* choose the padding"):
        for _ in range(20):
            replay.append(games.slot())


def test_only_stacks_of_frames() -> None:
    slot = Games("zeros").slot()
    slot = slot._replace(env=slot.env._replace(observation=slot.env.reward))
    with pytest.raises(ValueError, match="use FullStorage"):
        make(FrameStorage()).append(slot)
    with pytest.raises(ValueError, match="FrameStorage.padding"):
        FrameStorage(padding="edge")  # type: ignore[arg-type]


def test_memory_saved() -> None:
    games = Games("zeros", shape=(84, 84))
    frames, full = FrameStorage(), FullStorage()
    for storage in (frames, full):
        make(storage).append(games.slot())
    assert num_bytes(full.rows) / num_bytes(frames.rows) == pytest.approx(K, rel=0.01)


@pytest.mark.parametrize("kind", [FrameStorage, FullStorage])
def test_rows_in_a_file(kind: Any, tmp_path: Path) -> None:
    games, path = Games("zeros"), tmp_path / "deeper" / "rows"
    on_disk, in_memory = make(kind(file=str(path))), make(kind())
    for _ in range(20):
        slot = games.slot()
        on_disk.append(slot)
        in_memory.append(slot)
        assert_same(on_disk.sample(16)[0], in_memory.sample(16)[0])
    assert path.stat().st_size >= num_bytes(on_disk.storage.rows)  # type: ignore[attr-defined]
    assert all(leaf.data_ptr() % leaf.element_size() == 0 for leaf in leaves(on_disk.storage.rows))  # type: ignore
    again = make(kind(file=str(tmp_path / "again")))
    saved = on_disk.state_dict()
    own = {leaf.data_ptr() for leaf in leaves(on_disk.storage.rows)}  # type: ignore[attr-defined]
    assert {leaf.data_ptr() for leaf in saved["rows"]["storage"]["rows"]} == own, "they may be larger than memory"
    save_checkpoint(tmp_path / "saved.pt", saved)
    again.load_state_dict(load_checkpoint(tmp_path / "saved.pt"))
    slot = games.slot()
    again.append(slot)
    in_memory.append(slot)
    assert_same(again.sample(16)[0], in_memory.sample(16)[0])


def test_a_file_is_one_replays(tmp_path: Path) -> None:
    """Two runs of one script, say, which would write over each other's rows."""
    games, path = Games("zeros"), str(tmp_path / "rows")
    first, second = (make(FullStorage(file=path)) for _ in range(2))
    first.append(games.slot())
    with pytest.raises(ValueError, match="storage.file '.*rows' is in use by another replay; name another"):
        second.append(games.slot())
    del first
    gc.collect()
    make(FullStorage(file=path)).append(games.slot())


def test_a_file_that_is_no_replays_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "results.txt"
    path.write_text("the results of years")
    with pytest.raises(ValueError, match="storage.file '.*results.txt' is there and holds no replay; name another"):
        make(FullStorage(file=str(path))).append(Games("zeros").slot())
    assert path.read_text() == "the results of years"
    path.write_text("")
    make(FullStorage(file=str(path))).append(Games("zeros").slot())


@pytest.mark.parametrize("kind", [FrameStorage, FullStorage])
def test_a_closed_replay_gives_up_its_file(kind: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "rows")
    for _ in range(2):
        replay = make(kind(file=path))
        replay.append(Games("zeros").slot())
        replay.close()
        replay.close()


def test_a_replay_larger_than_memory_is_said(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    games, slot = Games("zeros"), Games("zeros").slot()
    needed = make(FullStorage())
    needed.append(slot)
    size = num_bytes(needed.storage.rows)  # type: ignore[attr-defined]
    monkeypatch.setattr("rlsurreal.replays.storage.free_memory", lambda: size)
    make(FullStorage()).append(games.slot())
    assert not caplog.records
    monkeypatch.setattr("rlsurreal.replays.storage.free_memory", lambda: size - 1)
    make(FullStorage()).append(games.slot())
    assert "Replay.capacity asks for" in caplog.text and "FrameStorage" in caplog.text


def test_a_file_and_a_gpu_exclude_each_other(tmp_path: Path) -> None:
    replay = Replay(capacity=100, storage=FullStorage(file=str(tmp_path / "rows")), device="cuda")
    replay.initialize(BatchSpec(T, B), seed=0, discount=0.9, device=torch.device("cpu"))
    with pytest.raises(ValueError, match="choose one"):
        replay.append(Games("zeros").slot())


@pytest.mark.parametrize("padding", ["zeros", "first"])
@pytest.mark.parametrize("num_slots", [2, 7, 8, 16])
def test_stacks_on_both_sides_of_environments_that_began_anew(padding: Any, num_slots: int) -> None:
    """After a restore, in the middle of an episode: neither side's stacks take a frame of the other."""
    games, anew, saved = Games(padding, seed=1), Games(padding, seed=2), make(FrameStorage(padding=padding))
    for _ in range(num_slots):
        last = games.slot()
        saved.append(last)
    for _ in range(2):
        anew.slot()
    anew.first[:] = True
    replay = make(FrameStorage(padding=padding))
    replay.load_state_dict(saved.state_dict())
    newest = saved.ring.newest
    slots = [anew.slot() for _ in range(2)]
    for slot in slots:
        replay.append(slot)
    expected = {newest - T + t: last.env.observation[t] for t in range(T + 1)}
    start = replay.ring.newest - 2 * T
    assert start > newest
    for i, slot in enumerate(slots):
        expected |= {start + i * T + t: slot.env.observation[t] for t in range(T + 1)}
    for row, stacks in expected.items():
        found = replay.storage.observation(replay.ring.flat(np.full(B, row), np.arange(B)))
        assert torch.equal(found, stacks), row - newest
    assert not replay.timeline.is_valid(np.arange(newest, start)[:, None], np.arange(B)).any()


@pytest.mark.parametrize("shape", [(5,), (2, 3), (0,)])
def test_rows_of_the_host_and_of_a_device_are_read_alike(shape: tuple[int, ...]) -> None:
    rows = {"vector": torch.randn(7, 3, 4), "flag": torch.rand(7, 3) < 0.5, "frame": torch.zeros(7, 3, 2, 2).byte()}
    places = np.random.default_rng(0).integers(0, 21, shape)
    for name, tensor in rows.items():
        flat = tensor.flatten(0, 1)
        on_host = flat_rows(tensor)
        assert isinstance(on_host, np.ndarray) and np.shares_memory(on_host, tensor.numpy()), "no copy"
        for found in (gather(on_host, places), gather(flat, places)):
            assert torch.equal(found, flat[torch.from_numpy(places)]), name
