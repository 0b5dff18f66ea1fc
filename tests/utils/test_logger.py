"""What a run writes stays readable whatever comes later; nothing is left behind; nothing of two runs is mixed."""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlsurreal.utils import logger as logger_module
from rlsurreal.utils.logger import MetricLogger, ProgressBar, format_number, format_table


def _rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "progress.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert all(None not in row and None not in row.values() for row in rows)  # as many cells as columns
    return rows


def _logger(folder: Path, **options: Any) -> MetricLogger:
    folder.mkdir(exist_ok=True)
    return MetricLogger(folder, console="off", **options)


# ---------------------------------------------------------------- CSV


def test_csv_holds_what_was_written(tmp_path: Path) -> None:
    with _logger(tmp_path) as logger:
        logger.write(10, {"a/x": 0.1, 'b,\n"': np.float32(0.1), "n": 3})
        logger.write(20, {"n": 2**60, "a/x": math.nan, 'b,\n"': -math.inf})
        assert len(_rows(tmp_path)) == 2  # while it is open, too
    first, second = _rows(tmp_path)
    assert list(first) == ["step", "a/x", 'b,\n"', "n"]
    assert (first["step"], float(first["a/x"]), first["n"]) == ("10", 0.1, "3")
    assert np.float32(first['b,\n"']) == np.float32(0.1)
    assert second["n"] == str(2**60) and math.isnan(float(second["a/x"])) and float(second['b,\n"']) == -math.inf


def test_what_comes_later_goes_into_the_row_of_its_step(tmp_path: Path) -> None:
    with _logger(tmp_path) as logger:
        logger.write(10, {"a": 0.5})
        assert logger.amend(10, {"b": 2, "a": 1.5}) == {"a": 1.5, "b": 2}
        assert logger.amend(20, {"b": 3}) == {"b": 3}
        logger.write(30, {"a": 4})
    assert [tuple(row.values()) for row in _rows(tmp_path)] == [("10", "1.5", "2"), ("20", "", "3"), ("30", "4", "")]


def test_csv_stays_valid_when_keys_come_and_go(tmp_path: Path) -> None:
    with _logger(tmp_path) as logger:
        for step, metrics in enumerate([{"a": 1}, {"b": 2}, {"a": 3, "c": 4}, {}, {"c": 5, "b": 6}]):
            logger.write(step, metrics)
            assert len(_rows(tmp_path)) == step + 1
    assert [tuple(row.values()) for row in _rows(tmp_path)] == [
        ("0", "1", "", ""),
        ("1", "", "2", ""),
        ("2", "3", "", "4"),
        ("3", "", "", ""),
        ("4", "", "6", "5"),
    ]


@pytest.mark.parametrize("resume_step", [25, 20])
def test_resume_drops_later_rows_and_goes_on(tmp_path: Path, resume_step: int) -> None:
    with _logger(tmp_path) as logger:
        for step in (10, 20, 30, 40):
            logger.write(step, {"a": step})
    with _logger(tmp_path, resume_step=resume_step) as logger:
        assert [row["step"] for row in _rows(tmp_path)] == ["10", "20"]
        logger.write(31, {"b": 1})
        with pytest.raises(ValueError, match="step is 30, below 31"):
            logger.write(30, {})
    assert [tuple(row.values()) for row in _rows(tmp_path)] == [("10", "10", ""), ("20", "20", ""), ("31", "", "1")]


def test_resume_of_a_file_that_was_cut_off(tmp_path: Path) -> None:
    with _logger(tmp_path) as logger:
        for step in (10, 20, 30):
            logger.write(step, {"a": 100 + step, "b": 2})
    path = tmp_path / "progress.csv"
    whole = path.read_bytes()
    for length in range(len(whole) - 1, whole.index(b"\n") + 1, -1):
        path.write_bytes(whole[:length])
        with _logger(tmp_path, resume_step=99):
            rows = _rows(tmp_path)
        complete = whole[:length].count(b"\n") - 1
        assert [row["a"] for row in rows] == ["110", "120", "130"][:complete]


def test_resume_where_nothing_was_written_yet(tmp_path: Path) -> None:
    with _logger(tmp_path, resume_step=5) as logger:
        logger.write(6, {"a": 1})
    assert len(_rows(tmp_path)) == 1


def test_an_earlier_run_is_not_overwritten(tmp_path: Path) -> None:
    with _logger(tmp_path) as logger:
        logger.write(1, {"a": 1})
    with pytest.raises(ValueError, match="give resume_step to continue that run, or take another folder"):
        _logger(tmp_path)
    assert len(_rows(tmp_path)) == 1
    (tmp_path / "progress.csv").write_text("my,own,table\n1,2,3\n")
    with pytest.raises(ValueError, match="not a table of metrics"):
        _logger(tmp_path, resume_step=0)


