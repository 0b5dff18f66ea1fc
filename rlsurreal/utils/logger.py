"""Everything a run tells the world: metrics as CSV, TensorBoard and table, a text log, a progress bar.

Called by runners and their observers.  A `MetricLogger` owns the sinks of one run; there is no global state beyond the
standard library's ``logging``, from which its handler is removed when it is closed.
"""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TextIO

from typing_extensions import Self

from rlsurreal.utils.files import atomic_write

_package_log = logging.getLogger("rlsurreal")
_STEP = "step"
Console = Literal["line", "table", "off"]
_CLEAR_LINE = "\r\x1b[K"  # a progress bar may stand there


class MetricLogger:
    """The sinks of one run: ``progress.csv``, ``log.txt`` and TensorBoard's files in its folder; and the console.

    >>> with MetricLogger(folder) as logger:
    ...     logger.write(2048, {"traj/return_mean": 21.5, "loss/policy": -0.01})

    Messages to the standard library's logger "rlsurreal" and its children go to ``log.txt`` and the console while this
    object is open.  Where several are open in one process, they go to the one opened last; ``text`` writes to this one
    always.

    Args:
        folder: of the run; it must exist.
        resume_step: continue an earlier run's files from here: rows of later steps are dropped.
        tensorboard: also write TensorBoard's files (the package ``tensorboard`` must be installed).
        console: also show messages and metrics on stdout: in a "table" all of them, in a "line" those of ``columns``;
            "off": nothing.
        columns: metrics by the titles that they have in the line.

    Raises:
        ValueError: ``folder`` has a ``progress.csv`` already and ``resume_step`` is not given.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        resume_step: int | None = None,
        tensorboard: bool = False,
        console: Console = "table",
        columns: Mapping[str, str] | None = None,
    ) -> None:
        folder = Path(folder)
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter
        self._console, self._lines = console, _Lines(columns or {})
        self._csv = _CsvTable(folder / "progress.csv", resume_step)
        self._handler = _RunHandler(folder / "log.txt", console != "off")
        self._handler.attach()
        self.text = logging.LoggerAdapter(_package_log, {"run_handler": self._handler})
        self._writer: Any = None
        if tensorboard:
            purge_step = None if resume_step is None else resume_step + 1
            self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Record ``metrics`` (anything ``float()`` takes) of the time after ``step`` environment steps.

        Names group by what stands before "/".  Which names there are may change from call to call.

        Raises:
            ValueError: a metric is not a number, or ``step`` is below the last one.
        """
        numbers = _numbers(metrics)
        self._csv.write(step, numbers)
        self._show(step, numbers, numbers)

    def amend(self, step: int, metrics: Mapping[str, Any]) -> dict[str, float]:
        """As `write`, but into the row of ``step``, if the last one is that; all that the row has now."""
        numbers = _numbers(metrics)
        row = self._csv.amend(step, numbers)
        self._show(step, numbers, row)
        return row

    def _show(self, step: int, new: Mapping[str, float], numbers: Mapping[str, float]) -> None:
        """``new`` in TensorBoard, ``numbers`` on the console."""
        if self._writer is not None:
            for name, number in new.items():
                self._writer.add_scalar(name, number, step)
        if self._console == "line":
            _show(self._lines.format(step, numbers))
        elif self._console == "table":
            width = shutil.get_terminal_size((120, 24)).columns if sys.stdout.isatty() else 120
            _show(format_table(step, numbers, width))

    def close(self) -> None:
        """Close all files.  May be called twice."""
        self._handler.close()
        self._csv.close()
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.text.error("the run ended with %s", type(error).__name__, exc_info=error)
        self.close()


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    numbers = {}
    for name, value in metrics.items():
        if name == _STEP:
            raise ValueError(f"metric {name!r} has the name of the first column; choose another")
        try:
            numbers[name] = value if type(value) is int else float(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"metric {name!r} is {value!r}; it must be one number") from error
    return numbers


# ---------------------------------------------------------------- files


