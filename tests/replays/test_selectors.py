"""What is drawn, how often, and with which weights."""

from __future__ import annotations

import numpy as np
import pytest

from rlsurreal.replays import Fifo, Prioritized, Uniform
from rlsurreal.replays.selectors import Selector, Starts
from rlsurreal.utils.schedules import Linear

NUM_STARTS, NUM_ENVS = 13, 3


class Drive:
    """A selector with its starts, moved as a replay moves them."""

    def __init__(self, selector: Selector) -> None:
        self.starts, self.selector = Starts(NUM_STARTS, NUM_ENVS), selector
        selector.initialize(self.starts)
        self.suits: dict[tuple[int, int], bool] = {}
        self.rng = np.random.default_rng(0)

    def add(self, suits: np.ndarray, priority: np.ndarray | None = None) -> None:
        for i, env in np.ndindex(*suits.shape):
            self.suits[self.starts.stop + i, env] = bool(suits[i, env])
        self.selector.add(self.starts.extend(suits), priority)

    def remove_until(self, first: int) -> None:
        self.selector.remove(self.starts.remove_until(first))
        self.suits = {place: suits for place, suits in self.suits.items() if place[0] >= first}

    def expected(self) -> set[tuple[int, int]]:
        return {place for place, suits in self.suits.items() if suits}

    def count(self, num_batches: int, size: int = 100) -> dict[tuple[int, int], int]:
        counts: dict[tuple[int, int], int] = {}
        for _ in range(num_batches):
            drawn = self.selector.draw(size, self.rng, 0.0)
            for place in zip(drawn.starts.tolist(), drawn.envs.tolist()):
                counts[place] = counts.get(place, 0) + 1
        return counts


def ones(num: int) -> np.ndarray:
    return np.ones((num, NUM_ENVS), bool)


@pytest.mark.parametrize("selector", [Uniform(), Prioritized(), Prioritized(unique=True)], ids=repr)
def test_only_what_is_there_and_suits_through_many_wraps(selector: Selector) -> None:
    drive, rng = Drive(selector), np.random.default_rng(3)
    for _ in range(60):
        num = int(rng.integers(0, 6))
        drive.remove_until(max(drive.starts.first, drive.starts.stop + num - NUM_STARTS + int(rng.integers(0, 2))))
        drive.add(rng.random((num, NUM_ENVS)) < 0.6)
        if drive.expected():
            seen = drive.count(20, size=1 if getattr(selector, "unique", False) else 40)
            assert set(seen) <= drive.expected()
            if isinstance(selector, Prioritized):
                selector.tree.check_valid()
                assert np.count_nonzero(selector.tree.leaves) == len(drive.expected())


def test_uniform_is_uniform_over_what_suits() -> None:
    drive = Drive(Uniform())
    drive.add(ones(9))
    drive.remove_until(6)
    drive.add(np.random.default_rng(1).random((8, NUM_ENVS)) < 0.4)  # wraps
    counts = drive.count(400)
    assert set(counts) == drive.expected()
    mean = 400 * 100 / len(counts)
    chi_square = sum((n - mean) ** 2 / mean for n in counts.values())
    assert chi_square < len(counts) + 5 * np.sqrt(2 * len(counts))
    assert (drive.selector.draw(7, drive.rng, 0.0).weight == 1).all()


def test_uniform_finds_the_one_that_suits() -> None:
    drive = Drive(Uniform())
    suits = ~ones(13)
    suits[7, 1] = True
    drive.add(suits)
    assert drive.count(3) == {(7, 1): 300}