def test_metrics_that_are_not_numbers_are_named(tmp_path: Path) -> None:
    with _logger(tmp_path) as logger:
        for wrong in (np.zeros(3), "fast", None):
            with pytest.raises(ValueError, match="metric 'loss/x' is .*must be one number"):
                logger.write(1, {"a": 1, "loss/x": wrong})
        with pytest.raises(ValueError, match="metric 'step' has the name of the first column"):
            logger.write(1, {"step": 1})
    assert _rows(tmp_path) == []


# ---------------------------------------------------------------- TensorBoard


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with _logger(tmp_path, tensorboard=True) as logger:
        for step in (10, 20, 30):
            logger.write(step, {"loss/x": step / 10})
    with _logger(tmp_path, tensorboard=True, resume_step=20) as logger:
        logger.write(25, {"loss/x": 9.0})
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/x")] == [(10, 1.0), (20, 2.0), (25, 9.0)]


# ---------------------------------------------------------------- text


def test_messages_go_to_the_file_of_their_run(tmp_path: Path) -> None:
    package, part = logging.getLogger("rlsurreal"), logging.getLogger("rlsurreal.samplers.parallel")
    before = (package.level, list(package.handlers))
    with _logger(tmp_path / "a") as first:
        part.info("one %d", 1)
        with _logger(tmp_path / "b") as second:
            part.warning("two")
            first.text.info("three")
            second.text.debug("too fine")
        part.info("four")
    part.error("nobody's")
    assert (package.level, list(package.handlers)) == before
    texts = {name: (tmp_path / name / "log.txt").read_text() for name in "ab"}
    assert [line.split(": ")[1] for line in texts["a"].splitlines()] == ["one 1", "three", "four"]
    assert [line.split(": ")[1] for line in texts["b"].splitlines()] == ["two"]
    assert " WARNING rlsurreal.samplers.parallel: two" in texts["b"]


def test_runs_may_end_in_any_order(tmp_path: Path) -> None:
    first, second = _logger(tmp_path / "a"), _logger(tmp_path / "b")
    first.close()
    first.close()
    logging.getLogger("rlsurreal").info("still here")
    second.close()
    assert "still here" in (tmp_path / "b" / "log.txt").read_text()
    assert logging.getLogger("rlsurreal").level == logging.NOTSET


def test_an_exception_is_written_down_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(KeyError), _logger(tmp_path) as logger:
        logger.write(1, {"a": 1})
        raise KeyError("lost")
    text = (tmp_path / "log.txt").read_text()
    assert "the run ended with KeyError" in text and "Traceback" in text and 'raise KeyError("lost")' in text
    assert logging.getLogger("rlsurreal").handlers == []
    with _logger(tmp_path, resume_step=1) as logger:
        logger.write(2, {"a": 2})
    assert len(_rows(tmp_path)) == 2


def test_a_level_of_the_users_choice_stays(tmp_path: Path) -> None:
    package = logging.getLogger("rlsurreal")
    package.setLevel(logging.ERROR)
    try:
        with _logger(tmp_path) as logger:
            logger.text.warning("not wanted")
        assert package.level == logging.ERROR and (tmp_path / "log.txt").read_text() == ""
    finally:
        package.setLevel(logging.NOTSET)


def test_a_message_that_does_not_fit_does_not_end_the_run(tmp_path: Path) -> None:
    package = logging.getLogger("rlsurreal")
    package.propagate = False  # pytest's own handler raises
    try:
        with contextlib.redirect_stderr(io.StringIO()) as shown, _logger(tmp_path) as logger:
            logger.text.info("%d steps", "many")
            logger.text.info("fine")
    finally:
        package.propagate = True
    assert "fine" in (tmp_path / "log.txt").read_text() and "Logging error" in shown.getvalue()


# ---------------------------------------------------------------- console


def test_console_shows_tables_and_messages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with MetricLogger(tmp_path) as logger:
        logger.write(2048, {"loss/policy": 0.5, "traj/return": 21, "loss/value": 1.5})
        logger.text.info("saved")
        logger.text.warning("slow")
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\r" not in out  # no terminal
    lines = out.splitlines()
    assert lines[0].startswith("-- step 2,048 ---") and lines[-2:] == ["saved", "WARNING: slow"]
    assert lines[1].split() == ["loss", "policy", "0.5000", "value", "1.500"]
    assert lines[2].split() == ["traj", "return", "21"]


@pytest.mark.parametrize("width", [20, 60, 80, 120, 200])
def test_tables_keep_their_width_and_columns(width: int) -> None:
    metrics = {f"group{i % 3}/metric_{'x' * (i % 5)}{i}": 10.0 ** (i - 8) for i in range(20)}
    text = format_table(10**9, metrics, width)
    lines = text.splitlines()
    assert all(len(line) <= max(width, 34) and line.isascii() for line in lines)
    assert all(f"{name.split('/')[1]} " in text for name in metrics)
    full = {len(line) for line in lines[1:]}
    assert len(full) <= max(1, width // 25)  # numbers end in the same few columns
    assert [line.split()[0] for line in lines[1:] if line[0] != " "] == ["group0", "group1", "group2"]


def test_empty_tables() -> None:
    assert format_table(3, {}).startswith("-- step 3 ")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (-3.0, "-3"),
        (1234567, "1,234,567"),
        (0.5, "0.5000"),
        (12.3456, "12.35"),
        (-1234.56, "-1235"),
        (123456.7, "123,457"),
        (0.00123456, "0.001235"),
        (0.000123, "1.23e-04"),
        (-2.5e12, "-2.50e+12"),
        (1e9, "1.00e+09"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (9999.9999, "10000"),
        (0.9999999, "1.0000"),
    ],
)
def test_format_number(value: float, text: str) -> None:
    assert format_number(value) == text and len(text) <= 9


