"""The queue's table fits the terminal and stands in one place."""

from __future__ import annotations

import io
import itertools
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
if str(ROOT / "launchers") not in sys.path:
    sys.path.append(str(ROOT / "launchers"))

from sweep_queue import screen  # noqa: E402
from sweep_queue.run import Progress  # noqa: E402
from sweep_queue.scheduler import estimate_seconds_left  # noqa: E402
from sweep_queue.screen import Failure, Row, Screen, View, format_view, shorten  # noqa: E402


def view(num_running: int = 2, num_waiting: int = 7, num_failed: int = 1) -> View:
    return View(
        running=[
            Row("CPU 0-3, GPU 1", f"clip-learning_rate=0.001-seed={i}", 0.42, 213.4, 8123.0, 70, 100.0)
            for i in range(num_running)
        ],
        waiting=[f"kl-learning_rate=0.0003-seed={i}" for i in range(num_waiting)],
        num_finished=3,
        failed=[
            Failure(f"bad-seed={i}", "exit status 1: ValueError: no", f"runs/x/bad-seed={i}/output.txt")
            for i in range(num_failed)
        ],
        seconds_left=725.0,
        is_stopping=False,
    )


class Terminal(io.StringIO):
    """Understands as much as the screen says: what a user sees at the end."""

    def __init__(self, columns: int, lines: int) -> None:
        super().__init__()
        self.columns, self.lines = columns, lines

    def isatty(self) -> bool:
        return True

    def rows(self) -> list[str]:
        """All lines, those that have been scrolled away included."""
        rows, row, column = [""], 0, 0
        for part in re.findall(r"\x1b\[[\d;]*[A-Za-z]|[^\x1b]", self.getvalue()):
            if part == "\n":
                row, column = row + 1, 0
                rows += [""] * (row + 1 - len(rows))
            elif part == "\r":
                column = 0
            elif part.endswith("A") and part[0] == "\x1b":
                assert int(part[2:-1]) < self.lines, "what has been scrolled away cannot be reached"
                row -= int(part[2:-1])
            elif part == "\x1b[J":
                rows[row:] = [rows[row][:column]]
            elif part == "\x1b[K":
                rows[row] = rows[row][:column]
            elif part[0] != "\x1b":
                assert column < self.columns, "a line is wrapped"
                rows[row] = rows[row][:column].ljust(column) + part + rows[row][column + 1 :]
                column += 1
            else:
                assert part.endswith("m"), f"unknown: {part!r}"
        return rows


@pytest.mark.parametrize("num_running", [0, 1, 2, 30])
@pytest.mark.parametrize("num_failed", [0, 1, 9])
def test_the_table_fits_every_terminal(num_running, num_failed):
    for width, height in itertools.product((20, 40, 60, 80, 132), (2, 4, 6, 10, 23, 60)):
        lines = format_view(view(num_running, 40, num_failed), "sweep", width, height)
        assert 1 <= len(lines) <= height and max(len(line.text) for line in lines) <= width
        assert lines[0].text.startswith("sweep: ")
        if height >= 4 and 0 < num_running < 3:
            assert sum("clip-" in line.text for line in lines) == num_running, "what runs matters most"


def test_what_the_table_says():
    lines = [line.text for line in format_view(view(), "sweep", 120, 30)]
    assert lines == [
        "sweep: 2 running, 7 waiting, 3 finished, 1 failed; 12:05 left",
        "run                              done  return  steps/s  time  left  slot",
        "clip-learning_rate=0.001-seed=0   42%   213.4    8,123  1:10  1:40  CPU 0-3, GPU 1",
        "clip-learning_rate=0.001-seed=1   42%   213.4    8,123  1:10  1:40  CPU 0-3, GPU 1",
        "failed   bad-seed=0: exit status 1: ValueError: no",
        "         see runs/x/bad-seed=0/output.txt",
        f"waiting  {', '.join(f'kl-learning_rate=0.0003-seed={i}' for i in range(7))}"[:117] + "...",
    ]
    narrow = [line.text for line in format_view(view(), "sweep", 50, 30)]
    assert narrow[1:3] == [
        "run                       done  return  time  left",
        "clip-learn....001-seed=0   42%   213.4  1:10  1:40",
    ]
    new = View([Row("CPU 0", "new", None, None, None, 3.0, None)], [], 0, [], None, False)
    assert [line.text for line in format_view(new, "sweep", 80, 10)] == [
        "sweep: 1 running, 0 waiting, 0 finished",
        "run  done  return  steps/s  time  left  slot",
        "new    0%                   0:03        CPU 0",
    ]