@pytest.mark.parametrize("selector", [Uniform(), Prioritized()], ids=repr)
def test_nothing_that_suits_is_an_error(selector: Selector) -> None:
    drive = Drive(selector)
    drive.add(~ones(4))
    with pytest.raises(ValueError, match="min_steps"):
        selector.draw(2, drive.rng, 0.0)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_frequencies_follow_priority_to_the_alpha_fresh_or_updated(alpha: float) -> None:
    drive = Drive(Prioritized(alpha=alpha))
    priority = np.random.default_rng(4).random((8, NUM_ENVS)) * 5 + 0.1
    drive.add(ones(4), priority[:4])  # given with the slot
    drive.add(ones(4))  # updated later
    starts, envs = np.meshgrid(np.arange(4, 8), np.arange(NUM_ENVS), indexing="ij")
    drive.selector.update(starts.ravel(), envs.ravel(), priority[4:].ravel())
    counts = drive.count(600)
    probability = priority**alpha / (priority**alpha).sum()
    for (start, env), n in counts.items():
        expected = 60_000 * probability[start, env]
        assert abs(n - expected) < 5 * np.sqrt(expected)


def test_weights_against_numbers_worked_by_hand() -> None:
    drive = Drive(Prioritized(alpha=0.5, beta=Linear(0.5, 1.0)))
    suits = ~ones(3)
    suits[:, 0] = True
    drive.add(suits, np.array([[1.0, 0, 0], [4.0, 0, 0], [16.0, 0, 0]]))  # leaves 1, 2, 4; P = 1/7, 2/7, 4/7
    hand = {0.0: (1.0, 0.7071068, 0.5), 0.5: (1.0, 0.5946036, 0.3535534), 1.0: (1.0, 0.5, 0.25)}
    for progress, expected in hand.items():  # (3 P) ** -beta, over its largest, at beta 0.5, 0.75, 1
        drawn = drive.selector.draw(70, drive.rng, progress)
        assert sorted(np.bincount(drawn.starts)) == [10, 20, 40]  # equal parts of the whole, each drawn from once
        np.testing.assert_allclose(drawn.weight, np.array(expected)[drawn.starts], rtol=1e-6)
        assert drawn.weight.dtype == np.float32
    alone = drive.selector.draw(1, drive.rng, 0.0)
    assert alone.weight[0] == 1


def test_new_items_get_the_largest_priority_so_far() -> None:
    selector = Prioritized(alpha=1.0)
    drive = Drive(selector)
    drive.add(ones(2))
    assert (selector.tree.leaves[:6] == 1).all()
    selector.update(np.array([0, 1]), np.array([1, 2]), np.array([7.5, 0.5]))
    selector.update(np.array([0]), np.array([1]), np.array([0.25]))
    drive.add(ones(1))
    np.testing.assert_array_equal(selector.tree.leaves[:9], [1, 0.25, 1, 1, 1, 0.5, 7.5, 7.5, 7.5])


def test_initial_priority_given() -> None:
    selector = Prioritized(alpha=0.5, initial_priority=9.0)
    drive = Drive(selector)
    drive.add(ones(1))
    np.testing.assert_array_equal(selector.tree.leaves[:3], [3, 3, 3])


def test_where_an_item_comes_twice_the_last_priority_counts() -> None:
    selector = Prioritized(alpha=1.0)
    drive = Drive(selector)
    drive.add(ones(2))
    selector.update(np.array([1, 0, 1]), np.array([0, 0, 0]), np.array([3.0, 4.0, 5.0]))
    assert selector.tree.leaves[3] == 5
    assert selector.tree.total == 4 + 5 + 4


def test_updates_of_items_that_are_gone_are_dropped() -> None:
    selector = Prioritized(alpha=1.0)
    drive = Drive(selector)
    drive.add(ones(12))
    drive.remove_until(5)
    before = selector.tree.leaves.copy()
    selector.update(np.array([0, 4]), np.array([0, 2]), np.array([100.0, 100.0]))  # their places are empty
    np.testing.assert_array_equal(selector.tree.leaves, before)
    drive.add(ones(4), np.full((4, NUM_ENVS), 2.0))  # starts 12 to 15 lie where 12, 0, 1, 2 lay
    before = selector.tree.leaves.copy()
    selector.update(np.array([0, 1, 2]), np.array([0, 1, 2]), np.array([100.0, 100.0, 100.0]))
    np.testing.assert_array_equal(selector.tree.leaves, before)
    assert {start for start, _ in drive.count(50)} == set(range(5, 16))