class _CsvTable:
    """A CSV file that is valid at any time, whatever columns come later and whenever the process is killed."""

    def __init__(self, path: Path, resume_step: int | None) -> None:
        if path.exists() and resume_step is None:
            raise ValueError(f"{path} is there already; give resume_step to continue that run, or take another folder")
        self._path = path
        self._columns, rows = _read_csv(path) if path.exists() else ([_STEP], [])
        rows = [row for row in rows if resume_step is not None and int(row[_STEP]) <= resume_step]
        self._last_step = int(rows[-1][_STEP]) if rows else -1
        self._rewrite(rows)
        self._file = self._append()

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        if step < self._last_step:
            raise ValueError(f"step is {step}, below {self._last_step}, the last one written; steps must not fall")
        if any(name not in self._columns for name in numbers):
            self._change(numbers, amend=False)
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow([step, *(numbers.get(name, "") for name in self._columns[1:])])
        self._file.write(line.getvalue())  # whole lines only
        self._file.flush()
        self._last_step = step

    def amend(self, step: int, numbers: Mapping[str, float]) -> dict[str, float]:
        if step != self._last_step:
            self.write(step, numbers)
            return dict(numbers)
        row = self._change(numbers)
        return {name: float(text) for name, text in row.items() if text and name != _STEP}

    def _change(self, numbers: Mapping[str, float], *, amend: bool = True) -> dict[str, str]:
        """Write the file anew with columns for ``numbers``, and these in its last row; that row."""
        self._file.close()
        _, rows = _read_csv(self._path)
        if amend:
            rows[-1].update((name, str(number)) for name, number in numbers.items())
        self._columns += [name for name in numbers if name not in self._columns]
        self._rewrite(rows)
        self._file = self._append()
        return rows[-1] if rows else {}

    def _append(self) -> TextIO:
        return open(self._path, "a", newline="", encoding="utf-8")

    def _rewrite(self, rows: Sequence[Mapping[str, str]]) -> None:
        with atomic_write(self._path, "w") as file:
            writer = csv.DictWriter(file, self._columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    def close(self) -> None:
        self._file.close()


def _read_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a table that was written here; a last line that was cut off is left out."""
    with open(path, newline="", encoding="utf-8") as file:
        text = file.read()
    lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))
    if not lines or not lines[0] or lines[0][0] != _STEP:
        raise ValueError(f"{path} is not a table of metrics: its first column is not {_STEP!r}; take another folder")
    return lines[0], [dict(zip(lines[0], line)) for line in lines[1:]]


class _RunHandler(logging.Handler):
    """Text messages of one run, to its ``log.txt`` and to the console."""

    def __init__(self, path: Path, console: bool) -> None:
        super().__init__()
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115  (open until `close`)
        self._console = console
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))

    def attach(self) -> None:
        """Receive messages; without a level of the user's choice, from INFO up."""
        others = _open_runs()
        self._level_before: int = others[0]._level_before if others else _package_log.level
        if _package_log.level == logging.NOTSET:
            _package_log.setLevel(logging.INFO)
        _package_log.addHandler(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is this run's: marked as such, or unmarked while no run was opened later."""
        owner = getattr(record, "run_handler", None)
        ours = _open_runs()[-1:] == [self] if owner is None else owner is self
        return ours and bool(super().filter(record))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._file.write(f"{self.format(record)}\n")
            self._file.flush()
            if self._console:
                level = "" if record.levelno < logging.WARNING else f"{record.levelname}: "
                _show(f"{level}{record.getMessage()}")
        # A full disk, arguments that do not fit, or a signal that came while this was written: must not end the run.
        except (OSError, ValueError, TypeError, RuntimeError):
            self.handleError(record)

    def close(self) -> None:
        _package_log.removeHandler(self)
        if not _open_runs():
            _package_log.setLevel(self._level_before)
        self._file.close()
        super().close()


def _open_runs() -> list[_RunHandler]:
    return [handler for handler in _package_log.handlers if isinstance(handler, _RunHandler)]


# ---------------------------------------------------------------- console


def format_table(step: int, metrics: Mapping[str, float], width: int = 120) -> str:
    """Metrics as aligned text at most ``width`` letters wide, a paragraph for each group (what stands before "/")."""
    groups: dict[str, list[tuple[str, str]]] = {"": []}
    for name, value in metrics.items():
        group, _, short = name.rpartition("/")
        groups.setdefault(group, []).append((short, format_number(value)))
    cells = [cell for group in groups.values() for cell in group]
    margin = max((len(group) for group in groups), default=0) + 2
    name_width = max((len(name) for name, _ in cells), default=0)
    text_width = max([9, *(len(text) for _, text in cells)])
    gap = 4
    per_line = max(1, (width - margin + gap) // (name_width + 1 + text_width + gap))
    title = f"-- step {step:,} "
    lines = [title.ljust(min(width, margin + per_line * (name_width + 1 + text_width + gap) - gap), "-")]
    for group, members in groups.items():
        texts = [f"{name:<{name_width}} {text:>{text_width}}" for name, text in members]
        for start in range(0, len(texts), per_line):
            label = group if start == 0 else ""
            lines.append(f"{label:<{margin}}{(' ' * gap).join(texts[start : start + per_line])}")
    return "\n".join(lines)


class _Lines:
    """Chosen metrics as one line per step, under titles that come again on every screen."""

    _LINES_PER_TITLE = 25
    _WIDTH = 11

    def __init__(self, columns: Mapping[str, str]) -> None:
        self._columns = columns
        self._count = 0

    def format(self, step: int, metrics: Mapping[str, float]) -> str:
        cells = [f"{step:,}"]
        cells += [format_number(metrics[name]) if name in metrics else "" for name in self._columns.values()]
        line = "".join(f"{cell:>{self._WIDTH}}" for cell in cells)
        if self._count % self._LINES_PER_TITLE == 0:
            line = "".join(f"{title:>{self._WIDTH}}" for title in ("step", *self._columns)) + "\n" + line
        self._count += 1
        return line


def format_number(value: float) -> str:
    """A number in at most nine letters or so: four digits that matter, whole numbers in groups of three."""
    if not math.isfinite(value):
        return str(value)
    if value == 0 or (float(value).is_integer() and abs(value) < 1e9):
        return f"{int(value):,}"
    if abs(value) >= 1e9 or abs(value) < 1e-3:
        return f"{value:.2e}"
    if abs(value) >= 1e4:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 3 - math.floor(math.log10(abs(value))))}f}"


