"""The replay ratio, counted by hand."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from rlsurreal.replays import ReplayRatio


@pytest.mark.parametrize(
    ("ratio", "batch_size"), [(256, 256), (8, 32), (0.1, 32), (1 / 3, 1), (0.29, 1), (1000, 7), (2.5, 64)]
)
def test_ratio_is_held_exactly(ratio: float, batch_size: int) -> None:
    rng = np.random.default_rng(0)
    limiter = ReplayRatio(ratio=ratio, min_steps=100)
    exact = Fraction(ratio).limit_denominator(1000)
    num_steps = num_items = 0
    for _ in range(3000):
        steps = int(rng.integers(0, 40))
        limiter.appended(steps)
        num_steps += steps
        num_items += limiter.take(batch_size) * batch_size
        due = exact * max(0, num_steps - 100)
        assert due - batch_size < num_items <= due
        assert limiter.num_items == num_items
    assert limiter.achieved == pytest.approx(ratio, rel=batch_size / (ratio * 50_000) + 1e-9)


def test_one_update_a_step() -> None:
    limiter = ReplayRatio(ratio=256, min_steps=5)
    updates = []
    for _ in range(10):
        limiter.appended(1)
        updates.append(limiter.take(256))
    assert updates == [0] * 5 + [1] * 5
    assert limiter.achieved == 256


def test_steps_before_the_first_update_are_not_made_up_for() -> None:
    limiter = ReplayRatio(ratio=1, min_steps=1000)
    limiter.appended(999)
    assert limiter.take(1) == 0 and not limiter.has_begun
    limiter.appended(11)
    assert limiter.has_begun and limiter.take(1) == 10
    assert limiter.take(1) == 0


def test_batches_of_changing_size_share_one_account() -> None:
    limiter = ReplayRatio(ratio=1, min_steps=1)
    limiter.appended(101)
    assert limiter.take(64) == 1
    assert limiter.take(32) == 1
    assert limiter.take(3) == 1
    assert limiter.take(1) == 1
    assert limiter.achieved == 1


def test_continues_from_its_state() -> None:
    one, other = ReplayRatio(ratio=0.3, min_steps=10), ReplayRatio(ratio=0.3, min_steps=10)
    one.appended(29)
    one.take(4)
    other.load_state_dict(one.state_dict())
    for _ in range(20):
        one.appended(3)
        other.appended(3)
        assert one.take(4) == other.take(4)
    assert one.achieved == other.achieved


@pytest.mark.parametrize(("ratio", "expected"), [(2, 20), (0.5, 5)])
def test_another_ratio_holds_for_new_steps_only(ratio: float, expected: int) -> None:
    before, after = ReplayRatio(ratio=1, min_steps=10), ReplayRatio(ratio=ratio, min_steps=10)
    before.appended(1010)
    assert before.take(1) == 1000
    after.load_state_dict(before.state_dict())
    assert after.has_begun and after.take(1) == 0
    after.appended(10)
    assert after.take(1) == expected and after.achieved == ratio


def test_other_min_steps_count_where_learning_had_not_begun() -> None:
    before = ReplayRatio(ratio=1, min_steps=100)
    before.appended(50)
    for min_steps, from_now in ((100, 50), (200, 150), (10, 0)):
        after = ReplayRatio(ratio=1, min_steps=min_steps)
        after.load_state_dict(before.state_dict())
        after.appended(from_now)
        assert after.has_begun and after.take(1) == 0
        after.appended(3)
        assert after.take(1) == 3


def test_what_cannot_be_drawn_yet_stays_due() -> None:
    limiter = ReplayRatio(ratio=1, min_steps=1)
    limiter.appended(11)
    assert [limiter.take(2, most=most) for most in (0, 3, None)] == [0, 3, 2]


@pytest.mark.parametrize("ratio", [0, -1.0, float("nan"), float("inf"), "8", None])
def test_ratio_must_be_positive(ratio: float) -> None:
    with pytest.raises(ValueError, match="ReplayRatio.ratio"):
        ReplayRatio(ratio=ratio)


def test_min_steps_must_be_positive() -> None:
    with pytest.raises(ValueError, match="ReplayRatio.min_steps"):
        ReplayRatio(ratio=1, min_steps=0)
