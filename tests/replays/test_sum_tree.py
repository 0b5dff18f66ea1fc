"""The sum tree against plain sums over all its leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rlsurreal.replays import sum_tree
from rlsurreal.replays.sum_tree import SumTree
from rlsurreal.utils.native_code import load_native

NATIVE = [pytest.param(True, id="compiled"), pytest.param(False, id="numpy")]
SIZES = (1, 2, 31, 32, 33, 1000, 1024, 1025, 40_000)


@pytest.mark.parametrize("native", NATIVE)
@pytest.mark.parametrize("num_leaves", SIZES)
def test_sums_hold_after_random_operations(num_leaves: int, native: bool) -> None:
    rng = np.random.default_rng(num_leaves)
    tree, expected = SumTree(num_leaves, native), np.zeros(num_leaves)
    for _ in range(60):
        if rng.random() < 0.5:
            leaves = rng.integers(num_leaves, size=rng.integers(1, 200))  # many twice: the last one counts
            priorities = rng.random(len(leaves)) * (rng.random(len(leaves)) < 0.7) * 10.0 ** rng.integers(-6, 6)
            tree.set(leaves, priorities)
            for leaf, priority in zip(leaves, priorities):
                expected[leaf] = priority
        else:
            start, stop = np.sort(rng.integers(num_leaves + 1, size=2))
            priorities = rng.random(stop - start)
            tree.set_range(start, stop, priorities)
            expected[start:stop] = priorities
        tree.check_valid()
        np.testing.assert_array_equal(tree.leaves, expected)
        assert tree.total == pytest.approx(expected.sum(), rel=1e-12)


@pytest.mark.parametrize("native", NATIVE)
def test_sums_do_not_drift(native: bool) -> None:
    tree = SumTree(5000, native)
    tree.set_range(0, 5000, 1e9)
    tree.set_range(0, 5000, 1e-9)
    assert tree.total == pytest.approx(5000e-9, rel=1e-12)
    tree.set_range(0, 5000, 0.0)
    assert tree.total == 0


@pytest.mark.parametrize("native", NATIVE)
@pytest.mark.parametrize("num_leaves", [1, 33, 1025, 1_000_003])
def test_finds_what_a_search_in_cumulative_sums_finds(num_leaves: int, native: bool) -> None:
    rng = np.random.default_rng(0)
    tree = SumTree(num_leaves, native)
    priorities = rng.integers(0, 5, num_leaves).astype(float)  # whole numbers: sums are exact, borders can be hit
    priorities[-1] = 3
    tree.set_range(0, num_leaves, priorities)
    tree.check_valid()
    borders = priorities.cumsum()
    points = np.concatenate([rng.random(5000) * borders[-1], borders[:-1][:2000], borders[:-1][-2000:], [0.0]])
    np.testing.assert_array_equal(tree.find(points), np.searchsorted(borders, points, side="right"))


@pytest.mark.parametrize("native", NATIVE)
@pytest.mark.parametrize("num_leaves", [40, 1025, 33_000])
def test_zero_leaves_are_never_found(num_leaves: int, native: bool) -> None:
    rng = np.random.default_rng(1)
    for trial in range(20):
        tree = SumTree(num_leaves, native)
        there = rng.choice(num_leaves, rng.integers(1, 30), replace=False)
        tree.set(there, rng.random(len(there)) * 10.0 ** rng.integers(-300, 10))
        total = tree.total
        at_the_end = [np.nextafter(total, 0), total, np.nextafter(total, np.inf), 2 * total]
        on_borders = np.concatenate([b * np.array([1 - 1e-16, 1, 1 + 2e-16]) for b in tree.leaves.cumsum()[there]])
        found = tree.find(np.concatenate([rng.random(300) * total, at_the_end, on_borders, [0.0]]))
        assert set(found) <= set(there), trial
        assert (tree.find(np.array(at_the_end[1:])) == there.max()).all()


@pytest.mark.parametrize("native", NATIVE)
def test_single_smallest_positive_number(native: bool) -> None:
    tree = SumTree(100, native)
    tree.set(np.array([57]), 5e-324)
    np.testing.assert_array_equal(tree.find(np.array([0.0, 5e-324])), [57, 57])


@pytest.mark.parametrize("native", NATIVE)
def test_frequencies_follow_priorities(native: bool) -> None:
    rng = np.random.default_rng(2)
    tree = SumTree(2000, native)
    priorities = rng.random(2000) * (rng.random(2000) < 0.5)
    tree.set(np.arange(2000), priorities)
    counts = np.bincount(tree.find(rng.random(400_000) * tree.total), minlength=2000)
    expected = 400_000 * priorities / priorities.sum()
    there = expected > 5
    chi_square = ((counts - expected)[there] ** 2 / expected[there]).sum()
    assert chi_square < there.sum() + 5 * np.sqrt(2 * there.sum())
    assert counts[priorities == 0].sum() == 0


@pytest.mark.parametrize("native", NATIVE)
def test_nothing_to_find_is_an_error(native: bool) -> None:
    with pytest.raises(ValueError, match="all priorities are 0"):
        SumTree(50, native).find(np.zeros(3))


@pytest.mark.parametrize("native", NATIVE)
def test_check_valid_sees_damage(native: bool) -> None:
    tree = SumTree(2000, native)
    tree.set_range(0, 2000, 1.0)
    tree._levels[0][3, 4] = 2.0
    with pytest.raises(AssertionError, match="sum is wrong"):
        tree.check_valid()
    tree.set(np.array([100]), -1.0)
    with pytest.raises(AssertionError, match="negative"):
        tree.check_valid()


def test_compiled_and_numpy_find_the_same() -> None:
    rng = np.random.default_rng(5)
    trees = [SumTree(100_000, native) for native in (True, False)]
    assert trees[0]._native is not None, "there is a compiler here"
    for _ in range(5):
        leaves, priorities = rng.integers(100_000, size=3_000), rng.random(3_000) ** 4
        for tree in trees:
            tree.set(leaves, priorities)
        for one, other in zip(trees[0]._levels, trees[1]._levels):
            np.testing.assert_array_equal(one, other)
        points = rng.random(2_000) * trees[0].total
        np.testing.assert_array_equal(trees[0].find(points), trees[1].find(points))
    with pytest.raises(IndexError, match="the tree has 100000"):
        trees[0].set(np.array([100_000]), np.array([1.0]))


def test_without_a_compiler_numpy_does_the_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = tmp_path / "broken.c"
    source.write_text("this is no C")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert load_native(source) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert load_native(Path(sum_tree.__file__).with_suffix(".c")) is None
    assert not list(tmp_path.rglob("*.so")) and not list(tmp_path.rglob("*.tmp"))
