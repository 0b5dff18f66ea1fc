"""What every benchmark prints and writes: rows of a figure, what it is held against, and the ratio."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

_NUM_RESAMPLES = 10_000
_CONFIDENCE = 0.95
_NUMERIC_COLUMNS = {3, 5, 6, 7}


@dataclass(frozen=True)
class Row:
    """One figure.  Above 1 is always better for us, whatever the unit.

    ``ratio`` is the median of ratios taken within rounds, not the ratio of the medians; ``low`` and ``high`` are the
    95 % bootstrap interval of that median, NaN where there was one round only.
    """

    workload: str
    name: str
    unit: str
    ours: float
    against: str  # a peer with its version, or "limit"
    theirs: float
    ratio: float
    low: float = math.nan
    high: float = math.nan
    ours_range: tuple[float, float] | None = None
    theirs_range: tuple[float, float] | None = None


def compare_rounds(
    workload: str,
    name: str,
    unit: str,
    ours: Sequence[float],
    against: str,
    theirs: Sequence[float],
    *,
    less_is_better: bool = False,
) -> Row:
    """The row of two contestants that were measured in the same rounds."""
    ratios = [b / a if less_is_better else a / b for a, b in zip(ours, theirs)]
    low, high = bootstrap_interval(ratios)
    ranges = ((min(ours), max(ours)), (min(theirs), max(theirs)))
    medians = statistics.median(ours), statistics.median(theirs)
    return Row(
        workload,
        name,
        unit,
        medians[0],
        against,
        medians[1],
        statistics.median(ratios),
        low,
        high,
        ranges[0],
        ranges[1],
    )


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the median (Efron 1979); NaN for fewer than two values.

    With five values its ends are near the least and the greatest of them: read it as a range, not as a guarantee.
    """
    if len(values) < 2:
        return math.nan, math.nan
    rng = np.random.default_rng(0)  # the same rows give the same interval
    medians = np.median(rng.choice(np.asarray(values, float), (_NUM_RESAMPLES, len(values))), axis=1)
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(medians, (tail, 1 - tail))
    return float(low), float(high)


def show(rows: Sequence[Row]) -> None:
    """Print a table, in Markdown."""
    print("\n".join(table(rows)), flush=True)


def table(rows: Sequence[Row]) -> list[str]:
    """The lines of a table in Markdown, its columns aligned."""
    header = ("workload", "name", "unit", "ours", "against", "theirs", "ratio", "95 % interval")
    cells = [header] + [
        (
            r.workload,
            r.name,
            r.unit,
            _figure(r.ours, r.ours_range),
            r.against,
            _figure(r.theirs, r.theirs_range),
            f"{r.ratio:.2f}",
            "" if math.isnan(r.low) else f"{r.low:.2f} to {r.high:.2f}",
        )
        for r in rows
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    lines = [
        " | ".join(f"{t:>{w}}" if i in _NUMERIC_COLUMNS else f"{t:<{w}}" for i, (t, w) in enumerate(zip(line, widths)))
        for line in cells
    ]
    rule = "|".join("-" * (w + 1) + (":" if i in _NUMERIC_COLUMNS else "-") for i, w in enumerate(widths))
    return [f"| {lines[0]} |", f"|{rule}|", *(f"| {line} |" for line in lines[1:])]


def _figure(value: float, bounds: tuple[float, float] | None) -> str:
    def text(number: float) -> str:
        return f"{number:,.0f}" if abs(number) >= 100 else f"{number:,.1f}"

    if bounds is None or bounds[0] == bounds[1]:
        return text(value)
    return f"{text(value)} [{text(bounds[0])}-{text(bounds[1])}]"


def write(rows: Sequence[Row], path: Path | None) -> None:
    """Write the rows as a JSON list, if a file was asked for.  NaN is null there."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([to_json(row) for row in rows], indent=1) + "\n")


def read(path: Path) -> list[Row]:
    """The rows of a file that `write` made.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        return [from_json(entry) for entry in json.loads(path.read_text())]
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not hold rows, as --json writes them: {error}") from error


def to_json(row: Row) -> dict[str, object]:
    """A row as plain data."""
    entries = asdict(row).items()
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in entries}


def from_json(entry: dict[str, object]) -> Row:
    """The row that `to_json` was given."""
    numbers = {key: math.nan for key in ("ours", "theirs", "ratio", "low", "high") if entry.get(key) is None}
    ranges = {key: tuple(value) for key in ("ours_range", "theirs_range") if isinstance(value := entry.get(key), list)}
    return Row(**{**entry, **numbers, **ranges})  # type: ignore[arg-type]


def describe_machine() -> str:
    """Processor, cores and versions, for the head of a table."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "numpy", "gymnasium", "mujoco"))
    return f"{model}, {cores} cores; Python {platform.python_version()}, {versions}"