def test_it_is_drawn_in_place_below_the_events(monkeypatch):
    monkeypatch.setattr(screen.time, "strftime", lambda _: "12:00:00")
    monkeypatch.setattr(screen, "_REDRAW_S", 0.0)
    terminal = Terminal(80, 12)
    monkeypatch.setattr(Screen, "_terminal_size", lambda self: screen.os.terminal_size((80, 12)))
    shown = Screen(terminal, "sweep")
    terminal.write("$ command\n")
    for number in range(20):
        shown.say(f"event {number}")
        shown.draw(lambda number=number: view(number % 9, number))
    rows = terminal.rows()
    assert rows[:21] == ["$ command", *(f"12:00:00 event {number}" for number in range(20))]
    assert rows[21].startswith("sweep: 1 running, 19 waiting") and sum("sweep:" in row for row in rows) == 1
    shown.close()
    assert terminal.rows() == [*rows[:21], ""]


def test_on_a_terminal_of_a_new_size_it_begins_anew(monkeypatch):
    monkeypatch.setattr(screen, "_REDRAW_S", 0.0)
    size = [100]
    monkeypatch.setattr(Screen, "_terminal_size", lambda self: screen.os.terminal_size((size[0], 24)))
    terminal = Terminal(100, 24)
    shown = Screen(terminal, "sweep")
    shown.draw(view)
    size[0] = 60
    shown.draw(view)
    last = terminal.getvalue().rpartition("\x1b[2J\x1b[H")[2]
    assert "sweep: 2 running" in last and max(map(len, re.sub(r"\x1b\[\w*", "", last).splitlines())) <= 60


def test_elsewhere_there_are_only_events():
    stream = io.StringIO()
    shown = Screen(stream, "sweep")
    shown.say("started")
    shown.draw(view)
    shown.close()
    assert re.fullmatch(r"\d\d:\d\d:\d\d started\n", stream.getvalue())


def test_shorten():
    assert shorten("abc", 3, 0.5) == "abc"
    assert [shorten("0123456789", 7, kept) for kept in (0.0, 0.5, 1.0)] == ["...6789", "01...89", "0123..."]
    assert shorten("0123456789", 2, 1.0) == ".."


@pytest.mark.parametrize(
    ("running", "waiting", "finished", "num_slots", "left"),
    [
        ([], [0, 0], [], 2, None),
        ([(5, None)], [], [], 1, None),
        ([(10, 30)], [], [], 1, 30),
        ([(10, 30), (10, 20)], [], [], 2, 30),
        ([(10, 30), (10, 30)], [0, 0], [], 2, 70),
        ([], [0, 0, 0], [100], 2, 200),
        ([], [80, 0], [100], 2, 100),
        ([(60, None)], [], [100], 2, 40),
        ([(60, None), (60, 40)], [0], [], 2, 140),
    ],
)
def test_time_left_of_the_queue(running, waiting, finished, num_slots, left):
    assert estimate_seconds_left(running, waiting, finished, num_slots) == left


def test_time_left_of_a_run_goes_on_between_rows():
    progress = Progress(env_steps=250, total_env_steps=1000, steps_per_s=10.0, value=1.0, at=1000.0)
    assert (progress.fraction, progress.seconds_left(1000.0), progress.seconds_left(1030.0)) == (0.25, 75.0, 45.0)
    assert progress.seconds_left(2000.0) == 0.0
    assert Progress(250, None, 10.0, 1.0, 0.0).seconds_left(0.0) is None
