"""Schedules at their ends, between and beyond."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlsurreal.utils.schedules import Constant, Linear, PiecewiseLinear, as_schedule


def test_constant() -> None:
    assert [Constant(0.3)(p) for p in (0.0, 0.5, 1.0)] == [0.3, 0.3, 0.3]


def test_linear_ends_exactly_and_clips_progress() -> None:
    schedule = Linear(0.1, 0.3, until=0.5)
    assert schedule(0.0) == 0.1 and schedule(0.5) == 0.3
    assert schedule(-1.0) == 0.1 and schedule(0.7) == schedule(1.5) == 0.3
    assert schedule(0.25) == pytest.approx(0.2)
    assert Linear(1e-3)(1.0) == 0.0


@pytest.mark.parametrize("until", [0.0, -0.5, 1.5, math.nan])
def test_linear_refuses(until: float) -> None:
    with pytest.raises(ValueError, match=r"Linear\.until"):
        Linear(1.0, 0.0, until)


def test_piecewise_equals_interpolation() -> None:
    points = ((0.1, 1.0), (0.4, 3.0), (0.5, -1.0), (0.9, 0.0))
    schedule, places = PiecewiseLinear(points), np.linspace(-0.2, 1.2, 97)
    expected = np.interp(places, *zip(*points))
    np.testing.assert_allclose([schedule(float(p)) for p in places], expected, atol=1e-12)


def test_piecewise_jumps_and_single_points() -> None:
    schedule = PiecewiseLinear(((0.0, 1.0), (0.5, 1.0), (0.5, 0.1), (1.0, 0.1)))
    assert schedule(0.499) == 1.0 and schedule(0.5) == 0.1 and schedule(1.0) == 0.1
    assert PiecewiseLinear(((0.5, 2.0),))(0.0) == PiecewiseLinear(((0.5, 2.0),))(1.0) == 2.0


@pytest.mark.parametrize("points", [(), ((0.5, 1.0), (0.2, 1.0)), ((-0.1, 1.0),), ((0.0, 1.0), (1.1, 1.0))])
def test_piecewise_refuses(points: tuple[tuple[float, float], ...]) -> None:
    with pytest.raises(ValueError, match=r"PiecewiseLinear\.points"):
        PiecewiseLinear(points)


def test_as_schedule() -> None:
    linear = Linear(1.0, 0.0)
    assert as_schedule(linear, "rate") is linear
    assert as_schedule(3, "rate")(0.5) == 3.0 and as_schedule(np.float32(0.5), "rate")(1.0) == 0.5
    for wrong in ("1e-3", None, math.nan, math.inf, True):
        with pytest.raises(ValueError, match=f"PPO.rate is {wrong!r}; it must be a finite number, or a schedule"):
            as_schedule(wrong, "PPO.rate")  # type: ignore[arg-type]


def test_schedules_stay_within_bounds() -> None:
    assert as_schedule(Linear(1.0, 0.0), "epsilon", least=0, most=1)(0.5) == 0.5
    with pytest.raises(ValueError, match=r"^DQN.rate is -0.001; it must be at least 0$"):
        as_schedule(-1e-3, "DQN.rate", least=0)
    with pytest.raises(ValueError, match=r"epsilon is Linear.*, so 1.5 when 50% of the run is done; .* in \[0, 1\]$"):
        as_schedule(Linear(1.0, 2.0), "epsilon", least=0, most=1)
    with pytest.raises(ValueError, match="so nan when 100%"):
        as_schedule(lambda progress: math.nan if progress == 1 else 0.0, "epsilon", least=0)
