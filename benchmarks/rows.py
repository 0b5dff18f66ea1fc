"""What every benchmark prints and writes: rows of a figure, what it is held against, and the ratio."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One figure.  ``ratio`` is the median of ratios taken within rounds, not the ratio of the medians."""

    workload: str
    name: str
    unit: str
    ours: float
    against: str  # a peer with its version, or "limit"
    theirs: float
    ratio: float


def show(rows: Sequence[Row]) -> None:
    """Print a table, in Markdown."""
    print("\n".join(table(rows)))


def table(rows: Sequence[Row]) -> list[str]:
    """The lines of a table in Markdown, its columns aligned."""
    header = ("workload", "name", "unit", "ours", "against", "theirs", "ratio")
    cells = [header] + [
        (r.workload, r.name, r.unit, f"{r.ours:,.0f}", r.against, f"{r.theirs:,.0f}", f"{r.ratio:.2f}") for r in rows
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    numbers = {3, 5, 6}
    lines = [
        " | ".join(f"{text:>{w}}" if i in numbers else f"{text:<{w}}" for i, (text, w) in enumerate(zip(line, widths)))
        for line in cells
    ]
    rule = "|".join("-" * (w + 1) + (":" if i in numbers else "-") for i, w in enumerate(widths))
    return [f"| {lines[0]} |", f"|{rule}|", *(f"| {line} |" for line in lines[1:])]


def write(rows: Sequence[Row], path: Path | None) -> None:
    """Write the rows as a JSON list, if a file was asked for."""
    if path is not None:
        path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


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