def _show(text: str) -> None:
    with contextlib.suppress(OSError):  # whoever read this is gone, or the terminal: the run goes on
        sys.stdout.write(f"{_CLEAR_LINE if sys.stdout.isatty() else ''}{text}\n")
        sys.stdout.flush()


class ProgressBar:
    """How far a run is, how fast it goes and how long it will take, on stderr where that is a terminal.

    Args:
        total: environment steps of the whole run.
        title: shown above the bar.
        initial: steps done by the run that this one resumes.
        quiet: show nothing.
    """

    _INTERVAL_SECONDS = 0.5
    _TEXT_WIDTH = 64

    def __init__(self, total: int, title: str = "", *, initial: int = 0, quiet: bool = False) -> None:
        self._total, self._initial = total, initial
        self._started = time.monotonic()
        self._next = self._started
        self._bar: Any = None
        if quiet or initial >= total or not sys.stderr.isatty():
            return
        import pyprind

        width = shutil.get_terminal_size((120, 24)).columns - self._TEXT_WIDTH - len("0% [] 100% | Item ID: ")
        # pyprind's own time left would take the resumed run's steps for this one's: the text says it instead.
        width = max(5, min(30, width))
        self._bar = pyprind.ProgBar(total, title=title, stream=sys.stderr, track_time=False, width=width)
        self._bar.cnt = initial

    def update(self, count: int, note: Callable[[], str] = str) -> None:
        """Show ``count`` steps done (of the whole run) and what ``note()`` says, unless the bar was drawn just now."""
        now = time.monotonic()
        if self._bar is None or not self._bar.active or (now < self._next and count < self._total):
            return
        self._next = now + self._INTERVAL_SECONDS
        said = note()
        rate = (count - self._initial) / max(now - self._started, 1e-9)
        left = _duration((self._total - count) / rate) if rate > 0 else "?"
        text = f"{count:,} steps, {rate:,.0f}/s, {left} left{', ' * bool(said)}{said}"
        step = min(count, self._total) - self._bar.cnt
        try:
            self._bar.update(step, item_id=text.ljust(self._TEXT_WIDTH), force_flush=True)
        except OSError:  # the terminal is gone
            self._bar = None

    def close(self) -> None:
        """Leave the bar's line as it is and go to the next.  May be called twice."""
        if self._bar is not None and self._bar.active:
            self._bar.active = False
            with contextlib.suppress(OSError):
                sys.stderr.write("\n")
                sys.stderr.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
