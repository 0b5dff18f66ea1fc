"""What the queue shows: a line for each event, and below them, on a terminal, a table that is redrawn in place."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TextIO

_REDRAW_S = 0.5
_LEAST_NAME = 20
_MAX_FAILED = 4  # with their errors; all are counted, and listed at the end
_BOLD, _RED, _PLAIN = "1", "31", ""


@dataclass(frozen=True)
class Row:
    """A run that runs; None: not known yet."""

    slot: str
    run: str
    fraction: float | None
    value: float | None
    steps_per_s: float | None
    seconds: float
    seconds_left: float | None


@dataclass(frozen=True)
class Failure:
    """A run that has failed."""

    run: str
    error: str
    log: str


@dataclass(frozen=True)
class View:
    """The queue at one time."""

    running: Sequence[Row]
    waiting: Sequence[str]
    num_finished: int
    failed: Sequence[Failure]
    seconds_left: float | None
    is_stopping: bool


@dataclass(frozen=True)
class Line:
    """Text of the table, with the number of its style."""

    text: str
    style: str = _PLAIN


class Screen:
    """Where the queue is shown.

    Args:
        stream: a terminal, or something else, which gets the events only.
        title: of the table.
    """

    def __init__(self, stream: TextIO, title: str) -> None:
        self._stream, self._title = stream, title
        self._is_terminal = stream.isatty()
        self._lines: list[Line] = []  # of the table that stands on the terminal
        self._size = self._terminal_size()
        self._next = 0.0

    def say(self, text: str) -> None:
        """Show an event, above the table."""
        text = f"{time.strftime('%H:%M:%S')} {text}"
        if not self._is_terminal:
            self._write(f"{text}\n")
        else:
            self._write(f"{self._to_top()}\x1b[J{text}\n")
            lines, self._lines = self._lines, []
            self._show(lines)

    def draw(self, view: Callable[[], View]) -> None:
        """Show ``view()`` anew, unless it was just now."""
        now = time.monotonic()
        if self._is_terminal and now >= self._next:
            self._next = now + _REDRAW_S
            self._draw(view())

    def _draw(self, view: View) -> None:
        size = self._terminal_size()
        if size != self._size:  # lines have been wrapped anew: nobody knows where the table begins
            self._write("\x1b[2J\x1b[H")
            self._size, self._lines = size, []
        self._show(format_view(view, self._title, size.columns, size.lines - 1))

    def close(self) -> None:
        """Take the table away."""
        if self._is_terminal:
            self._write(f"{self._to_top()}\x1b[J")
            self._lines = []

    def _show(self, lines: list[Line]) -> None:
        texts = [f"\x1b[{line.style}m{line.text}\x1b[m" if line.style else line.text for line in lines]
        self._write(self._to_top() + "".join(f"{text}\x1b[K\n" for text in texts) + "\x1b[J")
        self._lines = lines

    def _to_top(self) -> str:
        return f"\r\x1b[{len(self._lines)}A" if self._lines else "\r"

    def _terminal_size(self) -> os.terminal_size:
        if not self._is_terminal:
            return os.terminal_size((0, 0))
        try:
            size = os.get_terminal_size(self._stream.fileno())
        except OSError:
            size = os.terminal_size((0, 0))
        return size if min(size) > 0 else shutil.get_terminal_size()  # some know their size only later

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:  # whoever watched has gone; the runs go on
            self._is_terminal = False
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def format_view(view: View, title: str, width: int, height: int) -> list[Line]:
    """The table, at most ``width`` letters wide and ``height`` lines high."""
    counts = {"running": len(view.running), "waiting": len(view.waiting), "finished": view.num_finished}
    counts |= {"failed": len(view.failed)} if view.failed else {}
    left = "" if view.seconds_left is None else f"; {format_duration(view.seconds_left)} left"
    said = ", ".join(f"{count} {state}" for state, count in counts.items())
    head = [Line(f"{title}: {said}{'; stopping' if view.is_stopping else left}", _BOLD)]
    failed = []
    for failure in view.failed[-_MAX_FAILED:]:
        failed += [Line(f"failed   {failure.run}: {failure.error}", _RED), Line(f"         see {failure.log}")]
    waiting = [Line(f"waiting  {', '.join(view.waiting)}")] if view.waiting else []
    room = height - len(head) - len(failed) - len(waiting)
    if room < min(3, 1 + len(view.running)):  # of a low terminal the runs that run take all
        failed, waiting, room = [], [], height - len(head)
    table = [Line(text) for text in format_rows(view.running, width)] if view.running else []
    if len(table) > room:
        hidden = len(table) - max(0, room - 1)
        table = [*table[: max(0, room - 1)], Line(f"... and {hidden} more")]
    return [Line(shorten(line.text, width, 1.0), line.style) for line in [*head, *table, *failed, *waiting]][:height]


def format_rows(rows: Sequence[Row], width: int) -> list[str]:
    """Runs as lines under titles; where ``width`` is small, only the columns that matter most."""
    columns = {
        "done": [f"{row.fraction or 0.0:.0%}" for row in rows],
        "left": ["" if row.seconds_left is None else format_duration(row.seconds_left) for row in rows],
        "return": ["" if row.value is None else format_value(row.value) for row in rows],
        "time": [format_duration(row.seconds) for row in rows],
        "slot": [row.slot for row in rows],
        "steps/s": ["" if row.steps_per_s is None else f"{row.steps_per_s:,.0f}" for row in rows],
    }
    widths = {title: max(len(title), *map(len, cells)) for title, cells in columns.items()}
    while widths and sum(widths.values()) + 2 * len(widths) + _LEAST_NAME > width:
        widths.popitem()  # they stand in the order of their importance
    order = [title for title in ("done", "return", "steps/s", "time", "left", "slot") if title in widths]
    longest = max(len("run"), *(len(row.run) for row in rows))
    name_width = max(1, min(longest, width - sum(widths.values()) - 2 * len(widths)))
    lines = []
    for i, name in enumerate(["run", *(shorten(row.run, name_width, 0.5) for row in rows)]):
        cells = [title if i == 0 else columns[title][i - 1] for title in order]
        aligned = [c.ljust(widths[t]) if t == "slot" else c.rjust(widths[t]) for t, c in zip(order, cells)]
        lines.append("  ".join([name.ljust(name_width), *aligned]).rstrip())
    return lines


def shorten(text: str, width: int, kept: float) -> str:
    """``text`` in at most ``width`` letters; of what is ``kept``, this fraction is of its beginning."""
    if len(text) <= width:
        return text
    mark = "..."[:width]
    first = round((width - len(mark)) * kept)
    return f"{text[:first]}{mark}{text[len(text) - (width - len(mark) - first) :]}"


def format_duration(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def format_value(value: float) -> str:
    """A return."""
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3f}"