# ---------------------------------------------------------------- progress bar


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return sys.__stdin__.fileno() if sys.__stdin__ else 0


@contextlib.contextmanager
def _terminal() -> Iterator[_Terminal]:
    terminal = _Terminal()
    with contextlib.redirect_stderr(terminal), contextlib.redirect_stdout(_Terminal()):
        yield terminal


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    monkeypatch.setenv("COLUMNS", "120")  # the bar is as wide as the terminal allows
    now = [1000.0]
    monkeypatch.setattr(logger_module.time, "monotonic", lambda: now[0])
    return now


def _drawn(terminal: _Terminal) -> list[str]:
    return [line for line in terminal.getvalue().replace("\n", "\r").split("\r") if line.startswith("0%")]


def test_bar_shows_share_rate_and_time_left(clock: list[float]) -> None:
    pytest.importorskip("pyprind")
    with _terminal() as terminal, ProgressBar(1000, "a title") as bar:
        clock[0] += 10
        bar.update(250)
        clock[0] += 10
        bar.update(1000)
    last, earlier = _drawn(terminal)[-1], _drawn(terminal)[0]
    assert terminal.getvalue().startswith("a title\n") and terminal.getvalue().endswith("\n")
    assert "250 steps, 25/s, 0:00:30 left" in earlier and earlier.count("#") == 7
    assert "1,000 steps, 50/s, 0:00:00 left" in last and last.count("#") == 30
    assert all(len(line) <= 120 for line in _drawn(terminal))


def test_bar_resumes(clock: list[float]) -> None:
    pytest.importorskip("pyprind")
    with _terminal() as terminal, ProgressBar(2_000_000, initial=1_000_000) as bar:
        clock[0] += 10
        bar.update(1_100_000)  # 10,000 a second, though 1.1 million are done after ten seconds
    assert "1,100,000 steps, 10,000/s, 0:01:30 left" in _drawn(terminal)[-1] and _drawn(terminal)[-1].count("#") == 16


def test_bar_is_drawn_at_most_twice_a_second(clock: list[float]) -> None:
    pytest.importorskip("pyprind")
    with _terminal() as terminal, ProgressBar(100_000) as bar:
        for i in range(1000):
            clock[0] += 0.01
            bar.update(i)
    assert 18 <= len(_drawn(terminal)) <= 21


def test_bar_beyond_its_total(clock: list[float]) -> None:
    pytest.importorskip("pyprind")
    with _terminal() as terminal, ProgressBar(100) as bar:
        bar.update(0)
        clock[0] += 1
        bar.update(130)
        text = terminal.getvalue()
        bar.update(140)
    assert _drawn(terminal)[-1].count("#") == 30 and terminal.getvalue() == text


def test_bar_closed_early_is_not_shown_as_complete(clock: list[float]) -> None:
    pytest.importorskip("pyprind")
    with _terminal() as terminal:
        bar = ProgressBar(100)
        bar.update(10)
        bar.close()
        bar.close()
    assert terminal.getvalue().count("\n") == 1 and terminal.getvalue().endswith("\n")
    assert _drawn(terminal)[-1].count("#") == 3


def test_bar_is_quiet() -> None:
    with _terminal() as terminal, ProgressBar(10, "t", quiet=True) as quiet, ProgressBar(10, initial=10) as done:
        quiet.update(5)
        done.update(10)
    assert terminal.getvalue() == ""
    with contextlib.redirect_stderr(io.StringIO()) as no_terminal, ProgressBar(10, "t") as bar:
        bar.update(5)
    assert no_terminal.getvalue() == ""


def test_a_table_clears_the_bar_from_its_line(tmp_path: Path) -> None:
    with _terminal(), MetricLogger(tmp_path) as logger:
        logger.write(1, {"a": 1})
        shown = sys.stdout.getvalue()  # type: ignore[attr-defined]
    assert shown.startswith("\r\x1b[K-- step 1 ")


def test_lines_show_the_chosen_columns_under_their_titles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = {"return": "traj/return", "lost": "traj/nothing", "kl": "loss/kl"}
    with MetricLogger(tmp_path, console="line", columns=columns) as logger:
        for step in range(30):
            logger.write(step * 1000, {"traj/return": 21 + step, "loss/kl": 0.0125, "other": 5})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["step", "return", "lost", "kl"] and lines[0] in lines[1:]
    assert lines[1].split() == ["0", "21", "0.01250"] and lines[3].split() == ["2,000", "23", "0.01250"]
    assert len({len(line) for line in lines}) == 1 and len(lines) == 32