def test_unique_batches() -> None:
    drive = Drive(Prioritized(alpha=1.0, unique=True))
    priority = np.full((4, NUM_ENVS), 1e-3)
    priority[2, 1] = 1e6  # nearly always drawn
    drive.add(ones(4), priority)
    for size in (2, 6, 12):
        drawn = drive.selector.draw(size, drive.rng, 0.0)
        assert len(set(zip(drawn.starts.tolist(), drawn.envs.tolist()))) == size
        assert (2, 1) in set(zip(drawn.starts.tolist(), drawn.envs.tolist()))
    with pytest.raises(ValueError, match="unique=False"):
        drive.selector.draw(13, drive.rng, 0.0)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_priorities_must_be_finite(bad: float) -> None:
    drive = Drive(Prioritized())
    drive.add(ones(1))
    with pytest.raises(ValueError, match="not finite"):
        drive.selector.update(np.array([0]), np.array([0]), np.array([bad]))
    with pytest.raises(ValueError, match="not finite"):
        drive.add(ones(1), np.full((1, NUM_ENVS), bad))


def test_priority_zero_is_seen_now_and_then() -> None:
    selector = Prioritized(alpha=0.5)
    drive = Drive(selector)
    drive.add(ones(1))
    selector.update(np.zeros(3, int), np.arange(3), np.zeros(3))
    np.testing.assert_allclose(selector.tree.leaves[:3], 1e-3)


@pytest.mark.parametrize("make", [Uniform, Prioritized, lambda: Prioritized(unique=True)])
def test_state_dict_round_trip(make: type[Uniform]) -> None:
    one, other = Drive(make()), Drive(make())
    one.add(np.random.default_rng(0).random((11, NUM_ENVS)) < 0.7)
    one.selector.update(np.array([1, 5]), np.array([1, 2]), np.array([4.0, 3.0]))
    one.remove_until(6)
    one.add(ones(5))
    other.starts.load_state_dict(one.starts.state_dict())
    other.selector.load_state_dict(one.selector.state_dict())
    for drive in (one, other):
        drive.add(ones(1))
    for _ in range(20):
        a, b = one.selector.draw(5, one.rng, 0.3), other.selector.draw(5, other.rng, 0.3)
        for x, y in zip(vars(a).values(), vars(b).values()):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"alpha": 1.5}, "alpha"), ({"initial_priority": 0.0}, "initial_priority"), ({"beta": float("nan")}, "nan")],
)
def test_settings_are_checked(settings: dict[str, float], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Prioritized(**settings)  # type: ignore[arg-type]


def test_fifo_gives_each_item_once_in_order_through_many_wraps() -> None:
    drive, rng = Drive(Fifo()), np.random.default_rng(4)
    waiting: list[tuple[int, int]] = []
    for _ in range(80):
        num = int(rng.integers(0, 6))
        drive.remove_until(drive.starts.stop + num - NUM_STARTS)
        waiting = [place for place in waiting if place[0] >= drive.starts.first]  # what was not drawn in time is lost
        before = set(drive.suits)
        drive.add(rng.random((num, NUM_ENVS)) < 0.7)
        waiting += sorted(place for place in drive.expected() if place not in before)
        size = int(rng.integers(1, 9))
        if size > len(waiting):
            with pytest.raises(ValueError, match=f"^{len(waiting)} items have not been drawn"):
                drive.selector.draw(size, drive.rng, 0.0)
            continue
        if rng.random() < 0.3:  # as a resumed run
            again = Fifo()
            again.initialize(drive.starts)
            again.load_state_dict(drive.selector.state_dict())
            drive.selector = again
        drawn = drive.selector.draw(size, drive.rng, 0.0)
        assert list(zip(drawn.starts.tolist(), drawn.envs.tolist())) == waiting[:size] and (drawn.weight == 1).all()
        del waiting[:size]
