"""Phases and their shares, against a clock that the test moves."""

from __future__ import annotations

import time

import pytest

from rlsurreal.utils.timing import PhaseTimer


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_shares_add_up_and_start_anew(clock: list[float]) -> None:
    timer = PhaseTimer()
    for _ in range(2):
        with timer("sample"):
            clock[0] += 3
        with timer("update"):
            clock[0] += 1
        clock[0] += 1
    assert timer.shares() == pytest.approx({"sample": 0.6, "update": 0.2})
    with timer("update"):
        clock[0] += 4
    assert timer.shares() == pytest.approx({"sample": 0.0, "update": 1.0})


def test_running_phase_counts_up_to_now_and_not_twice(clock: list[float]) -> None:
    timer = PhaseTimer()
    with timer("log"):
        clock[0] += 1
        assert timer.shares() == {"log": 1.0}
        clock[0] += 1
    clock[0] += 3
    assert timer.shares() == {"log": 0.25}


def test_phases_nest_and_end_with_an_exception(clock: list[float]) -> None:
    timer = PhaseTimer()
    with pytest.raises(KeyError), timer("outer"), timer("inner"):
        clock[0] += 1
        raise KeyError
    clock[0] += 1
    assert timer.shares() == {"outer": 0.5, "inner": 0.5}


def test_same_phase_inside_itself_is_refused() -> None:
    timer = PhaseTimer()
    with pytest.raises(AssertionError, match="inside itself"), timer("a"), timer("a"):
        pass


def test_two_reports_at_once(clock: list[float]) -> None:
    timer = PhaseTimer()
    with timer("a"):
        pass
    assert timer.shares() == timer.shares() == {"a": 0.0}


def test_real_clock_and_cost() -> None:
    timer = PhaseTimer()
    with timer("sleep"):
        time.sleep(0.05)
    time.sleep(0.05)
    assert 0.2 < timer.shares()["sleep"] < 0.8
    start = time.perf_counter()
    for _ in range(10_000):
        with timer("busy"):
            pass
    assert (time.perf_counter() - start) / 10_000 < 1e-5
